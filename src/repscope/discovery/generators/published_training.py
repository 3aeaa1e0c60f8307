"""LatentCLR and NoiseCLR trained as published, all directions of all seeds in one batch.

| | LatentCLR | NoiseCLR |
|---|---|---|
| directions | fixed, linear(z) or MLP(z), at unit norm times alpha | embeddings of new words, free of norm |
| per step | fresh z | fresh noisy images, all at one random time |
| anchor | every direction | one random direction, negatives are the others |
| optimiser | Adam 1e-3, weight decay 1e-3, rate × 0.2 after a tenth and after half of the steps | AdamW 1e-3, weight decay 1e-2 |

Published numbers of steps (10,000 and 1,000 of four batches) are for large generators; here they are an argument. NoiseCLR's
negatives are 20 drawn directions of 100; here all others, which are fewer. Each seed draws its own samples and has its own loss, so
it is trained as if alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.arrays import as_tensor
from repscope.discovery.generators.latent_directions import LatentDirections
from repscope.discovery.generators.published_losses import latent_clr, noise_clr
from repscope.discovery.generators.shared_reads import SharedReads
from repscope.discovery.generators.subjects import NoisyImages
from repscope.discovery.objectives import Objective, Seen
from repscope.errors import UserError
from repscope.models.generators import DiffusionGenerator, LatentGenerator
from repscope.progress import progress

RATE = 1e-3
_DECAY_LATENT, _DECAY_NOISE = 1e-3, 1e-2
_MILESTONES, _FACTOR = (0.1, 0.5), 0.2


@dataclass(frozen=True, eq=False)
class PublishedResult:
    """Trained directions.

    directions: unit vectors per seed; of directions that depend on z, their means. losses: per step and seed.

    modules: LatentCLR's directions as functions of z, None of NoiseCLR. norms: of NoiseCLR's embeddings. cost: forward equivalents
    per seed. seconds: per seed.
    """

    directions: Float[np.ndarray, "seed direction width"]
    losses: Float[np.ndarray, "step seed"]
    cost: float
    seconds: float
    modules: LatentDirections | None = None
    norms: Float[np.ndarray, "seed direction"] | None = None


def train_latent_clr(
    generator: LatentGenerator,
    n: int,
    seeds: tuple[int, ...],
    *,
    alpha: float,
    steps: int,
    batch: int = 16,
    kind: str = "fixed",
    rate: float = RATE,
    objective: Objective | None = None,
) -> PublishedResult:
    """Train LatentCLR's directions.

    Parameters
    ----------
    generator
        Effects are read at its features.
    n, seeds
        Directions per seed, and seeds.
    alpha
        Norm of the added vectors.
    steps, batch
        Updates, and latents per update and seed.
    kind
        `fixed`, `linear` or `mlp`.
    rate
        Of Adam. A published run has many more steps than a small generator needs.
    objective
        Another loss than the published one.

    Raises
    ------
    UserError
        For fewer than two directions or latents, no step, or a loss that is not a number.
    """
    directions = LatentDirections.drawn(kind, generator.latent, n, seeds)
    weights = [w.requires_grad_() for w in directions.weights.values()]
    adam = torch.optim.Adam(weights, lr=rate, weight_decay=_DECAY_LATENT)
    goal = objective or latent_clr()

    def loss(step: int) -> Tensor:
        z = torch.stack([generator.latents(batch, _seed(seed, step)) for seed in seeds])
        moved = z[:, None] + alpha * directions.at(z)
        both = generator.features(torch.cat([moved.flatten(0, 2), z.flatten(0, 1)]))
        unit = torch.nn.functional.normalize(both, dim=-1)
        effects = unit[: moved[..., 0].numel()].reshape(*moved.shape[:3], -1) - unit[-z[..., 0].numel() :].reshape(
            len(seeds), 1, batch, -1
        )
        return torch.stack([_loss(goal, one) for one in effects])

    milestones = [max(1, round(steps * share)) for share in _MILESTONES]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, milestones, _FACTOR)
    losses, seconds = _trained("LatentCLR", steps, len(seeds), loss, adam, schedule.step)
    found = LatentDirections(kind, {name: w.detach() for name, w in directions.weights.items()})
    cost = 2.0 * steps * n * batch
    return PublishedResult(found.mean().numpy(), losses, cost, seconds, modules=found)


def train_noise_clr(
    generator: DiffusionGenerator,
    images: Float[Tensor, "image pixel"],
    n: int,
    seeds: tuple[int, ...],
    *,
    norm: float,
    steps: int,
    batch: int = 6,
    site: str = "conditioning",
    rate: float = RATE,
    objective: Objective | None = None,
) -> PublishedResult:
    """Train NoiseCLR's directions.

    Parameters
    ----------
    generator, images
        The model, and images to which noise is added, in its values.
    n, seeds
        Directions per seed, and seeds.
    norm
        Norm of the random vectors that training starts from.
    steps, batch
        Updates, and images per update and seed.
    site
        Where vectors are added; published is the conditioning.
    rate
        Of AdamW.
    objective
        Another loss than the published one.

    Raises
    ------
    UserError
        For fewer than two directions or images, no step, or a loss that is not a number.
    """
    images = as_tensor(images, "images", "image pixel")
    if len(images) < 2 or batch < 2:
        raise UserError("NoiseCLR compares images; give two or more, and a batch of two or more.")
    width = generator.width(site)
    drawn = [torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    vectors = torch.nn.functional.normalize(torch.stack(drawn), dim=-1).mul(norm).requires_grad_()
    adam = torch.optim.AdamW([vectors], lr=rate, weight_decay=_DECAY_NOISE)
    goal = objective or noise_clr()
    reads = SharedReads(generator, lambda x, t, v: generator.predicted(x, t, "" if v is None else site, v), width, norm)

    def loss(step: int) -> Tensor:
        noisy, anchors = zip(*(_noise_batch(generator, images, batch, n, _seed(seed, step)) for seed in seeds))
        base, moved = reads.at(torch.cat([one.x for one in noisy]), torch.cat([one.t for one in noisy]))
        added = vectors.transpose(0, 1)[:, :, None].expand(-1, -1, batch, -1).flatten(1, 2)  # (direction, seed · image, width)
        effects = torch.unflatten(moved(added) - base, 1, (len(seeds), batch)).transpose(0, 1)
        terms = [goal.terms(_seen(one)) for one in effects]
        return torch.stack([term[anchor] for term, anchor in zip(terms, anchors)])

    losses, seconds = _trained("NoiseCLR", steps, len(seeds), loss, adam, lambda: None)
    norms = vectors.detach().norm(dim=-1)
    unit = torch.nn.functional.normalize(vectors.detach(), dim=-1)
    return PublishedResult(unit.numpy(), losses, 2.0 * steps * n * batch, seconds, norms=norms.numpy())


def _noise_batch(generator: DiffusionGenerator, images: Tensor, batch: int, n: int, seed: int) -> tuple[NoisyImages, int]:
    """Noisy images at one random time, and the anchor."""
    draw = torch.Generator().manual_seed(seed)
    some = images[torch.randint(len(images), (batch,), generator=draw)]
    t = torch.randint(len(generator.levels), (1,), generator=draw).expand(batch)
    noise = torch.randn(some.shape, generator=draw)
    return NoisyImages(generator.noised(some, noise, t), t), int(torch.randint(n, (1,), generator=draw))


def _trained(
    title: str, steps: int, seeds: int, loss: Callable[[int], Tensor], adam: torch.optim.Optimizer, after: Callable[[], None]
) -> tuple[Float[np.ndarray, "step seed"], float]:
    """Updates on the sum of the seeds' losses, so that each has its own gradient."""
    if steps < 1:
        raise UserError(f"{steps} steps train nothing; take at least 1.")
    losses, started = [], time.perf_counter()
    with progress(title, steps) as advance, torch.enable_grad():
        for step in range(steps):
            each = loss(step)
            if not bool(torch.isfinite(each).all()):
                raise UserError(f"The loss of {title} is not a number at step {step}; lower the rate or the norm.")
            adam.zero_grad()
            each.sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
            after()
            losses.append(each.detach().double().numpy())
            advance(1)
    return np.stack(losses), (time.perf_counter() - started) / seeds


def _loss(goal: Objective, effects: Float[Tensor, "direction sample feature"]) -> Tensor:
    return goal.terms(_seen(effects)).mean()


def _seen(effects: Float[Tensor, "direction sample feature"]) -> Seen:
    """Effects as objectives take them: every sample is a prompt, nothing is subtracted."""
    rows = torch.arange(effects.shape[1])
    nothing = effects.new_zeros(len(effects), 0)
    return Seen(effects, nothing, rows, effects.shape[1], effects.new_ones(effects.shape[2]))


def _seed(seed: int, step: int) -> int:
    return (seed + 1) * 1_000_003 + step
