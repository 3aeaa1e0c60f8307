"""One task: in-context learning and fine-tuning on the same k examples, measured at the same queries, with controls.

1. Base: q after neutral text that is as many tokens as the examples S. In-context learning: q after S. Controls: S with permuted
   outputs, and as many examples (and tokens) of another task.
2. Fine-tuning on S (`FewShotTuning`), evaluated on q after the same neutral text as the base, so the shift is due to the weights;
   accuracy also on q alone, as examples were trained. Its number of steps is the one with the highest log-probability of held-out
   answers (dev items, which are not among the k): fine-tuning sees more labels than the prompt does. The whole step curve is in
   the table. Control: the same number of steps on permuted outputs.
3. Shifts at the last token at `sites`: cosines with the few-shot shift, share of rank 1 (`shifts`); KL recovered by one vector
   (`recovery`); predictions (`outcomes`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from repscope.conditions import ESTIMATE, FEW_SHOT, NEUTRAL, OTHER_SHOTS, SHUFFLED_SHOTS, TUNED_PERMUTED, ZERO_SHOT
from repscope.data.tasks import EncodedTask
from repscope.data.tasks.definition import Pair
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.results import Result, Row
from repscope.trace.task_shift.contexts import Contexts, alone_ids, contexts
from repscope.trace.task_shift.fine_tuning import FewShotTuning, changed_weights, fine_tuned, reset, working_copy
from repscope.trace.task_shift.outcomes import AFTER_NEUTRAL, AFTER_SHOTS, ALONE, DEV, correction_rows, prediction_rows, score_rows
from repscope.trace.task_shift.recovery import SCALES, recovered_kl
from repscope.trace.task_shift.shifts import moved, shift_rows, size_rows
from repscope.trace.task_shift.states import Scores, States, scores, states

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

PROMPTED = (FEW_SHOT, SHUFFLED_SHOTS, OTHER_SHOTS)
_LEAST_QUERIES, _VECTORS = 4, 4
MEANS = "means "  #: arrays of a measurement: this and the way
_ADDED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
STEPS = "number of steps with the highest log-probability of held-out answers"
DEFAULT_TUNINGS = (FewShotTuning("LoRA"), FewShotTuning("full", rate=5e-5))


@dataclass(frozen=True)
class _Options:
    """What is the same for all tasks."""

    tunings: tuple[FewShotTuning, ...]
    sites: list[Site]
    vector_sites: list[Site]
    queries: int
    dev_items: int
    scales: tuple[float, ...]
    seed: int


def measure_task(
    lm: "LanguageModel",
    task: EncodedTask,
    other: EncodedTask,
    *,
    tunings: Sequence[FewShotTuning] = DEFAULT_TUNINGS,
    at: str | Site | Sequence[str | Site] = ("resid_post", "attn_out"),
    vectors_at: str | Site | Sequence[str | Site] | None = None,
    queries: int = 40,
    dev_items: int = 20,
    scales: Sequence[float] = SCALES,
    other_vectors: Result | None = None,
    seed: int = 0,
) -> Result:
    """Measure one task; `over_tasks` compares several.

    Parameters
    ----------
    lm
        A causal network with float32 weights. It is not changed.
    task, other
        The task; one whose examples are a control, encoded alike.
    tunings
        Ways of fine-tuning, at most one per method.
    at
        Sites of the shifts.
    vectors_at
        Sites at which one vector is added; default: `resid_post` of at most four blocks, evenly spaced.
    queries, dev_items
        Test queries (half of them choose vectors and scales), and held-out items that choose the number of steps.
    scales
        Factors of the mean shift.
    other_vectors
        Measurement of another task at the same sites, whose vectors are a control of the recovered KL; None: without this control.

    Returns
    -------
    Result
        Rows of `item` TASK by condition, and of `item` "TASK, METHOD". Arrays "means WAY": (half, site, feature). Side table
        "sites": their names.

    Raises
    ------
    UserError
        For tasks that cannot be compared, too few queries, and as `contexts` and `fine_tuned`.
    """
    options = _checked(lm, task, tuple(tunings), at, vectors_at, queries, dev_items, tuple(scales), seed)
    sites = options.sites
    dev = task.queries("dev", options.dev_items)
    found = contexts(lm, task, other, task.queries("test", options.queries), seed=seed)
    asked = found.queries
    if len(asked) < _LEAST_QUERIES:
        raise UserError(f"{task.name!r} has {len(asked)} usable test queries, and {_LEAST_QUERIES} are needed: {found.notes[-1]}")
    split = f"test items, {task.shots} examples"
    where: dict[str, Any] = {"model": lm.fingerprint, "token": "last", "item": task.name, "seed": seed}
    halves = _halves(len(asked), seed)
    base = states(lm, found.base(), sites)
    bases = {
        c: base if len(found.prefixes[c]) == len(found.prefixes[FEW_SHOT]) else states(lm, found.base(c), sites) for c in PROMPTED
    }
    reached = {c: states(lm, found.prompts(c), sites) for c in PROMPTED}
    answers = [task.answers[y] for _, y in asked]
    scored = [(c, AFTER_SHOTS, scores(lm, found.prompts(c), answers, reached[c].logits)) for c in PROMPTED]
    scored.append((NEUTRAL, AFTER_NEUTRAL, scores(lm, found.base(), answers, base.logits)))
    scored.append((ZERO_SHOT, ALONE, scores(lm, found.alone, answers)))
    stopped, methods = dict[str, int](), {how.condition: how.control for how in options.tunings}
    if options.tunings:
        copied = working_copy(lm)
        scored.append((ZERO_SHOT, DEV, scores(lm, [alone_ids(lm, task, q) for q in dev], [task.answers[y] for _, y in dev])))
    for how in options.tunings:
        step, reached[how.condition], curve = _stopped(lm, copied, task, found, dev, how, answers, options)
        scored += curve
        stopped[how.condition] = step
        for _ in _train(lm, copied, task, found.permuted, how, (step,), seed):
            reached[how.control] = control = states(copied, found.base(), sites)
            scored.append((how.control, AFTER_NEUTRAL, scores(copied, found.base(), answers, control.logits)))
            scored.append((how.control, ALONE, scores(copied, found.alone, answers)))
    rows = [row for c, place, one in scored for row in score_rows(one, c, f"{place}, {task.shots} examples", where)]
    for way, step in stopped.items():
        rows.append(
            Row(metric="steps", definition=STEPS, condition=way, split=split, value=step, n=len(dev), unit="query", **where)
        )
    starts = {way: bases.get(way, base).rows for way in reached}
    shift = {way: moved(one.rows, starts[way]) for way, one in reached.items()}
    logits = {way: one.logits for way, one in reached.items()}
    rows += prediction_rows(base.logits, logits, {c: one.logits for c, one in bases.items()}, split, where)
    top = {way: values.argmax(-1) for way, values in logits.items()}
    right = np.array([ids[0] for ids in answers])
    rows += correction_rows(top, base.logits.argmax(-1), right, list(methods), split, where)
    rows += size_rows(shift, starts, halves, sites, seed=seed, **_but(where, "seed"), split=split)
    pairs: list[tuple[str, str, Any, Any]] = []
    for way, permuted in methods.items():
        name, few = f"{task.name}, {way}", shift[FEW_SHOT]
        pairs += [(name, ESTIMATE, few, shift[way]), (name, TUNED_PERMUTED, few, shift[permuted])]
        pairs += [(name, c, shift[c], shift[way]) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
    pairs += [(f"{task.name}, {FEW_SHOT}", c, shift[FEW_SHOT], shift[c]) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
    rows += shift_rows(pairs, sites, seed=seed, **_but(where, "seed", "item"), split=split)
    means = {w: np.stack([x[:, half].mean(1, dtype=np.float64) for half in halves]) for w, x in shift.items()}
    ways, index = (FEW_SHOT, *methods), [sites.index(site) for site in options.vector_sites]
    foreign = {} if other_vectors is None else {w: _vectors(other_vectors, w, sites)[index] for w in ways}
    rows += recovered_kl(
        lm,
        found.base(),
        halves,
        base.logits,
        {way: logits[way] for way in ways},
        {way: means[way][0][index] for way in ways},
        foreign,
        options.vector_sites,
        scales=options.scales,
        seed=seed,
        split=split,
        **_but(where, "seed"),
    )
    arrays = {f"{MEANS}{way}": values.astype(np.float32) for way, values in means.items()}
    side = {"sites": pd.DataFrame({"site": [str(site) for site in sites]})}
    notes = tuple(dict.fromkeys((*task.notes, *found.notes, *_unmoved(task.name, means, sites))))
    return Result.of(rows, arrays=arrays, side=side, notes=notes)


def _stopped(
    lm: "LanguageModel",
    copied: "LanguageModel",
    task: EncodedTask,
    found: Contexts,
    dev: Sequence[Pair],
    how: FewShotTuning,
    answers: Sequence[Sequence[int]],
    options: _Options,
) -> tuple[int, States, list[tuple[str, str, Scores]]]:
    """The number of steps that is best on held-out items, the states there, and scores at every step and there."""
    held = [alone_ids(lm, task, query) for query in dev], [task.answers[y] for _, y in dev]
    curve = list[tuple[str, str, Scores]]()
    best: tuple[float, int, Scores, dict[str, Tensor]] | None = None
    for step in _train(lm, copied, task, found.examples, how, how.steps, options.seed):
        on_dev, alone = scores(copied, *held), scores(copied, found.alone, answers)
        name, level = f"{how.condition}, step {step}", float(on_dev.logprob.mean())
        curve += [(name, DEV, on_dev), (name, ALONE, alone)]
        if best is None or level > best[0]:
            best = level, step, alone, changed_weights(lm, copied)
    assert best is not None
    _, step, alone, weights = best
    reset(lm, copied, weights)
    reached = states(copied, found.base(), options.sites)
    curve += [(how.condition, AFTER_NEUTRAL, scores(copied, found.base(), answers, reached.logits)), (how.condition, ALONE, alone)]
    return step, reached, curve


def _train(
    lm: "LanguageModel",
    copied: "LanguageModel",
    task: EncodedTask,
    examples: Sequence[Pair],
    how: FewShotTuning,
    steps: tuple[int, ...],
    seed: int,
) -> Iterator[int]:
    """Fine-tune the copy on examples, each as its query alone and its answer."""
    encoded = [(alone_ids(lm, task, pair), np.asarray(task.answers[pair[1]])) for pair in examples]
    for step, _ in fine_tuned(lm, copied, encoded, replace(how, steps=steps), seed=seed):
        yield step


def _vectors(found: Result, way: str, sites: list[Site]) -> Float[np.ndarray, "site feature"]:
    """The mean shifts of the choosing half in another measurement."""
    if list(found.side["sites"]["site"]) != [str(site) for site in sites] or f"{MEANS}{way}" not in found.arrays:
        raise UserError("The measurement of the other task has other sites or ways of fine-tuning; measure both alike.")
    vectors: np.ndarray = np.asarray(found.arrays[f"{MEANS}{way}"][0], dtype=np.float64)
    return vectors


def _unmoved(name: str, means: Mapping[str, Float[np.ndarray, "half site feature"]], sites: Sequence[Site]) -> list[str]:
    """A sentence for each way that leaves some sites as they were."""
    found = []
    for way, values in means.items():
        if still := [str(site) for site, x in zip(sites, values.swapaxes(0, 1)) if not x.any()]:
            shown = ", ".join(still) if len(still) < 4 else f"{still[0]}, {still[1]} … {still[-1]}"
            found.append(
                f"{name}: {way} does not change {len(still)} of {len(sites)} sites ({shown}), which have no shift to compare."
            )
    return found


def _halves(count: int, seed: int) -> tuple[Int[np.ndarray, "query"], Int[np.ndarray, "query"]]:
    """Random choosing and reporting halves of the queries."""
    first, second = np.array_split(np.random.default_rng([seed, 19]).permutation(count), 2)
    return np.sort(first), np.sort(second)


def _but(where: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in where.items() if k not in names}


def _checked(
    lm: "LanguageModel",
    task: EncodedTask,
    tunings: tuple[FewShotTuning, ...],
    at: str | Site | Sequence[str | Site],
    vectors_at: str | Site | Sequence[str | Site] | None,
    queries: int,
    dev_items: int,
    scales: tuple[float, ...],
    seed: int,
) -> _Options:
    """The options of a measurement of this task; a `UserError` where it cannot be measured."""
    if queries < _LEAST_QUERIES or dev_items < 1:
        raise UserError(
            f"{queries} queries and {dev_items} held-out items are asked for; at least {_LEAST_QUERIES} and 1 are needed."
        )
    if len({how.method for how in tunings}) < len(tunings):
        raise UserError("Two ways of fine-tuning have one method; give each method at most once.")
    if (n := len(task.queries("test", queries))) < _LEAST_QUERIES:
        raise UserError(f"{task.name!r} has {n} test queries; at least {_LEAST_QUERIES} are needed for two halves.")
    if not task.queries("dev", dev_items):
        raise UserError(f"{task.name!r} has no held-out item to choose the number of steps by; ask for one at least.")
    if not scales or min(scales) <= 0:
        raise UserError(f"The scales are {list(scales)}; give factors above 0.")
    sites = lm.resolve(at)
    if other := [site for site in sites if site.kind not in _ADDED]:
        raise UserError(f"{other[0]} is not in the space of the residual stream; take sites of the kinds {', '.join(_ADDED)}.")
    kind = [site for site in sites if site.kind == sites[0].kind]
    spaced = [kind[int(i)] for i in np.unique(np.linspace(0, len(kind) - 1, min(_VECTORS, len(kind))).round())]
    chosen = spaced if vectors_at is None else lm.resolve(vectors_at)
    if missing := [site for site in chosen if site not in sites]:
        raise UserError(f"A vector is to be added at {missing[0]}, whose shift is not measured; name it in `at` as well.")
    return _Options(tunings, sites, chosen, queries, dev_items, scales, seed)
