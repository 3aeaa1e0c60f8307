"""Which unsupervised directions move the model, and what does each objective find?

1. Scale: the norm at which effects become non-linear, reduced until the KL of the Jacobian's leading directions is below a limit.
   All methods share it.
2. One step per method and seed: directions found on one set of prompts and evaluated on held-out prompts (`comparison`).
3. Clusters: the directions of the first seed, all methods together, clustered by mean effect, so that behaviours are counted, not
   vectors; two continuations per cluster, and the unsteered ones.
4. Summary: every number with its interval over seeds, and differences from L2 paired by seed (the same random start).
Artifacts: the directions of every method (first seed) with their effects, as safetensors.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM, over
from repscope.data.contrasts import contrast
from repscope.data.requests import requests
from repscope.directions import Direction, DirectionSet
from repscope.discovery import Context as States
from repscope.discovery import DiscoveryResult, Fluency, LanguageSubject, calibrate
from repscope.discovery import metrics as discovery_metrics
from repscope.discovery.comparison import DISCOVERY_METHODS, DISCOVERY_METRICS, RANDOM_METHOD, TestBed, clusters
from repscope.errors import UserError, unknown
from repscope.models.engine.memory import memory_kept
from repscope.models.prompts import Prompt
from repscope.results import Result, Row, records
from repscope.steer.effects import in_turn, texts
from repscope.steer.from_texts import mean_differences
from repscope.studies.discover.image_steps import image_steps, image_subject
from repscope.studies.discover.options import MOST_PROMPTS, DiscoverOptions
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject

Judged = tuple[DiscoveryResult, dict[str, float], dict[str, np.ndarray]]  #: directions; their numbers; arrays by direction
_COMPARED = "L2"  #: the baseline of the other methods
_LABELLED = ("sentiment", "formality", "language", "honesty")  #: contrasts of the supervised directions
_SHOWN = 2  #: continuations of a cluster
_DOSES = (0.25, 0.5, 1.0, 1.5)
_DOSED = 16  #: directions of all methods whose effects are in memory at once
_CALIBRATED, _DRAWS, _ITERATIONS = 2, 6, 3  #: prompts, random vectors and power iterations of the short form's calibration


def steps(setup: Setup[DiscoverOptions]) -> list[Step]:
    """Scale; one step per method and seed; clusters; summary. Of an image generator, those of `image_steps`."""
    o = setup.options
    if o.subject != "language":
        return image_steps(setup)
    names = list(dict.fromkeys(o.methods))
    for name in names:
        if name not in DISCOVERY_METHODS:
            raise unknown("method", name, DISCOVERY_METHODS)
    between = _subject(setup, o)
    for some in _prompts(setup, o):
        between.encoded(some)  # raises for an invalid choice of tokens
    if any(DISCOVERY_METHODS[n].solver in ("jacobian", "dct", "sequential") for n in names) and o.vectors > (
        _width(setup) or o.vectors
    ):
        raise UserError(
            f"{between.site} has {_width(setup)} features, fewer than the {o.vectors} directions of --vectors; ask for fewer."
        )
    unaffected = ("methods", "seeds")  # further seeds and methods do not change existing cells
    bed = _Bed(setup)
    version = f"2, {_CALIBRATED} prompts, {_DRAWS} draws" if o.short else 2
    unused = (*unaffected, "vectors", "steps", "new_tokens")
    steps = [Step("scale", partial(_scale, setup, bed), _cost(setup, 0), version, ignores=unused)]
    cells = {(name, seed): f"{name} seed {seed}" for seed in range(o.seeds) for name in names}
    for (name, seed), step in cells.items():
        kind = 1 if DISCOVERY_METHODS[name].solver in ("sphere", "sequential", "dct") else 2
        steps.append(Step(step, _cell(setup, bed, name, seed), _cost(setup, kind), needs=("scale",), ignores=unaffected))
    first = tuple(cells[name, 0] for name in names)
    steps.append(Step("clusters", _clusters(setup, bed, names), _cost(setup, 2), 2 if o.short else 1, needs=("scale", *first)))
    steps.append(Step("summary", _summary(setup, names, o.seeds), lambda: Cost(fit_flops=1e9), needs=tuple(cells.values())))
    return steps


def subject(setup: Setup[DiscoverOptions]) -> Subject | None:
    """The image generator that the study trains; None of a language model."""
    return None if setup.options.subject == "language" else image_subject(setup)


def _width(setup: Setup[Any]) -> int:
    return setup.network.anatomy.width if setup.network.anatomy else 0


def _subject(setup: Setup[DiscoverOptions], o: DiscoverOptions) -> LanguageSubject:
    """The model between two blocks; raises for an invalid source or target."""
    lm = setup.network
    ends = [None if b is None else f"resid_post.{b}" for b in (o.source, o.target)]
    subject = LanguageSubject(lm, *ends, target_tokens=o.tokens)
    for site in (subject.source, subject.target):
        lm.resolve(site)
    if subject.source == subject.target or int(subject.source.split(".")[1]) > int(subject.target.split(".")[1]):
        raise UserError(f"The source {subject.source} is not below the target {subject.target}; nothing added there moves it.")
    return subject


def _prompts(setup: Setup[DiscoverOptions], o: DiscoverOptions) -> tuple[list[Prompt], list[Prompt]]:
    train, heldout, _ = requests(o.prompts, **o.how())
    chat = not o.plain and bool(getattr(setup.network.tokenizer, "chat_template", None))
    most = 2 if o.tiny else MOST_PROMPTS if o.short else None
    train, heldout = train[:most], heldout[:most]

    def turned(text: str) -> Prompt:
        return setup.network.chat(text, system="") if chat else in_turn(setup.network, text, False)

    return [turned(t) for t in train], [turned(t) for t in heldout]


def _cost(setup: Setup[DiscoverOptions], kind: int) -> Callable[[], Cost]:
    """Forecast of the calibration; of optimisation and evaluation; of evaluation alone."""

    def cost() -> Cost:
        o, lm = setup.options, setup.network
        train, heldout = _prompts(setup, o)
        plan = lm.plan([*train, *heldout], "resid_post", batch_tokens=setup.options.batch_tokens)
        each = plan.flops / max(plan.tokens, 1) / 2  # half of the blocks lie between source and target
        train_tokens, heldout_tokens = (sum(len(lm.tokenizer(p.text)["input_ids"]) for p in some) for some in (train, heldout))
        search = 2 * o.vectors * o.steps * train_tokens
        judge = 5 * o.vectors * heldout_tokens + 3 * o.vectors * len(heldout) * o.new_tokens
        share = _DRAWS / 30 * min(1.0, _CALIBRATED / len(train)) if o.short else 1.0
        calibration = round(30 * 14 * share * train_tokens)
        tokens = {0: calibration, 1: search + judge, 2: judge}[kind]
        return Cost(tokens, tokens * each, 0.0, 0.0, lm.blocks, plan.working)

    return cost


def _scale(setup: Setup[DiscoverOptions], bed: "_Bed", context: Context) -> Result:
    o = setup.options
    subject, (seen, _) = bed.subject, _prompts(setup, o)
    given, _, notes = requests(o.prompts, **o.how())
    how: dict[str, int] = {}
    if o.short:
        seen, how = seen[:_CALIBRATED], {"draws": _DRAWS, "iterations": _ITERATIONS}
        notes = (*notes, f"With --short the scale is calibrated on {len(seen)} prompts and {_DRAWS} random vectors.")
        if len(given) > MOST_PROMPTS:
            notes = (*notes, f"Left out by --short: all but {MOST_PROMPTS} of the prompts of each half.")
    states = bed.states(seen)
    if o.scale is not None:
        scale, why = o.scale * states.norm, "given"
    else:
        fluency = Fluency(setup.network, subject.source, seen) if subject.speaks else None
        found = calibrate(subject, states, fluency=fluency, damage=o.damage, seed=o.seed, **how)
        scale, why = found.scale, found.why
    layer = int(subject.source.split(".")[1])
    where: dict[str, Any] = {"site": subject.source, "layer": layer, "seed": o.seed}
    relative = "relative to the median norm of source states"
    rows = [
        Row(metric="scale", definition=f"norm of a vector; {why}", value=scale, **where),
        Row(metric="relative scale", definition=relative, value=scale / states.norm, **where),
    ]
    arrays = {"scale": np.array([scale]), "norm": np.array([states.norm])}
    return Result.of(rows, arrays=arrays, notes=(*notes, states.why) if states.why else notes)


class _Bed:
    """The test bed of a run, created at its first use, and what steps share."""

    def __init__(self, setup: Setup[DiscoverOptions]) -> None:
        self._setup = setup
        self._bed: TestBed | None = None
        self._states: tuple[list[Prompt], States] | None = None
        self._cells: dict[tuple[str, int], Judged] = {}

    @cached_property
    def subject(self) -> LanguageSubject:
        """The model between two blocks."""
        return _subject(self._setup, self._setup.options)

    def states(self, seen: list[Prompt]) -> States:
        """What is cached of these prompts; the scale and the searches share it."""
        if self._states is None or self._states[0] != seen:
            self._states = seen, self.subject.context(seen)
        return self._states[1]

    def __call__(self, context: Context) -> TestBed:
        if self._bed is None:
            setup, o = self._setup, self._setup.options
            train, heldout = _prompts(setup, o)
            scale = float(context.inputs["scale"].arrays["scale"][0])
            supervised = _supervised(setup, self.subject.site, 4 if o.tiny else 24)
            states = self.states(train)
            self._bed = TestBed(self.subject, train, heldout, scale, supervised, o.new_tokens, given=states)
        return self._bed

    def cell(self, context: Context, name: str, seed: int) -> Judged:
        """Directions of a method and their numbers; further seeds run in the same passes while these have room, and are kept."""
        if (name, seed) not in self._cells:
            ground, o = self(context), self._setup.options
            seeds = range(seed, min(o.seeds, seed + ground.seeds_at_once(o.vectors)))
            found = ground.found_all(DISCOVERY_METHODS[name], o.vectors, o.steps, [o.seed * 1009 + s for s in seeds])
            for s, one, judged in zip(seeds, found, ground.judged_all(found)):
                self._cells[name, s] = one, *judged
        return self._cells.pop((name, seed))


def _supervised(setup: Setup[Any], site: str, texts_each: int) -> np.ndarray:
    """Supervised directions, to measure whether unsupervised ones are close to them."""
    return mean_differences(setup.network, [contrast(name).sample(texts_each) for name in _LABELLED], site)


def _cell(setup: Setup[DiscoverOptions], bed: "_Bed", name: str, seed: int) -> Callable[[Context], Result]:
    def compute(context: Context) -> Result:
        found, numbers, arrays = bed.cell(context, name, seed)
        layer = int(bed.subject.source.split(".")[1])
        where: dict[str, Any] = {"site": found.site, "layer": layer, "token": setup.options.tokens}
        condition = RANDOM if name == RANDOM_METHOD else ESTIMATE
        where |= {"item": name, "condition": condition, "split": "held-out prompts", "seed": seed}
        rows = [Row(metric=m, definition=DISCOVERY_METRICS[m], value=value, **where) for m, value in numbers.items()]
        took = pd.DataFrame({"method": [name], "seed": [seed], "seconds": [found.seconds]})  # differs between any two runs
        return Result.of(rows, arrays={k: np.ascontiguousarray(v) for k, v in arrays.items()}, side={"search": took})

    return compute


def _clusters(setup: Setup[DiscoverOptions], bed: "_Bed", names: list[str]) -> Callable[[Context], Result]:
    """Behaviours of the first seed over all methods; the dose curve; the files."""

    def compute(context: Context) -> Result:
        o, lm = setup.options, setup.network
        ground = bed(context)
        cells = {name: context.inputs[f"{name} seed 0"].arrays for name in names}
        groups = clusters({name: cell["means"] for name, cell in cells.items()})
        found: list[dict[str, Any]] = [
            {
                "cluster": int(groups[name][k]),
                "method": name,
                "direction": k,
                "kl": float(cell["kl"][k]),
                "consistency": float(cell["consistent"][k]),
                "size": float(np.linalg.norm(cell["means"][k]) / ground.length),
            }
            for name, cell in cells.items()
            for k in range(len(cell["vectors"]))
        ]
        frame = pd.DataFrame(found)
        prompts = ground.held[:_SHOWN]
        heads = [r for r in found if r["method"] != RANDOM_METHOD]
        best: dict[int, dict[str, Any]] = {}
        for row in sorted(heads, key=lambda r: -r["consistency"]):  # a cluster is shown by its most consistent member
            best.setdefault(row["cluster"], row)
        shown = sorted(best.values(), key=lambda r: r["cluster"])[: 24 if not (o.tiny or o.short) else 3]
        vectors = np.stack([cells[r["method"]]["vectors"][r["direction"]] for r in shown])
        length = max(o.new_tokens, 3) if o.tiny else 16 if o.short else 24
        added = np.concatenate([ground.scale * vectors, 0 * vectors[:1]])  # the last texts are unsteered
        wrote = texts(lm, prompts, added, ground.subject.site, new_tokens=length, temperature=0.0)
        plain = wrote[-len(prompts) :]
        lines = [{"cluster": -1, "prompt": i, "text": c.text} for i, c in enumerate(plain)]
        lines += [
            {"cluster": r["cluster"], "prompt": i, "text": wrote[j * len(prompts) + i].text}
            for j, r in enumerate(shown)
            for i in range(len(prompts))
        ]
        doses = _DOSES[1:] if o.short else _DOSES
        dosed = _dosed(ground, cells, doses)
        _save(setup, context, ground, cells, frame)
        return Result.of([], side={"members": frame, "texts": pd.DataFrame(lines), "dose": dosed})

    return compute


def _dosed(ground: TestBed, cells: dict[str, Any], doses: Sequence[float]) -> pd.DataFrame:
    """Effect norm and KL at multiples of the scale, for each method's directions, those of all methods together."""
    import torch

    unit = torch.from_numpy(np.concatenate([cell["vectors"] for cell in cells.values()])).to(ground.apart.states)
    cuts = np.cumsum([len(cell["vectors"]) for cell in cells.values()])[:-1]
    rows = []
    for part in doses:
        if part == 1.0 and all("sizes" in cell for cell in cells.values()):  # measured already
            found = {metric: [cell[name] for cell in cells.values()] for metric, name in (("size", "sizes"), ("kl", "kl"))}
        else:
            sizes, kls = [], []
            with memory_kept():
                for some in torch.split(unit, _DOSED):
                    moved, kl = ground.fluency.effect_and_kl(part * ground.scale * some)
                    sizes.append(np.linalg.norm(moved.cpu().numpy(), axis=-1).mean(1) / ground.length)
                    kls.append(kl.mean(1).cpu().numpy())
            found = {"size": np.split(np.concatenate(sizes), cuts), "kl": np.split(np.concatenate(kls), cuts)}
        for i, name in enumerate(cells):
            for metric, values in found.items():
                e = stats.mean(values[i], unit="direction")
                rows.append({"method": name, "dose": part, "metric": metric, "value": e.value, "lo": e.lo, "hi": e.hi, "n": e.n})
    return pd.DataFrame(rows).sort_values(
        "method", key=lambda names: names.map(list(cells).index), kind="stable", ignore_index=True
    )


def _save(setup: Setup[Any], context: Context, ground: TestBed, cells: dict[str, Any], members: pd.DataFrame) -> None:
    lm, subject = setup.network, ground.subject
    norm = float(context.inputs["scale"].arrays["norm"][0])
    rows = {(r["method"], r["direction"]): r for r in records(members)}
    for name, cell in cells.items():
        directions = [
            Direction.of(
                ground.scale * vector.astype(np.float64),
                subject.site,
                f"{name} {k}",
                norm=norm,
                found_by=f"{name}, seed 0",
                trained_on=f"{len(ground.seen)} prompts, no labels",
                does={key: float(rows[name, k][key]) for key in ("cluster", "size", "consistency", "kl")},
            )
            for k, vector in enumerate(cell["vectors"])
        ]
        saved = DirectionSet.of(
            *directions,
            model=lm.fingerprint,
            note=f"{name}, effects at {subject.target}, by repscope study discover",
            architecture=str(getattr(lm.model.config, "model_type", "")),
            blocks=lm.blocks,
        )
        saved.save(context.artifacts / f"{name.replace(' ', '-').replace(',', '')}.safetensors")


def _summary(setup: Setup[DiscoverOptions], names: list[str], seeds: int) -> Callable[[Context], Result]:
    """Means over seeds, stability between them, and paired differences to L2."""

    def compute(context: Context) -> Result:
        o = setup.options
        cells = {name: [context.inputs[f"{name} seed {s}"] for s in range(seeds)] for name in names}
        held = {
            name: {m: [float(r.select(metric=m)["value"].iloc[0]) for r in each] for m in each[0].table["metric"] if m != "seconds"}
            for name, each in cells.items()
        }
        for name, each in cells.items():
            vectors = [r.arrays["vectors"] for r in each]
            if seeds > 1:
                held[name]["stability"] = [
                    float(np.mean([discovery_metrics.stability(v, w) for j, w in enumerate(vectors) if j != i]))
                    for i, v in enumerate(vectors)
                ]
        rows = []
        for name, metrics in held.items():
            where: dict[str, Any] = {"split": "held-out prompts", "token": o.tokens, "seed": o.seed}
            for metric, values in metrics.items():
                definition = DISCOVERY_METRICS.get(metric, "mean |cos| with the directions of other seeds, matched one to one")
                condition = RANDOM if name == RANDOM_METHOD else ESTIMATE
                rows.append(_row(values, metric=metric, definition=definition, item=name, condition=condition, **where))
                if name != _COMPARED and _COMPARED in held and metric in held[_COMPARED]:
                    paired = [a - b for a, b in zip(values, held[_COMPARED][metric])]
                    item = f"{name}: {metric}"
                    rows.append(_row(paired, metric="gain", definition=metric, item=item, condition=over(_COMPARED), **where))
        return Result.of(rows)

    return compute


def _row(values: list[float], **where: Any) -> Row:
    """A mean over seeds; a single run has no interval."""
    if len(values) == 1:
        return Row(value=values[0], n=1, unit="seed", **where)
    return Row.of(stats.mean(values, unit="seed", seed=where["seed"]), **where)
