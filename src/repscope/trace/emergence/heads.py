"""Heads of a checkpoint that carry in-context learning: induction scores of all heads, and function-vector heads of tasks.

1. *Repeated tokens* (Olsson et al. 2022): sequences [BOS r1 … rn r1 … rn] of random tokens. The induction score of a head is its
   mean attention from the second r_i to the token after the first r_i. Control: its mean attention, from the same places, to
   another token of the first copy.
2. *Copying*, what the network does with it: accuracy and log-probability of the tokens of the second copy, from the second one on.
   Control: the same tokens in the first copy, where nothing says which comes next.
3. *Function-vector heads* (Todd et al. 2024; `steer.function_vectors`): the average indirect effect of each head on the answer of
   few-shot prompts with permuted outputs.
4. A head is chosen on half of the sequences or prompts at the last checkpoint, and its curve is of the other half. Control of
   function-vector heads: the mean over all other heads.
Attention and behaviour need not agree (Yin & Steinhardt 2025), so both are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from repscope.data.tasks import Task, encode_task
from repscope.errors import UserError
from repscope.models.prompts import special_tokens
from repscope.models.sites import Site
from repscope.steer.function_vectors.answers import target_scores
from repscope.steer.function_vectors.indirect_effects import MEANS, indirect_effects, mean_head_activations

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

SEQUENCES, LENGTH = 16, 50  #: of repeated tokens; tokens of a copy
PROMPTS, AVERAGED = 16, 32  #: of indirect effects, and of mean activations
_CHUNK = 4  #: sequences of one pass, as attention weights are large


@dataclass(frozen=True, eq=False)
class HeadCurve:
    """Of one head per run, or of several: chosen at the last checkpoint on half of the examples, measured on the others.

    heads: chosen, of each run. values, control: means over the chosen heads.
    """

    heads: tuple[tuple[str, ...], ...]
    values: Float[np.ndarray, "run checkpoint example"]
    control: Float[np.ndarray, "run checkpoint example"]


def repeated_tokens(
    lm: "LanguageModel", *, sequences: int = SEQUENCES, length: int = LENGTH, seed: int = 0
) -> Int[np.ndarray, "sequence token"]:
    """A first token (BOS, else EOS, else random), random tokens, and these again; shorter where the network reads less.

    Raises
    ------
    UserError
        When the network or its vocabulary is too small for four different tokens twice.
    """
    words = np.setdiff1d(np.unique(list(lm.tokenizer.get_vocab().values())), lm.tokenizer.all_special_ids)
    n = min(length, (lm.context - 1) // 2 if lm.context is not None else length, len(words) - 1)
    if n < 4:
        raise UserError(f"{lm.name} reads or knows too few tokens to repeat four of them; leave the heads out.")
    rng = np.random.default_rng([seed, 31])
    first = special_tokens(lm.tokenizer, causal=True)[0].tolist()[:1]
    first = first or [t for t in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id) if t is not None][:1]
    rows = []
    for _ in range(sequences):
        drawn = rng.permutation(words)[: n + 1]
        rows.append([*(first or drawn[-1:].tolist()), *drawn[:n].tolist(), *drawn[:n].tolist()])
    return np.array(rows, dtype=np.int64)


def induction(lm: "LanguageModel", *, sequences: int = SEQUENCES, length: int = LENGTH, seed: int = 0) -> dict[str, np.ndarray]:
    """Induction scores of all heads, and copying, on repeated random tokens.

    Returns
    -------
    dict
        induction, other tokens: (sequence, head), attention from 0 to 1. hits, scores, other hits, other scores: (sequence), mean
        accuracy and log-probability (nats per token) of the second copy, and of the first. layers, places: (head), block and head.

    Raises
    ------
    UserError
        When attention weights cannot be read, and as `repeated_tokens`.
    """
    rows = repeated_tokens(lm, sequences=sequences, length=length, seed=seed)
    n, sites = (rows.shape[1] - 1) // 2, lm.resolve("pattern")
    at = np.arange(n + 1, 2 * n)  # the second r_1 … r_(n-1), of which each should attend to the token after the first one
    scores: dict[str, list[np.ndarray]] = {name: [] for name in ("induction", "other tokens")}
    copied: dict[str, list[np.ndarray]] = {name: [] for name in ("hits", "scores", "other hits", "other scores")}
    heads: list[int] = []
    for begin in range(0, len(rows), _CHUNK):
        some = rows[begin : begin + _CHUNK]
        acts = lm.capture(list(some), [*sites, lm.last], "all")
        right, wrong = [], []
        heads = []
        for site in sites:
            weights = acts[site].reshape(len(some), rows.shape[1], -1, acts[site].shape[-1])[:, at]
            own = np.take_along_axis(weights, (at - n + 1)[None, :, None, None], -1)[..., 0]  # (sequence, place, head)
            first = weights[..., 2 : n + 1].sum(-1)
            right.append(own.mean(1))
            wrong.append((first - own).mean(1) / max(1, n - 2))
            heads.append(own.shape[-1])
        scores["induction"].append(np.concatenate(right, 1))
        scores["other tokens"].append(np.concatenate(wrong, 1))
        states = acts[lm.last].reshape(len(some), rows.shape[1], -1)
        for name, start in (("", n + 1), ("other ", 1)):
            places = np.arange(start, start + n - 1)
            normed = torch.from_numpy(states[:, places].reshape(-1, states.shape[-1])).to(lm.device, lm.model.dtype)
            logp, hit = target_scores(lm, normed, some[:, places + 1].reshape(-1))
            copied[f"{name}hits"].append(hit.reshape(len(some), -1).mean(1))
            copied[f"{name}scores"].append(logp.reshape(len(some), -1).mean(1))
    found = {name: np.concatenate(parts).astype(np.float64) for name, parts in (scores | copied).items()}
    found["layers"] = np.concatenate([np.full(many, site.layer or 0) for site, many in zip(sites, heads)])
    found["places"] = np.concatenate([np.arange(many) for many in heads])
    return found


def effects(
    lm: "LanguageModel", task: Task, *, shots: int, prompts: int = PROMPTS, averaged: int = AVERAGED, seed: int = 0
) -> Float[np.ndarray, "prompt head"]:
    """Indirect effect of every head, block by block, on the probability of the first token of a task's answers.

    Raises
    ------
    UserError
        As `encode_task` and `indirect_effects`.
    """
    encoded = encode_task(lm.tokenizer, task, shots=shots, seed=seed)
    shown = [one.prompt() for one in encoded.few_shot(encoded.queries("train", averaged), stream=MEANS)]
    return indirect_effects(lm, encoded, mean_head_activations(lm, shown), prompts=prompts).effects


def chosen_heads(
    values: Float[np.ndarray, "run checkpoint example head"],
    names: Sequence[str],
    count: int,
    control: Float[np.ndarray, "run checkpoint example head"] | None = None,
) -> HeadCurve:
    """The curve of the `count` heads with the largest mean at the last checkpoint.

    Parameters
    ----------
    values
        Of every head; the first, third … example chooses, the others are reported.
    names
        Of the heads.
    control
        The control of every head; by default the mean of all heads that are not chosen.

    Raises
    ------
    UserError
        For fewer than two examples, or not more heads than are chosen.
    """
    runs, _, examples, heads = values.shape
    if examples < 2 or heads <= count:
        raise UserError(f"Choosing {count} of {heads} heads on one half of {examples} examples needs two examples and more heads.")
    order = np.argsort(-values[:, -1, ::2].mean(1), axis=-1, kind="stable")
    best: Bool[np.ndarray, "run head"] = np.zeros((runs, heads), dtype=bool)
    np.put_along_axis(best, order[:, :count], True, 1)
    held = values[:, :, 1::2]
    own, beside = [], []
    for run in range(runs):
        own.append(held[run][..., best[run]].mean(-1))
        beside.append(held[run][..., ~best[run]].mean(-1) if control is None else control[run][:, 1::2][..., best[run]].mean(-1))
    said = tuple(tuple(names[int(i)] for i in order[run, :count]) for run in range(runs))
    return HeadCurve(said, np.stack(own), np.stack(beside))


def head_names(layers: Int[np.ndarray, "head"], places: Int[np.ndarray, "head"]) -> tuple[str, ...]:
    """Sites of the heads that `induction` measured, in order."""
    return tuple(str(Site("z", int(layer), int(place))) for layer, place in zip(layers, places))
