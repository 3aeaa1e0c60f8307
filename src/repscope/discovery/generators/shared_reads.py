"""A diffusion model read at the same noisy images with many vectors: what does not depend on the vectors runs once per image.

At the first images, passes that share parts (`shared_pass`) are compared with whole passes on random vectors. If they differ, or
nothing can be shared, whole passes run.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.generators import DiffusionGenerator
from repscope.models.generators.shared_pass import SharedPlan, replay_error

_PROBES, _TOLERANCE = 2, 1e-4

Read: TypeAlias = Callable[
    [Tensor, Tensor, Tensor | None], Tensor
]  #: x (row, pixel), t (row), vectors (row, width) → (row, feature)
Moved: TypeAlias = Callable[[Float[Tensor, "vector row width"]], Float[Tensor, "vector row feature"]]


class SharedReads:
    """A way to read the model, with many vectors for the same noisy images.

    Parameters
    ----------
    generator, read
        The model, and what is read.
    width, norm
        Of the vectors that passes are compared on.
    share
        Whether parts may be shared; False for whole passes.
    """

    def __init__(self, generator: DiffusionGenerator, read: Read, width: int, norm: float, *, share: bool = True) -> None:
        self.generator, self.read, self.width, self.norm = generator, read, width, norm
        self.why = "" if share else "whole passes were asked for"  #: reason for whole passes
        self._plan: SharedPlan | None = None

    def at(self, x: Float[Tensor, "row pixel"], t: Int[Tensor, "row"]) -> tuple[Float[Tensor, "row feature"], Moved]:
        """What is read without vectors, and a differentiable function of vectors that gives what is read with them."""

        def whole(vectors: Tensor) -> Tensor:
            count = len(vectors)
            return torch.unflatten(self.read(x.repeat(count, 1), t.repeat(count), vectors.flatten(0, 1)), 0, (count, -1))

        if self.why:
            with torch.no_grad():
                return self.read(x, t, None), whole
        first = self._plan is None
        if self._plan is None:
            nothing = torch.full((1, self.width), torch.nan)
            self._plan = SharedPlan(self.generator.unet, lambda: self.read(x[:1], t[:1], nothing))
        base, shared = self._plan.record(lambda: self.read(x, t, None))

        def replayed(vectors: Tensor) -> Tensor:
            with shared.replayed(len(vectors)):
                return whole(vectors)

        if first:
            draw = torch.Generator().manual_seed(0)
            probes = self.norm / self.width**0.5 * torch.randn(_PROBES, len(x), self.width, generator=draw)
            with torch.no_grad():
                expected = whole(probes)
                try:
                    error = replay_error(replayed(probes), expected)
                except RuntimeError:  # shapes that do not fit
                    error = float("inf")
            if not error <= _TOLERANCE:
                self.why = "passes that share parts differ from whole passes"
                return base, whole
        return base, replayed
