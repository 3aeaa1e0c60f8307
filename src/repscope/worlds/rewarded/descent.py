"""AdamW without weight decay for stacked networks: Adam with bias correction (Kingma & Ba 2015), network by network the same.

torch.optim brings the compiler with it, whose import takes longer than a short run; the rule is five lines. The change of the
weights in one update is linear in the rate.
"""

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from repscope.models.loading.stacked_weights import State

_FIRST, _SECOND, _EPS = 0.9, 0.999, 1e-8


@dataclass
class Descent:
    """Moments of Adam for these weights, which are changed in place."""

    weights: State
    step: int = 0
    _moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Moments of zero."""
        self._moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in self.weights.items()}

    @torch.no_grad()
    def update(self, loss: Tensor, rate: float) -> None:
        """One update on the gradient of a loss."""
        self.step += 1
        gradients = torch.autograd.grad(loss, list(self.weights.values()))
        scale = sqrt(1 - _SECOND**self.step)
        for (name, v), g in zip(self.weights.items(), gradients, strict=True):
            first, second = self._moments[name]
            first.lerp_(g, 1 - _FIRST)
            second.mul_(_SECOND).addcmul_(g, g, value=1 - _SECOND)
            v.addcdiv_(first, (second.sqrt() / scale).add_(_EPS), value=-rate / (1 - _FIRST**self.step))
