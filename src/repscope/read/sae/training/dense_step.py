"""Loss and gradients of JumpReLU, Gated and ReLU: dense products, in chunks of rows.

Nearly half of the latents are active when such a training starts, so sparse products would be no faster. Gradients of chunks add
up, as every loss is a mean over rows; the penalty (L0 / target − 1)² of JumpReLU is not, so its factor is applied after the last
chunk.

JumpReLU (arXiv:2407.14435, equations 11 and 12), with K the rectangle |u| < ½ and ε the bandwidth:
    z = h H(h − θ)        dz/dθ := −(θ / ε) K((h − θ) / ε)        dL0/dθ := −(1 / ε) K((h − θ) / ε)        dz/dh = H(h − θ)
θ = exp(log_threshold), so that it stays positive. Gated and ReLU go through autograd.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from repscope.read.sae.training.architectures import Gated, JumpReLU
from repscope.read.sae.training.recipe import Recipe
from repscope.read.sae.training.topk_step import StepResult

CHUNK = 512


class DenseStep:
    """Loss and gradients of one batch. blocks: widths of the sources in the decoder's rows (ReLU's penalty sums their norms)."""

    def __init__(self, recipe: Recipe, blocks: tuple[int, ...]) -> None:
        self.recipe, self.blocks = recipe, blocks

    def __call__(
        self, p: dict[str, Tensor], x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], *, subtract: bool, sparsity: float
    ) -> StepResult:
        """Gradients at parameters p for rows x and targets y. subtract: b_dec is subtracted from x. sparsity: λ now."""
        one = _jump_relu if isinstance(self.recipe.architecture, JumpReLU) else self._autograd
        total = StepResult({}, {"squared_error": 0.0}, torch.zeros(self.recipe.latents, dtype=torch.long), 0.0)
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            part = one(self.recipe, p, x[rows], y[rows], subtract, sparsity, len(x))
            for name, value in part.gradients.items():
                total.gradients[name] = value if name not in total.gradients else total.gradients[name].add_(value)
            for name, loss in part.losses.items():
                total.losses[name] = total.losses.get(name, 0.0) + loss
            total.fired += part.fired
        total.active = float(total.fired.sum()) / len(x)
        if isinstance(self.recipe.architecture, JumpReLU):
            _add_l0_penalty(self.recipe.architecture, total, sparsity)
        return total

    def _autograd(
        self, recipe: Recipe, p: dict[str, Tensor], x: Tensor, y: Tensor, subtract: bool, sparsity: float, batch: int
    ) -> StepResult:
        leaves = {name: value.detach().requires_grad_() for name, value in p.items()}
        with torch.enable_grad():
            rows = x - leaves["b_dec"] if subtract else x
            z, terms = _gated(leaves, rows, y) if isinstance(recipe.architecture, Gated) else self._relu(leaves, rows)
            rebuilt = z @ leaves["decoder"] + leaves["b_dec"]
            if "skip" in leaves:
                rebuilt = rebuilt + x @ leaves["skip"]
            losses = {"squared_error": (rebuilt - y).square().sum() / batch}
            losses |= {name: (sparsity * value if name == "sparsity" else value) / batch for name, value in terms.items()}
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: torch.zeros_like(v) if v.grad is None else v.grad for name, v in leaves.items()}
        return StepResult(gradients, {name: float(v.detach()) for name, v in losses.items()}, (z > 0).sum(0), 0.0)

    def _relu(self, p: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = torch.relu(torch.addmm(p["b_enc"], rows, p["encoder"].T))
        norms = torch.stack(
            [torch.linalg.vector_norm(block, dim=1) for block in torch.split(p["decoder"], list(self.blocks), dim=1)]
        )
        return z, {"sparsity": (z @ norms.sum(0)).sum()}


def _gated(p: dict[str, Tensor], rows: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Activations, the gate's L1, and the error of the gate's own reconstruction with the decoder held constant."""
    h = rows @ p["encoder"].T
    gate = h + p["b_gate"]
    z = (gate > 0) * torch.relu(h * p["r_mag"].exp() + p["b_mag"])
    opened = torch.relu(gate)
    frozen = opened @ p["decoder"].detach() + p["b_dec"].detach()
    return z, {"sparsity": opened.sum(), "gate_error": (frozen - y).square().sum()}


@torch.no_grad()
def _jump_relu(
    recipe: Recipe, p: dict[str, Tensor], x: Tensor, y: Tensor, subtract: bool, sparsity: float, batch: int
) -> StepResult:
    """Gradients of the reconstruction; `l0_threshold` holds dL0/dθ per row and latent, without its factor."""
    epsilon = recipe.architecture.bandwidth  # type: ignore[union-attr]
    threshold = p["log_threshold"].exp()
    rows = x - p["b_dec"] if subtract else x
    h = torch.addmm(p["b_enc"], rows, p["encoder"].T)
    on = h > threshold
    near = (h - threshold).abs() < epsilon / 2
    z = h * on
    error = torch.addmm(p["b_dec"] - y, z, p["decoder"])
    if "skip" in p:
        error += x @ p["skip"]
    g = error * (2 / batch)
    dz = g @ p["decoder"].T
    d_threshold = -(threshold / epsilon) * (dz * near).sum(0)
    dh = dz.mul_(on)
    gradients = {
        "decoder": z.T @ g,
        "encoder": dh.T @ rows,
        "b_enc": dh.sum(0),
        "b_dec": g.sum(0),
        "log_threshold": d_threshold * threshold,
        "l0_threshold": near.sum(0) * (-threshold / (epsilon * batch)),
    }
    if subtract:
        gradients["b_dec"] -= gradients["b_enc"] @ p["encoder"]
    if "skip" in p:
        gradients["skip"] = x.T @ g
    return StepResult(gradients, {"squared_error": float(error.square().sum()) / batch}, on.sum(0), 0.0)


def _add_l0_penalty(architecture: JumpReLU, total: StepResult, sparsity: float) -> None:
    """λ L0 or λ (L0 / target − 1)², and its gradient."""
    towards, target = total.gradients.pop("l0_threshold"), architecture.target_l0
    if target is None:
        total.losses["sparsity"], factor = sparsity * total.active, sparsity
    else:
        excess = total.active / target - 1
        total.losses["sparsity"], factor = sparsity * excess**2, 2 * sparsity * excess / target
    total.gradients["log_threshold"] += factor * towards
