"""Small families of networks on images of digits, and simulated recordings that one of them generates: the truth is known."""

from repscope.worlds.brain.images import Digits, digits
from repscope.worlds.brain.networks import FAMILIES, LAYERS, Shape, features, initial, loss_of
from repscope.worlds.brain.recordings import Simulation, simulate, simulate_unrelated

__all__ = [
    "FAMILIES",
    "LAYERS",
    "Digits",
    "Shape",
    "Simulation",
    "digits",
    "features",
    "initial",
    "loss_of",
    "simulate",
    "simulate_unrelated",
]
