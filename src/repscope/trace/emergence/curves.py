"""Curves of probes over checkpoints of a language model, with one model in memory.

1. A probe has a prompt and an answer, and possibly a wrong answer. Its score is the log-probability of the answer's tokens after
   the prompt, in nats, summed. Its hit: with a wrong answer, that the right one has the higher score (a minimal pair); without,
   that every token of the answer is the most likely one.
2. The first checkpoint makes the network; the weights of each other one are copied into it tensor by tensor, and each file is
   released at once.
3. What the tokenizer puts before every text stands before every prompt, and nothing after it. Tokens of the answer are those after
   the longest common beginning of the tokens of the prompt and of prompt and answer together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import nn

from repscope.data.tables import read_table
from repscope.errors import UserError, unknown
from repscope.models.checkpoints import CheckpointSet, Weights
from repscope.models.prompts import special_tokens
from repscope.progress import progress
from repscope.trace.emergence.transitions import Curve
from repscope.trace.streaming import slots_of

_TOKENS = 1024  #: of a batch


@dataclass(frozen=True)
class Probes:
    """What is asked of every checkpoint. name: of the skill that a row tests. wrong: "" without a worse answer."""

    name: tuple[str, ...]
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    wrong: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> "Probes":
        """From a table with the columns probe, prompt, answer, and possibly wrong.

        Raises
        ------
        UserError
            When a column or a cell is missing, or a wrong answer is the right one.
        """
        table = read_table(path, optional=("probe", "prompt", "answer", "wrong"))
        frame = table.frame
        if missing := [c for c in ("probe", "prompt", "answer") if c not in frame.columns]:
            raise UserError(f"{path} has no column {missing[0]}; it needs probe, prompt and answer, and possibly wrong.")
        wrong = frame["wrong"].fillna("") if "wrong" in frame.columns else pd.Series("", index=frame.index)
        for i, row in enumerate(frame.assign(wrong=wrong).to_dict("records")):
            if not all(row[c] for c in ("probe", "prompt", "answer")):
                raise UserError(f"{path}, {table.where(i)}, lacks a probe, prompt or answer; fill it in, or leave the row out.")
            if row["wrong"] == row["answer"]:
                raise UserError(f"{path}, {table.where(i)}, has the answer as its wrong answer; give another one.")
        return cls(*(tuple(map(str, column)) for column in (frame["probe"], frame["prompt"], frame["answer"], wrong)))

    @property
    def names(self) -> tuple[str, ...]:
        """The skills, in the order of the table."""
        return tuple(dict.fromkeys(self.name))


@dataclass(frozen=True, eq=False)
class ProbeCurves:
    """What every checkpoint answers. hits: 1 or 0. scores: log-probabilities of answers in nats. runs: their names."""

    probes: Probes
    runs: tuple[str, ...]
    steps: Int[np.ndarray, "checkpoint"]
    hits: Float[np.ndarray, "run checkpoint example"]
    scores: Float[np.ndarray, "run checkpoint example"]

    def curve(self, name: str) -> Curve:
        """The curve of one skill.

        Raises
        ------
        UserError
            When there is no such skill.
        """
        if name not in self.probes.names:
            raise unknown("probe", name, self.probes.names)
        return Curve(self.steps, self.hits[:, :, [n == name for n in self.probes.name]])


def series(checkpoints: CheckpointSet) -> tuple[tuple[str, ...], list[int], list[list[int]]]:
    """Names of runs, their common steps in order, and the row of each (run, step).

    Single checkpoints of different steps, as in a folder with one folder per step, are one run.

    Raises
    ------
    UserError
        For fewer than two steps, a step that occurs twice, or runs with different steps.
    """
    table = checkpoints.table.reset_index(drop=True)
    if (table.groupby("run").size() == 1).all() and table["step"].nunique() == len(table) > 1:
        table = table.assign(run="run")
    found: dict[str, dict[int, int]] = {}
    for i, (run, step) in enumerate(zip(table["run"], table["step"])):
        if int(step) in found.setdefault(str(run), {}):
            raise UserError(f"{run} has step {step} twice; name the steps in checkpoints.csv, or in the folders as step-100.")
        found[str(run)][int(step)] = i
    first = next(iter(found))
    for run, own in found.items():
        if odd := sorted(set(own) ^ set(found[first])):
            raise UserError(f"{run} and {first} have different steps, such as {odd[0]}; curves need every checkpoint of every run.")
    steps = sorted(found[first])
    if len(steps) < 2:
        raise UserError("There is one checkpoint per run; a curve needs at least two steps.")
    return tuple(found), steps, [[own[step] for step in steps] for own in found.values()]


@torch.no_grad()
def probe_curves(checkpoints: CheckpointSet, probes: Probes) -> ProbeCurves:
    """Ask every checkpoint every probe.

    Raises
    ------
    UserError
        As `series`; when a checkpoint is no causal language model of transformers, or its scores are not numbers.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    runs, steps, rows = series(checkpoints)
    paths = [Path(p) for p in checkpoints.table["path"]]
    if not paths[rows[0][0]].is_dir():
        raise UserError(f"{paths[rows[0][0]]} is a file; probes need folders of transformers, with a tokenizer in them.")
    home = paths[rows[0][0]]
    tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True)
    module: Any = AutoModelForCausalLM.from_pretrained(home, local_files_only=True, dtype="auto")
    module.eval()
    asked = _encoded(tokenizer, probes)
    hits, scores = (np.zeros((len(runs), len(steps), len(probes.name))) for _ in range(2))
    with progress("checkpoints", len(runs) * len(steps)) as advance:
        for i, own in enumerate(rows):
            for j, row in enumerate(own):
                _overwrite(module, Weights(paths[row], checkpoints.sizes))
                right, greedy = _scored(module, asked[0])
                wrong, _ = _scored(module, asked[1])
                if not np.isfinite(right).all():
                    raise UserError(
                        f"{runs[i]} at step {steps[j]} has scores that are not numbers; its training diverged, so leave it out."
                    )
                paired = np.array([bool(text) for text in probes.wrong])
                hits[i, j] = np.where(paired, right > wrong, greedy)
                scores[i, j] = right
                advance(1)
    return ProbeCurves(probes, runs, np.array(steps), hits, scores)


def _overwrite(module: nn.Module, weights: Weights) -> None:
    """Copy the weights of a checkpoint, a tensor at a time."""
    for name, place in slots_of(module, weights).items():
        place.copy_(weights[name])
        weights.close()
    weights.close()


Asked = list[tuple[list[int], int]]


def _encoded(tokenizer: Any, probes: Probes) -> tuple[Asked, Asked]:
    """Token ids and where the answer begins, of right and of wrong answers (the right one again where there is none)."""

    before, _ = special_tokens(tokenizer, causal=True)

    def ids(text: str) -> list[int]:
        return [*before.tolist(), *tokenizer(text, add_special_tokens=False)["input_ids"]]

    def of(prompt: str, answer: str) -> tuple[list[int], int]:
        alone, both = ids(prompt), ids(prompt + answer)
        start = next((i for i, (a, b) in enumerate(zip(alone, both)) if a != b), min(len(alone), len(both)))
        if start >= len(both) or start < 1:
            raise UserError(f"The answer {answer!r} has no token of its own after {prompt[-40:]!r}; begin it with a space.")
        return both, start

    right = [of(p, a) for p, a in zip(probes.prompt, probes.answer)]
    return right, [of(p, w) if w else one for p, w, one in zip(probes.prompt, probes.wrong, right)]


def _scored(module: nn.Module, asked: Sequence[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probability of every answer, and whether all its tokens are the most likely ones."""
    found, greedy = np.zeros(len(asked)), np.zeros(len(asked))
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))
    while order:
        longest = len(asked[order[-1]][0])
        rows, order = order[-max(1, _TOKENS // longest) :], order[: -max(1, _TOKENS // longest)]
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(rows):
            ids[k, : len(asked[i][0])] = torch.tensor(asked[i][0])
            mask[k, : len(asked[i][0])] = 1
        logits = module(input_ids=ids, attention_mask=mask).logits
        for k, i in enumerate(rows):
            tokens, start = asked[i]
            logs = logits[k, start - 1 : len(tokens) - 1].double().log_softmax(-1)
            answer = torch.tensor(tokens[start:])
            found[i] = float(logs.gather(-1, answer[:, None]).sum())
            greedy[i] = float((logs.argmax(-1) == answer).all())
    return found, greedy
