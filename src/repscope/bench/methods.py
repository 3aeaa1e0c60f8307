"""Methods and metrics of the benchmark of direction discovery: the rows and columns of its table."""

from dataclasses import dataclass, field

from repscope.conditions import ESTIMATE, RANDOM
from repscope.discovery import Objective, contrastive, l2, magnitude, soft_orthogonal
from repscope.discovery.generators.comparison import IMAGE_METRICS


@dataclass(frozen=True)
class BenchMethod:
    """One row of the table.

    name: in the table. solver, objective: arguments of `discover`. steps: if None, the budget for gradient methods, else the
    solver's default. condition: of its rows in the result. sees_weights: whether it also gets the network's weights. given: without
    a solver, the field of a case with its directions.
    """

    name: str
    solver: str = ""
    objective: Objective = field(default_factory=l2)
    steps: int | None = None
    condition: str = ESTIMATE
    sees_weights: bool = False
    given: str = ""


BENCH_METHODS = (
    BenchMethod("random", "random", condition=RANDOM),
    BenchMethod("PCA of states", "pca"),
    BenchMethod("SVD of weights", "weights", sees_weights=True),
    BenchMethod("Jacobian", "jacobian"),
    BenchMethod("L2, sequential", "sequential", l2()),
    BenchMethod("L2, batched", "sphere", l2()),
    BenchMethod("DCT, 10 iterations", "dct", steps=10),
    BenchMethod("DCT, 100 iterations", "dct", steps=100),
    BenchMethod("L2 + soft-orthogonal", "sphere", magnitude() + soft_orthogonal()),
    BenchMethod("contrastive", "sphere", contrastive()),
    BenchMethod("contrastive, skip removed", "sphere", contrastive(subtract_skip=True)),
    BenchMethod("L2 + contrastive", "sphere", magnitude() + contrastive()),
    BenchMethod("L2 + contrastive, skip removed", "sphere", magnitude() + contrastive(subtract_skip=True)),
    BenchMethod("difference of means", condition="supervised", given="supervised"),
    BenchMethod("oracle", condition="oracle", given="truth"),
)

BENCH_METRICS = {
    "mmcs": "mean over planted features of the best |cos| of a direction",
    "recovered": "share of planted features with a direction at |cos| > .9",
    "duplicates": "share of directions that repeat a feature already found",
    "false": "share of directions at |cos| > .9 of no feature",
    "reached": "share of planted features along whose output a mean effect points, the vector or its negative added: cos > .7, the "
    "injected vector taken off",
    "elicits": "share of directions under which at least half of the greedy answers to held-out prompts begin as planted",
    "gain": "mean gain in log-probability of the planted sentence on held-out prompts, nats per token",
    "best gain": "that of the direction with the largest",
    "rank": "exp of the entropy of the singular values of mean effects",
    "overlap": "mean |cos| between mean effects of two directions",
    "clusters": "groups of directions whose mean effects hang together at |cos| > .8",
    "consistency": "mean cos of a direction's effects on two held-out states, the injected vector taken off",
    "consistency between": "the same between effects of two directions",
    "size": "mean length of effects on held-out states",
    "size per spread": "root mean square of effects in standard deviations of the output's coordinates",
    "kl": "next-token KL from the network as it is, on held-out prompts, nats",
    "half dose": "cos of mean effects at half the scale with those at the scale",
    "minus dose": "cos of mean effects at minus the scale with those at the scale",
    "stability": "mean |cos| with directions of another seed of the method, matched one to one",
    "cost": "forward equivalents: one vector through one state, forward or backward",
}
BENCH_METRICS |= {metric: says for metric, says in IMAGE_METRICS.items() if metric not in BENCH_METRICS}
