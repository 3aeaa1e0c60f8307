"""The losses of LatentCLR and NoiseCLR as their code states them, one term per direction; `objectives.contrastive` is our own form.

g_n^k is the effect of direction k on sample n at unit norm.

LatentCLR (Yüksel, Simsar, Er & Yanardag 2021; catlab-team/latentclr), with a = |·| and T = 0.5, which multiplies:

    loss_k = -mean_n log( mean_{m≠n} exp(T a(g_n^k · g_m^k)) / mean_{m, l≠k} exp(T a(g_n^k · g_m^l)) )

The effects are differences of features at unit norm (`latent_subject(…, unit_features=True)`). Negatives are all samples of all
other directions. The paper divides by tau: `divide=True`.

NoiseCLR (Dalva & Yanardag 2024; gemlab-vt/NoiseCLR), tau = 0.5, which divides:

    loss_k = -log( mean_{n<m} exp(g_n^k · g_m^k / tau) / mean_{n, l≠k} exp(g_n^k · g_n^l / tau) )

Negatives are other directions on the same noisy image. Its training draws one direction k per step; the sum over k has its gradient
in expectation. Neither loss has a term for the size of an effect.
"""

from functools import partial
from math import inf, log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.discovery.objectives import Objective, Seen
from repscope.errors import UserError

TEMPERATURE = 0.5


def latent_clr(temperature: float = TEMPERATURE, *, divide: bool = False, sign_blind: bool = True) -> Objective:
    """LatentCLR's loss.

    Raises
    ------
    UserError
        For a temperature that is not finite and above zero.
    """
    _need(temperature)
    name = f"latent_clr({temperature:g}{', divided' if divide else ''}{'' if sign_blind else ', signed'})"
    factor = 1 / temperature if divide else temperature
    return Objective(((1.0, name, partial(_latent_clr, factor, sign_blind)),), coupled=True)


def noise_clr(tau: float = TEMPERATURE) -> Objective:
    """NoiseCLR's loss.

    Raises
    ------
    UserError
        For a temperature that is not finite and above zero.
    """
    _need(tau)
    return Objective(((1.0, f"noise_clr({tau:g})", partial(_noise_clr, tau)),), coupled=True)


def _need(temperature: float) -> None:
    if not 0 < temperature < inf:
        raise UserError(f"The temperature is {temperature}; it must be finite and above 0.")


def _unit(seen: Seen) -> Float[Tensor, "direction sample feature"]:
    hat = functional.normalize(seen.by_prompt(seen.delta), dim=-1)
    if hat.shape[0] < 2 or hat.shape[1] < 2:
        raise UserError("A contrastive loss compares directions and samples; give two or more of each.")
    return hat


def _latent_clr(factor: float, sign_blind: bool, seen: Seen) -> Float[Tensor, "direction"]:
    hat = _unit(seen)
    k, n = hat.shape[:2]
    flat = hat.flatten(0, 1)
    cos = (flat @ flat.T).reshape(k, n, k, n)
    heat = factor * (cos.abs() if sign_blind else cos)
    same = torch.eye(k, dtype=torch.bool, device=hat.device)
    own = heat.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (k, n, m)
    itself = torch.eye(n, dtype=torch.bool, device=hat.device)
    near = own.masked_fill(itself, float("-inf")).logsumexp(2) - log(n - 1)
    far = heat.masked_fill(same[:, None, :, None], float("-inf")).flatten(2).logsumexp(2) - log(n * (k - 1))
    return (far - near).mean(1)


def _noise_clr(tau: float, seen: Seen) -> Float[Tensor, "direction"]:
    hat = _unit(seen)
    k, n = hat.shape[:2]
    own = torch.einsum("knf,kmf->knm", hat, hat) / tau
    first, second = torch.triu_indices(n, n, 1)
    near = own[:, first, second].logsumexp(1) - log(n * (n - 1) // 2)
    here = torch.einsum("knf,lnf->kln", hat, hat) / tau
    itself = torch.eye(k, dtype=torch.bool, device=hat.device)
    far = here.masked_fill(itself[:, :, None], float("-inf")).flatten(1).logsumexp(1) - log(n * (k - 1))
    return far - near
