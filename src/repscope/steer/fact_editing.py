"""Fact editing by a vector added at the subject's last token.

1. All edits of one prompt (layers, ranks, doses, controls) are variants of it: they share its lower blocks and earlier positions.
2. Efficacy: the most likely token begins the new object.
3. Controls: a step of equal norm in a random direction; replacement by another subject's vector (an upper bound). Specificity:
   effects on another relation of the subject, on a neighbouring fact in the same text, and on a neutral text (KL).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float

from repscope.directions.random import random_like
from repscope.models.prompts import Prompt, encode
from repscope.models.sites import Site, Tokens
from repscope.models.variants.prompt_variants import Beginnings, PromptVariant, run_variants
from repscope.steer.effects import kl_from_first

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


def logits_after_edit(
    lm: "LanguageModel",
    prompt: Prompt,
    steps: Sequence[tuple[str, Float[np.ndarray, "d_model"]]],
    span: str = "subject",
    beginnings: Beginnings | None = None,
) -> Float[np.ndarray, "variant vocab"]:
    """Next-token logits of one prompt with each (site, step) alone added at the last token of a span; the first row is unedited.

    beginnings: shared by the calls for prompts that begin alike, which then run what they share once.

    Raises
    ------
    UserError
        For a span that the prompt lacks, a network that is not causal, or a site that cannot be edited.
    """
    return lm.unembed(states_after_edit(lm, prompt, steps, span, beginnings), normed=True)


def states_after_edit(
    lm: "LanguageModel",
    prompt: Prompt,
    steps: Sequence[tuple[str, Float[np.ndarray, "d_model"]]],
    span: str = "subject",
    beginnings: Beginnings | None = None,
) -> Float[np.ndarray, "variant d_model"]:
    """The final norm's output behind `logits_after_edit`, for prompts that share a product with the head; raises as it."""
    return _changed_states(lm, prompt, [Change(site, step, "last") for site, step in steps], span, beginnings)


@dataclass(frozen=True, eq=False)
class Change:
    """A vector to add at a site: at all tokens of the subject, or its last."""

    site: str
    vector: Float[np.ndarray, "d_model"]
    tokens: Literal["all", "last"] = "all"


def changed_logits(
    lm: "LanguageModel", prompt: Prompt, changes: Sequence[Change], span: str = "subject", beginnings: Beginnings | None = None
) -> Float[np.ndarray, "variant vocab"]:
    """Next-token logits with each change alone; the first row is unedited. As `logits_after_edit`."""
    return lm.unembed(_changed_states(lm, prompt, changes, span, beginnings), normed=True)


def _changed_states(
    lm: "LanguageModel", prompt: Prompt, changes: Sequence[Change], span: str, beginnings: Beginnings | None
) -> Float[np.ndarray, "variant d_model"]:
    encoded = encode(lm.tokenizer, [prompt], Tokens("all", span), lm.context, causal=lm.causal)
    start, stop = int(encoded.start[0]), int(encoded.stop[0])
    forks = [PromptVariant(Site("resid_post", lm.blocks - 1), stop - 1, stop, lambda there: there)]
    for change in changes:
        first = start if change.tokens == "all" else stop - 1
        vector = torch.from_numpy(np.asarray(change.vector, dtype=np.float32))
        forks.append(PromptVariant(lm.resolve(change.site)[0], first, stop, _adding(vector)))
    found: np.ndarray = run_variants(lm, encoded.ids[0], forks, beginnings=beginnings).float().cpu().numpy()
    return found


def _adding(step: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda there: there + step.to(there)


def random_step(like: Float[np.ndarray, "d_model"], seed: int) -> Float[np.ndarray, "d_model"]:
    """A step of equal norm in a random direction."""
    return random_like(like, np.random.default_rng(seed)).astype(np.float32)


def kl(logits: Float[np.ndarray, "variant vocab"]) -> Float[np.ndarray, "variant"]:
    """KL(unedited ‖ edited) of the next token, in nats, for each variant after the first row."""
    return np.asarray(kl_from_first(torch.from_numpy(logits)))
