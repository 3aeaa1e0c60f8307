"""How a name becomes one vector: three steps per set of names, at the block by which its first attribute reads out.

1. mechanism: outputs of MLPs or attention replaced at the name's tokens by range of blocks, or attention between them cut; the
   vector is probed again, and the loss is compared with that of random changes of equal energy. Names that share a token with one
   of another class: looked up, or summed?
2. recombined: tokens of real names in new combinations; how much of the vector is a sum over tokens, and what a sum holds of the
   attributes. The same with random weights.
3. bases: neurons of the MLPs compared with random rotations of them (and with latents of a sparse autoencoder, if one is given);
   plain binary features of the text by block.
All at the last token of the name in the first prompt; folds are those of the probes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from repscope import stats
from repscope.conditions import ABLATED_ATTENTION, ABLATED_MLPS, BAG, CUT, CUT_BEFORE, NOISE_ATTENTION, NOISE_MLPS, over
from repscope.errors import UserError
from repscope.models.prompts import Encoded
from repscope.progress import progress
from repscope.read import name_assembly
from repscope.read.name_assembly import Ablation
from repscope.read.probe_sweep import Panel
from repscope.read.probes import ProbeScores, ProbeTask, probe
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.entities.bases import bases
from repscope.studies.entities.recombined import recombined_tokens
from repscope.studies.entities.task import EntityTask
from repscope.studies.entities.vectors import encoded_names, paired_difference, target_block, where_of
from repscope.studies.run.study import Context, Cost, Step

_LEAST_CONFLICTS = 10
_SHORT_NAMES = 120  #: names whose ablations are run in the short form
_WAYS = {
    ("mlp_out", "mean"): (ABLATED_MLPS, "mean over names"),
    ("mlp_out", "resample"): (ABLATED_MLPS, "those of another name"),
    ("mlp_out", "noise"): (NOISE_MLPS, "mean over names"),
    ("attn_out", "mean"): (ABLATED_ATTENTION, "mean over names"),
    ("attn_out", "resample"): (ABLATED_ATTENTION, "those of another name"),
    ("attn_out", "noise"): (NOISE_ATTENTION, "mean over names"),
    ("pattern", "cut"): (CUT, ""),
    ("pattern", "cut before"): (CUT_BEFORE, ""),
}


def mechanism_steps(subject: EntityTask, cost: Callable[[EntityTask, float], Callable[[], Cost]]) -> list[Step]:
    """The steps of one set of names."""
    name = subject.items.name
    parts = (("mechanism", _ablations, 1.5), ("recombined", recombined_tokens, 1.0), ("bases", bases, 0.7))
    return [
        Step(f"{name} {part}", partial(compute, subject), cost(subject, weight), needs=(name,)) for part, compute, weight in parts
    ]


# ---------------------------------------------------------------------------------------------- ablations


def _ablations(subject: EntityTask, context: Context) -> Result:
    """What the vector loses, by range of blocks; and names that share a token."""
    o, panel, encoded = subject.options, subject.panels[0], encoded_names(subject)
    if o.short and len(panel.rows) > _SHORT_NAMES:
        kept = np.isin(np.arange(len(panel.rows)), np.random.default_rng(o.seed).permutation(len(panel.rows))[:_SHORT_NAMES])
        panel = panel.keep(kept)
    some = Encoded(encoded.ids.take(panel.rows), encoded.start[panel.rows], encoded.stop[panel.rows])
    if not subject.lm.batches(int(some.ids.lengths.max())):
        why = f"Nothing was replaced: rows of {subject.lm.name} depend on each other in a batch."
        return Result.of([], notes=(why,))
    runs = name_assembly.name_runs(subject.lm, some, target_block(subject, context), seed=o.seed)
    intact = probe(runs.intact, panel.tasks, panel.folds, shuffles=0)
    tried, notes = _tried(subject, runs)
    rows: list[Row] = []
    scores: dict[Ablation, list[ProbeScores]] = {}
    with progress(f"ablations of {subject.items.name}", len(tried)) as advance:
        for ablation in tried:
            scores[ablation] = probe(runs.ablated(ablation), panel.tasks, panel.folds, shuffles=0)
            rows += [_lost(subject, runs.target, ablation, ours, s) for ours, s in zip(intact, scores[ablation])]
            advance(1)
    for t, task in enumerate(panel.tasks):
        rows += _extra(subject, task, runs.target, {a: s[t] for a, s in scores.items()})
    rows += _conflicts(subject, panel, intact, runs.target)
    if runs.alone:
        notes.append(f"{runs.alone} names have no other of as many tokens, so their outputs stay when others are resampled.")
    return Result.of(rows, notes=tuple(notes))


def _tried(subject: EntityTask, runs: name_assembly.NameRuns) -> tuple[list[Ablation], list[str]]:
    """The ablations: by range and of all blocks; in the short form without resampling, attention's noise for all blocks only."""
    o, lm, tried, notes = subject.options, subject.lm, list[Ablation](), list[str]()
    spans = name_assembly.ranges(runs.target, o.ranges)
    whole = spans[-1]
    for span in spans:
        for part in ("mlp_out", "attn_out"):
            ways = ["mean", "noise"] if o.short and (part == "mlp_out" or span == whole) else ["mean"]
            ways = ["mean", "noise", "resample"] if not o.short else ways
            tried += [Ablation(part, way, *span) for way in ways]  # type: ignore[arg-type]
    try:
        lm.resolve("pattern")
        for span in spans:
            tried.append(Ablation("pattern", "cut", *span))
        if runs.has_before:
            tried.append(Ablation("pattern", "cut before", *whole))
    except UserError as error:
        notes.append(f"Attention between the tokens of names was not cut: {error}")
    return tried, notes


def _lost(subject: EntityTask, target: int, ablation: Ablation, intact: ProbeScores, after: ProbeScores) -> Row:
    condition, definition = _WAYS[ablation.part, ablation.way]
    metric = "accuracy lost" if intact.task.kind == "class" else "R² lost"
    return Row.of(
        paired_difference(intact, after, subject.options.seed),
        metric=metric,
        definition=" ".join(filter(None, [definition, f"read after block {target}"])),
        condition=condition,
        site=f"blocks {ablation.first}–{ablation.last}",
        layer=ablation.first,
        **where_of(subject, intact.task),
    )


def _extra(subject: EntityTask, task: ProbeTask, target: int, scores: dict[Ablation, ProbeScores]) -> list[Row]:
    """At all blocks: what replacing the MLPs' outputs costs more than a random change, and than replacing attention's."""
    whole = max(scores, key=lambda a: a.last - a.first)
    span = (whole.first, whole.last)
    compared = {
        (ABLATED_MLPS, NOISE_MLPS): (Ablation("mlp_out", "mean", *span), Ablation("mlp_out", "noise", *span)),
        (ABLATED_MLPS, ABLATED_ATTENTION): (Ablation("mlp_out", "mean", *span), Ablation("attn_out", "mean", *span)),
        (ABLATED_ATTENTION, NOISE_ATTENTION): (Ablation("attn_out", "mean", *span), Ablation("attn_out", "noise", *span)),
        (CUT, CUT_BEFORE): (Ablation("pattern", "cut", *span), Ablation("pattern", "cut before", *span)),
    }
    rows = []
    for (ours, control), (a, b) in compared.items():
        if a in scores and b in scores:
            estimate = paired_difference(scores[b], scores[a], subject.options.seed)
            rows.append(
                Row.of(
                    estimate,
                    metric="extra loss",
                    definition=f"{ours}; read after block {target}",
                    condition=over(control),
                    site=f"blocks {span[0]}–{span[1]}",
                    layer=span[0],
                    **where_of(subject, task),
                )
            )
    return rows


def _conflicts(subject: EntityTask, panel: Panel, intact: list[ProbeScores], target: int) -> list[Row]:
    """Names that share a token with a name of another class: is each read right, or taken for the other?"""
    o, lm, rows = subject.options, subject.lm, list[Row]()
    text = [[lm.tokenizer.decode([t]) for t in subject.name_tokens[i]] for i in panel.rows]
    bags = lm.capture(subject.prompts(subject.templates[0]), "embed", "name.mean", batch_tokens=o.batch_tokens).numpy()
    bag = probe(bags[panel.rows], panel.tasks, panel.folds, shuffles=0)
    for t, task in enumerate(panel.tasks):
        if task.kind != "class":
            continue
        found = name_assembly.conflicts(text, task.values, len(task.classes))
        if found.names.sum() < _LEAST_CONFLICTS:
            continue
        said = {ESTIMATE: intact[t].predicted, BAG: bag[t].predicted}
        definition = f"{found.pairs} pairs of names; read after block {target}"
        where = where_of(subject, task, definition=definition, site=f"resid_post.{target}", layer=target)
        right = {c: found.right(p, task.values) for c, p in said.items()}
        for condition, predicted in said.items():
            share = stats.proportion(right[condition], unit="entity", seed=o.seed)
            rows.append(Row.of(share, metric="conflict accuracy", condition=condition, **where))
            taken = stats.proportion(found.taken_for_other(predicted), unit="entity", seed=o.seed)
            rows.append(Row.of(taken, metric="taken for the other name", condition=condition, **where))
        gain = stats.change_of_proportion(right[BAG], right[ESTIMATE], unit="entity", seed=o.seed)
        rows.append(Row.of(gain, metric="conflict gain", condition=over(BAG), **where))
    return rows
