"""How far the next-token predictions of two networks differ: divergences, token shift by position, loss on a reference text.

With p the tuned network's distribution of the next token and q the base network's, after the same prefix, in nats:

    KL(tuned ‖ base)   Σ p (log p - log q)
    KL(base ‖ tuned)   Σ q (log q - log p)
    JS                 ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2; at most log 2

Token shift (Lin et al. 2024, URIAL, arXiv:2312.01552): a token of the tuned network's answer is *unshifted* if it has rank 1 in the
base network after the same prefix, *marginal* at rank 2 or 3, *shifted* beyond. The rank is one plus the number of tokens with a
higher logit, so ties with the highest are rank 1.

1. Answers: the tuned network's greedy continuation of each prompt, or given ones. Both networks score the same ids.
2. The token of a position is the tuned network's most likely one after that prefix (in greedy answers the answer's own token up to
   rounding; a network compared with itself is unshifted exactly), or the given answer's.
3. Sums per prompt; intervals by bootstrap over prompts. Controls: `another seed` (a third network, tuned the same way, compared
   with the tuned one) and `other prompts` (the base network after another prompt's prefix, compared with itself).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from repscope import stats
from repscope.conditions import ANOTHER_SEED, ESTIMATE
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt, PromptLike, Ragged, with_continuation
from repscope.models.sites import Tokens
from repscope.results import Result, Row
from repscope.trace.drift.prompted import listed, same_ids

SHIFTS = ("unshifted", "marginal", "shifted")
#: metric → its definition
DEFINITIONS = {
    "KL": "KL(tuned ‖ base) of the next token, nats per token",
    "KL from base": "KL(base ‖ tuned) of the next token, nats per token",
    "JS": "Jensen-Shannon divergence of the next token, nats per token",
    "unshifted": "share of answer tokens with rank 1 in the base network",
    "marginal": "share of answer tokens with rank 2 or 3 in the base network",
    "shifted": "share of answer tokens with a rank above 3 in the base network",
    "loss": "-log p of the reference text, nats per token",
}
BINS = (1, 2, 4, 8, 16, 32, 64, 128)  #: first answer position of each bin of positions
_CHUNK, _ROWS = 16, 32  #: prompts of one pass; rows of logits at a time
_MARGINAL = 3
_HELD = 1 << 17  #: logits at a time in divergences

Logits = Float[Tensor, "*position vocab"] | Float[np.ndarray, "*position vocab"]


@dataclass(frozen=True)
class Divergences:
    """Per position, in nats. tuned_base: KL(tuned ‖ base). base_tuned: KL(base ‖ tuned). js: Jensen-Shannon."""

    tuned_base: Float[np.ndarray, "*position"]
    base_tuned: Float[np.ndarray, "*position"]
    js: Float[np.ndarray, "*position"]


def divergences(base: Logits, tuned: Logits) -> Divergences:
    """Divergences between two next-token distributions from their logits, in float64; exactly 0 for equal logits.

    Raises
    ------
    UserError
        For logits of other shapes, or NaN.

    >>> found = divergences(np.array([0.0, 0.0]), np.array([0.0, np.log(3)]))
    >>> round(float(found.base_tuned), 4), round(float(np.log(2 / np.sqrt(3))), 4)
    (0.1438, 0.1438)
    """
    q, p = (torch.as_tensor(side).detach() for side in (base, tuned))
    if p.shape != q.shape:
        raise UserError(
            f"The base network gives logits {tuple(q.shape)} and the tuned one {tuple(p.shape)}; vocabularies must be equal."
        )
    found = np.empty((3, math.prod(p.shape[:-1])))
    step = max(1, _HELD // p.shape[-1])
    rows = (torch.split(side.reshape(-1, side.shape[-1]), step) for side in (q, p))
    for start, (a, b) in zip(range(0, found.shape[1], step), zip(*rows)):  # a few rows at a time stay in the processor's cache
        x, y = _logp(a, "base"), _logp(b, "tuned")
        found[:, start : start + step] = torch.stack([_kl(y, x), _kl(x, y), _js(y, x)]).cpu().numpy()
    return Divergences(*found.reshape(3, *p.shape[:-1]))


def token_ranks(logits: Logits, ids: Int[Tensor, "*position"] | Int[np.ndarray, "*position"]) -> Int[np.ndarray, "*position"]:
    """Rank of each token: one plus the number of tokens with a higher logit.

    >>> token_ranks(np.array([[0.0, 2.0, 1.0], [5.0, 5.0, 1.0]]), np.array([2, 1])).tolist()
    [2, 1]
    """
    values = torch.as_tensor(logits)
    own = values.gather(-1, torch.as_tensor(ids).to(values.device)[..., None])
    return np.asarray((1 + (values > own).sum(-1)).cpu().numpy())


@dataclass(frozen=True)
class Answered:
    """Prompts with answers as token ids. ids: prompt and answer. start: (prompt), first position of each answer, at least 1."""

    ids: Ragged
    start: Int[np.ndarray, "prompt"]

    def __len__(self) -> int:
        return len(self.ids)


def answered(
    lm: LanguageModel, prompts: Sequence[PromptLike], *, answers: Sequence[str] | None = None, new_tokens: int = 32
) -> Answered:
    """The prompts with given answers, or with the network's greedy ones.

    Raises
    ------
    UserError
        For another number of answers than prompts, and as `lm.generate`.
    """
    if answers is None:
        given = lm.encoded(prompts, Tokens("last")).ids
        new = lm.generate(prompts, new_tokens)
        return Answered(Ragged.of(np.append(a, b.ids) for a, b in zip(given, new)), given.lengths)
    if len(answers) != len(prompts):
        raise UserError(f"There are {len(prompts)} prompts and {len(answers)} answers; give one for each.")
    if ids := [i for i, p in enumerate(prompts) if not isinstance(p, (str, Prompt))]:
        raise UserError(f"Prompt {ids[0]} is no text, so no answer can be put after it; give texts, or leave the answers out.")
    joined = [with_continuation(p, a) for p, a in zip(prompts, answers)]  # type: ignore[arg-type]
    encoded = lm.encoded(joined, Tokens("all", "continuation"))
    if (encoded.start == 0).any():
        raise UserError(f"Nothing stands before answer {int(np.argmin(encoded.start))}; give it a prompt.")
    return Answered(encoded.ids, encoded.start)


def hidden_before(lm: LanguageModel, texts: Answered, rows: Sequence[int]) -> list[Float[np.ndarray, "token d_model"]]:
    """What the head reads where each answer token is predicted, for some of the prompts."""
    held = lm.capture(Ragged.of(texts.ids[i][:-1] for i in rows), lm.last, "all")
    every = held[lm.last]
    return [every[held.offsets[k] + texts.start[i] - 1 : held.offsets[k + 1]] for k, i in enumerate(rows)]


def next_tokens(
    base: LanguageModel,
    tuned: LanguageModel,
    prompts: Iterable[PromptLike],
    *,
    new_tokens: int = 32,
    answers: Sequence[str] | None = None,
    reference: Iterable[PromptLike] = (),
    other: LanguageModel | None = None,
    seed: int = 0,
) -> Result:
    """Divergences and token shift on the tuned network's answers, and both losses on a reference text.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning, with one vocabulary.
    prompts
        At least two.
    new_tokens
        Longest answer.
    answers
        Given answers, one text per prompt; default: the tuned network's greedy ones.
    reference
        Texts of at least two tokens for the loss.
    other
        A network tuned the same way with another seed: the floor.
    seed
        Of the intervals.

    Returns
    -------
    Result
        Rows over all answer positions (item "") and by bins of positions (item "position 4–7"). Side table "positions": shares and
        KL at each position.

    Raises
    ------
    UserError
        For fewer than two prompts, tokenizers or vocabularies that differ, and as `lm.generate`.
    """
    import pandas as pd

    networks = [base, tuned] if other is None else [base, tuned, other]
    held = listed(tuned, prompts, 2)
    for start in range(0, len(held), 256):
        same_ids(networks, held[start : start + 256])
    texts = answered(tuned, held, answers=answers, new_tokens=new_tokens)
    longest = int((texts.ids.lengths - texts.start).max())
    names = [ESTIMATE, "other prompts", *([ANOTHER_SEED] if other is not None else [])]
    sums = {name: PositionSums(len(texts), longest) for name in names}
    for start in range(0, len(texts), _CHUNK):
        rows = list(range(start, min(start + _CHUNK, len(texts))))
        if len(rows) == 1 and start:  # another prompt is needed
            rows = [start - 1, start]
        hidden = [hidden_before(lm, texts, rows) for lm in networks]
        for k, i in enumerate(rows):
            if i < start:
                continue
            given = None if answers is None else texts.ids[i][texts.start[i] :]
            x, y, *rest = (h[k] for h in hidden)
            another = hidden[0][(k + 1) % len(rows)][: len(x)]
            sums[ESTIMATE].add(i, (base, x), (tuned, y), given)
            sums["other prompts"].add(i, (base, x[: len(another)]), (base, another), None)
            for z in rest:
                sums[ANOTHER_SEED].add(i, (tuned, y), (networks[2], z), given)
    where = {"model": tuned.fingerprint, "seed": seed}
    found = [row for name in names for row in sums[name].rows(name, where)]
    found += _losses(networks[:2], list(reference), where)
    positions = sums[ESTIMATE].by_position
    side = pd.DataFrame({"position": np.arange(1, longest + 1), "n": positions[:, 0].astype(np.int64)})
    for j, name in enumerate(("KL", *SHIFTS), start=1):
        side[name] = positions[:, j] / positions[:, 0]
    return Result.of(found, side={"positions": side})


class PositionSums:
    """Sums per prompt and bin of positions: tokens, divergences, shift classes; and totals at each position."""

    METRICS = ("KL", "KL from base", "JS", *SHIFTS)

    def __init__(self, prompts: int, longest: int) -> None:
        self.starts = np.array([b for b in BINS if b <= longest])
        self.bins = np.zeros((prompts, len(self.starts), 1 + len(self.METRICS)))
        self.by_position = np.zeros((longest, 2 + len(SHIFTS)))

    def add(
        self,
        prompt: int,
        base: tuple[LanguageModel, Float[np.ndarray, "token d_model"]],
        tuned: tuple[LanguageModel, Float[np.ndarray, "token d_model"]],
        given: Int[np.ndarray, "token"] | None,
    ) -> None:
        """Add a prompt's answer, from what the heads of both networks read; given: its tokens, default the tuned network's."""
        for start in range(0, len(base[1]), _ROWS):
            rows = slice(start, start + _ROWS)
            q, p = (torch.from_numpy(lm.unembed(hidden[rows], normed=True)) for lm, hidden in (base, tuned))
            apart = divergences(q, p)
            ids = p.argmax(-1) if given is None else torch.from_numpy(given[rows])
            values = np.stack(
                [np.ones(len(q)), apart.tuned_base, apart.base_tuned, apart.js, *_classes(token_ranks(q, ids))], axis=1
            )
            position = np.arange(start, start + len(q))
            np.add.at(self.bins[prompt], np.searchsorted(self.starts, position + 1, side="right") - 1, values)
            self.by_position[position] += values[:, [0, 1, 4, 5, 6]]

    @property
    def kl(self) -> Float[np.ndarray, "prompt bin"]:
        """Sum of KL(tuned ‖ base) in each prompt and bin."""
        return self.bins[:, :, 1]

    @property
    def bin_names(self) -> list[str]:
        """Names of the bins, such as "position 4–7"."""
        ends = [*self.starts[1:] - 1, len(self.by_position)]
        return [f"position {a}" if a == b else f"position {a}–{b}" for a, b in zip(self.starts, ends)]

    def rows(self, condition: str, where: dict[str, Any]) -> Iterator[Row]:
        """Rows over all positions (item "") and of each bin."""
        for item, held in [("", self.bins.sum(1)), *zip(self.bin_names, self.bins.transpose(1, 0, 2))]:
            held = held[held[:, 0] > 0]
            for j, metric in enumerate(self.METRICS, start=1) if len(held) else ():
                estimate = stats.ratio(held[:, j], held[:, 0], unit="prompt", seed=where["seed"])
                yield Row.of(estimate, metric=metric, definition=DEFINITIONS[metric], item=item, condition=condition, **where)


def _losses(networks: Sequence[LanguageModel], reference: list[PromptLike], where: dict[str, Any]) -> Iterator[Row]:
    """Loss of base and tuned network on the reference texts, and its difference, paired by text."""
    if not reference:
        return
    same_ids(networks, reference)
    ids = networks[0].encoded(reference, Tokens("all")).ids
    if (ids.lengths < 2).any():
        raise UserError(f"Reference text {int(np.argmin(ids.lengths))} has one token, so nothing is predicted; leave it out.")
    texts, sums = Answered(ids, np.ones(len(ids), dtype=np.int64)), np.zeros((2, len(ids)))
    for start in range(0, len(ids), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(ids)))
        for k, lm in enumerate(networks):
            for i, hidden in zip(rows, hidden_before(lm, texts, rows)):
                for first in range(0, len(hidden), _ROWS):
                    logp = _logp(lm.unembed(hidden[first : first + _ROWS], normed=True), lm.name)
                    target = torch.from_numpy(ids[i][1 + first : 1 + first + len(logp)])
                    sums[k, i] -= float(logp.gather(-1, target[:, None]).sum())
    tokens = (ids.lengths - 1).astype(np.float64)
    where = {"metric": "loss", "definition": DEFINITIONS["loss"], **where}
    for condition, item, values in (
        (ESTIMATE, "reference", sums[1]),
        ("base network", "reference", sums[0]),
        (ESTIMATE, "reference, tuned minus base", sums[1] - sums[0]),
    ):
        yield Row.of(stats.ratio(values, tokens, unit="text", seed=where["seed"]), item=item, condition=condition, **where)


def _classes(ranks: Int[np.ndarray, "*position"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return ranks == 1, (ranks > 1) & (ranks <= _MARGINAL), ranks > _MARGINAL


def _logp(logits: Logits, name: str) -> Float[Tensor, "*position vocab"]:
    values = torch.as_tensor(logits).detach().double()
    if bool(torch.isnan(values).any()):
        raise UserError(f"Some logits of the {name} network are NaN; its weights or inputs are broken.")
    return values.log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p - log q); tokens with p = 0 add nothing. At least 0, which rounding may miss by its last digits."""
    terms = p.exp() * (p - q)
    return terms.where(p > -torch.inf, 0.0).sum(-1).clamp_min(0)


def _js(p: Tensor, q: Tensor) -> Tensor:
    """½ Σ p (log p - log m) + ½ Σ q (log q - log m), where log p - log m = log 2 - log(1 + q/p): exactly 0 where p = q."""
    apart = q - p
    above = softplus(apart)  # log(1 + q/p)
    below = (above - apart).where(p > -torch.inf, 0.0)  # log(1 + p/q)
    terms = [(x.exp() * (math.log(2) - part)).where((x > -torch.inf) & (apart != 0), 0.0) for x, part in ((p, above), (q, below))]
    return ((terms[0] + terms[1]).sum(-1) / 2).clamp_min(0)
