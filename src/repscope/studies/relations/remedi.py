"""The step on REMEDI: are facts edited by what a sentence says, and does a subject's vector tell what the model believes?

1. Facts: subjects that the model knows, halves as in the first split. Subjects of the choosing half get new objects (of that half);
   a fifth of them stop the training. The other half is reported, one new object each.
2. One linear editor per candidate block, trained on all relations at once; the block with the lowest loss of held-out subjects is
   chosen, and an affine editor is trained there too.
3. Reported facts: efficacy, generalisation to paraphrases, specificity, essence; compared with the sentence in the prompt, the raw
   attribute vector and a random editor's change of equal norm, and the edit by the relation's map (LRC) at its own block and rank.
4. Inspection on samples outside the choosing half, known or not: does the vector hold the true object, and does that tell which
   answers are wrong?
Questions have no examples before them. Intervals are over subjects.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope import stats
from repscope.conditions import AFFINE_EDITOR, over
from repscope.data.relations import Relation
from repscope.errors import UserError
from repscope.read.known_facts import encode_facts
from repscope.results import ESTIMATE, Result, Row
from repscope.steer import remedi
from repscope.studies.relations.inspection import inspected
from repscope.studies.relations.names import ALL_RELATIONS
from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.remedi_evaluation import Found, Part, evaluated
from repscope.studies.run.study import Context, Cost, Setup, Step

DEPTHS = {1: (0.27,), 2: (0.13, 0.27), 3: (0.13, 0.27, 0.4)}
_LEAST_FACTS = 6  #: known facts of the choosing half for a relation to take part
_VALIDATION = 5  #: every n-th subject of the choosing half stops the training


def remedi_step(setup: Setup[RelationsOptions], held: Sequence[Relation]) -> Step:
    """The step; it needs what is known and the first split of every relation."""
    needs = tuple(f"{r.name} {part}" for r in held for part in ("known", "split 0"))
    return Step("REMEDI", partial(_compute, setup, held), partial(_cost, setup, held), needs=needs)


def _cost(setup: Setup[RelationsOptions], held: Sequence[Relation]) -> Cost:
    o, lm = setup.options, setup.network
    prompts = [r.prompt(s) for r in held for s in r.subjects]
    plan = lm.plan(prompts, "resid_post", batch_tokens=o.batch_tokens)
    passes = 0.25 * o.new_objects * o.editors * 3 * min(o.epochs, 8) + 20
    return Cost(plan.tokens, plan.flops * passes, 0.0, 4e6 * o.editors, plan.blocks, plan.working)


def _compute(setup: Setup[RelationsOptions], held: Sequence[Relation], context: Context) -> Result:
    o, lm = setup.options, setup.network
    parts = [part for r in held if (part := _part(setup, context, r)) is not None]
    if not parts:
        return Result.of([], notes=("REMEDI: the model knows too few facts of any relation to train an editor and test it.",))
    train, validation, report = ([f for p in parts for f in getattr(p, name)] for name in ("train", "validation", "report"))
    if len(train) > o.edit_facts:
        kept = np.sort(np.random.default_rng([o.seed, 5]).choice(len(train), o.edit_facts, replace=False))
        train = [train[i] for i in kept]
    sites = _sites(lm.blocks, o.editors)
    fit = partial(remedi.train_editor, lm, epochs=o.epochs, seed=o.seed)
    tried = {site: fit(remedi.prepare(lm, train, site), remedi.prepare(lm, validation, site), site) for site in sites}
    site = min(tried, key=lambda s: tried[s].best)
    editors = {ESTIMATE: tried[site].editor}
    if not o.short:
        ready = remedi.prepare(lm, train, site), remedi.prepare(lm, validation, site)
        editors[AFFINE_EDITOR] = fit(*ready, site, kind="affine").editor
    for condition, editor in editors.items():
        editor.save(context.artifacts / f"remedi-{'affine' if condition == AFFINE_EDITOR else 'linear'}.safetensors")
    found = evaluated(lm, parts, report, editors, site, o)
    rows = _rows(found, [p.name for p in parts], o.seed)
    rows.append(
        Row(
            metric="REMEDI block",
            definition="lowest loss of held-out subjects",
            item=ALL_RELATIONS,
            value=_block(site),
            seed=o.seed,
        )
    )
    rows += inspected(lm, [(p.facts, p.outside, p.choosing) for p in parts], editors[ESTIMATE], o.seed)
    losses = pd.concat([t.losses.assign(site=s) for s, t in tried.items()], ignore_index=True)
    notes = (f"REMEDI: {len(train)} training facts, {len(validation)} held out to stop, {len(report)} reported.",)
    return Result.of(rows, side={"remedi-losses": losses, "remedi-texts": _texts(found)}, notes=notes)


def _block(site: str) -> float:
    return float(site.rpartition(".")[2])


def _sites(blocks: int, count: int) -> list[str]:
    """Candidate blocks, below the last."""
    return [f"resid_post.{b}" for b in sorted({min(blocks - 2, max(0, round(blocks * f))) for f in DEPTHS[min(count, 3)]})]


def _part(setup: Setup[RelationsOptions], context: Context, r: Relation) -> Part | None:
    """The facts of one relation; None where the model knows too few."""
    o, lm = setup.options, setup.network
    arrays = context.inputs[f"{r.name} split 0"].arrays
    if "reported" not in arrays:
        return None
    facts = encode_facts(lm, r)
    known = context.inputs[f"{r.name} known"].arrays["known"].tolist()
    reported = arrays["reported"].tolist()
    choosing = [i for i in known if i not in set(reported)]
    if len(choosing) < _LEAST_FACTS:
        return None
    objects = [facts.relation.samples[i][1] for i in choosing]
    held_out = choosing[::_VALIDATION]
    make = partial(remedi.edit_facts, facts, objects=objects, seed=o.seed)
    try:
        return Part(
            facts,
            make([i for i in choosing if i not in held_out], per_subject=o.new_objects),
            make(held_out),
            make(reported[: o.edits or None]),
            [i for i in range(len(facts.relation)) if i not in set(choosing)],
            choosing,
            arrays,
        )
    except UserError:  # no subject can have another object
        return None


def _rows(found: Found, names: Sequence[str], seed: int) -> list[Row]:
    """Every number of every relation and of all together, and the gain of the linear editor over each other way."""
    rows = []
    for item in [*names, *([ALL_RELATIONS] if len(names) > 1 else [])]:
        here = np.array([item in (ALL_RELATIONS, f.relation) for f in found.facts])
        for metric, definition in found.sums:
            values = found.values(metric, definition)
            where: dict[str, Any] = {"item": item, "definition": definition, "token": "subject", "seed": seed}
            for condition, each in values.items():
                kept = each[here & np.isfinite(each)]
                if len(kept) >= 2:
                    estimate = _estimate(metric, kept, seed)
                    rows.append(Row.of(estimate, metric=metric, condition=condition, **where))
                both = here & np.isfinite(each) & np.isfinite(values[ESTIMATE])
                if condition != ESTIMATE and both.sum() >= 2 and metric in ("REMEDI efficacy", "REMEDI generalisation"):
                    gain = stats.change_of_proportion(each[both], values[ESTIMATE][both], unit="subject", seed=seed)
                    rows.append(Row.of(gain, metric="REMEDI gain", condition=over(condition), **(where | {"definition": metric})))
    return rows


def _estimate(metric: str, values: Float[np.ndarray, "fact"], seed: int) -> stats.Estimate:
    shares = metric not in ("REMEDI damage", "REMEDI essence")
    maker: Callable[..., stats.Estimate] = stats.proportion if shares else stats.mean
    return maker(values, unit="subject", seed=seed)


def _texts(found: Found) -> pd.DataFrame:
    """The reported facts with their sentences and whether the edit took."""
    hits = found.values("REMEDI efficacy")[ESTIMATE]
    return pd.DataFrame(
        [
            {"sentence": f.context.text, "question": f.prompt.text, "before": f.old, "target": f.new, "edited": bool(hit)}
            for f, hit in zip(found.facts, hits)
        ]
    )
