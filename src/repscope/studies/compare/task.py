"""What the steps of `compare` share: the pairs of checkpoints, the networks, the prompts."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from repscope.data.contrasts import contrast
from repscope.data.contrasts.lookup import contrast_names
from repscope.data.evaluation import read_texts
from repscope.data.requests import HELD, SEEN
from repscope.errors import UserError
from repscope.models.engine.fingerprint import digests_of
from repscope.models.language import LanguageModel
from repscope.models.loading.lora import CONFIG
from repscope.studies.compare.options import CompareOptions
from repscope.trace.drift.networks import networks, tuned_network
from repscope.trace.drift.pair import Pair, check_tokenizers

_LEAST = 16  #: prompts
_SINGLE = "single files hold weights and no configuration, so only weights are compared; give folders for the rest."


@dataclass
class CompareTask:
    """The checkpoints of one run.

    options: as they run. names: of base, tuned checkpoint and, if given, the noise floor. pair: base and tuned. floor: base and the
    other tuned checkpoint.
    """

    options: CompareOptions
    names: tuple[str, ...]
    pair: Pair
    floor: Pair | None
    notes: tuple[str, ...] = field(default=())

    @property
    def runs_networks(self) -> bool:
        """Whether texts are read: both checkpoints are folders with a configuration."""
        return not self.options.weights_only and all(f is not None and f.is_dir() for f in self.pair.folders)

    @property
    def folders(self) -> tuple[Path | None, ...]:
        """Of all checkpoints; None for one in memory."""
        return (*self.pair.folders, *(self.floor.folders[1:] if self.floor else ()))

    @cached_property
    def networks(self) -> tuple[LanguageModel, LanguageModel, LanguageModel | None]:
        """Base, tuned and, if there is a noise floor, the other tuned network."""
        o = self.options
        base, tuned = networks(self.pair, device=o.device, dtype=o.dtype)
        for lm in (base, tuned):
            if not lm.model.can_generate():
                raise UserError(f"{lm.name} does not predict next tokens; compare its weights with --weights-only.")
        other = None if self.floor is None else tuned_network(self.floor, base, device=o.device, dtype=o.dtype)
        return base, tuned, other

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, drawn with the seed: the user's, or everyday requests and the texts of all built-in contrasts."""
        o = self.options
        if o.data is None:
            poles = [contrast(name) for name in contrast_names()]
            texts = (*SEEN, *HELD, *(text for held in poles for text in (*held.positive, *held.negative)))
        else:
            texts = read_texts(Path(o.data).expanduser(), text=o.text, **o.how()).texts
        held = tuple(dict.fromkeys(texts))
        if len(held) < _LEAST:
            raise UserError(f"{o.data} has {len(held)} different prompts; give at least {_LEAST}.")
        order = np.random.default_rng(o.seed).permutation(len(held))[: o.prompts]
        return tuple(held[i] for i in order)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all weights and configurations, those of the noise floor too: settings change what equal weights compute."""
        pairs = [pair for pair in (self.pair, self.floor) if pair is not None]
        files = dict.fromkeys(f for pair in pairs for f in pair.files)
        lines = [f"{file.name}\0{name}\0{line}" for file in files for name, line in sorted(digests_of([file]).items())]
        homes = dict.fromkeys([*(f for pair in pairs for f in pair.folders if f is not None), *(file.parent for file in files)])
        settings = [home / name for home in homes for name in ("config.json", CONFIG) if (home / name).is_file()]
        lines += [f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in settings]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def compare_task(o: CompareOptions) -> CompareTask:
    """Open the checkpoints.

    Raises
    ------
    UserError
        See `trace.drift.pair`; and for another number of checkpoints than two.
    """
    given = o.checkpoints
    if not 1 <= len(given) <= 2:
        raise UserError(f"{len(given)} checkpoints were given; give the base and the tuned one, or a LoRA folder alone.")
    if o.weights_only and o.data is not None:
        raise UserError("--data does not apply to --weights-only, which reads no texts; omit one of them.")
    base, tuned = (None, given[0]) if len(given) == 1 else given
    pair = Pair.open(base, tuned)
    floor = None if o.floor is None else Pair.open(base or str(pair.folders[0]), o.floor)
    for one in (pair, floor):
        if one is not None:
            check_tokenizers(one)
    if floor is not None and floor.folders[1] in pair.folders:
        same = "base" if floor.folders[1] == pair.folders[0] else "tuned checkpoint"
        raise UserError(f"--floor {o.floor} is the {same} itself; give a checkpoint that was tuned with another seed.")
    names = tuple(_name(f) for f in (*pair.folders, *([floor.folders[1]] if floor else [])))
    task = CompareTask(o, names, pair, floor)
    if not task.runs_networks and not o.weights_only:
        if o.data is not None:
            raise UserError(f"{pair.folders[1]} has no configuration, so no text can be read; omit --data, or give folders.")
        task.notes = (_SINGLE[:1].upper() + _SINGLE[1:],)
    return task


def _name(path: Path | None) -> str:
    if path is None:
        return "in memory"
    return f"{path.parent.name}/{path.name}" if path.suffix == ".safetensors" else path.name
