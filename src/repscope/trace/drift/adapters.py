"""LoRA adapters (PEFT folders) as checkpoints: the tuned weights are made a part at a time, and never written.

1. `adapter_config.json` must mean W + s B A: other methods and variants are refused by name, among them those that change the base
   at initialisation (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA): the file then holds a change of another matrix.
2. s = α / r, or α / √r with `use_rslora`; α and r of a module by `alpha_pattern` and `rank_pattern`, as PEFT matches them. r must
   be the number of rows of A in the file.
3. Every key of `adapter_model.safetensors` must be a LoRA factor of a module of the base, or replace one of its tensors
   (`modules_to_save`, trained biases, saved embeddings). PEFT ignores unknown keys silently; here they are an error.
4. Whether W is stored transposed is read from the type of the module: GPT-2 uses Conv1D. `fan_in_fan_out` in the file is that of
   the module that PEFT wrapped last.
5. Tied weights: an adapter on one end changes that end alone, as in PEFT before merging. Both ends are then tensors of their own;
   if neither is changed, they are one.

The modules are those of the network that the base's configuration names, made on the meta device, without weights.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError
from repscope.trace.drift.skeletons import Skeleton, skeleton
from repscope.trace.drift.stored import Checkpoint, FileCheckpoint, Renamed, Stored, Values

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: options of PEFT's LoRA under which the tuned weights are not W + s B A
_REFUSED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
    "ensure_weight_tying",
    "megatron_config",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?")
_LARGEST = 1 << 24  #: bytes of a configuration


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


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter."""
    return path.is_dir() and (path / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The base that an adapter names: a folder or a hub id.

    Raises
    ------
    UserError
        When it names none.
    """
    named = _config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UserError(f"{folder} holds an adapter that names no base model; give its base before it.")
    return named


def adapted(folder: Path, base: Path) -> AdaptedCheckpoint:
    """The checkpoint of an adapter's folder on the base in a folder.

    Raises
    ------
    UserError
        See the module; and when files are missing or the adapter does not fit the base.
    """
    config = _config(folder)
    _refuse(config, folder)
    if not base.is_dir():
        raise UserError(f"{folder} holds an adapter, and {base} has no config.json for it; give the base as a folder or a hub id.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; pickled adapters (.bin) are not read, so save it again with PEFT.")
    adapter, network = FileCheckpoint(folder / WEIGHTS, computed=True), skeleton(base)
    root: Checkpoint = FileCheckpoint(base)
    names = network.names_in(root.stored, str(base))
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for key in adapter.stored:
        inner = key.removeprefix("base_model.model.")
        if found := _FACTOR.fullmatch(inner):
            factors.setdefault(f"{found['module']}.weight", {})[found["side"]] = key
            continue
        plain = inner.replace(".modules_to_save.", ".").replace(".base_layer.", ".").removeprefix("modules_to_save.")
        if plain not in names:
            raise UserError(f"{folder} holds {key}: no tensor of {base} and no LoRA factor; is this adapter of another base?")
        replaced[plain] = key
    changed = {*factors, *replaced}
    names = {n: old for n, old in names.items() if n not in network.ties or {n, network.ties[n]} & changed}
    root = Renamed(root, names)
    made = {name: _factors(name, keys, adapter, root, config, network, folder) for name, keys in factors.items()}
    for name, key in replaced.items():
        if (have := adapter.stored[key].shape) != (want := root.stored[name].shape):
            raise UserError(f"{name} is {list(have)} in {folder} and {list(want)} in {base}; is this adapter of another base?")
    return AdaptedCheckpoint(str(folder), root, adapter, made, replaced)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes, too many for a configuration; check the file.")
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} cannot be read as JSON ({type(error).__name__}); copy it again.") from error
    if not isinstance(given, dict):
        raise UserError(f"{file} holds no settings; copy it again.")
    return given


def _refuse(config: Mapping[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise UserError(f"{folder} holds an adapter of type {kind}, and only LORA is read; merge it with PEFT and save the result.")
    if used := [name for name in _REFUSED if config.get(name)]:
        raise UserError(
            f"{folder} holds a LoRA adapter with {used[0]}, which is more than W + s B A; merge it with PEFT and save the result."
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_BASE):
        raise UserError(
            f"{folder} holds a LoRA adapter with init_lora_weights={start!r}, which changed its base before training; merge it "
            "with PEFT and save the result."
        )


def _factors(
    name: str,
    keys: Mapping[str, str],
    adapter: FileCheckpoint,
    root: Checkpoint,
    config: Mapping[str, Any],
    network: Skeleton,
    folder: Path,
) -> Factors:
    module = name.removesuffix(".weight")
    if name not in root.stored:
        raise UserError(f"{folder} changes {name}, which its base {root.label} does not have; is this adapter of another base?")
    if set(keys) != {"A", "B"}:
        missing = "B" if "A" in keys else "A"
        raise UserError(f"{folder} has no lora_{missing} for {module}; save the adapter again with PEFT.")
    shapes = {side: adapter.stored[key].shape for side, key in keys.items()}
    if any(len(shape) != 2 for shape in shapes.values()):
        raise UserError(f"{folder} changes {name}, which is no matrix; merge it with PEFT and save the result.")
    a, b = (_whole(adapter, keys[side]) for side in "AB")
    rank, alpha = (_of_pattern(config, what, module) for what in ("rank", "alpha"))
    if not (shapes["A"][0] == shapes["B"][1] == rank):
        raise UserError(
            f"{folder} has factors of rank {shapes['A'][0]} and {shapes['B'][1]} for {module} and rank {rank:g} in {CONFIG}; "
            "copy the folder again."
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if "lora_embedding" in keys["A"] or network.transposed(module):
        b, a = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    if (b.shape[0], a.shape[1]) != root.stored[name].shape:
        raise UserError(
            f"{folder} changes {name} by a matrix of {b.shape[0]} × {a.shape[1]}, and it is "
            f"{' × '.join(map(str, root.stored[name].shape))} in {root.label}; is this adapter of another base?"
        )
    return Factors(b, a, scale)


def _whole(adapter: FileCheckpoint, key: str) -> Float[np.ndarray, "row column"]:
    stored = adapter.stored[key]
    return np.array(adapter.read(key, 0, stored.entries), dtype=np.float32).reshape(stored.shape)


def _of_pattern(config: Mapping[str, Any], what: str, module: str) -> float:
    """`r` or `lora_alpha` of a module: of the first pattern that ends its name, as in PEFT's `get_pattern_key`."""
    patterns = config.get(f"{what}_pattern") or {}
    value = config.get({"rank": "r", "alpha": "lora_alpha"}[what])
    for pattern, own in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                value = own
                break
        except re.error as error:
            raise UserError(f"{CONFIG} has a {what}_pattern {pattern!r} that is no regular expression; copy it again.") from error
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise UserError(f"{CONFIG} gives {module} the {what} {value!r}, which is no positive number; copy it again.")
    return float(value)
