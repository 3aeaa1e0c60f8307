"""LoRA adapters beside their base in a set of checkpoints: the merged weights, tensor by tensor, without PEFT and the network.

1. The folder is read by `lora`. Without the network a module's kind is not known, so only linear layers are taken: saved modules,
   biases, embeddings and per-layer ranks are refused by name.
2. A merged weight is W + s · B A, computed in float32 and rounded once to W's dtype. Layers that store (in, out), as GPT-2's, get
   the transpose: `fan_in_fan_out`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError
from repscope.models.loading.lora import CONFIG, WEIGHTS, LoraFolder, LoraModule, is_adapter, opened

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "is_adapter"]

#: settings that need the network → the values that are taken
_PLAIN: dict[str, tuple[object, ...]] = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in a folder. Make one with `open`.

    folder: where it is. base: the base model's folder or hub id, as the file names it; "" if it names none. modules: the adapted
    modules. transposed: whether layers store (in, out).
    """

    folder: Path
    base: str
    modules: Mapping[str, LoraModule]
    transposed: bool

    @classmethod
    def open(cls, folder: Path) -> "Adapter":
        """Read the configuration and the header of the weights.

        Raises
        ------
        UserError
            When a file is missing or damaged, or the adapter is more than plain LoRA on linear layers.
        """
        found = LoraFolder.open(folder)
        for key, plain in _PLAIN.items():
            if key in found.config and found.config[key] not in plain:
                raise UserError(
                    f"{folder} uses {key}={found.config[key]!r}, which is more than plain LoRA; merge it with PEFT and save "
                    "the result."
                )
        embeddings = [module.a for module in found.modules.values() if module.embedding]
        if unknown := [*found.others, *embeddings]:
            raise UserError(
                f"{folder / WEIGHTS} holds {unknown[0]}, which is no part of a plain LoRA; merge it with PEFT and save the result."
            )
        if not found.modules:
            raise UserError(f"{folder / WEIGHTS} holds no factors of a LoRA; copy the adapter again.")
        return cls(folder, found.base, found.modules, bool(found.config.get("fan_in_fan_out")))

    @property
    def scale(self) -> float:
        """s of the merged weights, the same for all modules."""
        return next(iter(self.modules.values())).scale

    def check(self, sizes: Mapping[str, tuple[int, ...]], base: Path | str) -> None:
        """Raise a `UserError` unless each adapted module is a weight of the base of the right shape."""
        for name, module in sorted(self.modules.items()):
            shape = sizes.get(f"{name}.weight")
            if shape is None:
                raise UserError(f"{self.folder} adapts {name}, which {base} lacks; give the base it was trained from.")
            if shape != ((module.inner, module.outer) if self.transposed else (module.outer, module.inner)):
                raise UserError(
                    f"{self.folder} adapts {name} as {module.outer} × {module.inner}, and {base} has {list(shape)} there; "
                    "give the base it was trained from."
                )

    def delta(self, module: str) -> Float[Tensor, "out in"]:
        """What merging adds to the weight of a module, in float32."""
        factors = self.modules[module]
        with opened(self.folder / WEIGHTS) as file:
            a, b = file.get_tensor(factors.a).float(), file.get_tensor(factors.b).float()
        delta: Tensor = (b @ a) * factors.scale
        return delta.T if self.transposed else delta

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The base's tensor of that name with the adapter merged; the tensor itself where it is not adapted."""
        module = name.removesuffix(".weight")
        if module not in self.modules or module == name:
            return weight
        return (weight.float() + self.delta(module)).to(weight.dtype)
