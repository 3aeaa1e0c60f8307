"""Answers of a network to the queries of a task: first token, whole answer, log-probability.

1. Each prompt is followed by its correct answer (teacher forcing). Logits are read at the question's last token and at each answer
   token but the last.
2. First token: the most likely token is the answer's first one (Todd et al. 2024). Whole answer: every token of it is the most
   likely one at its position, as in greedy decoding. Log-probability: of the whole answer, in nats.
3. The tokens of question and answer are checked: together they must be the tokens of the question followed by those of the answer.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.data.tasks import EncodedTask, Shots
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.engine.hooks import unhooked
from repscope.models.prompts import encode
from repscope.models.sites import Tokens

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_CHUNK = 32  #: prompts of one capture, so that memory does not grow with their number
_HEAD_ROWS = 128  #: rows of logits in memory


@dataclass(frozen=True, eq=False)
class Answers:
    """Per query: first (1 if the first token is correct), whole (1 if all tokens are), logprob (of the whole answer, in nats)."""

    first: Float[np.ndarray, "query"]
    whole: Float[np.ndarray, "query"]
    logprob: Float[np.ndarray, "query"]

    @classmethod
    def mean(cls, several: Sequence["Answers"]) -> "Answers":
        """The mean of each number over several answers to the same queries."""
        return cls(*(np.mean([getattr(one, field.name) for one in several], axis=0) for field in fields(cls)))


def answered(lm: "LanguageModel", task: EncodedTask, prompts: Sequence[Shots], *edits: Edit) -> Answers:
    """Answers to prompts; `edits` act inside, their token choice may be the span `question.last`.

    Raises
    ------
    UserError
        If question and answer do not tokenise one after the other, or an edit changes nothing.
    """
    parts = [_answered(lm, task, prompts[i : i + _CHUNK], edits) for i in range(0, len(prompts), _CHUNK)]
    return Answers(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Answers)))


def _answered(lm: "LanguageModel", task: EncodedTask, prompts: Sequence[Shots], edits: Sequence[Edit]) -> Answers:
    texts = [shots.prompt(shots.query[1]) for shots in prompts]
    expected = [np.array(task.answers[shots.query[1]]) for shots in prompts]
    whole = encode(lm.tokenizer, texts, Tokens("all", "tail"), lm.context, causal=lm.causal)
    asked = encode(lm.tokenizer, [shots.prompt() for shots in prompts], Tokens("last"), lm.context, causal=lm.causal)
    for shots, row, question, ids, start in zip(prompts, whole.ids, asked.ids, expected, whole.start):
        if not np.array_equal(row, np.concatenate([question, ids])) or start != len(question) - 1:
            raise UserError(
                f"The answer {shots.query[1]!r} to {shots.query[0]!r} of {task.name!r} is not the same tokens after the prompt as "
                "by itself; use another template or leave this item out."
            )
    with lm.edit(*edits) if edits else nullcontext():
        acts = lm.capture(texts, lm.last, "tail.all")
    rows, targets = acts[lm.last], np.concatenate([np.append(ids, -1) for ids in expected])
    inside = targets >= 0  # the row at the answer's last token predicts what follows it
    normed = torch.from_numpy(np.asarray(rows[inside])).to(lm.device, lm.model.dtype)
    logp, hit = target_scores(lm, normed, targets[inside])
    ends = np.cumsum([len(ids) for ids in expected])[:-1]
    per_answer = [np.split(values, ends) for values in (hit, logp)]
    return Answers(
        np.array([hits[0] for hits in per_answer[0]]),
        np.array([hits.min() for hits in per_answer[0]]),
        np.array([values.sum() for values in per_answer[1]]),
    )


def target_scores(
    lm: "LanguageModel", normed: Float[Tensor, "row d_model"], targets: np.ndarray | int
) -> tuple[Float[np.ndarray, "row"], Float[np.ndarray, "row"]]:
    """Of outputs of the final norm: log-probability of a target token per row, and 1 where it is the most likely one."""
    head = lm.head()
    logps, hits = [], []
    with unhooked(lm.model):
        for start in range(0, len(normed), _HEAD_ROWS):
            logits = head(normed[start : start + _HEAD_ROWS])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            wanted = torch.as_tensor(targets if np.ndim(targets) == 0 else targets[start : start + _HEAD_ROWS])  # type: ignore[index]
            index = wanted.to(logits.device).expand(len(logits))[:, None]
            score = logits.gather(1, index)[:, 0]
            logps.append((score - logits.logsumexp(-1)).double().cpu().numpy())
            hits.append((logits.argmax(-1) == index[:, 0]).double().cpu().numpy())
    return np.concatenate(logps), np.concatenate(hits)
