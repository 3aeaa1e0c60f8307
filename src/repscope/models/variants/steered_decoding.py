"""Continuations of prompts under added vectors, from the replay that measures the vectors' effects.

A vector added at all tokens changes nothing below the source. So:

1. Blocks up to the source run once, without vectors; those behind it run in a replay (`block_replay`). Keys and values of both go
   to the buffers of the rows (vector × prompt) that begin with these tokens.
2. Each step runs one token per row, the vector added by a hook (`decoding` does the same under edits, and runs all blocks for all
   rows' prompts).

Random numbers and texts are those of `lm.generate` under an edit. For networks that decode this way, where all prompts of the
replay are branches of rows; others have no such continuations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.engine.decoding import cannot_decode
from repscope.models.engine.generating_network import GeneratingNetwork
from repscope.models.engine.generation import Sampling, choice, ends_of
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.row_cache import RowKeys
from repscope.models.prompts import Ragged
from repscope.models.variants.replay_group import stored_below
from repscope.models.variants.replay_part import ReplayPart, unedited


@dataclass(frozen=True, eq=False)
class Steered:
    """What a replay with continuations gives. delta, last: as `ReplayPart.onward`, of all prompts. new: for each row, vector by
    vector, its new tokens and whether an end-of-text token ended them.
    """

    delta: Float[Tensor, "vector row feature"]
    last: Float[Tensor, "vector prompt d_model"]
    new: list[tuple[Int[np.ndarray, "token"], bool]]


def vectors_at_once(net: GeneratingNetwork, parts: Sequence[ReplayPart], ids: Ragged, steps: int) -> int:
    """Vectors whose continuations fit into one batch; 0 where continuations cannot be had this way."""
    total = int(ids.lengths.max()) + steps
    if any(part.whole or part.group.row is None for part in parts) or (net.context is not None and total > net.context):
        return 0
    if not net.generates or cannot_decode(net) or not net.generation(total).own:
        return 0
    return 4 * net.batch_tokens // total // len(ids)


def steered(
    net: GeneratingNetwork,
    parts: Sequence[ReplayPart],
    rows: Sequence[Int[Tensor, "row"]],
    ids: Ragged,
    vectors: Float[Tensor, "vector d_model"],
    sampling: Sampling,
    pass_tokens: int,
) -> Steered:
    """Effects and continuations of at most `vectors_at_once` vectors. rows: of each part, among all. pass_tokens: of a pass."""
    unedited(net)
    count, prompts, steps = len(vectors), len(ids), sampling.max_new_tokens
    lengths = np.tile(ids.lengths, count)
    longest = int(lengths.max())
    held = RowKeys(longest - lengths, longest + steps - 1, net.device)
    cache = held.as_cache()
    delta: Tensor | None = None
    last = vectors.new_empty(count, prompts, parts[0].base_end.shape[1])
    with net.taps.settled() as state:
        for part, mine in zip(parts, rows):
            _place(held, part, np.arange(count), prompts, longest - ids.lengths, below=True)
            stored_below(net, part.group, part.source, cache)
            most = max(1, pass_tokens // part.group.tokens)
            for some in np.array_split(np.arange(count), -(-count // most)):
                _place(held, part, some, prompts, longest - ids.lengths, below=False)
                here, beyond = part.onward(vectors[some[0] : some[-1] + 1], cache)
                if delta is None:
                    delta = here.new_empty(count, sum(len(r) for r in rows), here.shape[2])
                delta[some[0] : some[-1] + 1, mine] = here
                last[some[0] : some[-1] + 1, list(part.group.prompts)] = beyond.to(last)
        state.rewind()
    assert delta is not None
    ends = torch.stack([part.base_end[j] for part, j in _by_prompt(parts, prompts)])
    new = _decoded(net, parts[0], held, (ends + last).flatten(0, 1), vectors.repeat_interleave(prompts, 0), lengths, ids, sampling)
    return Steered(delta, last, new)


def _by_prompt(parts: Sequence[ReplayPart], prompts: int) -> list[tuple[ReplayPart, int]]:
    """The part of each prompt, and the prompt's place in it."""
    where = {i: (part, j) for part in parts for j, i in enumerate(part.group.prompts)}
    return [where[i] for i in range(prompts)]


def _place(held: RowKeys, part: ReplayPart, vectors: Int[np.ndarray, "n"], prompts: int, first: np.ndarray, below: bool) -> None:
    """Say which cells of a pass go to which row and column: those of all rows' passes, or below the source of one for all."""
    cells = np.concatenate(list(part.group.cells))
    prompt = np.repeat(part.group.prompts, [len(c) for c in part.group.cells])
    column = np.concatenate([np.arange(len(c)) for c in part.group.cells]) + first[prompt]
    row = (vectors[:, None] * prompts + prompt).ravel()
    source = np.repeat(np.arange(len(vectors)) * (not below), len(cells))
    parts = (source, np.tile(cells, len(vectors)), row, np.tile(column, len(vectors)))
    a, b, c, d = (torch.from_numpy(np.asarray(x, dtype=np.int64)).to(part.net.device) for x in parts)
    held.prompts((a, b), (c, d))


def _decoded(
    net: GeneratingNetwork,
    part: ReplayPart,
    held: RowKeys,
    hidden: Float[Tensor, "row d_model"],
    added: Float[Tensor, "row d_model"],
    lengths: Int[np.ndarray, "row"],
    ids: Ragged,
    sampling: Sampling,
) -> list[tuple[Int[np.ndarray, "token"], bool]]:
    """The new tokens of each row after the last block's output at its last token; the vector of each row is added at the source."""
    count = len(lengths) // len(ids)
    choose = choice(sampling, sampling.draws([ids[i] for _ in range(count) for i in range(len(ids))]))
    stops, steps, longest = ends_of(net.model), sampling.max_new_tokens, int(lengths.max())
    new: list[list[int]] = [[] for _ in lengths]
    rows, ended = np.arange(len(lengths)), np.zeros(len(lengths), dtype=bool)
    cache, head = held.as_cache(), net.head()

    def add(value: Tensor) -> Tensor:
        return value + added[torch.from_numpy(rows).to(added.device)][:, None].to(value)

    with unhooked(net.model):
        x = hidden.to(net.model.dtype)
        logits = head(net.module.get_submodule(net.tap(net.last).path)(x) if net.last.kind == "final_norm" else x)
    with unhooked(net.model), net.taps.hooked([(net.write_tap(part.source), add)]):
        for step in range(steps):
            chosen = choose(logits, rows)
            for row, token in zip(rows, chosen.tolist()):
                if not ended[row]:
                    new[row].append(token)
                    ended[row] = token in stops
            if step == steps - 1 or ended.all():
                break
            kept = torch.from_numpy(np.flatnonzero(~ended[rows])).to(net.device)
            if 4 * len(kept) <= 3 * len(rows):  # a quarter has ended
                held.keep(kept)
                rows, chosen = rows[~ended[rows]], chosen[kept]
            held.step(longest + step)
            at = torch.from_numpy(lengths[rows] + step).to(net.device)
            inputs = {"input_ids": chosen[:, None], "position_ids": at[:, None], net.cache_name: cache}
            logits = net.model(**inputs, **net.plain(use_cache=True)).logits[:, -1]
    return [(np.array(tokens, dtype=np.int64), bool(end)) for tokens, end in zip(new, ended)]
