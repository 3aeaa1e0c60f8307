"""The networks of a pair of checkpoints, loaded, an adapter merged into its base in memory.

1. A folder, hub id or `.gguf` file is loaded as by `rs.load`; a tuned checkpoint without a tokenizer takes that of its base.
2. For an adapter its base is loaded, and the tensors that it changes are replaced one after the other: tied ends become two tensors
   where it changes one of them.
"""

from pathlib import Path

import torch
from torch import nn

from repscope.errors import UserError
from repscope.models.engine.fingerprint import WeightSource, of_module
from repscope.models.language import LanguageModel
from repscope.models.loading.sources import load, load_parts
from repscope.trace.drift.adapters import AdaptedCheckpoint, is_adapter
from repscope.trace.drift.entrywise import PART
from repscope.trace.drift.pair import TOKENIZERS, Pair, check_tokenizers
from repscope.trace.drift.stored import Checkpoint, FileCheckpoint, Renamed, closing


def networks(pair: Pair, *, device: str | None = None, dtype: str = "float32") -> tuple[LanguageModel, LanguageModel]:
    """Both networks of a pair that was opened from folders.

    Parameters
    ----------
    pair
        The pair.
    device, dtype
        As for `rs.load`.

    Raises
    ------
    UserError
        For single files, which have no configuration; for tokenizers that differ; and as `rs.load`.
    """
    base = _network(pair.base, pair.folders[0], None, device, dtype)
    return base, tuned_network(pair, base, device=device, dtype=dtype)


def tuned_network(pair: Pair, base: LanguageModel, *, device: str | None = None, dtype: str = "float32") -> LanguageModel:
    """The tuned network of a pair whose base is loaded already; otherwise as `networks`."""
    check_tokenizers(pair)
    return _network(pair.tuned, pair.folders[1], base, device, dtype)


def _network(
    checkpoint: Checkpoint, folder: Path | None, base: LanguageModel | None, device: str | None, dtype: str
) -> LanguageModel:
    if folder is None or not folder.is_dir():
        raise UserError(
            f"{folder or 'A mapping of tensors'} has weights and no config.json, so no texts can be read; give a folder."
        )
    if not is_adapter(folder):
        own = any((folder / name).is_file() for name in TOKENIZERS)
        if own or base is None:
            return load(folder, device=device, dtype=dtype)
        parts, tokenizer, source = load_parts(folder, tokenizer=base.tokenizer, device=device, dtype=dtype)
        return LanguageModel(parts, tokenizer, name=source.name, source=source)
    assert isinstance(checkpoint, AdaptedCheckpoint)
    parts, tokenizer, source = load_parts(_root(checkpoint), device=device, dtype=dtype)
    _merge(parts, checkpoint)
    merged = WeightSource(folder.name, of_module(parts), f"{dtype}, adapter merged", None, None)
    return LanguageModel(parts, tokenizer, name=folder.name, source=merged)


def _root(checkpoint: AdaptedCheckpoint) -> Path:
    root: Checkpoint = checkpoint.root
    while isinstance(root, Renamed):
        root = root.checkpoint
    assert isinstance(root, FileCheckpoint)
    return root.path


@torch.no_grad()
def _merge(module: nn.Module, checkpoint: AdaptedCheckpoint) -> None:
    with closing(checkpoint, checkpoint.root):
        for name in [*checkpoint.factors, *checkpoint.replaced]:
            path, _, part = name.rpartition(".")
            place = getattr(owner := module.get_submodule(path), part)
            value, shape = torch.empty_like(place), checkpoint.stored[name].shape
            flat, row = value.view(-1), shape[-1] if len(shape) == 2 else 1
            step = max(1, PART // row) * row
            for first in range(0, flat.numel(), step):
                last = min(first + step, flat.numel())
                flat[first:last] = torch.from_numpy(checkpoint.read(name, first, last))
            setattr(owner, part, nn.Parameter(value, requires_grad=False))
