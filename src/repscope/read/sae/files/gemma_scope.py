"""Gemma Scope (arXiv:2408.05147): `params.npz` with W_enc (d_in, d_sae), b_enc, W_dec (d_sae, d_out), b_dec and threshold (d_sae).

JumpReLU; b_dec is not subtracted from the input; nothing is normalised. The file does not name its site: repository and folder do
(`gemma-scope-2b-pt-res`, `layer_20/width_16k/average_l0_71`), and it is read from the path where they are part of it. Embedding
autoencoders are refused: they read activations divided by √d_model, which the file does not say.
"""

import re
from pathlib import Path

import torch

from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.read.sae.activations import JumpReLU
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.files.tensors import Weights, read_npz

WEIGHTS = "params.npz"
_KINDS = {"res": "resid_post", "mlp": "mlp_out", "att": "z"}


def read(path: Path, dtype: torch.dtype, named: str) -> SparseAutoencoder:
    """The autoencoder in a file; `named` is the repository and folder, or the path.

    Raises
    ------
    UserError
        For a scaling factor, an embedding autoencoder, and damaged files.
    """
    if "embedding" in named:
        raise UserError(f"{path} reads embeddings divided by √d_model, which cannot be represented, so it is refused.")
    tensors = {("W_" + name[2:] if name.startswith("w_") else name): tensor for name, tensor in read_npz(path).items()}
    weights = Weights(path, tensors, dtype)
    W_enc = weights.take("W_enc", -1, -1)
    d_in, d_sae = W_enc.shape
    W_dec = weights.take("W_dec", d_sae, -1)
    if "scaling_factor" in weights:
        factor = weights.take("scaling_factor", d_sae)
        if not torch.allclose(factor, torch.ones_like(factor)):
            raise UserError(f"{path} has a finetuning scaling factor, which cannot be represented, so it is refused.")
    transcoder = "transcoder" in named
    made = SparseAutoencoder(
        W_enc,
        weights.take("b_enc", d_sae),
        W_dec,
        weights.take("b_dec", W_dec.shape[1]),
        JumpReLU(weights.take("threshold", d_sae)),
        transcoder=transcoder or d_in != W_dec.shape[1],
        site=None if transcoder else _site(named),
        metadata={"format": "Gemma Scope"},
    )
    weights.finish()
    return made


def _site(named: str) -> Site | None:
    layer = re.search(r"layer_(\d+)", named)
    kind = re.search(r"gemma-scope-[^/]*-(res|mlp|att)(?:/|$|-|--)", named.replace("--", "/"))
    return Site(_KINDS[kind[1]], int(layer[1])) if layer and kind else None
