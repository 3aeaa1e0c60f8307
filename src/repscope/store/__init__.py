"""Activation stores: activations of many tokens on disk, written by any number of workers and read in random order."""

from repscope.store.batches import Batch, Labels, Position
from repscope.store.harvesting import harvest
from repscope.store.reading import ActivationStore
from repscope.store.sequences import Sequences, cut
from repscope.store.writing import StoreWriter

__all__ = ["ActivationStore", "Batch", "Labels", "Position", "Sequences", "StoreWriter", "cut", "harvest"]
