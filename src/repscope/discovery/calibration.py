"""Calibration of the norm of steering vectors.

If the norm is too small the response is linear; if too large the output degenerates.

1. DCT's rule (Mack and Turner 2024): the norm R at which effects depart from linearity by `ratio`, for 30 random unit vectors v,

       sqrt(mean_v ||effect(R v) - R J v||^2 / ||R J v||^2) = ratio,   ratio = 0.5,

   where effects and J are means over prompts.
2. For a language model, R is reduced until the leading directions of the mean Jacobian change the next-token distribution by at
   most `damage` nats (KL from the unsteered model). Random vectors do not suffice: at a norm where they are harmless, optimised
   vectors already destroy the text.

Both are roots of an increasing function of R, found by Brent's method in log R between 0.001 and 100 times the median norm of a
source state. A map that is linear over this range has no such R and gets the median norm.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from repscope.arrays import as_tensor
from repscope.discovery.objectives import magnitude
from repscope.discovery.solvers import SOLVERS, SolverTask, jvp, mean_over
from repscope.discovery.subject import Context, LanguageSubject, Subject
from repscope.errors import UserError
from repscope.models.engine.generation import Continuation, Sampling
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike, as_prompts
from repscope.models.variants.steered_decoding import steered, vectors_at_once
from repscope.steer.effects import kl_from_first

DRAWS = 30
REACH = (1e-3, 100.0)  #: search range of R, in median norms of a source state
LEADING, ITERATIONS = 8, 6  #: Jacobian directions whose damage is measured, and default steps of the power iteration
PRECISION = 0.01  #: of log R
_LOGIT_ROWS = 64  #: of a batch: they are compared in double precision
_FAR = 50.0  #: how far above its level a value counts that is not finite


@dataclass(frozen=True)
class Calibration:
    """A scale and how it was chosen.

    scale: R. relative: R over the median norm of a source state. linear: departure from linearity at R. damage: next-token KL at R
    in nats, None if not measured. why: the criterion that determined R.
    """

    scale: float
    relative: float
    linear: float
    damage: float | None
    why: str


class Fluency:
    """Effect of vectors on the next token: KL(unsteered || steered) in nats.

    Parameters
    ----------
    lm, source
        The model, and the site where vectors are added at all tokens.
    prompts
        Prompts whose next token is evaluated.
    target, target_tokens
        Where `effect_and_kl` measures effects, as for `LanguageSubject`; the last token of the last block if not given.
    """

    def __init__(
        self,
        lm: LanguageModel,
        source: str,
        prompts: Iterable[PromptLike],
        *,
        target: str | None = None,
        target_tokens: str = "last",
    ) -> None:
        self.lm = lm
        end = f"resid_post.{lm.blocks - 1}"
        self._subject = LanguageSubject(lm, source, target or end, target_tokens=target_tokens, end=end)
        held = list(as_prompts(lm.tokenizer, prompts))
        self._ids = self._subject.encoded(held)[0].ids
        self.context = self._subject.context(held)
        assert self.context.ends is not None
        self._hidden = self.context.ends.cpu()
        self._plain = self._logits(self._hidden)[None]

    def kl(self, vectors: Float[Tensor, "direction width"]) -> Float[Tensor, "direction prompt"]:
        """KL in nats per vector and prompt."""
        return self.effect_and_kl(as_tensor(vectors, "vectors", "direction width"))[1]

    def effect_and_kl(
        self, vectors: Float[Tensor, "direction width"]
    ) -> tuple[Float[Tensor, "direction row feature"], Float[Tensor, "direction prompt"]]:
        """Effects at the target, and KL in nats per vector and prompt, from one run."""
        effects, moved = self._subject.effect_and_end(self.context, vectors)
        return effects, self._divergence(moved)

    def effect_kl_and_texts(
        self, vectors: Float[Tensor, "direction width"], sampling: Sampling
    ) -> tuple[Float[Tensor, "direction row feature"], Float[Tensor, "direction prompt"], list[Continuation] | None]:
        """As `effect_and_kl`, and the continuations of each prompt under each vector, vector by vector, from the same run; None for
        those where they cannot be had this way.
        """
        lm, parts = self.lm, [part.made for part in self.context.parts if part.made is not None]
        most = vectors_at_once(lm, parts, self._ids, sampling.max_new_tokens)
        if not most:
            return *self.effect_and_kl(vectors), None
        rows, budget = [part.rows for part in self.context.parts], self.context.pass_tokens
        found = [steered(lm, parts, rows, self._ids, some, sampling, budget) for some in torch.split(vectors, most)]
        effects, moved = (torch.cat([getattr(one, name) for one in found]) for name in ("delta", "last"))
        texts = [
            Continuation(lm.tokenizer.decode(new, skip_special_tokens=True), new, end) for one in found for new, end in one.new
        ]
        return effects, self._divergence(moved), texts

    def _divergence(self, moved: Float[Tensor, "direction prompt d_model"]) -> Float[Tensor, "direction prompt"]:
        found = []
        for some in torch.split(moved.cpu(), max(1, _LOGIT_ROWS // len(self._hidden))):
            steered = self._logits((self._hidden + some).flatten(0, 1))
            found.append(kl_from_first(torch.cat([self._plain, torch.unflatten(steered, 0, (len(some), -1))])))
        return torch.cat(found)

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.from_numpy(self.lm.unembed(hidden.numpy()))


def calibrate(
    subject: Subject,
    context: Context,
    *,
    ratio: float = 0.5,
    draws: int = DRAWS,
    iterations: int = ITERATIONS,
    seed: int = 0,
    fluency: Fluency | None = None,
    damage: float = 0.5,
) -> Calibration:
    """Scale at which effects depart from linearity by `ratio` and cause at most `damage`.

    Parameters
    ----------
    subject, context
        Where vectors act.
    ratio
        Target departure from linearity.
    draws, seed
        Number and seed of the random vectors.
    iterations
        Steps of the power iteration for the Jacobian's leading directions.
    fluency
        Measures damage; None: damage is not limited.
    damage
        Largest next-token KL in nats.

    Raises
    ------
    UserError
        If a ratio or a damage is not above zero, or random vectors have no effect.
    """
    if not ratio > 0 or not damage > 0:
        raise UserError(f"The ratio {ratio:g} and the damage {damage:g} must be above 0.")
    generator = torch.Generator().manual_seed(seed)
    v = functional.normalize(torch.randn(draws, context.width, generator=generator), dim=1).to(context.states)
    slope = jvp(subject, context, v)
    if not bool((slope.norm(dim=1) > 0).all()):
        raise UserError("Random vectors do not move the target, so no scale can be found; choose another source or target.")

    def linear(scale: float) -> float:
        effect = mean_over(context, subject.effect(context, scale * v))
        part = (effect - scale * slope).square().sum(1) / (scale * slope).square().sum(1)
        return math.sqrt(float(part.mean()))

    leading = v if fluency is None else _leading(subject, context, iterations, seed)

    def damaged(scale: float) -> float:
        return float(fluency.kl(scale * leading).mean()) if fluency is not None else 0.0

    low, high = (edge * context.norm for edge in REACH)
    if linear(high) < ratio:
        scale, why = context.norm, f"effects stay linear up to {REACH[1]:g} median lengths: that median length"
    else:
        scale, why = _root(linear, ratio, low, high), f"departure from linearity of {ratio:g}"
    harm = damaged(scale) if fluency is not None else None
    if harm is not None and not harm <= damage:
        scale, why = _root(damaged, damage, low, scale), f"damage of {damage:g} nats to the next token"
        harm = damaged(scale)
    return Calibration(scale, scale / context.norm, linear(scale), harm, why)


def _leading(subject: Subject, context: Context, iterations: int, seed: int) -> Float[Tensor, "direction width"]:
    """Leading right singular vectors of the mean Jacobian at zero."""
    task = SolverTask(subject, context, magnitude(), LEADING, context.norm, iterations, seed=seed)
    return SOLVERS["jacobian"].run(task).vectors


def _root(rising: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Argument at which an increasing function reaches a level, by Brent's method on its logarithm; NaN counts as above."""
    from scipy.optimize import brentq

    @cache
    def above(log_scale: float) -> float:
        value = rising(math.exp(log_scale))
        return math.log(max(value, 1e-30) / level) if math.isfinite(value) else _FAR

    low, high = math.log(low), math.log(high)
    if above(low) >= 0 or above(high) <= 0:  # the level is not between the ends
        return math.exp(low if above(low) >= 0 else high)
    return math.exp(float(brentq(above, low, high, xtol=PRECISION)))
