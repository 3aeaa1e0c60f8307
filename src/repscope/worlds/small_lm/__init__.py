"""Small causal language models, many at once: every weight has a leading axis of networks."""

from repscope.worlds.small_lm.files import huggingface, write_folder
from repscope.worlds.small_lm.training import LossOf, Trained, Training, next_token_loss, train, train_by

__all__ = ["LossOf", "Trained", "Training", "huggingface", "next_token_loss", "train", "train_by", "write_folder"]
