"""Functions with planted directions, the ground truth of benchmarks.

    f(h) = h + B h + sum_j gain_j act(<v_j, h>) u_j,   v_j, u_j random unit vectors, gains from 1.5 down to 0.7

B is a dense linear background. A method is given f and states as a `FunctionSubject`; v and u stay here. Network, states and
methods draw from generators of their own, whose seeds come from one number through a hash of what they are for: a control that
shared a seed with the truth would find it (a first pilot did).

| kind | act | what it tests |
|---|---|---|
| `exp` | exp(a) - 1 | features that grow with what is pushed along them |
| `relu` | max(a - 1, 0) | features that the Jacobian at the states hardly sees |
| `linear` | a | a floor: only the product of all features is determined |

`exp_mlp` is the setting of DCT's own synthetic benchmark: no skip path and no background, drawn uniformly, one state at zero.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.errors import unknown

FUNCTION_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.expm1,
    "relu": lambda a: functional.relu(a - 1.0),
    "linear": lambda a: a,
}
GAINS = (1.5, 0.7)
BACKGROUND = 0.15
STATE = 0.3  #: standard deviation of a state's coordinates


@dataclass(frozen=True, eq=False)
class Planted:
    """A network and what was planted in it.

    truth: (feature, width), what it responds to. out: (feature, width), what it writes then. gains: how strongly. background:
    (width, width). skip: whether the state itself is carried through. kind, seed: how it was drawn.
    """

    truth: Float[Tensor, "feature width"]
    out: Float[Tensor, "feature width"]
    gains: Float[Tensor, "feature"]
    background: Float[Tensor, "width width"] | None
    skip: bool
    kind: str
    seed: int

    def __call__(self, h: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """The network."""
        written = (self.gains * FUNCTION_KINDS[self.kind](h @ self.truth.T)) @ self.out
        if self.background is not None:
            written = written + h @ self.background.T
        return h + written if self.skip else written

    def states(self, n: int = 16, split: str = "train") -> Float[Tensor, "sample width"]:
        """Samples to find directions at, or others to judge them on."""
        generator = drawn_from("states", split, self.kind, self.seed)
        return STATE * torch.randn(n, self.truth.shape[1], generator=generator)

    @property
    def weight(self) -> Float[Tensor, "reader width"]:
        """What reads the state, as one matrix: what a method that looks at weights may see."""
        return self.truth if self.background is None else torch.cat([self.truth, self.background])


def planted(kind: str = "exp", seed: int = 0, *, width: int = 64, features: int = 12) -> Planted:
    """Draw a network.

    Parameters
    ----------
    kind
        One of `FUNCTION_KINDS`.
    seed
        The network's; its states and any method draw from elsewhere.
    width, features
        Sizes.

    Raises
    ------
    UserError
        For an unknown kind.
    """
    if kind not in FUNCTION_KINDS:
        raise unknown("kind of planted network", kind, FUNCTION_KINDS)
    generator = drawn_from("network", kind, seed)
    truth, out = (unit_rows(features, width, generator) for _ in range(2))
    background = BACKGROUND * torch.randn(width, width, generator=generator) / width**0.5
    return Planted(truth, out, torch.linspace(*GAINS, features), background, True, kind, seed)


def exp_mlp(seed: int = 0, *, width: int = 4096, features: int = 32) -> Planted:
    """The network of DCT's synthetic benchmark: an exponential layer of `features` between two of `width`, equal gains."""
    generator = drawn_from("exp_mlp", seed)
    truth, out = (functional.normalize(2 * torch.rand(features, width, generator=generator) - 1, dim=1) for _ in range(2))
    return Planted(truth, out, torch.ones(features), None, False, "exp", seed)


def unit_rows(features: int, width: int, generator: torch.Generator) -> Float[Tensor, "feature width"]:
    """Random unit vectors."""
    return functional.normalize(torch.randn(features, width, generator=generator), dim=1)


def drawn_from(*what: object) -> torch.Generator:
    """A generator whose seed is a hash of what it is for."""
    digest = hashlib.sha256("\x1f".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def seed_for(*what: object) -> int:
    """A seed for a method, made likewise."""
    return drawn_from("method", *what).initial_seed() % 2**31
