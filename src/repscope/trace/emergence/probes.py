"""Probes of a language model: prompts and answers, from a table, a task, a relation, or minimal pairs.

1. A probe tests a skill, its name. It has a prompt and an answer, and possibly a wrong answer. Its score is the log-probability of
   the answer's tokens after the prompt, in nats, summed. Its hit: with a wrong answer, that the right one has the higher score;
   without, that every token of the answer is the most likely one.
2. Control: *another answer*. The wrong answer, or, where there is none, the answer to another prompt of the same skill, is scored
   in the same way. What rises for both is form, not knowledge.
3. A task or a relation is asked few-shot, its examples drawn from items that are never asked.
4. Minimal pairs are whole sentences (`read.pair_scores`): the score is that of the good sentence, the control that of the bad one.
5. What the tokenizer puts before every text stands before every prompt, and nothing after it. Tokens of the answer are those after
   the longest common beginning of the tokens of the prompt and of prompt and answer together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from repscope.data.minimal_pairs import MinimalPairs
from repscope.data.relations import Relation
from repscope.data.tables import read_table
from repscope.data.tasks import DEFAULT_TEMPLATE, Shots, Task
from repscope.errors import UserError
from repscope.models.prompts import special_tokens
from repscope.read.pair_scores import score_pairs
from repscope.steer.function_vectors.answers import target_scores

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

SHOTS, EXAMPLES = 4, 100  #: examples in a prompt, and most prompts of a task or relation
_CHUNK = 32  #: rows of one pass, so that memory does not grow with their number

Asked = list[tuple[list[int], int]]  #: token ids, and where the answer begins


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
            When a column or a cell is missing, two rows are equal, a wrong answer is the right one or is there for some prompts of
            a probe only, or an answer makes one word with its prompt.
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
            if glued := next((a for a in (row["answer"], row["wrong"]) if _glued(row["prompt"], a)), ""):
                raise UserError(
                    f"{path}, {table.where(i)}: the answer {glued!r} makes one word with the end of its prompt, "
                    f"{row['prompt'][-20:]!r}; begin it with a space."
                )
        if (copies := np.flatnonzero(frame.assign(wrong=wrong)[["probe", "prompt", "answer", "wrong"]].duplicated())).size:
            raise UserError(
                f"{path}, {table.where(int(copies[0]))}, is a row that was there before; each example counts once, so remove it."
            )
        for name, some in wrong.groupby(frame["probe"]):
            if 0 < int((some == "").sum()) < len(some):
                raise UserError(f"The probe {name!r} of {path} has wrong answers in some rows only; give one in each row, or none.")
        return cls(*(tuple(map(str, column)) for column in (frame["probe"], frame["prompt"], frame["answer"], wrong)))

    @classmethod
    def of_task(cls, task: Task, *, shots: int = SHOTS, most: int = EXAMPLES, seed: int = 0) -> "Probes":
        """Queries of a task's test part, each after examples of its own from the train part.

        Raises
        ------
        UserError
            If there are fewer train items than examples.
        """
        parts = task.split(seed)
        _need_shots(f"The task {task.name!r}", shots, len(parts.train))
        rng = np.random.default_rng([seed, 21])
        rows = []
        for i in rng.permutation(len(parts.test))[:most]:
            query = parts.test[int(i)]
            drawn = tuple(parts.train[int(j)] for j in rng.permutation(len(parts.train))[:shots])
            rows.append((task.name, Shots(drawn, query).prompt().text, DEFAULT_TEMPLATE.lead + query[1], ""))
        return cls(*zip(*rows))

    @classmethod
    def of_relation(cls, relation: Relation, *, shots: int = SHOTS, most: int = EXAMPLES, seed: int = 0) -> "Probes":
        """Subjects of a relation, each after other subjects with their objects, which are never asked.

        Raises
        ------
        UserError
            If it has no subject left to ask.
        """
        order = np.random.default_rng([seed, 22]).permutation(len(relation))
        pool = order[: max(shots, len(order) // 2)]
        _need_shots(f"The relation {relation.name!r}", shots, len(relation) - 1)
        rng, rows = np.random.default_rng([seed, 23]), []
        for i in order[len(pool) :][:most]:
            subject, answer = relation.samples[int(i)]
            drawn = [relation.samples[int(j)] for j in rng.permutation(pool)[:shots]]
            rows.append((relation.name, relation.prompt(subject, drawn).text, f" {answer}", ""))
        return cls(*zip(*rows))

    @classmethod
    def joined(cls, parts: Sequence["Probes"]) -> "Probes":
        """Several in one.

        Raises
        ------
        UserError
            When two of them test a skill of the same name.
        """
        held: set[str] = set()
        for part in parts:
            if twice := held & set(part.name):
                raise UserError(f"Two of the probes are named {min(twice)!r}; rename one, so that their curves can be told apart.")
            held |= set(part.name)
        columns = ([getattr(part, c) for part in parts] for c in ("name", "prompt", "answer", "wrong"))
        return cls(*(tuple(text for one in column for text in one) for column in columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The skills, in order."""
        return tuple(dict.fromkeys(self.name))

    def others(self, seed: int = 0) -> tuple[str, ...]:
        """The answer beside the right one: the wrong one, or that of another prompt of the skill; "" if all are equal."""
        rng, found = np.random.default_rng([seed, 24]), []
        by_name = {name: sorted({a for n, a in zip(self.name, self.answer) if n == name}) for name in self.names}
        for name, answer, wrong in zip(self.name, self.answer, self.wrong):
            rest = [a for a in by_name[name] if a != answer]
            found.append(wrong or (rest[int(rng.integers(len(rest)))] if rest else ""))
        return tuple(found)


def answers(lm: "LanguageModel", probes: Probes, seed: int = 0) -> dict[str, Float[np.ndarray, "example"]]:
    """What a network answers.

    Returns
    -------
    dict
        hits, scores: of the right answers. other hits, other scores: of another answer; NaN where there is none, and hits NaN for
        a wrong answer that was given, as they say nothing that hits do not.

    Raises
    ------
    UserError
        When an answer has no token of its own after its prompt, or one that the tokenizer does not know.
    """
    others = probes.others(seed)
    paired = np.array([bool(text) for text in probes.wrong])
    right, greedy = _scored(lm, [_encoded(lm.tokenizer, p, a) for p, a in zip(probes.prompt, probes.answer)])
    known = np.flatnonzero([bool(text) for text in others])
    score, hit = np.full((2, len(others)), np.nan)
    if len(known):
        score[known], hit[known] = _scored(lm, [_encoded(lm.tokenizer, probes.prompt[i], others[i]) for i in known])
    hits = np.where(paired, right > score, greedy)
    return {"hits": hits, "scores": right, "other hits": np.where(paired, np.nan, hit), "other scores": score}


def pair_answers(lm: "LanguageModel", pairs: MinimalPairs, convention: str = "lm-eval") -> dict[str, Float[np.ndarray, "example"]]:
    """As `answers`, of minimal pairs: the good sentence is the right answer. A tie is half a hit."""
    found = score_pairs(lm, pairs, convention)
    return {"hits": found.right(), "scores": found.good, "other hits": np.full(len(found.good), np.nan), "other scores": found.bad}


def _need_shots(what: str, shots: int, most: int) -> None:
    if not 0 <= shots <= most:
        raise UserError(f"{what} has {most} items for examples in prompts, and {shots} are asked for; ask for 0 to {most}.")


def _glued(prompt: str, answer: str) -> bool:
    """Whether prompt and answer make one word, in scripts that put spaces between words."""
    return all(c.isalnum() and ord(c) < 0x0590 for c in (prompt[-1:], answer[:1]) if c) and bool(answer)


def _encoded(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of prompt and answer, and where the answer begins."""
    before = special_tokens(tokenizer, causal=True)[0].tolist()
    alone, both = ([*before, *tokenizer(t, add_special_tokens=False)["input_ids"]] for t in (prompt, prompt + answer))
    start = next((i for i, (a, b) in enumerate(zip(alone, both)) if a != b), min(len(alone), len(both)))
    if start >= len(both) or start < 1:
        raise UserError(f"The answer {answer!r} has no token of its own after {prompt[-40:]!r}; begin it with a space.")
    if getattr(tokenizer, "unk_token_id", None) in both[start:]:
        raise UserError(f"The tokenizer has no token for a word of the answer {answer!r}; leave this example out.")
    return both, start


def _scored(lm: "LanguageModel", asked: Asked) -> tuple[Float[np.ndarray, "example"], Float[np.ndarray, "example"]]:
    """Summed log-probability of every answer, and whether all its tokens are the most likely ones."""
    nats, greedy = np.empty(len(asked)), np.empty(len(asked))
    order = sorted(range(len(asked)), key=lambda i: len(asked[i][0]))  # rows of one pass have similar lengths
    for begin in range(0, len(order), _CHUNK):
        some = order[begin : begin + _CHUNK]
        acts = lm.capture([np.array(asked[i][0]) for i in some], lm.last, "all")
        rows, offsets = acts[lm.last], acts.offsets
        read = [slice(int(o) + asked[i][1] - 1, int(o) + len(asked[i][0]) - 1) for i, o in zip(some, offsets)]
        normed = torch.from_numpy(np.concatenate([rows[one] for one in read])).to(lm.device, lm.model.dtype)
        logp, hit = target_scores(lm, normed, np.concatenate([asked[i][0][asked[i][1] :] for i in some]))
        ends = np.cumsum([one.stop - one.start for one in read])[:-1]
        nats[some] = [part.sum() for part in np.split(logp, ends)]
        greedy[some] = [part.min() for part in np.split(hit, ends)]
    return nats, greedy
