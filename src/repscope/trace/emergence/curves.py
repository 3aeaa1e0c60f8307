"""Curves of probes over checkpoints of a language model, with one model in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from repscope.data.minimal_pairs import MinimalPairs
from repscope.errors import UserError, unknown
from repscope.models.checkpoints import CheckpointSet
from repscope.trace.emergence.probes import Probes, answers, pair_answers
from repscope.trace.emergence.series import Measured, over_checkpoints, series
from repscope.trace.emergence.transitions import Curve

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


@dataclass(frozen=True, eq=False)
class ProbeCurves:
    """What every checkpoint answers.

    name: skill of each example. hits: 1 or 0. scores: log-probabilities of answers in nats. other_hits, other_scores: of another
    answer, NaN where there is none. runs: their names.
    """

    name: tuple[str, ...]
    runs: tuple[str, ...]
    steps: Int[np.ndarray, "checkpoint"]
    hits: Float[np.ndarray, "run checkpoint example"]
    scores: Float[np.ndarray, "run checkpoint example"]
    other_hits: Float[np.ndarray, "run checkpoint example"]
    other_scores: Float[np.ndarray, "run checkpoint example"]

    @classmethod
    def of(cls, checkpoints: CheckpointSet, name: Sequence[str], found: list[list[Measured]]) -> "ProbeCurves":
        """From what `answers` found at every checkpoint.

        Raises
        ------
        UserError
            When scores are not numbers.
        """
        runs, steps, _ = series(checkpoints)
        columns = ("hits", "scores", "other hits", "other scores")
        arrays = {c: np.array([[one[c] for one in own] for own in found], dtype=np.float64) for c in columns}
        bad = np.argwhere(~np.isfinite(arrays["scores"]).all(-1))
        if len(bad):
            i, j = bad[0].tolist()
            raise UserError(
                f"{runs[i]} at step {steps[j]} has scores that are not numbers; its training diverged, so leave it out."
            )
        return cls(tuple(name), runs, np.array(steps), *(arrays[c] for c in columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The skills, in order."""
        return tuple(dict.fromkeys(self.name))

    def rows(self, name: str) -> Int[np.ndarray, "example"]:
        """Examples of one skill.

        Raises
        ------
        UserError
            When there is no such skill.
        """
        if name not in self.names:
            raise unknown("probe", name, self.names)
        return np.flatnonzero([n == name for n in self.name])

    def curve(self, name: str) -> Curve:
        """The curve of one skill.

        Raises
        ------
        UserError
            When there is no such skill.
        """
        return Curve(self.steps, self.hits[:, :, self.rows(name)])


def probe_curves(
    checkpoints: CheckpointSet,
    probes: Probes | None = None,
    pairs: MinimalPairs | None = None,
    *,
    kept: Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    convention: str = "lm-eval",
) -> ProbeCurves:
    """Ask every checkpoint every probe and every minimal pair.

    Parameters
    ----------
    checkpoints, kept, device, dtype
        As for `over_checkpoints`.
    probes
        Prompts and answers, such as `Probes.of_task(rs.task("antonym"))`.
    pairs
        Minimal pairs; each phenomenon is a skill.
    seed
        Of the other answers.
    convention
        Of minimal pairs, see `read.pair_scores.CONVENTIONS`.

    Raises
    ------
    UserError
        As `over_checkpoints`; without probes and pairs; when scores are not numbers.
    """
    name = skills(probes, pairs)
    found = over_checkpoints(
        checkpoints, lambda lm: answered(lm, probes, pairs, seed, convention), kept=kept, device=device, dtype=dtype
    )
    return ProbeCurves.of(checkpoints, name, found)


def skills(probes: Probes | None, pairs: MinimalPairs | None) -> tuple[str, ...]:
    """The skill of every example: of the probes, then of the pairs.

    Raises
    ------
    UserError
        Without any, or when a probe and a phenomenon have one name.
    """
    first, second = probes.name if probes else (), pairs.phenomenon if pairs else ()
    if twice := set(first) & set(second):
        raise UserError(f"A probe and a phenomenon are named {min(twice)!r}; rename one, so that their curves can be told apart.")
    if not (*first, *second):
        raise UserError("There is nothing to ask; give probes, tasks, relations or minimal pairs.")
    return (*first, *second)


def answered(
    lm: "LanguageModel", probes: Probes | None, pairs: MinimalPairs | None, seed: int = 0, convention: str = "lm-eval"
) -> dict[str, np.ndarray]:
    """Answers to probes, then to pairs."""
    parts = [answers(lm, probes, seed)] if probes else []
    parts += [pair_answers(lm, pairs, convention)] if pairs else []
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
