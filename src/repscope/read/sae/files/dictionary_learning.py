"""dictionary_learning folders: `ae.pt`, a state dict, and `config.json`, which names the class.

Only tensors are read; the pickle is not run. Per class (`dict_class`):

    AutoEncoder               bias subtracted from the input; ReLU
    AutoEncoderNew            decoder.bias not subtracted; ReLU
    AutoEncoderTopK           b_dec subtracted; TopK
    BatchTopKSAE              the same; BatchTopK with `threshold`, which stays at -1 in runs of fewer than 1,000 steps
    MatryoshkaBatchTopKSAE    as BatchTopKSAE, with W_enc (d_in, d_sae) where the others have encoder.weight (d_sae, d_in)
    GatedAutoEncoder          decoder_bias subtracted; Gated
    JumpReluAutoEncoder       W_enc (d_in, d_sae); b_dec not subtracted; JumpReLU

Latents are those of the file: the library's `from_pretrained` rescales decoder, encoder and bias by the decoder's norms by default.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repscope.errors import UserError, unknown
from repscope.models.sites import Site
from repscope.read.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.files.tensors import Weights, read_pt, read_settings

SETTINGS, WEIGHTS = "config.json", "ae.pt"
_BATCH = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
#: class: name of the output's bias, and whether it is subtracted from the input
_CLASSES = {"AutoEncoder": ("bias", True), "AutoEncoderNew": ("decoder.bias", False), "AutoEncoderTopK": ("b_dec", True)}
_CLASSES |= {"GatedAutoEncoder": ("decoder_bias", True), "JumpReluAutoEncoder": ("b_dec", False)}
_CLASSES |= dict.fromkeys(_BATCH, ("b_dec", True))
_SITES = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attention_out": "attn_out", "attn_out": "attn_out"}


def read(path: Path, dtype: torch.dtype, threshold: float | None = None) -> SparseAutoencoder:
    """The autoencoder in a state dict; its settings stand beside it, or one folder above (checkpoints).

    Raises
    ------
    UserError
        For a class that cannot be represented, a threshold that was never estimated, and damaged files.
    """
    found = next((f / SETTINGS for f in (path.parent, path.parent.parent) if (f / SETTINGS).is_file()), None)
    if found is None:
        raise UserError(f"{path} has no {SETTINGS} beside it, which names its class (TopK and BatchTopK look alike); copy it.")
    told = read_settings(found).get("trainer")
    settings: dict[str, Any] = told if isinstance(told, dict) else {}
    kind = settings.get("dict_class")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise unknown("class of dictionary_learning that can be read", kind, _CLASSES, f"({found})")
    weights = Weights(path, read_pt(path), dtype)
    if "W_enc" in weights:
        W_enc = weights.take("W_enc", -1, -1)
        W_dec = weights.take("W_dec", W_enc.shape[1], W_enc.shape[0])
        b_enc = weights.take("b_enc", W_enc.shape[1])
    else:
        W_enc = weights.take("encoder.weight", -1, -1).T.contiguous()
        W_dec = weights.take("decoder.weight", W_enc.shape[0], W_enc.shape[1]).T.contiguous()
        gated = kind == "GatedAutoEncoder"
        b_enc = torch.zeros(W_enc.shape[1], dtype=dtype) if gated else weights.take("encoder.bias", W_enc.shape[1])
    d_in, d_sae = W_enc.shape
    for name, width in (("activation_dim", d_in), ("dict_size", d_sae)):
        if settings.get(name) not in (None, width):
            raise UserError(f"{found} says {name}={settings[name]} and the weights have {width}; they do not belong together.")
    bias, subtracted = _CLASSES[kind]
    made = SparseAutoencoder(
        W_enc,
        b_enc,
        W_dec,
        weights.take(bias, d_in),
        _activation(kind, weights, settings, d_sae, threshold),
        subtract_b_dec=subtracted,
        site=_site(settings),
        metadata={"format": "dictionary_learning", **settings},
    )
    weights.finish()
    return made


def _activation(kind: str, weights: Weights, settings: Mapping[str, Any], d_sae: int, given: float | None) -> Activation:
    if kind == "GatedAutoEncoder":
        return Gated(*(weights.take(name, d_sae) for name in ("gate_bias", "mag_bias", "r_mag")))
    if kind == "JumpReluAutoEncoder":
        return JumpReLU(weights.take("threshold", d_sae))
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return ReLU()
    k = weights.number("k") if "k" in weights else settings.get("k")
    if not isinstance(k, (int, float)) or k != int(k) or not 1 <= k <= d_sae:
        raise UserError(f"{weights.path} has k={k!r} for {d_sae} latents; it must be a whole number from 1 to {d_sae}.")
    if kind == "AutoEncoderTopK":
        weights.drop("threshold")  # for its other mode of encoding, which is off by default
        return TopK(int(k))
    weights.drop("group_sizes")  # of training: all groups are active in use
    threshold = weights.number("threshold")
    if given is None and threshold < 0:
        raise UserError(
            f"{weights.path} has the BatchTopK threshold {threshold:g}: training sets it after 1,000 steps only, and without "
            f"it every positive latent is active, not {int(k)} on average; give threshold=, or train further."
        )
    return BatchTopK(k, threshold if given is None else given)


def _site(settings: Mapping[str, Any]) -> Site | None:
    named = re.fullmatch(r"([a-z_]+?)_layer_(\d+)", str(settings.get("submodule_name")))
    return Site(_SITES[named[1]], int(named[2])) if named and named[1] in _SITES else None
