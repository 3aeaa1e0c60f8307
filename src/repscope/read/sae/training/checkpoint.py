"""Checkpoints of a training: one safetensors file with everything that the next step depends on. Nothing is pickled.

Tensors: parameters, Adam's moments and step counts, rows since each latent fired. JSON in the header: recipe, layout with scales,
step, position in the source, BatchTopK's threshold, the log. The file is written under another name, flushed to the disk and
renamed, so a killed run leaves the checkpoint before or the one after. Equal states give equal bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from repscope import disk, manifest
from repscope.errors import UserError
from repscope.untrusted import parse_json

FORMAT = 1
NAME = "checkpoint.safetensors"


def write(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Raises
    ------
    UserError
        If the disk is full or the folder cannot be written.
    """
    header = {"repscope": json.dumps({"format": FORMAT, **state}), "seal": manifest.UNSEALED}
    with disk.whole_file(path) as partial:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial, header)
        manifest.seal(partial)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.

    Raises
    ------
    UserError
        If the file is no checkpoint of this format, or has other bytes than were written.
    """
    manifest.need_seal(path, "remove it and train again")
    try:
        with safe_open(path, "pt") as file:
            state = parse_json((file.metadata() or {})["repscope"])
            # Copies: tensors of the mapped file start anywhere, and kernels may round otherwise at other alignments.
            names = list(file.keys())
            tensors = {name: file.get_tensor(name).clone(memory_format=torch.contiguous_format) for name in names}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is no checkpoint of a training ({error}); remove it and train again.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is a checkpoint of another version of repscope; remove it and train again.")
    return tensors, state
