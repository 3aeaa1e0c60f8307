"""Which unsupervised directions change one known factor of a generator's images?

1. Generator: trained once on sprites (or digits) and kept in the cache, with two regressors of their factors (classifiers). Is it
   good enough to judge by?
2. One step per method, all seeds in one batch: directions found on some samples, judged on others by the factors read from edited
   images (`discovery.generators`).
3. Summary: gains over random directions and over L2, paired by seed; stability over seeds.
4. Filmstrips: held-out images along the most selective directions of each method (first seed), and the files of directions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from repscope import stats
from repscope.conditions import RANDOM, over
from repscope.directions import Direction, DirectionSet
from repscope.discovery import metrics as discovery_metrics
from repscope.discovery.generators.comparison import IMAGE_METRICS, METHODS, RANDOM_DIRECTIONS, judged, search
from repscope.discovery.generators.factor_changes import DOSES
from repscope.discovery.generators.judges import GENERATOR_METRICS
from repscope.discovery.generators.latent_directions import LatentDirections
from repscope.discovery.generators.material import Material
from repscope.results import Result, Row
from repscope.studies.discover import image_names as names
from repscope.studies.discover.image_task import ImageTask
from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject

_IMAGES = 512  #: of the generator, to judge it by
_SHOWN = 3  #: directions per method in filmstrips
GENERATOR = "generator"
_OF_FEATURES, _OF_JUDGING, _OF_UNET = 3e5, 1.8e6, 1.2e7  #: operations: features of a z; an image and its factors; a noisy image


def image_subject(setup: Setup[DiscoverOptions]) -> Subject:
    """The generator trained in the study."""
    name = names.model(setup.options.subject, setup.options.data)
    facts = {"model": name, "precision": "float32, trained in this run or read from the cache"}
    libraries = () if setup.options.subject == names.GAN else ("diffusers",)
    return Subject(f"{name}-tiny" if setup.options.tiny else name, name, facts, libraries=libraries)


def image_steps(setup: Setup[DiscoverOptions]) -> list[Step]:
    """Generator; one step per method; summary; filmstrips."""
    task = ImageTask(setup.options)
    methods, material = task.methods, _Shared(task)
    steps = [Step(GENERATOR, partial(_generator, task, material), _training_cost(task), ignores=_OF_SEARCH)]
    for name in methods:
        steps.append(
            Step(name, partial(_method, task, material, name), _search_cost(task, name), needs=(GENERATOR,), ignores=("methods",))
        )
    steps.append(Step("summary", partial(_summary, task), lambda: Cost(fit_flops=1e8), needs=tuple(methods)))
    steps.append(Step("filmstrips", partial(_filmstrips, task, material), _strip_cost(task), needs=(GENERATOR, *methods)))
    return steps


_OF_SEARCH = ("methods", "vectors", "steps", "seeds", "scale", "samples", "images", "site")


class _Shared:
    """The material of a run, made at its first use."""

    def __init__(self, task: ImageTask) -> None:
        self._task = task
        self._held: Material | None = None

    def __call__(self, context: Context) -> Material:
        if self._held is None:
            self._held = self._task.setting.material(context.inputs[GENERATOR].arrays)
        return self._held


def _training_cost(task: ImageTask) -> Callable[[], Cost]:
    def cost() -> Cost:
        o, setting = task.options, task.setting
        draw = _IMAGES * (_OF_JUDGING if task.gan else 10 * _OF_UNET)
        if o.tiny:
            return Cost(network_flops=2e9, memory_bytes=3e8)
        if setting.is_cached():
            return Cost(network_flops=draw, memory_bytes=3e8)
        step, judge = (5e8, 7e11) if o.data == names.DIGITS else (7.5e8 if task.gan else 3.3e9, 1e12)
        return Cost(network_flops=draw + setting.steps * step + judge, memory_bytes=3e8)

    return cost


def _search_cost(task: ImageTask, name: str) -> Callable[[], Cost]:
    def cost() -> Cost:
        o = task.options
        searched = METHODS[name].solver == "sphere" or METHODS[name].published
        updates = 3 * o.steps * o.samples * (_OF_FEATURES if task.gan else 3 * _OF_UNET) if searched else 0.0
        return Cost(network_flops=o.seeds * o.vectors * (updates + _edited(task)), memory_bytes=_memory(task))

    return cost


def _strip_cost(task: ImageTask) -> Callable[[], Cost]:
    def cost() -> Cost:
        shown = len(task.methods) * min(_SHOWN, task.options.vectors)
        return Cost(network_flops=shown * _edited(task), memory_bytes=_memory(task))

    return cost


def _edited(task: ImageTask) -> float:
    """Operations of editing the held-out images with one vector at all doses, and of reading them."""
    return 4 * task.options.images * (_OF_JUDGING if task.gan else 10 * _OF_UNET)


def _memory(task: ImageTask) -> float:
    """Bytes: the edited images at all doses, twice while they are joined, their changes, and the effects of all vectors."""
    o = task.options
    images = (2 * len(DOSES) + 4) * o.vectors * o.images * task.known.side**2
    return 5e8 + 4.0 * (images + 4 * o.seeds * o.vectors * o.samples * task.known.side**2)


def _generator(task: ImageTask, shared: _Shared, context: Context) -> Result:
    """Train or read, and measure whether images are such that their factors can be read."""
    o = task.options
    arrays = task.setting.trained(context.partial if o.tiny else None)
    material = task.setting.material(arrays)
    count = 64 if o.tiny else _IMAGES
    images = material.drawn(count, 1000 + o.seed)
    rows = []
    for one in material.judge.quality(images, material.real(count, 2000 + o.seed), o.seed):
        where: dict[str, Any] = {
            "metric": one.metric,
            "definition": GENERATOR_METRICS[one.metric],
            "item": one.item,
            "seed": o.seed,
        }
        if len(one.values) == 1:
            rows.append(Row(value=float(one.values[0]), n=one.count, unit=one.unit, condition=one.condition, **where))
        else:
            rows.append(Row.of(stats.mean(one.values, unit=one.unit), condition=one.condition, **where))
    losses = arrays["generator/losses"]
    kept = np.linspace(0, len(losses) - 1, min(200, len(losses))).astype(int)
    log = pd.DataFrame(
        [{"step": int(i), "network": j, "loss": float(v)} for i in kept for j, v in enumerate(np.atleast_1d(losses[i]))]
    )
    shown = pd.DataFrame({"image": np.repeat(np.arange(16), images.shape[1]), "value": images[:16].flatten().numpy()})
    return Result.of(rows, arrays=arrays, side={"losses": log, "images": shown})


def _method(task: ImageTask, shared: _Shared, name: str, context: Context) -> Result:
    """Directions of all seeds, judged."""
    o, material = task.options, shared(context)
    bed = material.bed
    seeds = tuple(o.seed * 1009 + i for i in range(o.seeds))
    found = search(bed, name, o.vectors, seeds, o.steps, labelled=material.labelled())
    condition = METHODS[name].condition
    where: dict[str, Any] = {"site": bed.subject.site, "item": name, "split": names.HELD_OUT, "condition": condition}
    each, changes = zip(*(judged(bed, one, material.judge) for one in found))
    vectors = [one.unit for one in found]
    if len(vectors) > 1:
        for i, numbers in enumerate(each):
            others = [discovery_metrics.stability(vectors[i], v) for j, v in enumerate(vectors) if j != i]
            numbers["stability"] = float(np.mean(others))
    rows = [
        Row(metric=metric, definition=IMAGE_METRICS[metric], value=value, **where, seed=seed)
        for seed, numbers in zip(seeds, each)
        for metric, value in numbers.items()
    ]
    arrays: dict[str, np.ndarray] = {"vectors": np.stack(vectors), "matrix": np.stack([c.matrix for c in changes])}
    arrays |= {"top": np.stack([c.top for c in changes]), "selectivity": np.stack([c.selectivity for c in changes])}
    arrays |= {"change": np.stack([c.change for c in changes]), "scale": np.array([bed.scale, bed.context.norm])}
    if found[0].function is not None:
        arrays |= {f"function/{k}": v.numpy() for k, v in found[0].function.weights.items()}
    took = pd.DataFrame({"method": [name], "seconds": [sum(one.seconds for one in found)]})  # differs between any two runs
    return Result.of(rows, arrays=arrays, side={"search": took})


def _summary(task: ImageTask, context: Context) -> Result:
    """Means over seeds with intervals, and gains over random directions and over L2, paired by seed."""
    o = task.options
    held = {
        name: {str(m): some["value"].to_numpy(float) for m, some in context.inputs[name].table.groupby("metric", sort=False)}
        for name in task.methods
    }
    rows = []
    for name, numbers in held.items():
        where: dict[str, Any] = {"split": names.HELD_OUT, "seed": o.seed}
        for metric, values in numbers.items():
            definition, condition = IMAGE_METRICS[metric], METHODS[name].condition
            rows.append(Row.over(values, "seed", metric=metric, definition=definition, item=name, condition=condition, **where))
            for base, title in ((RANDOM_DIRECTIONS, RANDOM), (names.BASELINE, names.BASELINE)):
                if name != base and metric in held.get(base, {}):
                    paired = values - held[base][metric]
                    rows.append(
                        Row.over(
                            paired,
                            "seed",
                            metric=names.GAIN,
                            definition=metric,
                            item=names.gained(name, metric),
                            condition=over(title),
                            **where,
                        )
                    )
    return Result.of(rows)


def _filmstrips(task: ImageTask, shared: _Shared, context: Context) -> Result:
    """Images along the most selective directions of the first seed, and files of all directions."""
    material = shared(context)
    bed, shown, lines = material.bed, [], []
    for name in task.methods:
        arrays = context.inputs[name].arrays
        _save(task, bed.subject.site, bed.subject.model, name, arrays, context)
        best = np.argsort(-arrays["selectivity"][0], kind="stable")[:_SHOWN]
        unit = bed.every(arrays["vectors"][0][best])
        function = _function(arrays)
        if function is not None:
            with torch.no_grad():
                unit = function.at(bed.z[None])[0][torch.from_numpy(best.copy())]  # type: ignore[attr-defined]
        first = _first_image(bed, unit)
        for i, k in enumerate(best):
            factor = task.known.properties[int(arrays["top"][0][k])]
            facts = {"method": name, "direction": int(k), "factor": factor, "selectivity": float(arrays["selectivity"][0][k])}
            lines.append(facts | {"change": float(arrays["change"][0][k])})
            shown += [
                facts | {"dose": dose, "pixel": p, "value": float(v)}
                for dose, row in zip(DOSES, first[:, i])
                for p, v in enumerate(row)
            ]
    return Result.of([], side={"strips": pd.DataFrame(shown), "directions": pd.DataFrame(lines)})


def _first_image(bed: Any, unit: torch.Tensor) -> np.ndarray:
    """The first held-out image at all doses: (dose, direction, pixel)."""
    images: np.ndarray = bed.dosed(unit, DOSES)[:, :, 0].numpy()
    return images


def _function(arrays: Any) -> LatentDirections | None:
    """Directions that depend on z, of the first seed."""
    weights = {k.removeprefix("function/"): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith("function/")}
    return LatentDirections("linear" if len(weights) == 2 else "mlp", weights) if weights else None


def _save(task: ImageTask, site: str, model: str, name: str, arrays: Any, context: Context) -> None:
    """The directions of the first seed, and the functions of z beside them."""
    scale, norm = arrays["scale"]
    file = context.artifacts / f"{name.replace(' ', '-').replace(',', '')}.safetensors"
    made = [
        Direction.of(
            scale * vector.astype(np.float64),
            site,
            f"{name} {k}",
            norm=float(norm),
            found_by=f"{name}, seed 0",
            does={
                "selectivity": float(arrays["selectivity"][0][k]),
                **{f: float(v) for f, v in zip(task.known.properties, arrays["matrix"][0][k])},
            },
        )
        for k, vector in enumerate(arrays["vectors"][0])
    ]
    generator = names.model(task.options.subject, task.options.data)
    DirectionSet.of(*made, model=model, note=f"{name} on {generator}, by repscope study discover").save(file)
    function = _function(arrays)
    if function is not None:
        function.save(file.with_name(f"{file.stem}-of-z.safetensors"))
