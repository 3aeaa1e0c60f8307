"""Answers sampled from a model, their rewards, and their KL to the base.

1. Answers are drawn at temperature 1 from random streams of their own, so nothing here moves the random numbers of training.
2. An answer that did not end within its tokens has reward 0.
3. The KL of the model to the base per answer is Σ_t KL(π(· | y<t) ‖ π₀(· | y<t)) along the model's own answers, over the whole
   vocabulary: an unbiased estimate of the KL of answers with less variance than Σ_t log π(y_t) − log π₀(y_t).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.engine.generation import GenerationBatch, Sampling, continued, ends_of
from repscope.trace.finetuning.examples import Ids, Reward

_ROWS = 16  #: answers sampled together
_LOGITS = 1 << 24  #: entries of logits at once


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt. prompt, text: as texts. before, ids: their tokens. ended: whether the answer has an end token."""

    prompt: str
    text: str
    before: Ids
    ids: Ids
    ended: bool

    def reward(self, reward: Reward) -> float:
        """0 where the answer did not end."""
        return reward(self.prompt, self.text) if self.ended else 0.0


def sampled(
    model: Any, tokenizer: Any, prompts: Sequence[str], before: Sequence[Ids], new_tokens: int, seed: int
) -> tuple[Answer, ...]:
    """One answer per prompt; a prompt that is given several times gets different answers."""
    sampling = Sampling(new_tokens, temperature=1.0, seed=seed)
    draws = sampling.draws(before)
    stops = ends_of(model)
    found: list[Answer] = []
    device = next(model.parameters()).device
    with _evaluating(model):
        for i in range(0, len(prompts), _ROWS):
            part = slice(i, i + _ROWS)
            batch = GenerationBatch.of(before[part], min(stops), device)
            rows = continued(model, batch, sampling, draws[part], use_cache=True)
            for prompt, start, (ids, ended) in zip(prompts[part], before[part], rows):
                text = tokenizer.decode([int(t) for t in ids], skip_special_tokens=True)
                found.append(Answer(prompt, text, start, ids, ended))
    return tuple(found)


def kl_to_base(
    model: Any, base: Callable[[Int[Tensor, "row token"]], Float[Tensor, "row token vocab"]], answers: Sequence[Answer], vocab: int
) -> Float[np.ndarray, "answer"]:
    """KL of the model's next tokens to the base's, summed along each answer, in nats. base: ids → logits."""
    device = next(model.parameters()).device
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].before) + len(answers[i].ids))
    out = np.zeros(len(answers))
    longest = max(len(a.before) + len(a.ids) for a in answers)
    rows = max(1, _LOGITS // (longest * vocab))
    with _evaluating(model):
        for i in range(0, len(order), rows):
            part = [answers[j] for j in order[i : i + rows]]
            ids = torch.nn.utils.rnn.pad_sequence(  # padded on the right: no position reads what follows it
                [torch.from_numpy(np.concatenate([a.before, a.ids])) for a in part], batch_first=True
            ).to(device)
            own, others = model(input_ids=ids, use_cache=False).logits, base(ids)
            for k, answer in enumerate(part):
                at = slice(len(answer.before) - 1, len(answer.before) - 1 + len(answer.ids))
                p, q = own[k, at].double().log_softmax(-1), others[k, at].double().log_softmax(-1)
                out[order[i + k]] = float((p.exp() * (p - q)).sum())
    return out


class _evaluating:  # noqa: N801
    """Evaluation mode without gradients, and back to the mode that the model was in."""

    def __init__(self, model: Any) -> None:
        self._model, self._training, self._none = model, model.training, torch.no_grad()

    def __enter__(self) -> None:
        self._model.eval()
        self._none.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._none.__exit__(*error)
        self._model.train(self._training)
