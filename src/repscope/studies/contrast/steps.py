"""What is a direction between two kinds of text worth: does it move the model, at what cost, beyond chance and beyond asking?

1. Texts, choices and openings are halved by groups; nothing of the second half takes part in fitting or choosing.
2. Fit: four methods at every block on the first half's texts; how well each tells the second half's texts apart.
3. Choose: on the first half's choices the method, block and strength that move the model most at a bearable cost; and the same
   for each method by itself.
4. Dose: strength against effect, KL and damage to fluency, on the first half, which sets the working range and the scale, and on
   the second, which is reported beside random directions of equal length and prompting.
5. Methods: each method's own best, on the second half.
Kept: the direction with its card, as safetensors and, where llama.cpp has a place for it, as GGUF.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from repscope import stats
from repscope.conditions import RANDOM, over
from repscope.data.contrasts import Contrast, contrast
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError, unknown
from repscope.report.charts.layers import CHOSEN
from repscope.results import Result, Row
from repscope.steer.dose_response import MOST_DAMAGE, PROMPTED, STRENGTHS, by_group, doing, dose
from repscope.steer.effects import DEFINITIONS, Added, log_odds
from repscope.steer.from_texts import METHODS, fit
from repscope.steer.selection import best as best_of
from repscope.steer.selection import choose
from repscope.studies.contrast.page import headline, page
from repscope.studies.run.study import Cost, ModelOptions, Run, Step, Study, TableOptions

Tick = Callable[[float], None]
_GROUP = "group of choices"


class ContrastOptions(ModelOptions, TableOptions):
    """What the `contrast` study takes."""

    contrast: str = Field(
        "sentiment",
        description="A built-in contrast (sentiment, formality, refusal, language, honesty), or a file with the columns "
        "positive and negative, or text and label.",
    )
    positive: str | None = Field(None, description="Which of a file's two labels is the positive one; 1, true and yes are known.")
    choices: str | None = Field(None, description="A file with the columns prompt, yes, no: what the effect is measured on.")
    instruction: str = Field("", description="What prompting says for the positive pole; the contrast's own if not given.")
    chat: bool = Field(False, description="Whether the texts of a file are a user's turn.")
    methods: tuple[str, ...] = Field(tuple(METHODS), description="How directions are made.")
    blocks: tuple[int, ...] = Field(
        (), description="Blocks to choose from; about ten between 0.2 and 0.85 of the depth if not given."
    )
    tokens: str = Field("last", description="Which token of a text is read: last, mean, or an index.")
    strengths: tuple[float, ...] = Field(STRENGTHS, description="Lengths over the median length of what stands at the site.")
    random: int = Field(16, ge=2, description="Random directions of equal length.")
    new_tokens: int = Field(24, ge=1, description="Tokens of each text on which damage is measured.")
    most_damage: float = Field(
        MOST_DAMAGE, gt=0, allow_inf_nan=False, description="Damage that the working range may cost, in nats a token."
    )

    def sized(self) -> "ContrastOptions":
        """With the smaller numbers that `tiny` and `short` stand for."""
        given = self.model_fields_set
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"methods": self.methods[:2], "strengths": (-0.4, 0.2, 0.4), "random": 3, "new_tokens": 4}
        elif self.short:
            small = {"strengths": (-0.4, 0.1, 0.2, 0.4, 0.6), "random": 8, "new_tokens": 16}
        return self.model_copy(update={k: v for k, v in small.items() if k not in given})

    def files(self) -> list[Path]:
        """The user's own texts and choices."""
        return [Path(p) for p in (self.contrast, self.choices) if p and Path(p).suffix]


def halves(o: ContrastOptions) -> tuple[Contrast, Contrast]:
    """The contrast in two, each with its own texts, choices and openings; as small as `tiny` and `short` want it.

    Raises
    ------
    UserError
        For a contrast without choices that has none in its pairs either.
    """
    found = contrast(o.contrast, positive=o.positive, choices=o.choices, chat=o.chat or None, **o.how())
    found = found.with_choices()
    if o.instruction:
        found = replace(found, instructions=(o.instruction, found.instructions[1]))
    pairs, asked, heads = (8, 4, 2) if o.tiny else (48, 16, 8) if o.short else (10**6, 10**6, 16)
    cut = []
    for number, half in enumerate(found.halves(o.seed)):
        if len(half.choices) < 2:
            raise UserError(f"{found.name!r} has {len(found.choices)} choices in too few groups; two halves need 2 each.")
        rows = np.sort(np.random.default_rng([o.seed, number]).permutation(len(half.choices))[:asked])
        some = half.sample(pairs, o.seed)
        drawn = f"{found.name}: {len(rows)} of {len(half.choices)} choices were drawn at random."
        notes = (*some.notes, drawn) if len(rows) < len(half.choices) else some.notes
        cut.append(replace(some, choices=tuple(half.choices[i] for i in rows), openings=half.openings[:heads], notes=notes))
    return cut[0], cut[1]


def steps(run: Run[ContrastOptions]) -> list[Step]:
    """Fit, choose, dose, methods."""
    o = run.options.sized()
    for name in o.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    halves(o)  # mistakes in the files show here, before anything runs
    _candidates(run, o)
    return [
        Step("fit", _fit, _cost(run, 0)),
        Step("choose", _choose, _cost(run, 1), needs=("fit",)),
        Step("dose", _dose, _cost(run, 2), needs=("fit", "choose")),
        Step("methods", _methods, _cost(run, 3), needs=("fit", "choose")),
    ]


def _candidates(run: Run[ContrastOptions], o: ContrastOptions) -> list[int]:
    blocks = run.network.blocks
    if outside := [b for b in o.blocks if not 0 <= b < blocks]:
        raise UserError(f"There is no block {outside[0]}; {run.network.name} has {blocks}, counted from 0.")
    first, last = max(1, round(0.2 * blocks)), max(2, round(0.85 * blocks))
    return list(o.blocks) or list(range(first, last, max(1, blocks // 12)))


def _cost(run: Run[ContrastOptions], kind: int) -> Callable[[], Cost]:
    """Of the fits; of so many vectors on so many choices; of those and the texts; of one vector a method."""

    def cost() -> Cost:
        o, lm = run.options.sized(), run.network
        first, _ = halves(o)
        texts = [*first.yes, *first.no]
        plan = lm.plan([*texts, *texts], "resid_post", batch_tokens=run.options.batch_tokens)
        width = lm.anatomy.width if lm.anatomy else 1
        ways = len(o.methods)
        if kind == 0:
            return Cost(plan.tokens, plan.flops, 6.0 * ways * lm.blocks * width**3, 0.0, plan.blocks, plan.working)
        each = plan.flops / max(plan.tokens, 1) + 0.5 * width * lm.vocabulary
        sites = len(_candidates(run, o))
        vectors = {1: 3 * sites * (ways + 2), 2: 2 * len(o.strengths) * (o.random + 1), 3: ways + 1}[kind]
        asked = 2 * len(first.choices) * 12 + len(first.openings) * (10 if kind < 3 else 0)
        wrote = 4 * len(o.strengths) * len(first.openings) * o.new_tokens if kind == 2 else 0
        tokens = vectors * asked + wrote
        return Cost(tokens, 0.5 * tokens * each, 0.0, 0.0, lm.blocks, plan.working)

    return cost


def _fit(run: Run[ContrastOptions], tick: Tick) -> Result:
    o = run.options.sized()
    first, second = halves(o)
    methods = [m for m in o.methods if first.paired or m != "PCA of differences"]
    swaps = 2 if o.tiny else 5
    found = fit(run.network, first, held_out=second, tokens=o.tokens, methods=methods, swaps=swaps, seed=o.seed)
    tick(1.0)
    held = list(found.directions)
    side = pd.DataFrame(
        [
            {
                "name": d.name,
                "site": d.site,
                "method": d.name.rpartition(", ")[0],
                "found_by": d.found_by,
                "trained_on": d.trained_on,
            }
            for d in held
        ]
    )
    arrays = {
        "vectors": np.stack([d.vector for d in held]),
        "scales": np.array([d.scale for d in held]),
        "norms": np.array([d.norm for d in held]),
    }
    return Result(found.result.table, arrays=arrays, side={"directions": side}, notes=(*first.notes, *second.notes))


def _fitted(run: Run[Any]) -> list[Direction]:
    """The directions of the first step."""
    held = run.results["fit"]
    rows = held.side["directions"].to_dict("records")
    return [
        Direction(
            vector,
            row["site"],
            row["name"],
            scale=float(scale),
            found_by=row["found_by"],
            norm=float(norm),
            trained_on=row["trained_on"],
        )
        for row, vector, scale, norm in zip(rows, *(held.arrays[name] for name in ("vectors", "scales", "norms")))
    ]


def _choose(run: Run[ContrastOptions], tick: Tick) -> Result:
    o = run.options.sized()
    first, _ = halves(o)
    sites = {f"resid_post.{b}" for b in _candidates(run, o)}
    fitted = _fitted(run)
    held = [d for d in fitted if d.site in sites]
    openings = first.openings[: 2 if o.tiny else 6]
    found = choose(run.network, held, first.choices, openings, random=2, chat=first.chat, seed=o.seed)
    tick(1.0)
    chosen = {"": found.direction}
    for method in o.methods:
        if own := [d for d in held if d.name.startswith(f"{method}, ")]:
            chosen[method] = best_of(own, found.table)
    names = [d.name for d in fitted]
    side = pd.DataFrame([{"method": m, "name": d.name, "row": names.index(d.name), "scale": d.scale} for m, d in chosen.items()])
    return Result(found.result.table, side={"chosen": side, "candidates": found.table})


def _chosen(run: Run[Any], method: str = "") -> Direction:
    """What was chosen of all, or of a method."""
    rows = {r["method"]: r for r in run.results["choose"].side["chosen"].to_dict("records")}
    return replace(_fitted(run)[int(rows[method]["row"])], scale=float(rows[method]["scale"]))


def _dose(run: Run[ContrastOptions], tick: Tick) -> Result:
    o, lm = run.options.sized(), run.network
    first, second = halves(o)
    how: dict[str, Any] = {
        "strengths": o.strengths,
        "random": o.random,
        "new_tokens": o.new_tokens,
        "most_damage": o.most_damage,
        "chat": first.chat,
        "seed": o.seed,
    }
    setting = dose(lm, _chosen(run), first.choices, first.openings, **how)
    tick(0.5)
    told = second.instructions[0]
    report = dose(lm, setting.direction, second.choices, second.openings, instruction=told, **how)
    tick(0.5)
    found = setting.direction
    arrays = dict(report.result.arrays)
    at = int(np.argmin(np.abs(arrays["strengths"] - found.scale / found.norm)))
    rows = _at_scale(first.name, arrays, at, o.seed) if found.works else []
    does = doing(report.table, float(arrays["strengths"][at])) if found.works else {}
    _keep(run, replace(found, name=first.name, does=does))
    works = np.array(found.works or (np.nan, np.nan))
    arrays |= {"scale": np.array([found.scale]), "norm": np.array([found.norm]), "works": works}
    tables = [report.result.table.assign(split="reporting half"), setting.result.table.assign(split="choosing half")]
    whole = pd.concat([*([Result.of(rows).table] if rows else []), *tables], ignore_index=True)
    side = {"dose": report.table, "dose-choosing": setting.table, "texts": report.result.side["texts"]}
    return Result(whole, arrays=arrays, side=side)


def _at_scale(name: str, arrays: dict[str, np.ndarray], at: int, seed: int) -> list[Row]:
    """At the strength that the other half chose: the effect, its controls, and the gain over each."""
    where: dict[str, Any] = {
        "site": CHOSEN,
        "item": name,
        "split": "halves",
        "token": "all",
        "definition": DEFINITIONS["effect"],
        "seed": seed,
    }
    effect = arrays["effect"][at]
    away = arrays["random"][int(np.argmin(np.abs(arrays["sizes"] - abs(arrays["strengths"][at]))))]
    null = stats.null(away, unit="random direction")
    measured = {over(RANDOM): effect - null.value, over(f"best of {len(away)} random directions"): effect - away.max()}
    rows = [
        Row.of(stats.mean(effect, unit=_GROUP, seed=seed), metric="effect", **where),
        Row.of(null, metric="effect", condition=RANDOM, **where),
    ]
    if "prompting" in arrays:
        told = arrays["prompting"]
        rows.append(Row.of(stats.mean(told, unit=_GROUP, seed=seed), metric="effect", condition=PROMPTED, **where))
        measured[over(PROMPTED)] = effect - told
    for condition, values in measured.items():
        gained = stats.mean(values, unit=_GROUP, seed=seed)
        rows.append(Row.of(gained, metric="gain", condition=condition, **where))
    return rows


def _keep(run: Run[Any], direction: Direction) -> None:
    lm = run.network
    kept = DirectionSet.of(
        direction,
        model=lm.fingerprint,
        note=f"{direction.name} of {lm.name}, by repscope study contrast",
        architecture=str(getattr(lm.model.config, "model_type", "")),
        blocks=lm.blocks,
    )
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in direction.name)
    kept.save(run.artifact(f"{stem}.safetensors"))
    if direction.site != "resid_post.0":  # llama.cpp has no place for a vector after block 0
        kept.to_gguf(run.artifact(f"{stem}.gguf"))


def _methods(run: Run[ContrastOptions], tick: Tick) -> Result:
    """Each method's own best on the second half, and what difference of means gains over it."""
    o, lm = run.options.sized(), run.network
    _, second = halves(o)
    names = [m for m in run.results["choose"].side["chosen"]["method"] if m]
    held = [_chosen(run, m) for m in names]
    odds = log_odds(lm, second.choices, [Added(d.site, d.scale * d.vector) for d in held], chat=second.chat)
    effect = dict(zip(names, by_group(odds[1:] - odds[0], [c.group for c in second.choices])))
    tick(1.0)
    rows = []
    for name, d in zip(names, held):
        where: dict[str, Any] = {
            "site": CHOSEN,
            "token": "all",
            "split": "halves",
            "seed": o.seed,
            "definition": f"{DEFINITIONS['effect']}; {d.name} at {d.scale / d.norm:+.2f}",
        }
        moved = stats.mean(effect[name], unit=_GROUP, seed=o.seed)
        rows.append(Row.of(moved, metric="effect", item=second.name, condition=name, **where))
        if name != "difference of means" and "difference of means" in effect:
            gained = stats.mean(effect["difference of means"] - effect[name], unit=_GROUP, seed=o.seed)
            item = f"{second.name}: difference of means"
            rows.append(Row.of(gained, metric="gain", item=item, condition=over(name), **where))
    return Result.of(rows)


CONTRAST = Study(
    name="contrast",
    question="What is a direction between two kinds of text worth: does it move the model, at what cost, beyond chance and asking?",
    options=ContrastOptions,
    steps=steps,
    page=page,
    headline=headline,
)
