"""Objectives and solvers beside each other on one model: each method's directions, judged by effects on prompts that it never saw.

1. One context of prompts to discover on, one scale for all; a method gets n directions, a seed, and so many steps.
2. Judged on held-out prompts (`judged`): size of effects, overlap, effective rank, clusters, consistency with the injected vector
   taken off, dose; KL of the next token; damage to text and loops (`effects`); the largest cosine with supervised directions.
3. Another seed of the same method says how stable its directions are; random directions of equal length are the control of all.

Takes a model, prompts and a method; knows no study.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

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
from repscope.models.engine.generation import Continuation
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.steer.effects import repeated, texts


@dataclass(frozen=True)
class DiscoveryMethod:
    """A way to directions.

    solver, objective: what `discover` is asked for. budget: its steps where a gradient method takes one, so that all take about as
    many forward equivalents. family: what it stands for in the answer.
    """

    solver: str
    objective: Objective = field(default_factory=magnitude)
    budget: float = 1.0


RANDOM_METHOD = "random directions"
#: name → method; tau as in the pilot on a language model
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
    "damage": "rise of -log p under the unsteered model of what is written, nats a token",
    "repeats": "share of 3-grams that stood before",
    "half dose": "cos of mean effects at half the scale with those at the scale",
    "minus dose": "cos of mean effects at minus the scale with those at the scale",
    "supervised": "mean over directions with labels of the largest |cos| of a direction found with it",
    "cost": "forward equivalents: one vector through one prompt, forward or backward",
    "seconds": "of the search",
}


@dataclass(eq=False)
class TestBed:
    """Where methods are compared: a model between two blocks, prompts to discover on, others to judge on, one scale.

    seen, held: prompts of both. scale: length of every vector. supervised: (direction, width) from labelled texts, none where there
    are none. new_tokens: of the texts on which damage is measured, none where 0. memory: bytes that graphs may take.
    """

    subject: LanguageSubject
    seen: Sequence[str | Prompt]
    held: Sequence[str | Prompt]
    scale: float
    supervised: Float[np.ndarray, "direction width"] | None = None
    new_tokens: int = 20
    memory: float = 4 << 30

    def __post_init__(self) -> None:
        """Keep what effects on held-out prompts need, and what the model writes as it is."""
        self.context: Context = self.subject.context(self.seen)
        self.apart: Context = self.subject.context(self.held)
        self.fluency = Fluency(self.subject.lm, self.subject.source, self.held)
        self.plain = texts(self.subject.lm, self.held, [], new_tokens=self.new_tokens) if self.new_tokens else []
        self.plain_nats = _nats(self.subject.lm, self.held, self.plain) if self.new_tokens else np.zeros(0)
        target = self.subject.lm.capture(list(self.held), self.subject.target, "last").numpy()
        self.length = float(np.median(np.linalg.norm(target, axis=1)))

    def found(self, method: DiscoveryMethod, n: int, steps: int, seed: int) -> DiscoveryResult:
        """The directions of a method, from the prompts to discover on alone."""
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

    def judged(self, found: DiscoveryResult) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The numbers of `DISCOVERY_METRICS`, and by direction: mean effects, KL, damage, consistency, clusters."""
        vectors = torch.from_numpy(np.ascontiguousarray(found.vectors)).to(self.apart.states)
        whole, half, minus = (self.subject.effect(self.apart, by * self.scale * vectors).cpu().numpy() for by in (1.0, 0.5, -1.0))
        variety, linear = judged.diversity(whole), judged.dose_curve(half, whole, minus)
        same = judged.consistency(whole, self.scale * found.vectors)
        length, per_spread = judged.effect_norm(whole, self.apart.spread.cpu().numpy())
        kl = self.fluency.kl(self.scale * vectors).cpu().numpy()
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
            "seconds": found.seconds,
        }
        arrays = {"vectors": found.vectors, "means": whole.mean(1), "kl": kl.mean(1), "consistent": same.each}
        if self.supervised is not None:
            cos = np.abs(judged.unit(self.supervised) @ judged.unit(found.vectors).T)
            numbers["supervised"] = float(cos.max(1).mean())
        if self.new_tokens:
            lm, site = self.subject.lm, self.subject.site
            wrote = texts(lm, self.held, self.scale * found.vectors, site, new_tokens=self.new_tokens)
            nats = _nats(lm, [p for _ in found.vectors for p in self.held], wrote).reshape(len(found.vectors), -1)
            arrays["damage"] = (nats - self.plain_nats).mean(1)
            numbers["damage"] = float(arrays["damage"].mean())
            numbers["repeats"] = float(np.mean([repeated(c.ids) for c in wrote]))
        return numbers, arrays


def clusters(means: Mapping[str, Float[np.ndarray, "direction feature"]], at: float = judged.CLUSTERED) -> dict[str, np.ndarray]:
    """Which group each direction's mean effect hangs together with, numbered across all methods: largest group first."""
    from scipy.sparse.csgraph import connected_components

    hat = judged.unit(np.concatenate([m.astype(np.float64) for m in means.values()]))
    labels = connected_components(np.abs(hat @ hat.T) > at)[1]
    order = np.argsort(-np.bincount(labels), kind="stable")
    renamed = np.argsort(order)[labels]
    return dict(zip(means, np.split(renamed, np.cumsum([len(m) for m in means.values()])[:-1])))


def _nats(lm: LanguageModel, prompts: Sequence[str | Prompt], wrote: Sequence[Continuation]) -> Float[np.ndarray, "text"]:
    """Mean -log p of each text under the model as it is, in nats a token; 0 of an empty one."""
    nats = np.zeros(len(wrote))
    kept = [i for i, c in enumerate(wrote) if c.text]
    if kept:
        scores = lm.score([prompts[i] for i in kept], [wrote[i].text for i in kept])
        nats[kept] = -scores.logprob / scores.tokens
    return nats
