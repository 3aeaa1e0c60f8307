"""A diffusers pipeline in a local folder as a `DiffusionGenerator`: its U-Net and its scheduler, and the empty prompt's encoding.

Weights are read from safetensors files alone; nothing is unpickled, no code of the folder runs and nothing is fetched. Parts are of
known kinds: a U-Net, a scheduler of diffusers, and a tokenizer and a text encoder of transformers. Pipelines in the latents of a
VAE are run in these latents.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError, no_file
from repscope.models.generators.diffusion import DiffusionGenerator
from repscope.untrusted import parse_json

_UNETS = ("UNet2DModel", "UNet2DConditionModel")


def open_pipeline(folder: str | Path) -> DiffusionGenerator:
    """Open a folder that diffusers' `save_pretrained` wrote.

    Raises
    ------
    UserError
        For a folder that is no pipeline, a pipeline without a U-Net, a scheduler without DDIM inversion, and weights that are not
        in safetensors files.
    """
    home = Path(folder).expanduser()
    parts = _index(home)
    kind = parts.get("unet", ["", ""])[-1]
    if kind not in _UNETS:
        held = ", ".join(sorted(parts)) or "nothing"
        raise UserError(f"The pipeline in {home} has no U-Net ({held}); open one with a UNet2DModel or UNet2DConditionModel.")
    diffusers = diffusers_package()
    scheduler_class = _class(diffusers, parts, "scheduler", diffusers.SchedulerMixin)
    if scheduler_class is None:
        raise UserError(f"The pipeline in {home} has no scheduler that diffusers knows; save it with a DDPMScheduler.")
    try:
        unet = getattr(diffusers, kind).from_pretrained(home / "unet", use_safetensors=True, local_files_only=True)
        scheduler = scheduler_class.from_pretrained(home / "scheduler", local_files_only=True)
        empty = _empty_prompt(home, parts) if kind == "UNet2DConditionModel" else None
    except UserError:
        raise
    except Exception as error:  # the folder is untrusted, and the libraries fail on it in many ways
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The pipeline in {home} cannot be read: {first.rstrip('.')}.") from error
    if bad := [name for name, weight in unet.named_parameters() if not torch.isfinite(weight).all()]:
        raise UserError(f"The U-Net in {home} has weights that are not numbers ({bad[0]}); save the pipeline again.")
    return DiffusionGenerator(unet.eval().requires_grad_(False), scheduler, empty, home.name)


def diffusers_package() -> Any:
    """The package diffusers.

    Raises
    ------
    UserError
        If it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError("Diffusion models need the package diffusers: pip install 'repscope[images]'.") from error
    return diffusers


def _index(home: Path) -> dict[str, Any]:
    """Parts of the pipeline by name: library and class."""
    file = home / "model_index.json"
    if not file.is_file():
        raise no_file(file, [p.name for p in home.iterdir()] if home.is_dir() else [], "pipeline index")
    try:
        held = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is no index of a pipeline ({str(error).rstrip('.')}).") from error
    if not isinstance(held, dict):
        raise UserError(f"{file} is no index of a pipeline; save the pipeline with save_pretrained.")
    return {k: v for k, v in held.items() if isinstance(v, list) and len(v) == 2 and v[-1] is not None}


def _class(package: Any, parts: dict[str, Any], part: str, base: type) -> Any:
    """The class of a part, where the package has it and it is of this kind; None otherwise."""
    name = parts.get(part, [None])[-1]
    try:
        found = getattr(package, name, None) if isinstance(name, str) else None
    except (ImportError, RuntimeError):  # of which a further package is missing
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


@torch.no_grad()
def _empty_prompt(home: Path, parts: dict[str, Any]) -> Float[Tensor, "token width"]:
    """What the pipeline's text encoder makes of the empty prompt."""
    import transformers

    tokenizer_class = _class(transformers, parts, "tokenizer", transformers.PreTrainedTokenizerBase)
    encoder_class = _class(transformers, parts, "text_encoder", transformers.PreTrainedModel)
    if tokenizer_class is None or encoder_class is None:
        raise UserError(
            f"The U-Net in {home} attends to words and the pipeline has no text encoder; build DiffusionGenerator(unet, scheduler, "
            "empty=…)."
        )
    tokenizer = tokenizer_class.from_pretrained(home / "tokenizer", local_files_only=True)
    encoder = encoder_class.from_pretrained(home / "text_encoder", use_safetensors=True, local_files_only=True)
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    found: Tensor = encoder.eval()(ids)[0][0]
    return found
