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


def scores(lm: "LanguageModel", prompts: Sequence[Ids], answers: Sequence[Sequence[int]]) -> Scores:
    """Scores of the correct answers after prompts, both as token ids, by teacher forcing."""
    parts = [_scores(lm, prompts[i : i + _CHUNK], answers[i : i + _CHUNK]) for i in range(0, len(prompts), _CHUNK)]
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "whole", "logprob")))


def _scores(lm: "LanguageModel", prompts: Sequence[Ids], answers: Sequence[Sequence[int]]) -> Scores:
    texts = [np.concatenate([p, np.asarray(a[:-1], dtype=np.int64)]) for p, a in zip(prompts, answers)]
    acts = lm.capture(texts, lm.last, "all")
    held, stops = acts[lm.last], acts.offsets[1:]
    rows = np.concatenate([held[stop - len(a) : stop] for stop, a in zip(stops, answers)])
    normed = torch.from_numpy(np.ascontiguousarray(rows)).to(lm.device, lm.model.dtype)
    logp, hit = target_scores(lm, normed, np.concatenate([np.asarray(a) for a in answers]))
    ends = np.cumsum([len(a) for a in answers])[:-1]
    hits, logps = np.split(hit, ends), np.split(logp, ends)
    return Scores(np.array([h[0] for h in hits]), np.array([h.min() for h in hits]), np.array([v.sum() for v in logps]))
