"""LoRA adapters (PEFT folders) as checkpoints: the tuned weights are made a part at a time, and never written.

1. The folder is read by `models.loading.lora`, which refuses what is not W + s B A.
2. Every other tensor of the file must replace one of the base's (`modules_to_save`, trained biases, saved embeddings). PEFT ignores
   unknown keys silently; here they are an error.
3. Whether W is stored transposed is read from the type of the module: GPT-2 uses Conv1D. `fan_in_fan_out` in the file is that of
   the module that PEFT wrapped last.
4. Tied weights: an adapter on one end changes that end alone, as in PEFT before merging. Both ends are then tensors of their own;
   if neither is changed, they are one.

The modules are those of the network that the base's configuration names, made on the meta device, without weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError
from repscope.models.loading.lora import WEIGHTS, LoraFolder, LoraModule, is_adapter, named_base, settings_of
from repscope.trace.drift.skeletons import Skeleton, skeleton
from repscope.trace.drift.stored import Checkpoint, FileCheckpoint, Renamed, Stored, Values

__all__ = ["AdaptedCheckpoint", "Factors", "adapted", "base_of", "is_adapter"]


@dataclass(frozen=True)
class Factors:
    """A change s B A of a weight, as stored there.

    b: (row, rank). a: (rank, column). scale: s.
    """

    b: Float[np.ndarray, "row rank"]
    a: Float[np.ndarray, "rank column"]
    scale: float

    def rows(self, first: int, last: int) -> Float[np.ndarray, "row column"]:
        """Rows first … last − 1 of the change, in float32."""
        return np.asarray((self.b[first:last] @ self.a) * np.float32(self.scale))


@dataclass(frozen=True)
class AdaptedCheckpoint:
    """A base with a LoRA adapter merged into it as it is read.

    label: for messages. root: the base, under the names of its network. factors: tensor → its change. replaced: tensor → its name
    in `adapter`, which holds it whole. stored: name → shape and type; a changed tensor is float32, not rounded to the base's type.
    """

    label: str
    root: Checkpoint
    adapter: FileCheckpoint
    factors: Mapping[str, Factors]
    replaced: Mapping[str, str]
    stored: Mapping[str, Stored] = field(init=False)

    def __post_init__(self) -> None:
        stored = {name: Stored(s.shape, "float32") if name in self.factors else s for name, s in self.root.stored.items()}
        stored |= {name: self.adapter.stored[key] for name, key in self.replaced.items()}
        object.__setattr__(self, "stored", stored)

    def read(self, name: str, first: int, last: int) -> Values:
        """See `Checkpoint`; of changed matrices, whole rows."""
        if name not in self.factors:
            return self._unchanged(name, first, last)
        columns = self.stored[name].shape[1]
        if first % columns or last % columns:
            raise ValueError("a matrix that an adapter changes is read by rows")
        change = self.factors[name].rows(first // columns, last // columns).ravel()
        return np.asarray(change + self._unchanged(name, first, last), dtype=np.float32)

    def _unchanged(self, name: str, first: int, last: int) -> Values:
        if name in self.replaced:
            return self.adapter.read(self.replaced[name], first, last)
        return self.root.read(name, first, last)

    def close(self) -> None:
        """Close the files."""
        self.adapter.close()


def base_of(folder: Path) -> str:
    """The base that an adapter names: a folder or a hub id.

    Raises
    ------
    UserError
        When it names none.
    """
    named = named_base(settings_of(folder))
    if not named:
        raise UserError(f"{folder} holds an adapter that names no base model; give its base before it.")
    return named


def adapted(folder: Path, base: Path) -> AdaptedCheckpoint:
    """The checkpoint of an adapter's folder on the base in a folder.

    Raises
    ------
    UserError
        See the module; and when files are missing or the adapter does not fit the base.
    """
    lora = LoraFolder.open(folder)
    if not base.is_dir():
        raise UserError(f"{folder} holds an adapter, and {base} has no config.json for it; give the base as a folder or a hub id.")
    adapter, network = FileCheckpoint(folder / WEIGHTS, computed=True), skeleton(base)
    root: Checkpoint = FileCheckpoint(base)
    names = network.names_in(root.stored, str(base))
    replaced: dict[str, str] = {}
    for key, plain in lora.others.items():
        if plain not in names:
            raise UserError(f"{folder} holds {key}: no tensor of {base} and no LoRA factor; is this adapter of another base?")
        replaced[plain] = key
    changed = {*(f"{module}.weight" for module in lora.modules), *replaced}
    names = {n: old for n, old in names.items() if n not in network.ties or {n, network.ties[n]} & changed}
    root = Renamed(root, names)
    made = {f"{name}.weight": _factors(name, module, adapter, root, network, folder) for name, module in lora.modules.items()}
    for name, key in replaced.items():
        if (have := adapter.stored[key].shape) != (want := root.stored[name].shape):
            raise UserError(f"{name} is {list(have)} in {folder} and {list(want)} in {base}; is this adapter of another base?")
    return AdaptedCheckpoint(str(folder), root, adapter, made, replaced)


def _factors(module: str, lora: LoraModule, adapter: FileCheckpoint, root: Checkpoint, network: Skeleton, folder: Path) -> Factors:
    name = f"{module}.weight"
    if name not in root.stored:
        raise UserError(f"{folder} changes {name}, which its base {root.label} does not have; is this adapter of another base?")
    a, b = (_whole(adapter, key) for key in (lora.a, lora.b))
    if lora.embedding or network.transposed(module):
        b, a = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    if (b.shape[0], a.shape[1]) != root.stored[name].shape:
        raise UserError(
            f"{folder} changes {name} by a matrix of {b.shape[0]} × {a.shape[1]}, and it is "
            f"{' × '.join(map(str, root.stored[name].shape))} in {root.label}; is this adapter of another base?"
        )
    return Factors(b, a, lora.scale)


def _whole(adapter: FileCheckpoint, key: str) -> Float[np.ndarray, "row column"]:
    stored = adapter.stored[key]
    return np.array(adapter.read(key, 0, stored.entries), dtype=np.float32).reshape(stored.shape)
