"""Comparison of discovery methods on one model, by effects on held-out prompts.

1. All methods share the discovery prompts, the scale, the number of directions n and the budget of steps.
2. Metrics on held-out prompts (`metrics`): effect norm, overlap, effective rank, clusters, consistency after subtraction of the
   injected vector, dose; next-token KL; damage to text and repetition (`effects`); largest cosine with supervised directions.
3. A second seed of each method measures stability. Random directions of equal norm are the control.
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.discovery import (
    Context,
    DiscoveryResult,
    Fluency,
    LanguageSubject,
    Objective,
    SolverOptions,
    contrastive,
    discover,
    l2,
    magnitude,
    soft_orthogonal,
)
from repscope.discovery import metrics as judged
from repscope.discovery.stacked_seeds import discover_seeds
from repscope.models.engine.generation import Continuation, Sampling
from repscope.models.engine.memory import memory_kept
from repscope.models.prompts import Prompt
from repscope.steer.effects import nats_per_token, repeated, texts


@dataclass(frozen=True)
class DiscoveryMethod:
    """A discovery method.

    solver, objective: arguments of `discover`. budget: its steps per step of a gradient method, so that all methods use about the
    same number of forward equivalents.
    """

    solver: str
    objective: Objective = field(default_factory=magnitude)
    budget: float = 1.0


Effects = Float[np.ndarray, "direction prompt feature"]
Judged = tuple[dict[str, float], dict[str, np.ndarray]]  #: values of `DISCOVERY_METRICS`, and arrays by direction
RANDOM_METHOD = "random directions"
#: name → method; tau from a pilot on a language model
DISCOVERY_METHODS: dict[str, DiscoveryMethod] = {
    RANDOM_METHOD: DiscoveryMethod("random"),
    "PCA of states": DiscoveryMethod("pca"),
    "Jacobian": DiscoveryMethod("jacobian", budget=0.4),
    "DCT": DiscoveryMethod("dct"),
    "L2": DiscoveryMethod("sphere", l2()),
    "L2, sequential": DiscoveryMethod("sequential", l2()),
    "log L2": DiscoveryMethod("sphere", magnitude()),
    "L2 + soft-orthogonal": DiscoveryMethod("sphere", magnitude() + soft_orthogonal()),
    "contrastive": DiscoveryMethod("sphere", contrastive(0.2)),
    "contrastive, skip removed": DiscoveryMethod("sphere", contrastive(0.2, subtract_skip=True)),
    "L2 + contrastive": DiscoveryMethod("sphere", magnitude() + contrastive(0.2, subtract_skip=True)),
}

#: number → what it is
DISCOVERY_METRICS: dict[str, str] = {
    "size": "mean length of the effect over the median length of the target's state",
    "size per spread": "root mean square of the effect in standard deviations of the target's coordinates",
    "overlap": "mean |cos| between mean effects of two directions",
    "effective rank": "exp of the entropy of the singular values of mean effects",
    "clusters": "groups of directions whose mean effects hang together at |cos| > .8",
    "consistency": "mean cos of a direction's effects on two prompts, the injected vector taken off",
    "consistency of others": "the same between effects of two directions",
    "kl": "KL(unsteered ‖ steered) of the next token, nats",
    "damage": "increase of -log p under the unsteered model of what is written, nats per token",
    "repeats": "share of 3-grams that stood before",
    "half dose": "cos of mean effects at half the scale with those at the scale",
    "minus dose": "cos of mean effects at minus the scale with those at the scale",
    "supervised": "mean over directions with labels of the largest |cos| of a direction found with it",
    "cost": "forward equivalents: one vector through one prompt, forward or backward",
}


@dataclass(eq=False)
class TestBed:
    """Setting of a comparison: a model between two blocks, discovery prompts, held-out prompts and one scale.

    seen, held: discovery and held-out prompts. scale: norm of every vector. supervised: (direction, width) from labelled texts, or
    None. new_tokens: generated tokens for the damage metric, 0 for none. memory: limit for graphs in bytes. given: the context of
    the discovery prompts, if it is there.
    """

    subject: LanguageSubject
    seen: Sequence[str | Prompt]
    held: Sequence[str | Prompt]
    scale: float
    supervised: Float[np.ndarray, "direction width"] | None = None
    new_tokens: int = 20
    memory: float = 4 << 30
    given: InitVar[Context | None] = None

    def __post_init__(self, given: Context | None) -> None:
        """Compute the contexts of both prompt sets."""
        self.context: Context = given or self.subject.context(self.seen)
        where = {"target": self.subject.target, "target_tokens": self.subject.tokens}
        self.fluency = Fluency(self.subject.lm, self.subject.source, self.held, **where)
        self.apart: Context = self.fluency.context
        self._plain_nats: Float[np.ndarray, prompt] | None = None  #: of unsteered texts, which the first evaluation writes too
        target = self.subject.lm.capture(list(self.held), self.subject.target, "last").numpy()
        self.length = float(np.median(np.linalg.norm(target, axis=1)))

    def found(self, method: DiscoveryMethod, n: int, steps: int, seed: int) -> DiscoveryResult:
        """Directions of a method, from the discovery prompts only."""
        most = min(n, len(self.context.states) - 1) if method.solver == "pca" else n
        budget = max(1, round(steps * method.budget))
        return discover(
            self.subject,
            self.context,
            method.objective,
            method.solver,
            most,
            scale=self.scale,
            steps=budget,
            seed=seed,
            options=SolverOptions(memory=self.memory),
        )

    def seeds_at_once(self, n: int) -> int:
        """Seeds of so many directions each that share a pass; more at once would be no faster, and take more memory."""
        return max(1, self.context.pass_tokens // (n * sum(part.tokens for part in self.context.parts)))

    def found_all(self, method: DiscoveryMethod, n: int, steps: int, seeds: Sequence[int]) -> list[DiscoveryResult]:
        """As `found` for each seed; objectives are descended for all seeds in one batch."""
        if method.solver != "sphere" or len(seeds) == 1:
            return [self.found(method, n, steps, seed) for seed in seeds]
        budget, options = max(1, round(steps * method.budget)), SolverOptions(memory=self.memory)
        goal = method.objective
        return discover_seeds(self.subject, self.context, goal, n, seeds, scale=self.scale, steps=budget, options=options)

    def judged(self, found: DiscoveryResult) -> Judged:
        """Values of `DISCOVERY_METRICS`, and per direction: mean effects, their norms (`sizes`), KL, damage, consistency."""
        return self.judged_all([found])[0]

    def judged_all(self, found: Sequence[DiscoveryResult]) -> list[Judged]:
        """As `judged` for each result, all directions in one run."""
        vectors = torch.from_numpy(np.concatenate([one.vectors for one in found])).to(self.apart.states)
        cuts = np.cumsum([len(one) for one in found])[:-1]
        unsteered = int(bool(self.new_tokens) and self._plain_nats is None)
        added = self.scale * torch.cat([vectors, 0 * vectors[:unsteered]])
        with memory_kept():
            effects, divergence, wrote = self._run(added)
            others = self.subject.effect(self.apart, self.scale * torch.cat([0.5 * vectors, -vectors]))
        several = (divergence[: len(vectors)], effects[: len(vectors)], *others.chunk(2))
        kl, whole, half, minus = (np.split(x.cpu().numpy(), cuts) for x in several)
        made = [self._numbers(*each) for each in zip(found, whole, half, minus, kl)]
        if self.new_tokens:
            lm, site = self.subject.lm, self.subject.site
            wrote = wrote or texts(lm, self.held, added.cpu().numpy(), site, new_tokens=self.new_tokens)
            nats = nats_per_token(lm, [p for _ in added for p in self.held], wrote).reshape(len(added), -1)
            plain = self._plain_nats = nats[-1] if self._plain_nats is None else self._plain_nats
            damage = np.split((nats[: len(vectors)] - plain).mean(1), cuts)
            again = np.array([repeated(c.ids) for c in wrote]).reshape(len(added), -1)
            repeats = np.split(again[: len(vectors)], cuts)
            for (numbers, arrays), more, again in zip(made, damage, repeats):
                arrays["damage"] = more
                numbers |= {"damage": float(more.mean()), "repeats": float(again.mean())}
        return made

    def _numbers(self, found: DiscoveryResult, whole: Effects, half: Effects, minus: Effects, kl: np.ndarray) -> Judged:
        """Numbers and arrays of one result, those of texts excepted."""
        variety, linear = judged.diversity(whole), judged.dose_curve(half, whole, minus)
        same = judged.consistency(whole, self.scale * found.vectors)
        length, per_spread = judged.effect_norm(whole, self.apart.spread.cpu().numpy())
        numbers = {
            "size": length / self.length,
            "size per spread": per_spread,
            "overlap": variety.overlap,
            "effective rank": variety.rank,
            "clusters": float(variety.clusters),
            "consistency": same.same,
            "consistency of others": same.other,
            "kl": float(kl.mean()),
            "half dose": linear.half_cos,
            "minus dose": linear.minus_cos,
            "cost": found.cost,
        }
        if self.supervised is not None:
            cos = np.abs(judged.unit(self.supervised) @ judged.unit(found.vectors).T)
            numbers["supervised"] = float(cos.max(1).mean())
        sizes = np.linalg.norm(whole, axis=-1).mean(1) / self.length
        return numbers, {
            "vectors": found.vectors,
            "means": whole.mean(1),
            "kl": kl.mean(1),
            "consistent": same.each,
            "sizes": sizes,
        }

    def _run(self, vectors: Float[Tensor, "direction width"]) -> tuple[Tensor, Tensor, list[Continuation] | None]:
        """Effects, KL, and texts as `texts` samples them, where one run gives all of them."""
        if not self.new_tokens:
            return *self.fluency.effect_and_kl(vectors), None
        return self.fluency.effect_kl_and_texts(vectors, Sampling(self.new_tokens, 1.0, share_random_numbers=True))


def clusters(means: Mapping[str, Float[np.ndarray, "direction feature"]], at: float = judged.CLUSTERED) -> dict[str, np.ndarray]:
    """Cluster of each direction's mean effect, numbered across all methods, largest cluster first."""
    from scipy.sparse.csgraph import connected_components

    hat = judged.unit(np.concatenate([m.astype(np.float64) for m in means.values()]))
    labels = connected_components(np.abs(hat @ hat.T) > at)[1]
    order = np.argsort(-np.bincount(labels), kind="stable")
    renamed = np.argsort(order)[labels]
    return dict(zip(means, np.split(renamed, np.cumsum([len(m) for m in means.values()])[:-1])))
