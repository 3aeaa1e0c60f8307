"""Small causal language models, many at once: every weight has a leading axis of networks."""

from repscope.worlds.small_lm.training import Trained, Training, train

__all__ = ["Trained", "Training", "train"]
