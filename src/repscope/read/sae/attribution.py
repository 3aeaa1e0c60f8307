"""Attribution of a number that the model computes, such as a difference of logits, to latents: gradient × activation.

1. Capture the site's rows x and the gradient g of the number with respect to them.
2. Encode x. The attribution of latent i at a position is a_i g · w_i, with w_i its decoder vector in the units of the site.
3. What the latents leave is attributed to the reconstruction error, g · (x - y).

It is the first-order effect of ablating the latent with the error left as it is (Marks et al. 2024, arXiv:2403.19647, equation 2,
with zero for the counterfactual): exact where the number is linear in the site, and to be checked against `ablate` elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.read.sae.autoencoder import SparseAutoencoder

_CHUNK = 1 << 22  #: numbers at a time


@dataclass(frozen=True)
class Attribution:
    """Attributions to latents.

    table: one row per prompt, position and active latent, largest absolute attribution first: prompt, position, latent, activation,
    attribution. values: (prompt), the number itself. error: (prompt), attribution to the reconstruction error.
    """

    table: pd.DataFrame
    values: Float[np.ndarray, "prompt"]
    error: Float[np.ndarray, "prompt"]

    def by_latent(self) -> pd.DataFrame:
        """Sums over positions, means over all prompts: latent, attribution, prompts (where it is active)."""
        grouped = self.table.groupby("latent")
        total = grouped["attribution"].sum() / len(self.values)
        frame = pd.DataFrame({"attribution": total, "prompts": grouped["prompt"].nunique()}).reset_index()
        return frame.sort_values("attribution", key=np.abs, ascending=False, ignore_index=True)


def logit_difference(lm: LanguageModel, positive: str, negative: str | None = None) -> Callable[[Tensor], Tensor]:
    """The logit of a token minus that of another (or minus the mean of all): logits (row, vocab) to (row).

    Raises
    ------
    UserError
        If a text is not one token.
    """
    ids = [_token(lm, text) for text in (positive, negative) if text is not None]
    if len(ids) == 1:
        return lambda logits: logits[:, ids[0]] - logits.mean(1)
    return lambda logits: logits[:, ids[0]] - logits[:, ids[1]]


def attribute(
    sae: SparseAutoencoder,
    lm: LanguageModel,
    prompts: Sequence[PromptLike],
    of: Callable[[Tensor], Tensor],
    tokens: str | int = "all",
) -> Attribution:
    """Attribution of a number to the latents at some tokens.

    Parameters
    ----------
    sae
        An autoencoder of a site of the model (a transcoder has no place for its error here).
    of
        Maps the logits (row, vocab) at the last token to one number per row, such as `logit_difference(lm, " Paris", " Rome")`.

    Raises
    ------
    UserError
        For a transcoder, an unknown site, and as `LanguageModel.gradient`.
    """
    if sae.transcoder:
        raise UserError("Attribution reads and writes one site, and a transcoder has two; give an autoencoder.")
    site = sae.written_site
    given = list(prompts)
    acts = lm.capture(given, site, tokens)
    values, gradients = lm.gradient(given, of, site, tokens)
    prompt_of = np.repeat(np.arange(len(acts)), np.diff(acts.offsets))
    x = torch.from_numpy(np.asarray(acts[site])).to(sae.device, sae.dtype).flatten(1)
    g = torch.from_numpy(np.asarray(gradients[site])).to(sae.device, sae.dtype).flatten(1)
    with torch.no_grad():
        latents = sae.encode(x)
        row_of = latents.row_of
        dots = torch.empty_like(latents.values)
        step = max(1, _CHUNK // sae.d_out)
        for start in range(0, len(dots), step):
            part = slice(start, start + step)
            dots[part] = (g[row_of[part]] * sae.decoder_vectors(latents.indices[part])).sum(1)
        scale = sae.row_scale(latents)
        dots = dots if scale is None else dots * scale[row_of, 0]
        left = (g * (x - sae.reconstruct(x))).sum(1).double().cpu().numpy()
    rows = row_of.cpu().numpy()
    table = pd.DataFrame(
        {
            "prompt": prompt_of[rows],
            "position": np.asarray(acts.positions)[rows],
            "latent": latents.indices.cpu().numpy(),
            "activation": latents.values.cpu().numpy(),
            "attribution": (latents.values * dots).cpu().numpy(),
        }
    ).sort_values("attribution", key=np.abs, ascending=False, ignore_index=True)
    return Attribution(table, values, np.bincount(prompt_of, left, len(acts)))


def _token(lm: LanguageModel, text: str) -> int:
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(f"{text!r} is {len(ids)} tokens of {lm.name}; give a text of one token (often with a space before it).")
    return int(ids[0])
