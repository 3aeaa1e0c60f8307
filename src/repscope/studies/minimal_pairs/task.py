"""What the steps of `minimal-pairs` share: the pairs, and the model or the series of its checkpoints."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from repscope.data.minimal_pairs import MinimalPairs, read_pairs
from repscope.errors import UserError
from repscope.models.checkpoints import TABLE, CheckpointSet
from repscope.models.engine.fingerprint import digests_of
from repscope.models.loading.adapters import WEIGHTS, Adapter, is_adapter
from repscope.models.loading.checkpoint_files import Weights, adapter_base
from repscope.models.loading.folders import weight_files
from repscope.models.loading.sources import load
from repscope.results import records
from repscope.studies.minimal_pairs.options import MinimalPairsOptions
from repscope.studies.run.study import Setup
from repscope.trace.streaming import slots_of

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_NUMBER = re.compile(r"(\d+)\D*$")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a series. name: as in tables. step: of training. run: that it belongs to. source: folder or hub id.
    revision: of a hub id."""

    name: str
    step: int
    run: str
    source: str
    revision: str | None = None

    def fingerprint(self) -> str:
        """Digest of a folder's weights; a hub id's revision stands for itself."""
        if self.revision is not None:
            return f"{self.source}@{self.revision}"
        home = Path(self.source)
        base = adapter_base(home) if is_adapter(home) else home
        digests = digests_of(weight_files(base, str(base)))
        if base != home:
            digests |= {f"adapter {k}": v for k, v in digests_of([home / WEIGHTS]).items()} | {
                "scale": str(Adapter.open(home).scale)
            }
        return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(digests.items())).encode()).hexdigest()


def pairs_of(setup: Setup[MinimalPairsOptions]) -> MinimalPairs:
    """The pairs that are scored, read once per run."""
    return setup.once("pairs", lambda: _read(setup.options))


def _read(o: MinimalPairsOptions) -> MinimalPairs:
    columns = {"good": o.good, "bad": o.bad, "phenomenon": o.phenomenon}
    read = generated(6, o.seed) if o.file is None else read_pairs(o.file, **columns, **o.how())
    return read.chosen(o.phenomena, o.pairs, o.seed)


def generated(count: int, seed: int) -> MinimalPairs:
    """Pairs of the grammar of `worlds.grammar`, for `--tiny`."""
    from repscope.worlds.grammar import ENGLISH

    kept: dict[tuple[str, str], str] = {}
    for name, phenomenon in ENGLISH.phenomena.items():
        rng = np.random.default_rng([seed, sum(map(ord, name))])
        for _ in range(count):
            good, bad = (" ".join(words) for words in phenomenon.pair(rng))
            kept.setdefault((good, bad), name)
    goods, bads = zip(*kept)
    return MinimalPairs("generated", goods, bads, tuple(kept.values()))


def series(o: MinimalPairsOptions) -> tuple[Checkpoint, ...]:
    """The checkpoints of a series, by run and step; empty for one model.

    Raises
    ------
    UserError
        When a set of checkpoints is broken.
    """
    if o.revisions:
        return tuple(Checkpoint(r, _number(r, i), o.model, o.model, r) for i, r in enumerate(o.revisions))
    home = Path(o.model).expanduser()
    if not home.is_dir() or (home / "config.json").is_file():
        return ()
    if (home / TABLE).is_file():
        rows = records(CheckpointSet.open(home).table.sort_values(["run", "step"], kind="stable"))
        several = len({row["run"] for row in rows}) > 1
        return tuple(
            Checkpoint(
                f"{row['run']}, step {row['step']}" if several else f"step {row['step']}",
                int(row["step"]),
                row["run"],
                str(row["path"]),
            )
            for row in rows
        )
    held = [p for p in home.iterdir() if (p / "config.json").is_file() or is_adapter(p)]
    folders = sorted(held, key=lambda p: (_number(p.name, 0), p.name))
    if not folders:
        return ()  # `load` says what is wrong with it
    return tuple(Checkpoint(p.name, _number(p.name, i), home.name, str(p)) for i, p in enumerate(folders))


def network(setup: Setup[MinimalPairsOptions], one: Checkpoint | None) -> "LanguageModel":
    """The model, or one checkpoint of the series; one at a time is in memory."""
    if one is None:
        return setup.network
    o = setup.options
    if Path(one.source).is_file():
        raise UserError(f"{one.source} holds weights without a configuration, so it reads no sentences; give folders.")
    if one.revision is None and is_adapter(Path(one.source)):
        return _merged(load(str(adapter_base(Path(one.source))), device=o.device, dtype=o.dtype), one)
    return load(one.source, revision=one.revision, device=o.device, dtype=o.dtype)


@torch.no_grad()
def _merged(base: "LanguageModel", one: Checkpoint) -> "LanguageModel":
    """The base with a LoRA adapter merged into its weights."""
    from repscope.models.language import LanguageModel

    weights = Weights(Path(one.source))
    for name, place in slots_of(base.model, weights).items():
        place.copy_(weights[name])
    weights.close()
    return LanguageModel(base.model, base.tokenizer, one.name)


def _number(name: str, otherwise: int) -> int:
    found = _NUMBER.search(name)
    return int(found.group(1)) if found else otherwise
