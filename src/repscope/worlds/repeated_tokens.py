"""Random tokens that repeat: what comes next stands in the text, after the last occurrence of the present token.

A document is random tokens, all different, repeated with a period that differs between documents. A network that has one block, and
only learned positions, cannot know which token came after an earlier copy of the present one; with two blocks, a head can attend to
what follows that copy: an induction head (Olsson et al. 2022, arXiv 2209.11895).

Tests are of one period: a copy of `tested` tokens, and these again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State
from repscope.worlds.small_lm import transformer
from repscope.worlds.small_lm.transformer import Shape


@dataclass(frozen=True)
class RepeatedTokens:
    """vocabulary: tokens. length: of a document. periods: least and most tokens before they repeat. tested: period of the tests.

    Raises a `UserError` for documents in which nothing can repeat.
    """

    vocabulary: int = 24
    length: int = 24
    periods: tuple[int, int] = (5, 12)
    tested: int = 10

    def __post_init__(self) -> None:
        """Refuse documents in which nothing can repeat."""
        if not 2 <= self.periods[0] <= self.periods[1] <= min(self.vocabulary, self.length - 1):
            raise UserError(
                f"Periods of {self.periods} do not repeat in {self.length} tokens of a vocabulary of {self.vocabulary}."
            )
        if not 3 <= self.tested <= min(self.vocabulary, self.length // 2):
            raise UserError(f"A period of {self.tested} tokens does not fit twice into {self.length}.")

    def documents(self, networks: int, number: int, generator: torch.Generator) -> Int[Tensor, "network document token"]:
        """Documents of every network, each with a period of its own."""
        orders = torch.rand(networks, number, self.vocabulary, generator=generator).argsort(-1)
        least, most = self.periods
        period = torch.randint(least, most + 1, (networks, number, 1), generator=generator)
        return orders.gather(-1, torch.arange(self.length).expand(networks, number, -1) % period)

    def tests(self, networks: int, number: int, generator: torch.Generator) -> Int[Tensor, "network document token"]:
        """A copy of random tokens, and these again."""
        orders = torch.rand(networks, number, self.vocabulary, generator=generator).argsort(-1)[..., : self.tested]
        return torch.cat([orders, orders], -1)


@torch.no_grad()
def evaluate_copies(
    shape: Shape, state: State, tests: Int[Tensor, "network document token"]
) -> Mapping[str, Float[np.ndarray, "network document ..."]]:
    """What networks do on repeated tokens.

    Returns
    -------
    dict
        induction, other tokens: (network, document, head), mean attention from a token of the second copy to the one after its
        first copy, and to another one of the first copy. hits, scores, other hits, other scores: (network, document), accuracy and
        log-probability (nats per token) of the second copy from its second token on, and of the first copy.
    """
    n = tests.shape[-1] // 2
    at = torch.arange(n, 2 * n - 1)  # each should attend to the token after its first copy, n - 1 places back
    found: dict[str, list[Tensor]] = {"induction": [], "other tokens": []}
    for weights in transformer.attention_weights(shape, state, tests):
        rows = weights[..., at, :]
        own = rows.gather(-1, (at - n + 1)[:, None].expand(*rows.shape[:-1], 1))[..., 0]
        found["induction"].append(own.mean(-1))
        found["other tokens"].append((rows[..., 1:n].sum(-1) - own).mean(-1) / max(1, n - 2))
    logs = transformer.logits(shape, state, tests)[..., :-1, :].double().log_softmax(-1)
    nats = logs.gather(-1, tests[..., 1:, None])[..., 0]
    hits = (logs.argmax(-1) == tests[..., 1:]).double()
    values = {name: torch.cat(parts, -1) for name, parts in found.items()}
    for name, part in (("", slice(n, None)), ("other ", slice(0, n - 1))):
        values |= {f"{name}hits": hits[..., part].mean(-1), f"{name}scores": nats[..., part].mean(-1)}
    return {name: value.double().numpy() for name, value in values.items()}
