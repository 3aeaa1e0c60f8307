"""Training of sparse autoencoders, transcoders and crosscoders: `train(source, recipe, sites)`."""

from repscope.read.sae.training.architectures import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from repscope.read.sae.training.batches import TensorRows
from repscope.read.sae.training.crosscoder import Crosscoder
from repscope.read.sae.training.recipe import Recipe
from repscope.read.sae.training.trainer import Trained, Trainer, train

__all__ = [
    "BatchTopK",
    "Crosscoder",
    "Gated",
    "JumpReLU",
    "Matryoshka",
    "ReLU",
    "Recipe",
    "TensorRows",
    "TopK",
    "Trained",
    "Trainer",
    "train",
]
