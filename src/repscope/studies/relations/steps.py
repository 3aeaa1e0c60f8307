"""Is a relation ("capital of") a linear map on the vector of its subject, and which direction is an object ("in Italy")?

For each relation:
1. Query the model with every sample in several trials with different examples; continue with the known facts.
2. Split the known facts into two halves, several times. One half estimates the map (LRE) and selects layer, β and rank; the other
   is reported: faithfulness by layer, compared with baselines.
3. Concepts of the objects (LRC) if subjects share objects: classification by layer and rank, compared with probes.
4. Edits: the pseudo-inverse of the map, applied to the difference of two objects, is added at the subject; success, dose,
   specificity.
5. REMEDI: editors trained on sentences that say a new object, compared with those edits (`remedi`).
6. Across relations: is a map specific to its own relation?
Intervals are over subjects, each averaged over the splits that report it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from repscope import stats
from repscope.data.relations import Relation, relation
from repscope.errors import UserError
from repscope.models.linear.low_rank import Certificate, LowRank
from repscope.models.prompts import Prompt
from repscope.models.sites import Site
from repscope.names import file_name
from repscope.progress import progress
from repscope.read.known_facts import EncodedFacts, distinct, encode_facts, select_known
from repscope.read.linear_relations import LRE, attribute_lens, right, vectors
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.relations.costs import of_queries, of_split
from repscope.studies.relations.edited_facts import edits
from repscope.studies.relations.names import unmapped
from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.pooled import METRICS, pooled
from repscope.studies.relations.remedi import remedi_step
from repscope.studies.relations.split import Hits, Split, classification, faithfulness, is_wide
from repscope.studies.run.study import Context, Cost, Setup, Step

Found = TypeVar("Found")
_OBJECT_DEPTH = 0.9  #: where concepts are read, as a part of the blocks


def steps(setup: Setup[RelationsOptions]) -> list[Step]:
    """What is known and each split, relation by relation; then across relations, and what pools the splits."""
    o = setup.options
    held = _relations(setup)
    object_site = _object_site(setup, o)
    made = [Step(f"{r.name} known", _knows(setup, r), of_queries(setup, r), version=1) for r in held]
    asked = tuple(step.name for step in made)
    version = 3 if is_wide(setup.network) else 2  # maps of wide networks are of low rank
    for r in held:
        for k in range(o.splits):
            needs = asked if o.edits else (f"{r.name} known",)
            made.append(
                Step(
                    f"{r.name} split {k}",
                    _splits(setup, r, held, k, object_site),
                    of_split(setup, r, object_site),
                    version=version,
                    needs=needs,
                )
            )
    splits = tuple(f"{r.name} split {k}" for r in held for k in range(o.splits))
    if o.editors:
        made.append(remedi_step(setup, held))
    if len(held) > 1:
        needs = (*asked, *(s for s in splits if s.endswith(" split 0")))
        made.append(Step("across relations", _across(setup, held), lambda: Cost(fit_flops=1e9), needs=needs))
    made.append(Step("summary", _summary(setup, [r.name for r in held]), lambda: Cost(fit_flops=1e9), needs=splits))
    return made


def _relations(setup: Setup[RelationsOptions]) -> list[Relation]:
    o = setup.options
    held = [relation(name, templates=o.template, **o.how()).sample(o.max_items, o.seed) for name in dict.fromkeys(o.relations)]
    if not held:
        raise UserError("No relation was named; give one, such as --relations country-capital.")
    if len({r.name for r in held}) < len(held):
        raise UserError("Two of the relations have one name; rename one file.")
    for r in held:
        usable = len(encode_facts(setup.network, r).relation)
        if usable < (least := max(o.needed, 2 * o.examples + 1)):
            raise UserError(
                f"The relation {r.name!r} has {usable} usable samples; with {o.examples} examples it needs {least} or more."
            )
    return held


def _object_site(setup: Setup[RelationsOptions], o: RelationsOptions) -> str:
    blocks = setup.network.blocks
    block = o.object_block if o.object_block is not None else max(1, round(_OBJECT_DEPTH * blocks) - 1)
    if block >= blocks:
        raise UserError(f"There is no block {block} to read concepts at; {setup.network.name} has {blocks}, counted from 0.")
    return f"resid_post.{block}"


def _knows(setup: Setup[RelationsOptions], r: Relation) -> Callable[[Context], Result]:
    def compute(context: Context) -> Result:
        o = setup.options
        found = select_known(setup.network, r, shots=o.examples, trials=o.trials, seed=o.seed)
        rows = np.arange(len(found.copied)) if o.tiny else found.rows
        notes = list(found.facts.relation.notes)
        if o.tiny:
            notes.append("A network with random weights knows nothing: all samples are taken as known.")
        if len(rows) < o.needed:
            notes.append(unmapped(r.name, setup.network.name, len(rows), len(found.copied), o.needed))
        told = f"right after {o.examples} examples; each subject averaged over {o.trials} trials"
        measured = {
            (ESTIMATE, f"first token {told}"): found.first.mean(0),
            (ESTIMATE, f"full object {told}"): found.full.mean(0),
            ("majority object", ""): found.majority.astype(float),
            ("copied from the subject", "first three letters"): found.copied.astype(float),
        }
        table = [
            Row.of(
                stats.proportion(values, unit="subject"),
                metric="known",
                definition=definition,
                item=r.name,
                condition=condition,
                seed=o.seed,
            )
            for (condition, definition), values in measured.items()
        ]
        frame = pd.DataFrame(found.facts.relation.samples, columns=["subject", "object"])
        frame["first"], frame["full"] = found.first.mean(0), found.full.mean(0)
        return Result.of(table, arrays={"known": rows.astype(np.int64)}, side={f"known-{r.name}": frame}, notes=tuple(notes))

    return compute


def _splits(
    setup: Setup[RelationsOptions], r: Relation, held: Sequence[Relation], k: int, object_site: str
) -> Callable[[Context], Result]:
    def compute(context: Context) -> Result:
        o, lm = setup.options, setup.network
        rows = context.inputs[f"{r.name} known"].arrays["known"]
        if len(rows) < o.needed:
            return Result.of([])
        seed = o.seed * 1009 + k
        order = np.random.default_rng([o.seed, k]).permutation(rows)
        split = Split(lm, encode_facts(lm, r), order.tolist(), o.examples, object_site, seed)
        _ = split.fits, split.rest, split.report
        hits: dict[str, Hits] = {"lre": _with_bar("faithfulness", partial(faithfulness, split))}
        _ = split.early
        hits["lrc"], made, why = _with_bar("concepts", partial(classification, split, o.ranks))
        side: dict[str, pd.DataFrame] = {}
        artifacts: dict[str, np.ndarray] = {}
        if o.edits:
            elsewhere = _elsewhere(setup, context, r, held)
            edited = partial(edits, split, _edit_sites(lm.blocks, object_site), o.ranks, o.edits, elsewhere)
            hits["edit"], texts = _with_bar("edits", edited)
            side[f"texts-{r.name}-{k}"] = texts
        facts = split.facts
        fit: LRE = facts["fits"][facts["site"]]
        artifacts |= {**_weight(fit), "bias": fit.bias, "beta": np.array([fit.beta])}
        if k == 0:
            side[f"lens-{r.name}"] = attribute_lens(lm, facts["fits"], _distracted(split))
            if made is not None:
                sets = made.directions(lm.fingerprint, r.name)
                sets.save(context.artifacts / f"{file_name(r.name)}-concepts.safetensors")
                side[f"map-{r.name}"] = _plane(made.vectors, made.names, split)
            artifacts |= _for_editors(split, bool(o.edits))
        for family, found in hits.items():
            artifacts |= {f"{family}|{name}": values for name, values in found.items()}
        artifacts["reported"] = np.array([split.spelt.relation.subjects.index(s) for s, _ in split.report.pairs])
        notes = [f"{r.name}: no concepts in split {k}: {why}."] if why else []
        if (held_out := split.fits.certificate) is not None:
            notes.append(_low_rank(r, k, held_out, len(fit.bias)))
        return Result.of(_choices(r, k, facts, seed), arrays=artifacts, side=side, notes=tuple(notes))

    return compute


def _weight(fit: LRE) -> dict[str, np.ndarray]:
    """W as arrays, and `_map` back: whole, or its two factors."""
    if isinstance(fit.weight, LowRank):
        return {"left": fit.weight.left, "right": fit.weight.right}
    return {"weight": fit.weight}


def _map(site: str, target: str, arrays: Mapping[str, np.ndarray]) -> LRE:
    weight: np.ndarray | LowRank = arrays["weight"] if "weight" in arrays else LowRank(arrays["left"], arrays["right"])
    return LRE(site, target, weight, arrays["bias"], float(arrays["beta"][0]))


def _low_rank(r: Relation, k: int, found: Certificate, width: int) -> str:
    """Of what rank the maps are and how far from whole ones."""
    return (
        f"{r.name}, split {k}: maps of rank {found.rank} from {found.products} products in place of {width}; estimated relative "
        f"error of W {found.error.value:.2f} [{found.error.lo:.2f}, {found.error.hi:.2f}]."
    )


def _for_editors(split: Split, edited: bool) -> dict[str, np.ndarray]:
    """What the step on REMEDI reads of this split: the pulled-back step of the edits, and the states it starts from."""
    if not edited:
        return {}
    known, here = split.shown + split.rest, split.object_site
    site, rank = split.facts["edit site"], split.facts["edit rank"]
    subjects = split.spelt.relation.subjects
    return {
        "choosing": np.array([subjects.index(s) for s, _ in known.pairs]),
        "choosing states": known.end[here],
        "reported states": split.report.end[here],
        "edit inverse": np.asarray(split.early[site].inverse(rank), dtype=np.float32),
        "edit block": np.array([_block(site)]),
    }


def _with_bar(label: str, work: Callable[[Callable[[float], None]], Found]) -> Found:
    """Run work that reports its progress in fractions under a bar of its own."""
    with progress(label, 1.0) as advance:
        return work(advance)


def _choices(r: Relation, k: int, facts: dict[str, Any], seed: int) -> list[Row]:
    """What the choosing half chose."""
    named = {"lre": ("site", "beta"), "lrc": ("concept site", "rank"), "edit": ("edit site", "edit rank")}
    rows = []
    for family, keys in named.items():
        for key in keys:
            if key in facts:
                value = facts[key]
                number = _block(value) if isinstance(value, str) else float(value)
                rows.append(
                    Row(
                        metric=f"{METRICS[family]}: {'block' if isinstance(value, str) else key.removeprefix('edit ')}",
                        definition="chosen on the other half; block -1 is the embedding",
                        item=r.name,
                        split=f"split {k}",
                        value=number,
                        seed=seed,
                    )
                )
    return rows


def _block(site: str) -> float:
    layer = Site.parse(site).layer
    return -1.0 if layer is None else float(layer)


def _edit_sites(blocks: int, object_site: str) -> list[str]:
    """Five blocks between an eighth and two thirds of the depth, below the object's."""
    last = int(_block(object_site))
    at = sorted({min(last - 1, max(0, round(blocks * f))) for f in (0.13, 0.27, 0.4, 0.53, 0.67)})
    return [f"resid_post.{b}" for b in at if b >= 0]


def _elsewhere(setup: Setup[Any], context: Context, r: Relation, held: Sequence[Relation]) -> Callable[[str], Prompt | None]:
    """Another relation's question about a subject, where the model knows its answer."""
    asked: dict[str, tuple[EncodedFacts, list[int], int]] = {}
    for other in held:
        if other.name != r.name:
            words = encode_facts(setup.network, other)
            rows = context.inputs[f"{other.name} known"].arrays["known"]
            for i in rows.tolist():
                asked.setdefault(words.relation.subjects[i], (words, rows.tolist(), i))

    def question(subject: str) -> Prompt | None:
        if subject not in asked:
            return None
        words, rows, i = asked[subject]
        shots = distinct(words.relation.samples, [j for j in rows if j != i], setup.options.examples)
        return words.prompt(subject, [words.relation.samples[j] for j in shots])

    return question


def _distracted(split: Split) -> Prompt:
    """A text that names a reported subject and asks for nothing."""
    subject = split.report.pairs[0][0]
    return Prompt.fill("Yesterday my friend talked about {subject} for an hour, and then we had lunch.", subject=subject)


def _plane(found: np.ndarray, names: Sequence[str], split: Split) -> pd.DataFrame:
    """Unit concepts in the plane of their two leading components, with how much of their variance it holds."""
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    both = u[:, :2] * s[:2]
    count = [(split.shown + split.rest).objects.count(name) for name in names]
    share = float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-30))
    return pd.DataFrame({"name": list(names), "x": both[:, 0], "y": both[:, -1], "n": count, "share": share})


def _across(setup: Setup[RelationsOptions], held: Sequence[Relation]) -> Callable[[Context], Result]:
    """Every relation's map on every relation's subjects."""

    def compute(context: Context) -> Result:
        o, lm = setup.options, setup.network
        there = [r for r in held if f"{r.name} split 0" in context.inputs and "bias" in context.inputs[f"{r.name} split 0"].arrays]
        target = f"resid_post.{lm.blocks - 1}"
        maps = {}
        for r in there:
            held_arrays = context.inputs[f"{r.name} split 0"].arrays
            chosen = context.inputs[f"{r.name} split 0"].select(metric="faithfulness: block")["value"].iloc[0]
            site = "embed" if chosen < 0 else f"resid_post.{int(chosen)}"
            maps[r.name] = _map(site, target, held_arrays)
        rows = []
        for r in there:
            words = encode_facts(lm, r)
            arrays = context.inputs[f"{r.name} split 0"].arrays
            reported = arrays["reported"].tolist()
            shots = distinct(
                words.relation.samples,
                [i for i in context.inputs[f"{r.name} known"].arrays["known"].tolist() if i not in reported],
                o.examples,
            )
            prompts = [words.prompt(words.relation.subjects[i], [words.relation.samples[j] for j in shots]) for i in reported]
            at = vectors(lm, prompts, sorted({m.site for m in maps.values()}), target)
            objects = [words.relation.samples[i][1] for i in reported]
            for name, fit in maps.items():
                hits = right(lm, fit(at[fit.site]), objects)
                rows.append(
                    Row.of(
                        stats.proportion(hits.astype(float), unit="subject"),
                        metric="faithfulness across relations",
                        item=r.name,
                        condition=ESTIMATE if name == r.name else f"map of {name}",
                        split="split 0",
                        definition="the map's most likely token begins the object of this relation",
                        seed=o.seed,
                    )
                )
        return Result.of(rows)

    return compute


def _summary(setup: Setup[RelationsOptions], items: Sequence[str]) -> Callable[[Context], Result]:
    """All splits together."""

    def compute(context: Context) -> Result:
        o = setup.options
        rows: list[Row] = []
        for item in items:
            rows += pooled(item, [context.inputs[f"{item} split {k}"].arrays for k in range(o.splits)], o.seed)
        return Result.of(rows)

    return compute
