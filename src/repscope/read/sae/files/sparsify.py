"""sparsify folders (EleutherAI): `cfg.json` and `sae.safetensors`, one folder per hookpoint.

    encoder.weight (d_sae, d_in)   encoder.bias (d_sae)   W_dec (d_sae, d_in)   b_dec (d_in)   W_skip (d_out, d_in), optional

An autoencoder subtracts b_dec from its input, a transcoder (`transcode`) does not. The activation is TopK or GroupMax. Writing
folds what the format cannot say; where b_dec is not subtracted it adds b_dec W_enc to the bias, which is the same.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from repscope.errors import UserError, unknown
from repscope.models.sites import Site
from repscope.read.sae.activations import GroupMax, TopK
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.files.tensors import Weights, read_safetensors, read_settings
from repscope.read.sae.folding import fold, shifted

SETTINGS, WEIGHTS = "cfg.json", "sae.safetensors"
_ACTIVATIONS: dict[str, type[TopK] | type[GroupMax]] = {"topk": TopK, "groupmax": GroupMax}


def read(folder: Path, dtype: torch.dtype) -> SparseAutoencoder:
    """The autoencoder or transcoder in a folder.

    Raises
    ------
    UserError
        For an unknown activation, settings that contradict the weights, and damaged files.
    """
    settings = read_settings(folder / SETTINGS)
    activation = settings.get("activation", "topk")
    if activation not in _ACTIVATIONS:
        raise unknown("activation of sparsify", activation, _ACTIVATIONS, f"({folder})")
    weights = Weights(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), dtype)
    encoder = weights.take("encoder.weight", -1, -1)
    d_sae, d_in = encoder.shape
    k = settings.get("k")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
        raise UserError(f"{folder} has k={k!r} for {d_sae} latents; it must be a whole number from 1 to {d_sae}.")
    for name, width in (("d_in", d_in), ("num_latents", d_sae)):
        if settings.get(name) not in (None, 0, width):  # num_latents is 0 where the expansion factor tells it
            raise UserError(f"{folder} says {name}={settings[name]} and its weights have {width}; they do not belong together.")
    if "W_dec" not in weights:
        raise UserError(f"{folder} was saved without a decoder (W_dec), so nothing can be reconstructed; it is refused.")
    transcoder = settings.get("transcode", False)
    here = _site(folder.name)
    made = SparseAutoencoder(
        encoder.T.contiguous(),
        weights.take("encoder.bias", d_sae),
        weights.take("W_dec", d_sae, d_in),
        weights.take("b_dec", d_in),
        _ACTIVATIONS[activation](k),
        subtract_b_dec=not transcoder,
        W_skip=weights.take("W_skip", d_in, d_in).T.contiguous() if "W_skip" in weights else None,
        transcoder=bool(transcoder),
        site=None if transcoder else here,
        site_out=here if transcoder else None,
        metadata={"format": "sparsify", **settings},
    )
    if settings.get("skip_connection", False) != (made.W_skip is not None):
        raise UserError(
            f"{folder} says skip_connection={settings.get('skip_connection')} and its weights disagree; check the files."
        )
    weights.finish()
    return made


def _site(hookpoint: str) -> Site | None:
    """The output of the module that the folder is named after: `layers.5`, `layers.5.mlp` (`h.5` in GPT-2)."""
    found = re.fullmatch(r"(?:model\.|transformer\.)?(?:layers|h)\.(\d+)(\.mlp)?", hookpoint)
    return Site("mlp_out" if found[2] else "resid_post", int(found[1])) if found else None


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write `cfg.json` and `sae.safetensors` into a folder that exists.

    Raises
    ------
    UserError
        For an autoencoder that the format cannot represent.
    """
    from safetensors.torch import save_file

    made = fold(sae)
    name = {TopK: "topk", GroupMax: "groupmax"}.get(type(made.activation))
    if name is None or made.d_in != made.d_out or made.normalization is not None:
        why = f"a {type(made.activation).__name__} activation" if name is None else f"{made.d_in} → {made.d_out} features"
        why = f"a {type(made.normalization).__name__}" if made.normalization is not None else why
        raise UserError(f"sparsify cannot represent {why}; write it in the format of SAELens.")
    assert isinstance(made.activation, (TopK, GroupMax))
    k = made.activation.k
    if not made.transcoder and not made.subtract_b_dec:
        wide = made.to(dtype=torch.float64)
        made = replace(shifted(wide, wide.b_dec @ wide.W_enc), subtract_b_dec=True).to(dtype=sae.dtype)
    settings = {"activation": name, "expansion_factor": max(1, made.d_sae // made.d_in), "normalize_decoder": False}
    settings |= {"num_latents": made.d_sae, "k": k, "multi_topk": False}
    settings |= {"skip_connection": made.W_skip is not None, "transcode": made.transcoder, "d_in": made.d_in}
    tensors = {"encoder.weight": made.W_enc.T, "encoder.bias": made.b_enc, "W_dec": made.W_dec, "b_dec": made.b_dec}
    if made.W_skip is not None:
        tensors["W_skip"] = made.W_skip.T
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, default=str), encoding="utf-8")
