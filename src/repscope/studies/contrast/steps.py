"""What is a direction between two kinds of text worth: does it move the model, at what cost, beyond chance and beyond asking?

1. Texts, choices and openings are split into two halves by groups; the second half is never used to fit or choose.
2. Fit: four methods at every block on the texts of the first half; how well each separates the texts of the second half.
3. Choose: the method, block and strength with the largest effect on the choices of the first half at an acceptable cost; and the
   same for each method alone.
4. Dose: effect, KL and damage to fluency by strength. The first half sets the working range and the scale; the second half is
   reported, compared with random directions of equal norm and with prompting.
5. Methods: the best of each method, on the second half.
Artifacts: the direction with its card, as safetensors and, if llama.cpp supports it, as GGUF.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from repscope import stats
from repscope.conditions import RANDOM, over
from repscope.data.contrasts import Contrast, contrast
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError, unknown
from repscope.models.edits import Edit
from repscope.names import file_name
from repscope.results import CHOSEN, Result, Row, records
from repscope.steer.dose_response import PROMPTED, by_group, doing, dose
from repscope.steer.effects import DEFINITIONS, log_odds
from repscope.steer.from_texts import METHODS, fit
from repscope.steer.selection import best as best_of
from repscope.steer.selection import choose
from repscope.studies.contrast.options import ContrastOptions
from repscope.studies.run.study import Context, Cost, Setup, Step

_GROUP = "group of choices"
_WHERE: dict[str, Any] = {"site": CHOSEN, "token": "all", "split": "halves"}
_KEPT = ("site", "name", "found_by", "trained_on")  #: of directions, in a side table


def halves(o: ContrastOptions) -> tuple[Contrast, Contrast]:
    """The contrast in two halves, each with its own texts, choices and openings; smaller for `tiny` and `short`.

    Raises
    ------
    UserError
        If there are too few choices.
    """
    found = contrast(o.contrast, positive=o.positive, choices=o.choices, chat=o.chat or None, **o.how())
    found = found.with_choices()
    if o.instruction:
        found = replace(found, instructions=(o.instruction, found.instructions[1]))
    pairs, asked, heads = (8, 4, 2) if o.tiny else (32, 12, 4) if o.short else (10**6, 10**6, 16)
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


def steps(setup: Setup[ContrastOptions]) -> list[Step]:
    """Fit, choose, dose, methods."""
    o = setup.options
    for name in o.methods:
        if name not in METHODS:
            raise unknown("method", name, METHODS)
    halves(o)  # errors in the files are raised here, before anything runs
    _candidates(setup, o)
    return [
        Step("fit", partial(_fit, setup), partial(_cost, setup, 0)),
        Step("choose", partial(_choose, setup), partial(_cost, setup, 1), needs=("fit",)),
        Step("dose", partial(_dose, setup), partial(_cost, setup, 2), needs=("fit", "choose")),
        Step("methods", partial(_methods, setup), partial(_cost, setup, 3), needs=("fit", "choose")),
    ]


def _candidates(setup: Setup[ContrastOptions], o: ContrastOptions) -> list[int]:
    blocks = setup.network.blocks
    if outside := [b for b in o.blocks if not 0 <= b < blocks]:
        raise UserError(f"There is no block {outside[0]}; {setup.network.name} has {blocks}, counted from 0.")
    first, last = max(1, round(0.2 * blocks)), max(2, round(0.85 * blocks))
    return list(o.blocks) or list(range(first, last, max(1, blocks // (6 if o.short else 12))))


def _cost(setup: Setup[ContrastOptions], kind: int) -> Cost:
    """Forecast of the fits; of selection on choices; of the dose curves; of one vector per method."""
    o, lm = setup.options, setup.network
    first, _ = halves(o)
    texts = [*first.yes, *first.no]
    plan = lm.plan([*texts, *texts], "resid_post", batch_tokens=setup.options.batch_tokens)
    width = lm.anatomy.width if lm.anatomy else 1
    ways = len(o.methods)
    if kind == 0:
        return Cost(plan.tokens, plan.flops, 6.0 * ways * lm.blocks * width**3, 0.0, plan.blocks, plan.working)
    each = plan.flops / max(plan.tokens, 1) + 0.5 * width * lm.vocabulary
    sites = len(_candidates(setup, o))
    vectors = {1: 3 * sites * (ways + 2), 2: 2 * len(o.strengths) * (o.random + 1), 3: ways + 1}[kind]
    asked = 2 * len(first.choices) * 12 + len(first.openings) * (10 if kind < 3 else 0)
    wrote = 4 * len(o.strengths) * len(first.openings) * o.new_tokens if kind == 2 else 0
    tokens = vectors * asked + wrote
    return Cost(tokens, 0.5 * tokens * each, 0.0, 0.0, lm.blocks, plan.working)


def _fit(setup: Setup[ContrastOptions], context: Context) -> Result:
    o = setup.options
    first, second = halves(o)
    methods = [m for m in o.methods if first.paired or m != "PCA of differences"]
    swaps = 2 if o.tiny else 5
    found = fit(setup.network, first, held_out=second, tokens=o.tokens, methods=methods, swaps=swaps, seed=o.seed)
    directions = list(found.directions)
    columns = ["name", "site", "method", "found_by", "trained_on"]
    rows = [[d.name, d.site, d.name.rpartition(", ")[0], d.found_by, d.trained_on] for d in directions]
    side = pd.DataFrame(rows, columns=columns)
    arrays = {
        "vectors": np.stack([d.vector for d in directions]),
        "scales": np.array([d.scale for d in directions]),
        "norms": np.array([d.norm for d in directions]),
    }
    return Result(found.result.table, arrays=arrays, side={"directions": side}, notes=(*first.notes, *second.notes))


def _fitted(context: Context) -> list[Direction]:
    """The directions of the first step."""
    held = context.inputs["fit"]
    rows = records(held.side["directions"])
    return [
        Direction(vector, **{k: row[k] for k in _KEPT}, scale=float(scale), norm=float(norm))
        for row, vector, scale, norm in zip(rows, *(held.arrays[name] for name in ("vectors", "scales", "norms")))
    ]


def _choose(setup: Setup[ContrastOptions], context: Context) -> Result:
    o = setup.options
    first, _ = halves(o)
    sites = {f"resid_post.{b}" for b in _candidates(setup, o)}
    fitted = _fitted(context)
    held = [d for d in fitted if d.site in sites]
    openings = first.openings[: 2 if o.tiny else 6]
    found = choose(setup.network, held, first.choices, openings, random=2, chat=first.chat, seed=o.seed)
    chosen = {"": found.direction}
    for method in o.methods:
        if own := [d for d in held if d.name.startswith(f"{method}, ")]:
            chosen[method] = best_of(own, found.table)
    names = [d.name for d in fitted]
    side = pd.DataFrame([{"method": m, "name": d.name, "row": names.index(d.name), "scale": d.scale} for m, d in chosen.items()])
    return Result(found.result.table, side={"chosen": side, "candidates": found.table})


def _chosen(context: Context, method: str = "") -> Direction:
    """The direction chosen of all, or of one method."""
    rows = {r["method"]: r for r in records(context.inputs["choose"].side["chosen"])}
    return replace(_fitted(context)[int(rows[method]["row"])], scale=float(rows[method]["scale"]))


def _dose(setup: Setup[ContrastOptions], context: Context) -> Result:
    o, lm = setup.options, setup.network
    first, second = halves(o)
    how: dict[str, Any] = {
        "strengths": o.strengths,
        "random": o.random,
        "new_tokens": o.new_tokens,
        "most_damage": o.most_damage,
        "chat": first.chat,
        "seed": o.seed,
    }
    setting = dose(lm, _chosen(context), first.choices, first.openings, **how)
    instruction = second.instructions[0]
    report = dose(lm, setting.direction, second.choices, second.openings, instruction=instruction, **how)
    found = setting.direction
    arrays = dict(report.result.arrays)
    at = int(np.argmin(np.abs(arrays["strengths"] - found.scale / found.norm)))
    rows = _at_scale(first.name, arrays, at, o.seed) if found.works else []
    does = doing(report.table, float(arrays["strengths"][at])) if found.works else {}
    _save(setup, context, replace(found, name=first.name, does=does))
    works = np.array(found.works or (np.nan, np.nan))
    arrays |= {"scale": np.array([found.scale]), "norm": np.array([found.norm]), "works": works}
    tables = [report.result.table.assign(split="reporting half"), setting.result.table.assign(split="choosing half")]
    whole = pd.concat([*([Result.of(rows).table] if rows else []), *tables], ignore_index=True)
    side = {"dose": report.table, "dose-choosing": setting.table, "texts": report.result.side["texts"]}
    return Result(whole, arrays=arrays, side=side)


def _at_scale(name: str, arrays: dict[str, np.ndarray], at: int, seed: int) -> list[Row]:
    """At the strength chosen on the other half: the effect, its controls, and the gain over each."""
    where = _WHERE | {"item": name, "definition": DEFINITIONS["effect"], "seed": seed}
    effect = arrays["effect"][at]
    random_effects = arrays["random"][int(np.argmin(np.abs(arrays["sizes"] - abs(arrays["strengths"][at]))))]
    null = stats.null(random_effects, unit="random direction")
    measured = {
        over(RANDOM): effect - null.value,
        over(f"best of {len(random_effects)} random directions"): effect - random_effects.max(),
    }
    rows = [
        Row.of(stats.mean(effect, unit=_GROUP, seed=seed), metric="effect", **where),
        Row.of(null, metric="effect", condition=RANDOM, **where),
    ]
    if "prompting" in arrays:
        prompting = arrays["prompting"]
        rows.append(Row.of(stats.mean(prompting, unit=_GROUP, seed=seed), metric="effect", condition=PROMPTED, **where))
        measured[over(PROMPTED)] = effect - prompting
    for condition, values in measured.items():
        gained = stats.mean(values, unit=_GROUP, seed=seed)
        rows.append(Row.of(gained, metric="gain", condition=condition, **where))
    return rows


def _save(setup: Setup[Any], context: Context, direction: Direction) -> None:
    lm = setup.network
    saved = DirectionSet.of(
        direction,
        model=lm.fingerprint,
        note=f"{direction.name} of {lm.name}, by repscope study contrast",
        architecture=str(getattr(lm.model.config, "model_type", "")),
        blocks=lm.blocks,
    )
    stem = file_name(direction.name)
    saved.save(context.artifacts / f"{stem}.safetensors")
    if direction.site != "resid_post.0":  # llama.cpp cannot add a vector after block 0
        saved.to_gguf(context.artifacts / f"{stem}.gguf")


def _methods(setup: Setup[ContrastOptions], context: Context) -> Result:
    """Each method's own best on the second half, and the gain of difference of means over it."""
    o, lm = setup.options, setup.network
    _, second = halves(o)
    names = [m for m in context.inputs["choose"].side["chosen"]["method"] if m]
    held = [_chosen(context, m) for m in names]
    odds = log_odds(lm, second.choices, [Edit.add(d.site, d.scale * d.vector) for d in held], chat=second.chat)
    effect = dict(zip(names, by_group(odds[1:] - odds[0], [c.group for c in second.choices])))
    rows = []
    for name, d in zip(names, held):
        where = _WHERE | {"seed": o.seed, "definition": f"{DEFINITIONS['effect']}; {d.name} at {d.scale / d.norm:+.2f}"}
        moved = stats.mean(effect[name], unit=_GROUP, seed=o.seed)
        rows.append(Row.of(moved, metric="effect", item=second.name, condition=name, **where))
        if name != "difference of means" and "difference of means" in effect:
            gained = stats.mean(effect["difference of means"] - effect[name], unit=_GROUP, seed=o.seed)
            item = f"{second.name}: difference of means"
            rows.append(Row.of(gained, metric="gain", item=item, condition=over(name), **where))
    return Result.of(rows)
