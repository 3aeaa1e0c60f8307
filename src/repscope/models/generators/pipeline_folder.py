"""A diffusers pipeline in a local folder as a `DiffusionGenerator`: its U-Net and its scheduler, and the empty prompt's encoding.

Weights are read from safetensors files alone; nothing is unpickled and nothing is fetched. Pipelines in the latents of a VAE are
run in these latents.
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
    scheduler_class = getattr(diffusers, parts.get("scheduler", ["", ""])[-1], None)
    if scheduler_class is None:
        raise UserError(f"The pipeline in {home} has no scheduler that diffusers knows; save it with a DDPMScheduler.")
    try:
        unet = getattr(diffusers, kind).from_pretrained(home / "unet", use_safetensors=True, local_files_only=True)
        scheduler = scheduler_class.from_pretrained(home / "scheduler", local_files_only=True)
        empty = _empty_prompt(home, parts) if kind == "UNet2DConditionModel" else None
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"The pipeline in {home} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from error
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


@torch.no_grad()
def _empty_prompt(home: Path, parts: dict[str, Any]) -> Float[Tensor, "token width"]:
    """What the pipeline's text encoder makes of the empty prompt."""
    if "text_encoder" not in parts or "tokenizer" not in parts:
        raise UserError(
            f"The U-Net in {home} attends to words and the pipeline has no text encoder; build DiffusionGenerator(unet, scheduler, "
            "empty=…)."
        )
    import transformers

    tokenizer = getattr(transformers, parts["tokenizer"][-1]).from_pretrained(home / "tokenizer", local_files_only=True)
    encoder = getattr(transformers, parts["text_encoder"][-1]).from_pretrained(
        home / "text_encoder", use_safetensors=True, local_files_only=True
    )
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    found: Tensor = encoder.eval()(ids)[0][0]
    return found
