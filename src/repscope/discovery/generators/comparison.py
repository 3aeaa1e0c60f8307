"""Comparison of discovery methods on a generator whose images have known factors.

1. All methods share the generator, the samples of the search, the number of directions n, the norm of vectors and the steps.
2. Judged on other samples: factors read from edited images at several doses (`factor_changes`), the overlap, rank and consistency
   of the changes of images, and the share of the edited images' variance that sprites explain (whether they are still sprites).
3. Controls: random directions of equal norm; directions with labels as the upper reference; closed forms.
All seeds of a gradient method are searched in one batch (`discover_seeds`, `published_training`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from repscope.conditions import ESTIMATE, RANDOM
from repscope.discovery import metrics
from repscope.discovery.generators.beds import Bed, DiffusionBed, LatentBed
from repscope.discovery.generators.closed_form import ganspace, orthogonalised, sefa
from repscope.discovery.generators.factor_changes import DOSES, FactorChanges, factor_changes
from repscope.discovery.generators.judges import Judge
from repscope.discovery.generators.latent_directions import LatentDirections
from repscope.discovery.generators.published_training import train_latent_clr, train_noise_clr
from repscope.discovery.objectives import Objective, contrastive, l2, magnitude, soft_orthogonal
from repscope.discovery.search import discover
from repscope.discovery.solvers import SolverOptions
from repscope.discovery.stacked_seeds import discover_seeds
from repscope.errors import UserError, unknown

RANDOM_DIRECTIONS = "random directions"
LABELLED = "factor regression"
ORTHOGONAL = "factor regression, orthogonal"
TAU = 0.2  #: as on language models


@dataclass(frozen=True)
class ImageMethod:
    """A method.

    solver, objective: of `discover`. published: LatentCLR (a kind of direction) or NoiseCLR. closed: SeFa or GANSpace.
    """

    solver: str = ""
    objective: Objective = field(default_factory=magnitude)
    published: str = ""
    closed: str = ""
    condition: str = ESTIMATE


METHODS: dict[str, ImageMethod] = {
    RANDOM_DIRECTIONS: ImageMethod("random", condition=RANDOM),
    "L2": ImageMethod("sphere", l2()),
    "L2 + contrastive": ImageMethod("sphere", magnitude() + contrastive(TAU)),
    "contrastive": ImageMethod("sphere", contrastive(TAU)),
    "L2 + soft-orthogonal": ImageMethod("sphere", magnitude() + soft_orthogonal()),
    "LatentCLR": ImageMethod(published="fixed"),
    "LatentCLR, linear": ImageMethod(published="linear"),
    "LatentCLR, MLP": ImageMethod(published="mlp"),
    "NoiseCLR": ImageMethod(published="noise"),
    "Jacobian": ImageMethod("jacobian"),
    "DCT": ImageMethod("dct"),
    "GANSpace": ImageMethod(closed="ganspace"),
    "SeFa": ImageMethod(closed="sefa"),
    LABELLED: ImageMethod(condition="supervised"),
    ORTHOGONAL: ImageMethod(condition="supervised"),
}
GAN_ONLY = ("LatentCLR", "LatentCLR, linear", "LatentCLR, MLP", "GANSpace", "SeFa")
DIFFUSION_ONLY = ("NoiseCLR",)

#: metric → what it is; of the two shares explained each kind of images has its own
IMAGE_METRICS: dict[str, str] = {
    "distinct factors": "factors that are changed alone by a direction (selectivity and change above 0.5)",
    "factors reached": "factors that change most by a direction, by more than 0.5; others may change too",
    "selectivity": "change of the top factor over the sum of all changes, mean over directions",
    "factor change": "change of the top factor at the scale, in standard deviations of the data, mean over directions",
    "monotonicity": "Spearman's correlation of the top factor with the dose, mean over images and directions",
    "overlap": "mean |cos| between mean changes of images by two directions",
    "effective rank": "exp of the entropy of the singular values of mean changes of images",
    "consistency": "mean cos of a direction's changes of two images",
    "image change": "root mean square change of pixels at the scale",
    "sprites explained": "share of the variance of edited images that the sprites of the factors read explain",
    "digits explained": "share of the variance of edited images that the nearest training digit explains",
    "stability": "mean |cos| with the directions of other seeds, matched one to one",
    "cost": "forward equivalents: one vector on one sample, forward or backward",
}


@dataclass(frozen=True, eq=False)
class Found:
    """Directions of one method and seed. unit: (direction, width), of directions that depend on z their means. function: z → unit
    vectors (direction, row, width), of those. cost: forward equivalents. seconds: of the search."""

    unit: Float[np.ndarray, "direction width"]
    cost: float = 0.0
    seconds: float = 0.0
    function: LatentDirections | None = None


def need_methods(found: Sequence[str], *, gan: bool, labels: bool, exclusive: bool = False) -> None:
    """Check names of methods for a kind of generator. labels: whether it has directions with labels. exclusive: of classes.

    Raises
    ------
    UserError
        For an unknown method, or one that this generator does not have.
    """
    for name in found:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
        if name in (DIFFUSION_ONLY if gan else GAN_ONLY):
            raise UserError(f"{name} does not run on {'a GAN' if gan else 'a diffusion model'}; leave it out of --methods.")
        if name in (LABELLED, ORTHOGONAL) and not labels:
            raise UserError(f"{name} needs a latent or words, which h has not; leave it out of --methods.")
        if name == ORTHOGONAL and exclusive:
            raise UserError(
                f"{name} needs properties that vary apart, and probabilities of classes do not; leave it out of --methods."
            )


def search(
    bed: Bed,
    name: str,
    n: int,
    seeds: Sequence[int],
    steps: int,
    *,
    published_rate: float = 3e-2,
    labelled: Float[np.ndarray, "factor width"] | None = None,
) -> list[Found]:
    """Directions of a method, one set per seed.

    Parameters
    ----------
    bed
        Generator and samples.
    name
        A key of `METHODS`.
    n, seeds, steps
        Directions per seed, seeds, and updates of gradient methods.
    published_rate
        Learning rate of LatentCLR; NoiseCLR's is that times the vectors' root mean square entry. Larger than published, as
        there are fewer steps.
    labelled
        The directions with labels.

    Raises
    ------
    UserError
        For an unknown method, one that does not fit the generator, or n above the width for orthogonal solvers.
    """
    need_methods([name], gan=isinstance(bed, LatentBed), labels=True)
    method, seeds = METHODS[name], tuple(seeds)
    if name in (LABELLED, ORTHOGONAL):
        if labelled is None:
            raise UserError("The directions with labels need labels; pass labelled=….")
        try:
            alone = labelled if name == LABELLED else orthogonalised(torch.from_numpy(labelled)).numpy()
        except UserError as error:
            raise UserError(f"{name} cannot be made here, leave it out: {str(error).removesuffix('.')}.") from error
        return [Found(metrics.unit(alone)) for _ in seeds]
    if method.closed:
        assert isinstance(bed, LatentBed)
        most = min(n, bed.generator.latent)
        return [
            Found((sefa(bed.generator, most) if method.closed == "sefa" else ganspace(bed.generator, most, seed=seed)).numpy())
            for seed in seeds
        ]
    if method.published:
        return _published(bed, method.published, n, seeds, steps, published_rate)
    if method.solver == "sphere":
        options = SolverOptions(memory=4 << 30)
        found = discover_seeds(bed.subject, bed.context, method.objective, n, seeds, scale=bed.scale, steps=steps, options=options)
        return [Found(one.vectors, one.cost, one.seconds) for one in found]
    most = min(n, bed.context.width) if method.solver in ("jacobian", "dct") else n
    each = [discover(bed.subject, bed.context, method.objective, method.solver, most, scale=bed.scale, seed=seed) for seed in seeds]
    return [Found(one.vectors, one.cost, one.seconds) for one in each]


def _published(bed: Bed, kind: str, n: int, seeds: tuple[int, ...], steps: int, rate: float) -> list[Found]:
    if isinstance(bed, LatentBed):
        done = train_latent_clr(bed.generator, n, seeds, alpha=bed.scale, steps=steps, batch=bed.samples, kind=kind, rate=rate)
    else:
        assert isinstance(bed, DiffusionBed)
        step = rate * bed.scale / bed.context.width**0.5
        done = train_noise_clr(bed.generator, bed.source, n, seeds, norm=bed.scale, steps=steps, batch=6, site=bed.site, rate=step)
    return [
        Found(unit, done.cost, done.seconds, None if done.modules is None or kind == "fixed" else done.modules.of_seed(i))
        for i, unit in enumerate(done.directions)
    ]


def judged(bed: Bed, found: Found, judge: Judge, doses: tuple[float, ...] = DOSES) -> tuple[dict[str, float], FactorChanges]:
    """Values of `IMAGE_METRICS` but stability, and the changes of factors.

    Parameters
    ----------
    bed, found
        Generator, and directions.
    judge
        Reads factors from images.
    doses
        Multiples of the scale, 0 among them.

    Raises
    ------
    UserError
        As `factor_changes`.
    """
    unit = bed.every(found.unit)
    if found.function is not None:
        assert isinstance(bed, LatentBed)
        with torch.no_grad():
            unit = found.function.at(bed.z[None])[0]
    images = bed.dosed(unit, doses)
    known = judge.known
    factors = torch.unflatten(judge.read(images.flatten(0, 2)), 0, images.shape[:3])
    changes = factor_changes(factors.numpy(), np.asarray(doses), known.spread, exclusive=known.exclusive)
    effects = (images[-1] - images[doses.index(0.0)]).numpy()
    variety, same = metrics.diversity(effects), metrics.consistency(effects)
    ends = torch.cat([images[0].flatten(0, 1), images[-1].flatten(0, 1)])
    numbers = {
        "distinct factors": float(changes.distinct),
        "factors reached": float(changes.reached),
        "selectivity": float(changes.selectivity.mean()),
        "factor change": float(changes.change.mean()),
        "monotonicity": float(changes.monotonicity.mean()),
        "overlap": variety.overlap,
        "effective rank": variety.rank,
        "consistency": same.same,
        "image change": float(np.sqrt((effects**2).mean())),
        known.readable: judge.explained(ends),
        "cost": found.cost,
    }
    return numbers, changes
