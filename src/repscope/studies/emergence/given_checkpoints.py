"""The user's checkpoints in place of networks trained here: what each answers, when it begins to, and heads of in-context learning.

1. Probes of a table, tasks, relations and minimal pairs: accuracy and log-probability at every checkpoint, beside another answer.
2. The transition of each: step of 50 %, steepest rise, sharpness beside even learning.
3. With `heads`: the induction score of the strongest head, copying of repeated random tokens, the function-vector heads of each
   task and their induction score. Heads are chosen at the last step, on the half that is not reported.
Intervals are over examples, of which the mean over runs is taken, as runs are few.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from repscope.conditions import ESTIMATE
from repscope.data.minimal_pairs import MinimalPairs, read_pairs
from repscope.data.relations import relation
from repscope.data.tasks import Task, task
from repscope.models.checkpoints import CheckpointSet
from repscope.results import CHOSEN, Result, Row
from repscope.stats import mean, proportion
from repscope.studies.emergence import names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context, Cost
from repscope.trace.emergence.curves import ProbeCurves, answered, skills
from repscope.trace.emergence.heads import AVERAGED, LENGTH, PROMPTS, SEQUENCES, chosen_heads, effects, head_names, induction
from repscope.trace.emergence.probes import Probes
from repscope.trace.emergence.series import Measured, opened, over_checkpoints, series
from repscope.trace.emergence.transitions import Curve, transition

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_TOP = 3  #: function-vector heads of a task
_COPIES = ("hits", "scores", "other hits", "other scores")


@dataclass(frozen=True)
class Asked:
    """The checkpoints of a run, and what is asked of them; both are read once."""

    options: EmergenceOptions

    @cached_property
    def checkpoints(self) -> CheckpointSet:
        """The series."""
        return opened(str(self.options.checkpoints))

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks by name or file."""
        return tuple(task(name) for name in self.options.probe_tasks)

    @cached_property
    def probes(self) -> Probes | None:
        """Those of the table, then tasks, then relations."""
        o = self.options
        how: dict[str, int] = {"shots": o.shots, "most": o.examples, "seed": o.seed}
        parts = [Probes.read(Path(o.probes).expanduser())] if o.probes is not None else []
        parts += [Probes.of_task(one, **how) for one in self.tasks]
        parts += [Probes.of_relation(relation(name), **how) for name in o.probe_relations]
        return Probes.joined(parts) if parts else None

    @cached_property
    def pairs(self) -> MinimalPairs | None:
        """Minimal pairs."""
        o = self.options
        return read_pairs(o.probe_pairs).chosen(most=o.examples, seed=o.seed) if o.probe_pairs is not None else None

    @property
    def skills(self) -> tuple[str, ...]:
        """Skill of every example; none where heads alone are asked for."""
        return skills(self.probes, self.pairs) if self.probes or self.pairs else ()

    def check(self) -> None:
        """Refuse what cannot be asked, before a model is read.

        Raises
        ------
        UserError
            For a series of one checkpoint, steps that differ between runs, and what cannot be asked.
        """
        series(self.checkpoints)
        _ = self.skills

    def measured(self, lm: "LanguageModel") -> Measured:
        """Everything of one checkpoint."""
        o = self.options
        found = answered(lm, self.probes, self.pairs, o.seed, o.convention) if self.skills else {}
        if o.heads:
            found |= {f"heads/{name}": value for name, value in induction(lm, seed=o.seed).items()}
            found |= {f"effects/{one.name}": effects(lm, one, shots=o.shots, seed=o.seed) for one in self.tasks}
        return found

    def cost(self) -> Cost:
        """Forecast."""
        weights = sum(map(prod, self.checkpoints.sizes.values()))
        texts = 0.0
        if self.probes is not None:
            texts += 2 * sum(len(p) + len(a) for p, a in zip(self.probes.prompt, self.probes.answer)) / 4
        if self.pairs is not None:
            texts += sum(len(a) + len(b) for a, b in zip(self.pairs.good, self.pairs.bad)) / 4
        if self.options.heads:
            texts += SEQUENCES * (2 * LENGTH + 1) + len(self.tasks) * (AVERAGED + 8 * PROMPTS) * 12 * (self.options.shots + 1)
        tokens = int(texts * len(self.checkpoints))
        return Cost(tokens, 2.0 * tokens * weights, memory_bytes=4.0 * weights)


def probed(asked: Asked, context: Context) -> Result:
    """Curves, transitions and heads."""
    o = asked.options
    found = over_checkpoints(asked.checkpoints, asked.measured, kept=context.partial, device=o.device, dtype=o.dtype)
    rows: list[Row] = []
    begun: list[str] = []
    if asked.skills:
        curves = ProbeCurves.of(asked.checkpoints, asked.skills, found)
        for name in curves.names:
            rows += _skill_rows(o, curves, name, names.OTHER_ANSWER)
        early = [name for name in curves.names if _from_the_start(curves, name)]
        begun = [f"{name} is there at the first checkpoint: its step is that one or before." for name in early]
    if o.heads:
        copies: list[list[Measured]] = [[{name: one[f"heads/{name}"] for name in _COPIES} for one in own] for own in found]
        curves = ProbeCurves.of(asked.checkpoints, (names.REPEATED,) * len(found[0][0]["heads/hits"]), copies)
        rows += _skill_rows(o, curves, names.REPEATED, names.FIRST_COPY)
        rows += _head_rows(asked, curves.steps.tolist(), found)
    notes = (*(asked.pairs.notes if asked.pairs else ()), *(note for one in asked.tasks for note in one.notes), *begun)
    return Result.of(rows, notes=notes)


def _skill_rows(o: EmergenceOptions, curves: ProbeCurves, name: str, control: str) -> Iterator[Row]:
    """Accuracy and log-probability of a skill at every step, its control, and its transition."""
    own = curves.rows(name)
    unit = "sequence" if name == names.REPEATED else "probe"
    for j, step in enumerate(curves.steps.tolist()):
        for condition, hits, scores in ((ESTIMATE, curves.hits, curves.scores), (control, curves.other_hits, curves.other_scores)):
            where: dict[str, Any] = {"item": name, "split": names.at(step), "seed": o.seed, "condition": condition}
            for metric, values in ((names.ACCURACY, hits[:, j, own].mean(0)), (names.LOG_PROBABILITY, scores[:, j, own].mean(0))):
                known = values[np.isfinite(values)]
                if len(known):
                    of = proportion if metric == names.ACCURACY else mean
                    yield Row.of(of(known, unit=unit, seed=o.seed), metric=metric, **where)
    level = _level(curves, name)
    one = transition(Curve(curves.steps, curves.hits[:, :, own]), level=level, draws=o.draws, seed=o.seed)
    at: dict[str, Any] = {"item": name, "seed": o.seed}
    if level > 0.5:
        at["definition"] = "of two answers: halfway from chance to 1"
    for metric, estimate in ((names.STEP, one.step), (names.STEEPEST, one.steepest), (names.SHARPNESS, one.sharpness)):
        yield Row.of(estimate, metric=metric, **at)
    yield Row.of(one.sharpness_null, metric=names.SHARPNESS, condition=names.EVEN, **at)


def _level(curves: ProbeCurves, name: str) -> float:
    """Accuracy at which a skill counts as there: halfway from chance, which is one half between two answers."""
    own = curves.rows(name)
    between = np.isnan(curves.other_hits[:, :, own]).all() and np.isfinite(curves.other_scores[:, :, own]).all()
    return 0.75 if between else 0.5


def _from_the_start(curves: ProbeCurves, name: str) -> bool:
    return bool((curves.hits[:, 0, curves.rows(name)].mean(-1) >= _level(curves, name)).all())


def _head_rows(asked: Asked, steps: list[int], found: list[list[Measured]]) -> Iterator[Row]:
    """The strongest induction head, and the function-vector heads of each task, over steps."""
    heads = head_names(found[0][0]["heads/layers"], found[0][0]["heads/places"])
    scores, beside = (_stacked(found, f"heads/{name}") for name in ("induction", "other tokens"))
    best = chosen_heads(scores, heads, 1, beside)
    for values, condition in ((best.values, ESTIMATE), (best.control, names.OTHER_TOKENS)):
        yield from _over_steps(asked, steps, values, "sequence", names.INDUCTION, names.STRONGEST, condition, best.heads)
    everything = scores[:, :, 1::2].mean(-1)
    yield from _over_steps(asked, steps, everything, "sequence", names.INDUCTION, names.STRONGEST, names.OTHER_HEADS, ())
    for one in asked.tasks:
        effect = _stacked(found, f"effects/{one.name}")
        top = chosen_heads(effect, heads, _TOP)
        for values, condition in ((top.values, ESTIMATE), (top.control, names.OTHER_HEADS)):
            yield from _over_steps(asked, steps, values, "prompt", names.EFFECT, one.name, condition, top.heads)
        places = [[heads.index(name) for name in own] for own in top.heads]
        own = np.stack([scores[run][..., at].mean(-1) for run, at in enumerate(places)])
        yield from _over_steps(asked, steps, own, "sequence", names.INDUCTION, names.vector_heads(one.name), ESTIMATE, top.heads)


def _over_steps(
    asked: Asked,
    steps: list[int],
    values: Float[np.ndarray, "run checkpoint example"],
    unit: str,
    metric: str,
    item: str,
    condition: str,
    heads: tuple[tuple[str, ...], ...],
) -> Iterator[Row]:
    said = "; ".join(", ".join(own) for own in heads)
    where: dict[str, Any] = {"metric": metric, "item": item, "condition": condition, "seed": asked.options.seed}
    for j, step in enumerate(steps):
        estimate = mean(values[:, j].mean(0), unit=unit, seed=asked.options.seed)
        yield Row.of(estimate, definition=said, site=CHOSEN if heads else "", split=names.at(step), **where)


def _stacked(found: list[list[Mapping[str, np.ndarray]]], name: str) -> Float[np.ndarray, "run checkpoint example head"]:
    return np.array([[one[name] for one in own] for own in found], dtype=np.float64)
