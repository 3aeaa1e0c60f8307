"""Which directions move the model that nobody labelled, and what does each objective find?

1. Scale: the length at which effects depart from linearity, shortened until the Jacobian's leading directions cost no more than so
   much KL. All methods share it.
2. A cell a method and seed: directions from the prompts to discover on, judged on prompts that no method saw (`comparison`).
3. Clusters: the directions of the first seed, all methods together, grouped by their mean effects: behaviours are counted, not
   vectors; two continuations of each beside the unsteered ones.
4. Summary: every number with its interval over seeds, and differences to L2 paired by seed (the same random start).
Kept: the directions of every method (first seed) with what each does, as safetensors.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM, over
from repscope.data.contrasts import contrast
from repscope.data.requests import requests
from repscope.directions import Direction, DirectionSet
from repscope.discovery import Fluency, LanguageSubject, calibrate
from repscope.discovery import metrics as judged
from repscope.discovery.comparison import DISCOVERY_METHODS, DISCOVERY_METRICS, RANDOM_METHOD, TestBed, clusters
from repscope.errors import UserError, unknown
from repscope.models.prompts import Prompt
from repscope.results import Result, Row
from repscope.steer.effects import in_turn, texts
from repscope.steer.from_texts import fit
from repscope.studies.discover.page import headline, page
from repscope.studies.run.study import Cost, ModelOptions, Run, Step, Study, TableOptions

Tick = Callable[[float], None]
_COMPARED = "L2"  #: what the others are compared with
_LABELLED = ("sentiment", "formality", "language", "honesty")  #: contrasts whose directions found ones are compared with
_SHOWN = 2  #: continuations of a cluster
_DOSES = (0.25, 0.5, 1.0, 1.5)


class DiscoverOptions(ModelOptions, TableOptions):
    """What the `discover` study takes."""

    prompts: str | None = Field(None, description="A file of prompts: .txt with one a line, or a table with the column text.")
    plain: bool = Field(False, description="Take prompts as they are, and not as a user's turn in the chat template.")
    source: int | None = Field(None, ge=0, description="Block at whose output vectors are added; a quarter up if not given.")
    target: int | None = Field(None, ge=1, description="Block at whose output effects are read; three quarters up if not given.")
    tokens: str = Field("last 6", description="Where effects are read: last, mean, all, or the mean of the last 6.")
    methods: tuple[str, ...] = Field(
        (
            RANDOM_METHOD,
            "L2",
            "L2 + contrastive",
            "contrastive, skip removed",
            "L2 + soft-orthogonal",
            "contrastive",
            "DCT",
            "Jacobian",
        ),
        description="Ways to directions.",
    )
    vectors: int = Field(12, ge=2, description="Directions of each method.")
    steps: int = Field(40, ge=1, description="Steps of each search.")
    seeds: int = Field(3, ge=1, description="Runs of each method; intervals are over them.")
    scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Length of a vector over the median length at the source; calibrated if not given.",
    )
    damage: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Most that the Jacobian's leading directions may cost, in nats of KL."
    )
    new_tokens: int = Field(16, ge=0, description="Tokens of each text on which damage is measured; 0 for none.")

    @model_validator(mode="after")
    def _one_scale(self) -> "DiscoverOptions":
        if self.scale is not None and self.named("damage"):
            raise ValueError("--damage is what the scale is calibrated by, and --scale gives one; leave one of them away")
        return self

    def sized(self) -> "DiscoverOptions":
        """With the smaller numbers that `tiny` and `short` stand for."""
        given = self.model_fields_set
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"vectors": 4, "steps": 3, "seeds": 2, "new_tokens": 3, "tokens": "last 3", "plain": True}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        elif self.short:
            small = {"vectors": 4, "steps": 10, "seeds": 2, "new_tokens": 12}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        return self.model_copy(update={k: v for k, v in small.items() if k not in given})

    def files(self) -> list[Path]:
        """The user's own prompts."""
        return [Path(self.prompts)] if self.prompts else []


def steps(run: Run[DiscoverOptions]) -> list[Step]:
    """Scale; a cell a method and seed; clusters; summary."""
    o = run.options.sized()
    names = list(dict.fromkeys(o.methods))
    for name in names:
        if name not in DISCOVERY_METHODS:
            raise unknown("method", name, DISCOVERY_METHODS)
    subject = _subject(run, o)
    for some in _prompts(run, o):
        subject.encoded(some)  # a choice of tokens that there is not shows here
    if any(DISCOVERY_METHODS[n].solver in ("jacobian", "dct", "sequential") for n in names) and o.vectors > (
        _width(run) or o.vectors
    ):
        raise UserError(f"{o.vectors} directions are asked for, and {subject.site} has {_width(run)} features; ask for fewer.")
    apart = ("methods", "seeds")  # a further seed or method leaves those that are there
    made = [Step("scale", _scale, _cost(run, 0), ignores=(*apart, "vectors", "steps", "new_tokens"))]
    cells = {(name, seed): f"{name} seed {seed}" for seed in range(o.seeds) for name in names}
    for (name, seed), step in cells.items():
        kind = 1 if DISCOVERY_METHODS[name].solver in ("sphere", "sequential", "dct") else 2
        made.append(Step(step, _cell(name, seed), _cost(run, kind), needs=("scale",), ignores=apart))
    first = tuple(cells[name, 0] for name in names)
    made.append(Step("clusters", _clusters(names), _cost(run, 2), needs=("scale", *first)))
    made.append(Step("summary", _summary(names, o.seeds), lambda: Cost(fit_flops=1e9), needs=tuple(cells.values())))
    return made


def _width(run: Run[Any]) -> int:
    return run.network.anatomy.width if run.network.anatomy else 0


def _subject(run: Run[DiscoverOptions], o: DiscoverOptions) -> LanguageSubject:
    """The model between two blocks; a mistake in either shows here."""
    lm = run.network
    ends = [None if b is None else f"resid_post.{b}" for b in (o.source, o.target)]
    subject = LanguageSubject(lm, *ends, target_tokens=o.tokens)
    for site in (subject.source, subject.target):
        lm.resolve(site)
    if subject.source == subject.target or int(subject.source.split(".")[1]) > int(subject.target.split(".")[1]):
        raise UserError(f"The source {subject.source} is not below the target {subject.target}; nothing added there moves it.")
    return subject


def _prompts(run: Run[DiscoverOptions], o: DiscoverOptions) -> tuple[list[Prompt], list[Prompt]]:
    seen, held, _ = requests(o.prompts, **o.how())
    chat = not o.plain and bool(getattr(run.network.tokenizer, "chat_template", None))
    if o.tiny:
        seen, held = seen[:2], held[:2]

    def turned(text: str) -> Prompt:
        return run.network.chat(text, system="") if chat else in_turn(run.network, text, False)

    return [turned(t) for t in seen], [turned(t) for t in held]


def _cost(run: Run[DiscoverOptions], kind: int) -> Callable[[], Cost]:
    """Of the calibration; of a search by gradients; of judging alone."""

    def cost() -> Cost:
        o, lm = run.options.sized(), run.network
        seen, held = _prompts(run, o)
        plan = lm.plan([*seen, *held], "resid_post", batch_tokens=run.options.batch_tokens)
        each = plan.flops / max(plan.tokens, 1) / 2  # half of the blocks lie between source and target
        a_seen, a_held = (sum(len(lm.tokenizer(p.text)["input_ids"]) for p in some) for some in (seen, held))
        search = 2 * o.vectors * o.steps * a_seen
        judge = 5 * o.vectors * a_held + 3 * o.vectors * len(held) * o.new_tokens
        tokens = {0: 30 * 14 * a_seen, 1: search + judge, 2: judge}[kind]
        return Cost(tokens, tokens * each, 0.0, 0.0, lm.blocks, plan.working)

    return cost


def _scale(run: Run[DiscoverOptions], tick: Tick) -> Result:
    o = run.options.sized()
    subject, (seen, _) = _subject(run, o), _prompts(run, o)
    notes = requests(o.prompts, **o.how())[2]
    context = subject.context(seen)
    if o.scale is not None:
        scale, why = o.scale * context.norm, "given"
    else:
        fluency = Fluency(run.network, subject.source, seen) if subject.speaks else None
        found = calibrate(subject, context, fluency=fluency, damage=o.damage, seed=o.seed)
        scale, why = found.scale, found.why
    tick(1.0)
    layer = int(subject.source.split(".")[1])
    rows = [
        Row(metric="scale", definition=f"length of a vector; {why}", site=subject.source, layer=layer, value=scale, seed=o.seed),
        Row(
            metric="relative scale",
            definition="over the median length of a source state",
            site=subject.source,
            layer=layer,
            value=scale / context.norm,
            seed=o.seed,
        ),
    ]
    return Result.of(
        rows,
        arrays={"scale": np.array([scale]), "norm": np.array([context.norm])},
        notes=(*notes, context.why) if context.why else notes,
    )


def _ground(run: Run[DiscoverOptions], o: DiscoverOptions) -> TestBed:
    """Made once a run; most of it is what the model writes unsteered."""
    if "ground" not in run.__dict__:
        seen, held = _prompts(run, o)
        scale = float(run.results["scale"].arrays["scale"][0])
        subject = _subject(run, o)
        run.__dict__["ground"] = TestBed(
            subject, seen, held, scale, supervised=_supervised(run, subject.site, 4 if o.tiny else 24), new_tokens=o.new_tokens
        )
    return run.__dict__["ground"]  # type: ignore[no-any-return]


def _supervised(run: Run[Any], site: str, texts_each: int) -> np.ndarray:
    """Directions with labels, to see whether what was found without is near any of them."""
    held = [contrast(name).sample(texts_each) for name in _LABELLED]
    return np.stack([fit(run.network, c, at=site, methods=["difference of means"]).directions[0].vector for c in held])


def _cell(name: str, seed: int) -> Callable[[Run[Any], Tick], Result]:
    def compute(run: Run[DiscoverOptions], tick: Tick) -> Result:
        o = run.options.sized()
        ground = _ground(run, o)
        found = ground.found(DISCOVERY_METHODS[name], o.vectors, o.steps, o.seed * 1009 + seed)
        tick(0.7)
        numbers, arrays = ground.judged(found)
        tick(0.3)
        layer = int(ground.subject.source.split(".")[1])
        rows = [
            Row(
                metric=metric,
                definition=DISCOVERY_METRICS[metric],
                site=found.site,
                layer=layer,
                token=o.tokens,
                item=name,
                value=value,
                split="held-out prompts",
                condition=RANDOM if name == RANDOM_METHOD else ESTIMATE,
                seed=seed,
            )
            for metric, value in numbers.items()
        ]
        return Result.of(rows, arrays={k: np.ascontiguousarray(v) for k, v in arrays.items()})

    return compute


def _clusters(names: list[str]) -> Callable[[Run[Any], Tick], Result]:
    """Behaviours of the first seed, over all methods; the dose curve; the files."""

    def compute(run: Run[DiscoverOptions], tick: Tick) -> Result:
        o, lm = run.options.sized(), run.network
        ground = _ground(run, o)
        cells = {name: run.results[f"{name} seed 0"].arrays for name in names}
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
        asked = ground.held[:_SHOWN]
        heads = [r for r in found if r["method"] != RANDOM_METHOD]
        best: dict[int, dict[str, Any]] = {}
        for row in sorted(heads, key=lambda r: -r["consistency"]):  # a cluster is shown by its most consistent member
            best.setdefault(row["cluster"], row)
        shown = sorted(best.values(), key=lambda r: r["cluster"])[: 4 if o.tiny else 8 if o.short else 24]
        vectors = np.stack([cells[r["method"]]["vectors"][r["direction"]] for r in shown])
        length = max(o.new_tokens, 3) if o.tiny else 24
        wrote = texts(lm, asked, ground.scale * vectors, ground.subject.site, new_tokens=length, temperature=0.0)
        plain = texts(lm, asked, [], new_tokens=length, temperature=0.0)
        tick(0.6)
        lines = [{"cluster": -1, "prompt": i, "text": c.text} for i, c in enumerate(plain)]
        lines += [
            {"cluster": r["cluster"], "prompt": i, "text": wrote[j * len(asked) + i].text}
            for j, r in enumerate(shown)
            for i in range(len(asked))
        ]
        dosed = _dosed(ground, {name: cell["vectors"] for name, cell in cells.items()})
        _keep(run, ground, cells, frame)
        return Result.of([], side={"members": frame, "texts": pd.DataFrame(lines), "dose": dosed})

    return compute


def _dosed(ground: TestBed, vectors: dict[str, np.ndarray]) -> pd.DataFrame:
    """Size of the effect and KL at parts of the scale, for each method's directions."""
    import torch

    rows = []
    for name, found in vectors.items():
        unit = torch.from_numpy(np.ascontiguousarray(found)).to(ground.apart.states)
        for part in _DOSES:
            moved = ground.subject.effect(ground.apart, part * ground.scale * unit).cpu().numpy()
            kl = ground.fluency.kl(part * ground.scale * unit).mean(1).cpu().numpy()
            sizes = np.linalg.norm(moved, axis=-1).mean(1) / ground.length
            for metric, values in (("size", sizes), ("kl", kl)):
                e = stats.mean(values, unit="direction")
                rows.append({"method": name, "dose": part, "metric": metric, "value": e.value, "lo": e.lo, "hi": e.hi, "n": e.n})
    return pd.DataFrame(rows)


def _keep(run: Run[Any], ground: TestBed, cells: dict[str, Any], members: pd.DataFrame) -> None:
    lm, subject = run.network, ground.subject
    norm = float(run.results["scale"].arrays["norm"][0])
    rows = {(r["method"], r["direction"]): r for r in members.to_dict("records")}
    for name, cell in cells.items():
        made = [
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
        kept = DirectionSet.of(
            *made,
            model=lm.fingerprint,
            note=f"{name}, effects at {subject.target}, by repscope study discover",
            architecture=str(getattr(lm.model.config, "model_type", "")),
            blocks=lm.blocks,
        )
        kept.save(run.artifact(f"{name.replace(' ', '-').replace(',', '')}.safetensors"))


def _summary(names: list[str], seeds: int) -> Callable[[Run[Any], Tick], Result]:
    """Means over seeds, stability between them, and paired differences to L2."""

    def compute(run: Run[DiscoverOptions], tick: Tick) -> Result:
        o = run.options.sized()
        cells = {name: [run.results[f"{name} seed {s}"] for s in range(seeds)] for name in names}
        held = {
            name: {m: [float(r.select(metric=m)["value"].iloc[0]) for r in each] for m in each[0].table["metric"]}
            for name, each in cells.items()
        }
        for name, each in cells.items():
            vectors = [r.arrays["vectors"] for r in each]
            if seeds > 1:
                held[name]["stability"] = [
                    float(np.mean([judged.stability(v, w) for j, w in enumerate(vectors) if j != i])) for i, v in enumerate(vectors)
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


DISCOVER = Study(
    name="discover",
    question="Which directions move the model that nobody labelled, and does a contrastive objective find others than L2 does?",
    options=DiscoverOptions,
    steps=steps,
    page=page,
    headline=headline,
)
