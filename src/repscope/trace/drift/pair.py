"""Two checkpoints of one architecture, tensor by tensor.

1. Each is a Hugging Face folder, a hub id, an alias, a `.gguf` file, one safetensors file, or a LoRA folder, whose base is the
   other checkpoint or, if there is none, the one that it names (`adapters`).
2. Refused, in one sentence: other architectures, other tokenizers, tensors that only one of them has, other shapes, damaged
   files. Not refused: a prefix of all names that only one of them has, and copies of tied weights that only one of them stores.
3. A pair gives one tensor after the other, and of each tensor a part after the other: x of the base, y of the tuned checkpoint and
   the change d = y − x. A checkpoint and itself are a pair like any other.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repscope.errors import UserError
from repscope.models.loading.sources import folder_of, tokenizer_of
from repscope.trace.drift.adapters import AdaptedCheckpoint, Factors, adapted, base_of, is_adapter
from repscope.trace.drift.entrywise import PART
from repscope.trace.drift.stored import Checkpoint, FileCheckpoint, Renamed, Stored, Values, closing, files_of, in_memory
from repscope.untrusted import parse_json

#: matrices that files may leave out or store twice where they are tied to the embedding
_TIED = ("lm_head.weight", "embed_out.weight", "decoder.weight")
#: keys of config.json that change what a network computes from the same tensors
_SHAPING = (
    *("model_type", "hidden_act", "hidden_activation", "activation_function", "tie_word_embeddings", "use_parallel_residual"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    *("num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim", "sliding_window", "layer_types"),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_pct", "rotary_dim"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "logit_scale", "num_experts_per_tok"),
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_SAMPLE = (
    "The capital of France is Paris.",
    "def f(x):\n    return x**2 + 1\n",
    "Ça coûte 3,50 €, naïve façade – 你好，世界!",
    "  two spaces\tand a tab, 1234567890",
)


@dataclass(frozen=True)
class TensorPair:
    """One tensor of both checkpoints.

    name: in the base. base, tuned: shape and type as stored. same: whether it is known to be one and the same. factors: of a change
    by an adapter.
    """

    name: str
    base: Stored
    tuned: Stored
    same: bool
    factors: Factors | None
    source: "Pair"

    def parts(self, most: int = PART) -> Iterator[tuple[Values, Values, Values | None]]:
        """Consecutive entries of base and tuned checkpoint, and their change where it is known better than by the difference.

        Parts of matrices that an adapter may change are whole rows. All are valid until the next part. The second is the first
        where nothing changed.
        """
        step, total = most, self.base.entries
        columns = self.base.shape[1] if len(self.base.shape) == 2 else 1
        if any(isinstance(side, AdaptedCheckpoint) for side in (self.source.base, self.source.tuned)):
            step = max(1, most // max(columns, 1)) * columns
        base, tuned = self.source.base, self.source.tuned
        for first in range(0, total, max(step, 1)):
            last = min(first + step, total)
            x = base.read(self.name, first, last)
            if self.factors is not None:
                d = self.factors.rows(first // columns, last // columns).ravel()
                yield x, np.asarray(x + d, dtype=np.float32), d
            else:
                yield x, x if self.same else tuned.read(self.name, first, last), None

    def rows(self, most: int = PART) -> Iterator[np.ndarray]:
        """The change as consecutive rows of a matrix."""
        columns = self.base.shape[1]
        step = max(1, most // max(columns, 1))
        for first in range(0, self.base.shape[0], step):
            last = min(first + step, self.base.shape[0])
            if self.factors is not None:
                yield self.factors.rows(first, last)
                continue
            x = self.source.base.read(self.name, first * columns, last * columns)
            y = x if self.same else self.source.tuned.read(self.name, first * columns, last * columns)
            yield (y - x).reshape(last - first, columns)


@dataclass(frozen=True)
class Pair:
    """A base and a tuned checkpoint. Make one with `open` or `of`.

    base, tuned: with the same names. notes: what was left out or cannot be told. folders: of base and tuned checkpoint, for the
    network and its tokenizer; None for tensors in memory. settings: keys by which their config.json differ, apart from the weights.
    """

    base: Checkpoint
    tuned: Checkpoint
    notes: tuple[str, ...] = ()
    folders: tuple[Path | None, Path | None] = (None, None)
    settings: tuple[str, ...] = ()

    @classmethod
    def open(cls, base: str | Path | None, tuned: str | Path) -> "Pair":
        """Open two checkpoints.

        Parameters
        ----------
        base
            Folder, hub id, alias, `.gguf` or safetensors file, or LoRA folder; None for the base that a LoRA folder names.
        tuned
            The same, a LoRA folder being merged into `base`.

        Raises
        ------
        UserError
            See the module.
        """
        after = _located(tuned)
        if base is None:
            if not is_adapter(after):
                raise UserError(f"{tuned} is no adapter, so it names no base; give the base and the tuned checkpoint.")
            before = _base_of(after)
        else:
            before = _located(base)
        _same_architecture(before, after)
        root = _base_of(before) if is_adapter(before) else before
        first: Checkpoint = adapted(before, root) if is_adapter(before) else FileCheckpoint(before)
        second: Checkpoint = adapted(after, root) if is_adapter(after) else FileCheckpoint(after)
        if isinstance(second, AdaptedCheckpoint) and not isinstance(first, AdaptedCheckpoint):
            first = second.root
        notes = _differing_settings(before, after)
        pair = _paired(first, second, notes)
        return replace(pair, folders=(before, after), settings=_differing(before, after))

    @classmethod
    def of(cls, base: "Mapping[str, Tensor] | Checkpoint", tuned: "Mapping[str, Tensor] | Checkpoint") -> "Pair":
        """Pair weights that are in memory.

        Raises
        ------
        UserError
            When names or shapes differ.
        """
        return _paired(in_memory(base, "the base"), in_memory(tuned, "the tuned checkpoint"), ())

    @property
    def files(self) -> list[Path]:
        """The weight files of both, each once."""
        found: dict[Path, None] = {}
        for checkpoint in (self.base, self.tuned):
            for part in _unwrapped(checkpoint):
                found |= dict.fromkeys(part.files if isinstance(part, FileCheckpoint) else ())
        return list(found)

    def tensors(self) -> Iterator[TensorPair]:
        """Tensors of weights in the order of the base, none of them read yet.

        Raises
        ------
        UserError
            For whole numbers that differ, which are no weights or packed ones.
        """
        for name, stored in self.base.stored.items():
            tuned = self.tuned.stored[name]
            if not (stored.floating and tuned.floating):
                self._equal(name, stored)
                continue
            factors, same = None, False
            if isinstance(self.tuned, AdaptedCheckpoint) and self.base is self.tuned.root:
                factors = self.tuned.factors.get(name)
                same = factors is None and name not in self.tuned.replaced
            yield TensorPair(name, stored, tuned, same, factors, self)

    def closing(self) -> AbstractContextManager[None]:
        """Close all files at the end of a block; a later read opens them again."""
        return closing(*_unwrapped(self.base), *_unwrapped(self.tuned))

    def _equal(self, name: str, stored: Stored) -> None:
        for first in range(0, stored.entries, PART):
            last = min(first + PART, stored.entries)
            if not np.array_equal(self.base.read(name, first, last), self.tuned.read(name, first, last)):
                raise UserError(
                    f"{name} holds whole numbers that differ between {self.base.label} and {self.tuned.label}, as in quantised "
                    "weights, which cannot be compared entry by entry; compare checkpoints in floating point."
                )


def check_tokenizers(pair: Pair) -> None:
    """Check that both checkpoints read texts alike; one without a tokenizer takes the other's.

    Raises
    ------
    UserError
        When they give other tokens.
    """
    folders = [f for f in pair.folders if f is not None and f.is_dir() and any((f / name).is_file() for name in TOKENIZERS)]
    if len(folders) < 2 or folders[0] == folders[1]:
        return
    ids = [[tokenizer_of(folder)(text)["input_ids"] for text in _SAMPLE] for folder in folders]
    if ids[0] != ids[1]:
        raise UserError(
            f"{folders[0]} and {folders[1]} tokenize texts differently, so the same row of their embeddings is not the same token; "
            "compare checkpoints with one tokenizer."
        )


def _located(model: str | Path) -> Path:
    path = Path(model).expanduser()
    if path.suffix == ".safetensors":
        files_of(path)
        return path.resolve()
    return path.resolve() if is_adapter(path) else folder_of(model)


def _base_of(adapter: Path) -> Path:
    named = base_of(adapter)
    for path in (Path(named).expanduser(), adapter / named):
        if path.is_dir():
            return path.resolve()
    try:
        return folder_of(named)
    except UserError as error:
        raise UserError(
            f"{adapter} holds an adapter of {named}, which cannot be opened ({error}); give its base before it."
        ) from error


def _unwrapped(checkpoint: Checkpoint) -> list[Checkpoint]:
    if isinstance(checkpoint, Renamed):
        return _unwrapped(checkpoint.checkpoint)
    if isinstance(checkpoint, AdaptedCheckpoint):
        return [*_unwrapped(checkpoint.root), checkpoint.adapter]
    return [checkpoint]


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        given = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({type(error).__name__}); copy it again.") from error
    return given if isinstance(given, dict) else {}


def _same_architecture(before: Path, after: Path) -> None:
    a, b = _settings(before).get("model_type"), _settings(after).get("model_type")
    if a and b and a != b:
        raise UserError(f"{before} is a {a} and {after} a {b}; give two checkpoints of one architecture.")


def _differing_settings(before: Path, after: Path) -> tuple[str, ...]:
    a, b = _settings(before), _settings(after)
    return tuple(
        f"{key} is {a[key]} in the base's config.json and {b[key]} in the tuned checkpoint's: they differ in more than weights."
        for key in _differing(before, after)
    )


def _differing(before: Path, after: Path) -> tuple[str, ...]:
    a, b = _settings(before), _settings(after)
    return tuple(key for key in _SHAPING if key in a and key in b and a[key] != b[key])


def _paired(base: Checkpoint, tuned: Checkpoint, notes: tuple[str, ...]) -> Pair:
    """The pair under common names, those of the base."""
    if isinstance(tuned, AdaptedCheckpoint) and base is tuned.root:
        return Pair(base, tuned, notes)
    spelt = {name: _spelt(name, tuned.stored) for name in base.stored}
    lost = [name for name, found in spelt.items() if found is None and not _copy(base, name)]
    extra = [n for n in tuned.stored if n not in {f for f in spelt.values() if f is not None} and not _copy(tuned, n)]
    if lost or extra:
        name, lacks, holds = (lost[0], tuned, base) if lost else (extra[0], base, tuned)
        raise UserError(
            f"{lacks.label} lacks {name}, which {holds.label} has ({len(lost) + len(extra)} such tensors in all); give two "
            "checkpoints of one architecture."
        )
    names = {name: found for name, found in spelt.items() if found is not None}
    for name, found in names.items():
        if base.stored[name].shape != tuned.stored[found].shape:
            a, b = (" × ".join(map(str, c.stored[n].shape)) or "a number" for c, n in ((base, name), (tuned, found)))
            raise UserError(f"{name} is {a} in {base.label} and {b} in {tuned.label}; give two checkpoints of one architecture.")
    if not names:
        raise UserError(f"{base.label} and {tuned.label} hold no tensors; check the files.")
    if list(names) != list(base.stored):
        base = Renamed(base, {name: name for name in names})
    if any(new != old for new, old in names.items()) or len(names) < len(tuned.stored):
        tuned = Renamed(tuned, names)
    return Pair(base, tuned, notes)


def _spelt(name: str, stored: Mapping[str, Stored]) -> str | None:
    """The name of a tensor in another file, which may have one prefix more or less."""
    if name in stored:
        return name
    inner = name.partition(".")[2]
    found = [n for n in (inner, *(f"{p}.{name}" for p in ("model", "transformer", "gpt_neox", "bert", "roberta"))) if n in stored]
    return found[0] if found and name not in _TIED else None


def _copy(checkpoint: Checkpoint, name: str) -> bool:
    """Whether an output matrix is a copy of another tensor of the file: tied weights under both names."""
    stored = checkpoint.stored
    if not name.endswith(_TIED):
        return False
    for other in stored:
        if other != name and stored[other] == stored[name] and len(stored[name].shape) == 2:
            step = max(1, PART // stored[name].shape[1]) * stored[name].shape[1]
            starts = range(0, stored[name].entries, step)
            ends = (min(first + step, stored[name].entries) for first in starts)
            if all(
                np.array_equal(np.array(checkpoint.read(name, a, b)), checkpoint.read(other, a, b)) for a, b in zip(starts, ends)
            ):
                return True
    return False
