"""States of a network at queries: residual stream and attention output at the last token, next-token logits, scores of answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from repscope.models.sites import Site
from repscope.steer.function_vectors.answers import target_scores

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Ids = Int[np.ndarray, "token"]
_CHUNK = 32  #: prompts of one capture


@dataclass(frozen=True, eq=False)
class States:
    """At the last token of each query. rows: (site, query, feature). logits: (query, vocab) of the next token, float32."""

    rows: Float[np.ndarray, "site query feature"]
    logits: Float[np.ndarray, "query vocab"]


def states(lm: "LanguageModel", prompts: Sequence[Ids], sites: Sequence[Site]) -> States:
    """States at the last token of prompts given as token ids."""
    read = [*sites, *([lm.last] if lm.last not in sites else [])]
    found = [lm.capture(prompts[i : i + _CHUNK], read, "last") for i in range(0, len(prompts), _CHUNK)]
    rows = np.stack([np.concatenate([np.asarray(acts[site], dtype=np.float32) for acts in found]) for site in sites])
    logits = np.concatenate([lm.unembed(np.asarray(acts[lm.last]), normed=True) for acts in found])
    return States(rows, logits.astype(np.float32, copy=False))


@dataclass(frozen=True, eq=False)
class Scores:
    """Per query: first (1 if the first token is right), whole (1 if all tokens are), logprob (of the whole answer, nats)."""

    first: Float[np.ndarray, "query"]
    whole: Float[np.ndarray, "query"]
    logprob: Float[np.ndarray, "query"]


def scores(
    lm: "LanguageModel",
    prompts: Sequence[Ids],
    answers: Sequence[Sequence[int]],
    logits: Float[np.ndarray, "query vocab"] | None = None,
) -> Scores:
    """Scores of the correct answers after prompts, both as token ids, by teacher forcing.

    logits: of the next token after each prompt, where they are known; then only answers of several tokens are run.
    """
    found = np.empty((3, len(prompts)))
    left = [i for i, answer in enumerate(answers) if logits is None or len(answer) > 1]
    if logits is not None:
        for i in sorted(set(range(len(prompts))) - set(left)):
            row, target = logits[i].astype(np.float64), answers[i][0]
            hit = float(row.argmax() == target)
            found[:, i] = hit, hit, row[target] - np.logaddexp.reduce(row)
    for start in range(0, len(left), _CHUNK):
        rows = left[start : start + _CHUNK]
        found[:, rows] = _scores(lm, [prompts[i] for i in rows], [answers[i] for i in rows])
    return Scores(*found)


def _scores(lm: "LanguageModel", prompts: Sequence[Ids], answers: Sequence[Sequence[int]]) -> Float[np.ndarray, "3 query"]:
    texts = [np.concatenate([p, np.asarray(a[:-1], dtype=np.int64)]) for p, a in zip(prompts, answers)]
    acts = lm.capture(texts, lm.last, "all")
    held, stops = acts[lm.last], acts.offsets[1:]
    rows = np.concatenate([held[stop - len(a) : stop] for stop, a in zip(stops, answers)])
    normed = torch.from_numpy(np.ascontiguousarray(rows)).to(lm.device, lm.model.dtype)
    logp, hit = target_scores(lm, normed, np.concatenate([np.asarray(a) for a in answers]))
    ends = np.cumsum([len(a) for a in answers])[:-1]
    hits, logps = np.split(hit, ends), np.split(logp, ends)
    return np.array([[h[0] for h in hits], [h.min() for h in hits], [v.sum() for v in logps]])
