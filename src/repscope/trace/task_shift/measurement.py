"""In-context learning and fine-tuning on the same k examples in one space: shifts, predictions and accuracy, with controls.

For each task, one draw of k examples S and test queries q:

1. Base: q after neutral text that is as many tokens as S. In-context learning: q after S. Controls: S with permuted outputs, and
   as many examples (and tokens) of the next task in the list.
2. Fine-tuning on S (`FewShotTuning`), evaluated on q after the same neutral text as the base, so the shift is due to the weights;
   accuracy also on q alone, as examples were trained. Its number of steps is the one with the highest log-probability of held-out
   answers (dev items, which are not among the k): fine-tuning sees more labels than the prompt does. The whole step curve is in
   the table. Control: the same number of steps on permuted outputs.
3. Shifts at the last token at `sites`: cosines with the few-shot shift, share of rank 1 (`shifts`); KL recovered by one vector
   (`recovery`); predictions (`outcomes`).
4. Over tasks: matching after centring (`matching`). Controls: examples with permuted outputs, examples of another task and
   fine-tuning on permuted outputs in place of the estimate's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from repscope.conditions import ESTIMATE, FEW_SHOT, NEUTRAL, OTHER_SHOTS, SHUFFLED_SHOTS, TUNED_PERMUTED, ZERO_SHOT
from repscope.data.tasks import EncodedTask
from repscope.data.tasks.definition import Pair
from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.progress import progress
from repscope.results import Result, Row
from repscope.stats.permutation import PERMUTATIONS
from repscope.trace.task_shift.contexts import Contexts, alone_ids, contexts
from repscope.trace.task_shift.fine_tuning import FewShotTuning, fine_tuned, working_copy
from repscope.trace.task_shift.matching import LEAST, match_rows
from repscope.trace.task_shift.outcomes import AFTER_NEUTRAL, AFTER_SHOTS, ALONE, DEV, correction_rows, prediction_rows, score_rows
from repscope.trace.task_shift.recovery import SCALES, recovered_kl
from repscope.trace.task_shift.shifts import shift_rows, size_rows
from repscope.trace.task_shift.states import Scores, States, scores, states

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

PROMPTED = (FEW_SHOT, SHUFFLED_SHOTS, OTHER_SHOTS)
_LEAST_QUERIES, _VECTORS = 4, 4
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


@dataclass
class _Measured:
    """A task's measurements, until the next task's vectors are there: they are a control of this one's."""

    task: EncodedTask
    split: str
    found: Contexts
    halves: tuple[Int[np.ndarray, "query"], Int[np.ndarray, "query"]]
    base: Float[np.ndarray, "query vocab"]
    logits: dict[str, Float[np.ndarray, "query vocab"]]
    means: dict[str, Float[np.ndarray, "half site feature"]]
    rows: list[Row]


def task_shifts(
    lm: "LanguageModel",
    tasks: Sequence[EncodedTask],
    *,
    tunings: Sequence[FewShotTuning] = DEFAULT_TUNINGS,
    at: str | Site | Sequence[str | Site] = ("resid_post", "attn_out"),
    vectors_at: str | Site | Sequence[str | Site] | None = None,
    queries: int = 40,
    dev_items: int = 20,
    scales: Sequence[float] = SCALES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Result:
    """Compare in-context learning with fine-tuning on the same examples, on several tasks.

    Parameters
    ----------
    lm
        A causal network with float32 weights. It is not changed.
    tasks
        At least three, encoded with one template and number of examples k. Call once per k.
    tunings
        Ways of fine-tuning, at most one per method.
    at
        Sites of the shifts.
    vectors_at
        Sites at which one vector is added; default: `resid_post` of at most four blocks, evenly spaced.
    queries, dev_items
        Test queries per task (half of them choose vectors and scales), and held-out items that choose the number of steps.
    scales
        Factors of the mean shift.
    permutations, seed
        Of the match over tasks; of the draws, LoRA and intervals.

    Returns
    -------
    Result
        Per task (`item`) by condition: accuracies, divergences, token shift, share of rank 1, relative norm. Per task and method
        (`item` "TASK, METHOD"): cosines. Over tasks (`item` METHOD): match. Arrays "means WAY": (task, half, site, feature).

    Raises
    ------
    UserError
        For tasks that cannot be compared, too few queries, and as `contexts` and `fine_tuned`.
    """
    options = _checked(lm, tasks, tuple(tunings), at, vectors_at, queries, dev_items, tuple(scales), seed)
    copied, done = working_copy(lm), list[_Measured]()
    with progress("Adapting to tasks", len(tasks)) as advance:
        for i, task in enumerate(tasks):
            done.append(_measured(lm, copied, task, tasks[(i + 1) % len(tasks)], options))
            if i:
                _recover(lm, done[i - 1], done[i], options)
            advance(1)
        _recover(lm, done[-1], done[0], options)
    methods = {how.condition: how.control for how in options.tunings}
    means = {way: np.stack([one.means[way] for one in done]) for way in done[0].means}
    rows = [row for one in done for row in one.rows]
    rows += _over_tasks(done, seed)
    split = done[0].split
    pairs = [
        row
        for way, control in methods.items()
        for row in (
            (way, ESTIMATE, FEW_SHOT, way),
            (way, SHUFFLED_SHOTS, SHUFFLED_SHOTS, way),
            (way, OTHER_SHOTS, OTHER_SHOTS, way),
            (way, TUNED_PERMUTED, FEW_SHOT, control),
        )
    ]
    pairs += [(FEW_SHOT, SHUFFLED_SHOTS, FEW_SHOT, SHUFFLED_SHOTS), (FEW_SHOT, OTHER_SHOTS, FEW_SHOT, OTHER_SHOTS)]
    whole = {way: values.mean(1) for way, values in means.items()}
    rows += match_rows(
        whole, pairs, options.sites, permutations=permutations, seed=seed, model=lm.fingerprint, split=split, token="last"
    )
    notes = tuple(dict.fromkeys(note for one in done for note in (*one.task.notes, *one.found.notes)))
    arrays = {f"means {way}": values.astype(np.float32) for way, values in means.items()}
    return Result.of(rows, arrays=arrays, notes=notes)


def _measured(lm: "LanguageModel", copied: "LanguageModel", task: EncodedTask, other: EncodedTask, options: _Options) -> _Measured:
    seed, sites = options.seed, options.sites
    asked, dev = task.queries("test", options.queries), task.queries("dev", options.dev_items)
    found = contexts(lm, task, other, asked, seed=seed)
    split = f"test items, {task.shots} examples"
    where: dict[str, Any] = {"model": lm.fingerprint, "token": "last", "item": task.name, "seed": seed}
    halves = _halves(len(asked), seed)
    base = states(lm, found.base(), sites)
    bases = {
        c: base if len(found.prefixes[c]) == len(found.prefixes[FEW_SHOT]) else states(lm, found.base(c), sites) for c in PROMPTED
    }
    reached = {c: states(lm, found.prompts(c), sites) for c in PROMPTED}
    answers = [task.answers[y] for _, y in asked]
    scored = [(c, AFTER_SHOTS, scores(lm, found.prompts(c), answers)) for c in PROMPTED]
    scored += [(NEUTRAL, AFTER_NEUTRAL, scores(lm, found.base(), answers)), (ZERO_SHOT, ALONE, scores(lm, found.alone, answers))]
    if options.tunings:
        scored.append((ZERO_SHOT, DEV, scores(lm, [alone_ids(lm, task, q) for q in dev], [task.answers[y] for _, y in dev])))
    stopped = dict[str, int]()
    for how in options.tunings:
        step, reached[how.condition], curve = _stopped(lm, copied, task, found, dev, how, answers, options)
        scored += curve
        stopped[how.condition] = step
        for _ in _train(lm, copied, task, found.permuted, how, (step,), seed):
            reached[how.control] = states(copied, found.base(), sites)
            scored.append((how.control, AFTER_NEUTRAL, scores(copied, found.base(), answers)))
            scored.append((how.control, ALONE, scores(copied, found.alone, answers)))
    rows = [row for c, place, one in scored for row in score_rows(one, c, f"{place}, {task.shots} examples", where)]
    for way, step in stopped.items():
        rows.append(
            Row(metric="steps", definition=STEPS, condition=way, split=split, value=step, n=len(dev), unit="query", **where)
        )
    starts = {way: bases.get(way, base).rows for way in reached}
    shift = {way: one.rows - starts[way] for way, one in reached.items()}
    logits = {way: one.logits for way, one in reached.items()}
    rows += prediction_rows(base.logits, logits, {c: one.logits for c, one in bases.items()}, split, where)
    top = {way: values.argmax(-1) for way, values in logits.items()}
    right = np.array([ids[0] for ids in answers])
    tuned_ways = [how.condition for how in options.tunings]
    rows += correction_rows(top, base.logits.argmax(-1), right, tuned_ways, split, where)
    rows += size_rows(shift, starts, halves, sites, seed=seed, **_but(where, "seed"), split=split)
    pairs: list[tuple[str, str, Any, Any]] = []
    for how in options.tunings:
        name, few = f"{task.name}, {how.condition}", shift[FEW_SHOT]
        pairs += [(name, ESTIMATE, few, shift[how.condition]), (name, TUNED_PERMUTED, few, shift[how.control])]
        pairs += [(name, c, shift[c], shift[how.condition]) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
    pairs += [(f"{task.name}, {FEW_SHOT}", c, shift[FEW_SHOT], shift[c]) for c in (SHUFFLED_SHOTS, OTHER_SHOTS)]
    rows += shift_rows(pairs, sites, seed=seed, **_but(where, "seed", "item"), split=split)
    means = {w: np.stack([x[:, half].mean(1, dtype=np.float64) for half in halves]) for w, x in shift.items()}
    kept = {way: logits[way] for way in (FEW_SHOT, *tuned_ways)}
    return _Measured(task, split, found, halves, base.logits, kept, means, rows)


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
    best: tuple[float, int, States, Scores, Scores] | None = None
    for step in _train(lm, copied, task, found.examples, how, how.steps, options.seed):
        on_dev, alone = scores(copied, *held), scores(copied, found.alone, answers)
        name, level = f"{how.condition}, step {step}", float(on_dev.logprob.mean())
        curve += [(name, DEV, on_dev), (name, ALONE, alone)]
        if best is None or level > best[0]:
            best = level, step, states(copied, found.base(), options.sites), scores(copied, found.base(), answers), alone
    assert best is not None
    curve += [(how.condition, AFTER_NEUTRAL, best[3]), (how.condition, ALONE, best[4])]
    return best[1], best[2], curve


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


def _recover(lm: "LanguageModel", one: _Measured, other: _Measured, options: _Options) -> None:
    """Add the rows of recovered KL to a task's, with the vectors of another task as control; its logits are let go."""
    index = [options.sites.index(site) for site in options.vector_sites]
    own, foreign = ({way: m.means[way][0][index] for way in one.logits} for m in (one, other))
    one.rows += recovered_kl(
        lm,
        one.found.base(),
        one.halves,
        one.base,
        one.logits,
        own,
        foreign,
        options.vector_sites,
        scales=options.scales,
        seed=options.seed,
        item=one.task.name,
        model=lm.fingerprint,
        token="last",
        split=one.split,
    )
    one.logits, one.base = {}, np.empty((0, 0))


def _over_tasks(done: Sequence[_Measured], seed: int) -> list[Row]:
    """The mean over tasks of every number that tasks have, with its interval over tasks; n says in how many tasks it is defined."""
    held: dict[tuple[Any, ...], list[float]] = {}
    for one in done:
        for row in one.rows:
            item = "all tasks" + row.item.removeprefix(one.task.name)
            key = (row.metric, row.definition, row.model, row.site, row.layer, row.token, item, row.condition, row.split)
            if np.isfinite(row.value):
                held.setdefault(key, []).append(row.value)
    names = ("metric", "definition", "model", "site", "layer", "token", "item", "condition", "split")
    return [Row.over(np.array(values), "task", seed=seed, **dict(zip(names, key))) for key, values in held.items()]


def _halves(count: int, seed: int) -> tuple[Int[np.ndarray, "query"], Int[np.ndarray, "query"]]:
    """Random choosing and reporting halves of the queries."""
    first, second = np.array_split(np.random.default_rng([seed, 19]).permutation(count), 2)
    return np.sort(first), np.sort(second)


def _but(where: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in where.items() if k not in names}


def _checked(
    lm: "LanguageModel",
    tasks: Sequence[EncodedTask],
    tunings: tuple[FewShotTuning, ...],
    at: str | Site | Sequence[str | Site],
    vectors_at: str | Site | Sequence[str | Site] | None,
    queries: int,
    dev_items: int,
    scales: tuple[float, ...],
    seed: int,
) -> _Options:
    names = [task.name for task in tasks]
    if len(names) < LEAST or len(set(names)) < len(names):
        raise UserError(f"The tasks are {', '.join(names) or 'none'}; give at least {LEAST}, each once.")
    if len({(task.template, task.shots) for task in tasks}) > 1:
        raise UserError("The tasks have different templates or numbers of examples; encode all alike and call once per number.")
    if len({how.method for how in tunings}) < len(tunings):
        raise UserError("Two ways of fine-tuning have one method; give each method at most once.")
    for task in tasks:
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
