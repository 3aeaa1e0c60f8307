"""The parser of LoRA folders as PEFT writes them: settings, names of factors, scales. What reads weights stands on it.

1. `adapter_config.json` must mean W + s B A: other kinds of adapters, variants of LoRA, and initialisations that change the base
   (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA: the file then holds a change of another matrix) are refused by name.
2. From the header of `adapter_model.safetensors`: each module's `lora_A` (r, in) and `lora_B` (out, r), or `lora_embedding_A` and
   `lora_embedding_B`; r must be that of the settings. Other tensors are listed, for the caller to use or refuse; PEFT ignores them.
3. s = α / r, or α / √r with `use_rslora`; α and r of a module by `alpha_pattern` and `rank_pattern`, as PEFT matches them.

Source: Hu et al. 2021, LoRA, arXiv 2106.09685, eq. 3; Kalajdzievski 2023, arXiv 2312.03732 (√r).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from repscope.errors import UserError
from repscope.untrusted import parse_json

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
_PREFIX = "base_model.model."
_LARGEST = 1 << 24  #: bytes of a configuration


@dataclass(frozen=True)
class LoraModule:
    """The factors of one module. a, b: their names in the file. outer, rank, inner: sizes of B A. embedding: of an embedding, whose
    weight is stored as (inner, outer). scale: s."""

    a: str
    b: str
    outer: int
    rank: int
    inner: int
    embedding: bool
    scale: float


@dataclass(frozen=True)
class LoraFolder:
    """A LoRA adapter in a folder. Make one with `open`.

    folder: where it is. config: its settings. modules: name → factors. others: key in the file of each tensor that is no factor →
    its name in the base.
    """

    folder: Path
    config: Mapping[str, Any]
    modules: Mapping[str, LoraModule]
    others: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> "LoraFolder":
        """Read the settings and the header of the weights.

        Raises
        ------
        UserError
            When a file is missing or damaged, or the adapter is more than W + s B A.
        """
        config = settings_of(folder)
        _refuse(config, folder)
        if not (folder / WEIGHTS).is_file():
            raise UserError(
                f"{folder} has no {WEIGHTS}; pickled weights (.bin) are never read, so save the adapter again with PEFT."
            )
        sides: dict[str, dict[str, str]] = {}
        others: dict[str, str] = {}
        with opened(folder / WEIGHTS) as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        for key in shapes:
            inner = key.removeprefix(_PREFIX)
            if found := _FACTOR.fullmatch(inner):
                sides.setdefault(found["module"], {})[found["side"]] = key
            else:
                others[key] = inner.replace(".modules_to_save.", ".").replace(".base_layer.", ".").removeprefix("modules_to_save.")
        modules = {name: _module(name, keys, shapes, config, folder) for name, keys in sides.items()}
        return cls(folder, config, modules, others)

    @property
    def base(self) -> str:
        """The base model's folder or hub id, as the settings name it; "" if they name none."""
        return named_base(self.config)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return path.is_dir() and (path / CONFIG).is_file()


def named_base(config: Mapping[str, Any]) -> str:
    """The base model's folder or hub id that settings name; "" if they name none."""
    named = config.get("base_model_name_or_path")
    return named if isinstance(named, str) else ""


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of an adapter's folder.

    Raises
    ------
    UserError
        When the file is missing, damaged or too large.
    """
    file = folder / CONFIG
    try:
        if (size := file.stat().st_size) > _LARGEST:
            raise UserError(f"{file} has {size:,} bytes, too many for a configuration; check the file.")
        given = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({type(error).__name__}); copy the adapter again.") from error
    if not isinstance(given, dict):
        raise UserError(f"{file} is not the configuration of an adapter; copy it again.")
    return given


def opened(file: Path) -> Any:
    """The safetensors file of an adapter, as torch tensors.

    Raises
    ------
    UserError
        When it is damaged.
    """
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}); copy it again.") from error


def _refuse(config: Mapping[str, Any], folder: Path) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise UserError(f"{folder} holds an adapter of type {kind}, and only LoRA is read; merge it with PEFT and save the result.")
    if used := [name for name in _REFUSED if config.get(name)]:
        raise UserError(
            f"{folder} holds a LoRA adapter with {used[0]}={config[used[0]]!r}, which is more than plain LoRA; merge it with PEFT "
            "and save the result."
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_BASE):
        raise UserError(
            f"{folder} holds a LoRA adapter with init_lora_weights={start!r}, which changed its base before training; merge it "
            "with PEFT and save the result."
        )


def _module(
    name: str, keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], folder: Path
) -> LoraModule:
    if set(keys) != {"A", "B"}:
        missing = "B" if "A" in keys else "A"
        raise UserError(f"{folder} has no lora_{missing} for {name}, one half of its change; save the adapter again with PEFT.")
    a, b = (shapes[keys[side]] for side in "AB")
    if len(a) != 2 or len(b) != 2:
        raise UserError(f"{folder} changes {name}, which is no matrix; merge it with PEFT and save the result.")
    rank, alpha = (_of_pattern(config, what, name) for what in ("rank", "alpha"))
    if not (a[0] == b[1] == rank):
        raise UserError(
            f"{folder} has factors of rank {a[0]} and {b[1]} for {name} and rank {rank:g} in {CONFIG}; copy the folder again."
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraModule(keys["A"], keys["B"], b[0], a[0], a[1], "lora_embedding" in keys["A"], scale)


def _of_pattern(config: Mapping[str, Any], what: str, module: str) -> float:
    """`r` or `lora_alpha` of a module: of the first pattern that ends its name, as in PEFT's `get_pattern_key`."""
    patterns = config.get(f"{what}_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{CONFIG} has a {what}_pattern that is no mapping; copy the folder again.")
    value = config.get({"rank": "r", "alpha": "lora_alpha"}[what])
    for pattern, own in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                value = own
                break
        except re.error as error:
            raise UserError(f"{CONFIG} has a {what}_pattern {pattern!r} that is no regular expression; copy it again.") from error
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"{CONFIG} gives {module} the {what} {value!r}, which is no positive number; copy it again.")
    return float(value)
