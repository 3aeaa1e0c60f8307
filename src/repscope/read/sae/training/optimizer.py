"""Optimizer of a training: clipping, Adam, and the constraint on the norms of the decoder's rows.

A step: 1. with `unit`, the part of the decoder's gradient along each row is removed, as it would be undone anyway (Bricken et al.
2023). 2. The whole gradient is scaled to at most `clip` in norm; Adam's kernel divides while it reads, so this costs no pass. 3.
Adam (fused). 4. With `unit`, each decoder row gets norm 1 again.
"""

import torch
from torch import Tensor

from repscope.read.sae.training.recipe import Recipe


class Optimizer:
    """Adam on a dictionary of parameters, which it changes in place."""

    def __init__(self, recipe: Recipe, parameters: dict[str, Tensor]) -> None:
        self.recipe, self.parameters = recipe, parameters
        self._adam = torch.optim.Adam(list(parameters.values()), lr=1.0, betas=recipe.betas, eps=recipe.eps, fused=True)

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], rate: float) -> float:
        """Change the parameters; returns the norm of the gradient before clipping. Gradients are overwritten."""
        decoder = self.parameters["decoder"]
        unit = self.recipe.norm_of_decoder == "unit"
        if unit:
            along = torch.einsum("ld,ld->l", gradients["decoder"], decoder)
            gradients["decoder"].addcmul_(decoder, along.unsqueeze(1), value=-1)
        norms = torch.stack([torch.linalg.vector_norm(gradients[name]) for name in self.parameters])
        norm = float(torch.linalg.vector_norm(norms))
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        for group in self._adam.param_groups:
            group["lr"] = rate
        clip = self.recipe.clip
        factor = norm / clip if clip is not None and norm > clip else None
        self._adam.grad_scale = None if factor is None else torch.tensor(factor, dtype=torch.float32)  # type: ignore[attr-defined]
        self._adam.found_inf = None  # type: ignore[attr-defined]
        self._adam.step()
        for parameter in self.parameters.values():
            parameter.grad = None
        if unit:
            decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_(min=1e-12))
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by name: `adam.exp_avg.encoder`."""
        return {
            f"adam.{kind}.{name}": value
            for name, parameter in self.parameters.items()
            for kind, value in self._adam.state[parameter].items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        for name, parameter in self.parameters.items():
            kinds = [key.split(".", 2)[1] for key in state if key.startswith("adam.") and key.split(".", 2)[2] == name]
            self._adam.state[parameter] = {kind: state[f"adam.{kind}.{name}"] for kind in kinds}
