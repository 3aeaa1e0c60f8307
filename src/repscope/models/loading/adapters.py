"""LoRA adapters in folders: the merged weights, tensor by tensor, without PEFT and without the network.

1. `adapter_config.json` is read; only plain LoRA on linear layers is taken. What would change the weights in another way (DoRA,
   biases, saved modules, per-layer ranks, rotations) is refused by name.
2. Headers of `adapter_model.safetensors`: every tensor must be a `lora_A` (r, in) or `lora_B` (out, r) of one module; PEFT itself
   ignores unexpected names.
3. A merged weight is W + s · B A, computed in float32 and rounded once to W's dtype; s = α / r, or α / √r for rank-stabilised LoRA.
   Layers that store (in, out), as GPT-2's, get the transpose.

Source: Hu et al. 2021, LoRA, arXiv 2106.09685, eq. 3; Kalajdzievski 2023, arXiv 2312.03732 (√r).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from repscope.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
#: settings that change what an adapter does → the only value that is taken
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, {}, []),
    "alora_invocation_tokens": (None, []),
    "init_lora_weights": (True, False, None, "gaussian"),  # others change the base before training
} | dict.fromkeys(
    (
        "use_qalora",
        "use_bdlora",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
        "ensure_weight_tying",
        "megatron_config",
    ),
    (None, False),
)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in a folder. Make one with `open`.

    folder: where it is. base: the base model's folder or hub id, as the file names it; "" if it names none. modules: names of the
    adapted modules. scale: s of the merged weight. transposed: whether layers store (in, out).
    """

    folder: Path
    base: str
    modules: frozenset[str]
    scale: float
    transposed: bool

    @classmethod
    def open(cls, folder: Path) -> "Adapter":
        """Read the configuration and the header of the weights.

        Raises
        ------
        UserError
            When a file is missing or damaged, or the adapter is more than plain LoRA.
        """
        config = _config(folder / CONFIG)
        if config.get("peft_type") != "LORA":
            raise UserError(f"{folder} holds a {config.get('peft_type')!r} adapter; only LoRA is read. Merge it with PEFT first.")
        for key, plain in _PLAIN.items():
            if key in config and config[key] not in plain:
                raise UserError(f"{folder} uses {key}={config[key]!r}, which is more than plain LoRA; merge it with PEFT first.")
        rank, alpha = config.get("r"), config.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise UserError(f"{folder / CONFIG} gives r={rank!r} and lora_alpha={alpha!r}; both are positive numbers in a LoRA.")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        modules = _modules(folder / WEIGHTS, rank)
        return cls(folder, str(config.get("base_model_name_or_path") or ""), modules, scale, bool(config.get("fan_in_fan_out")))

    def check(self, sizes: Mapping[str, tuple[int, ...]], base: Path | str) -> None:
        """Raise a `UserError` unless each adapted module is a weight of the base of the right shape."""
        with _opened(self.folder / WEIGHTS) as file:
            for module in sorted(self.modules):
                shape = sizes.get(f"{module}.weight")
                if shape is None:
                    raise UserError(f"{self.folder} adapts {module}, which {base} lacks; give the base it was trained from.")
                inner = file.get_slice(_key(module, "A")).get_shape()[1]
                outer = file.get_slice(_key(module, "B")).get_shape()[0]
                if shape != ((inner, outer) if self.transposed else (outer, inner)):
                    raise UserError(
                        f"{self.folder} adapts {module} as {outer} × {inner}, and {base} has {list(shape)} there; "
                        "give the base it was trained from."
                    )

    def delta(self, module: str) -> Float[Tensor, "out in"]:
        """What merging adds to the weight of a module, in float32."""
        with _opened(self.folder / WEIGHTS) as file:
            a, b = file.get_tensor(_key(module, "A")).float(), file.get_tensor(_key(module, "B")).float()
        delta: Tensor = (b @ a) * self.scale
        return delta.T if self.transposed else delta

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The base's tensor of that name with the adapter merged; the tensor itself where it is not adapted."""
        module = name.removesuffix(".weight")
        if module not in self.modules or module == name:
            return weight
        return (weight.float() + self.delta(module)).to(weight.dtype)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def _key(module: str, part: str) -> str:
    return f"base_model.model.{module}.lora_{part}.weight"


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy the adapter again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not the configuration of an adapter; copy it again.")
    return config


def _modules(file: Path, rank: int) -> frozenset[str]:
    """The adapted modules, from the header."""
    if not file.is_file():
        raise UserError(f"{file.parent} has no {WEIGHTS}; repscope never reads pickled weights (.bin), so save it as safetensors.")
    parts: dict[str, set[str]] = {}
    with _opened(file) as opened:
        for name in opened.keys():  # noqa: SIM118
            found = _NAME.fullmatch(name)
            shape = opened.get_slice(name).get_shape()
            if found is None:
                raise UserError(f"{file} holds {name}, which is no part of a plain LoRA; merge it with PEFT first.")
            if len(shape) != 2 or shape[0 if found["part"] == "A" else 1] != rank:
                raise UserError(f"{name} in {file} has shape {list(shape)} and not rank {rank}; copy the adapter again.")
            parts.setdefault(found["module"], set()).add(found["part"])
    if not parts or any(held != {"A", "B"} for held in parts.values()):
        raise UserError(f"{file} lacks one half of an adapted layer, or holds none; copy the adapter again.")
    return frozenset(parts)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}); copy it again.") from error
