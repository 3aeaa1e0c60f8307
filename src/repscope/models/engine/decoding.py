"""Continuation of token ids with keys and values in buffers of their own, faster than transformers' `generate`.

1. Distinct prompts run once, packed without padding, shared beginnings once (`packed_pass`; under edits each prompt by itself);
   where packing saves nothing, in batches padded on the right. Their keys and values are copied to every row that begins with them
   (`row_cache`). There the effect of edits is seen on one prompt, as edits without effect are refused.
2. The head reads the last token of each distinct prompt.
3. A step runs one token per row, each at its own position.
4. Rows that have ended leave the buffers when enough have.

Knows token ids and how tokens are chosen (`generation.Choice`), and nothing of texts. Whether it agrees with plain passes is tried
on each network before it is used.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.models.engine.attention_probe import PARTS
from repscope.models.engine.base import tapped
from repscope.models.engine.edit_positions import effect_shows
from repscope.models.engine.generation import Choice
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.packed_pass import run_packed
from repscope.models.engine.planner import Plan
from repscope.models.engine.positions import CollectedRows, RequestedRows, padded
from repscope.models.engine.prefix_tree import Pack
from repscope.models.engine.row_cache import RowKeys
from repscope.models.engine.token_network import PaddedReader, TokenNetwork
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sites import Tokens

Cells = Int[np.ndarray, "n"]
EffectCheck = Callable[[bool], None]  #: that edits change something, unless it is known to have been seen

_LEAVE = 8  #: ended rows that are worth a copy of the others' keys and values, if they are a quarter of all
_LAST = Tokens("last")


def cannot_decode(net: TokenNetwork) -> str:
    """Why a network is not continued this way, as far as known without a forward pass; empty if no reason is found."""
    if net.anatomy is None or not net.takes_cache:
        return "it takes no cache of keys and values"
    if hasattr(net.model, "_orig_mod") or hasattr(net.model, "peft_config"):
        return "it is compiled or has an adapter"
    if "position_ids" not in inspect.signature(net.model.forward).parameters:
        return "it takes no token positions"
    if any(net.write_tap(i.site).part in PARTS for i in net.installed if not i.asleep):
        return "edits reach into attention"
    return ""


def decoded(
    net: TokenNetwork,
    ids: Ragged,
    numbers: Int[np.ndarray, "row"],
    choose: Choice,
    steps: int,
    ends: Collection[int] = (),
    on_tokens: Callable[[Int[np.ndarray, "row"]], None] | None = None,
    batch_tokens: int | None = None,
    check: EffectCheck | None = None,
) -> list[tuple[Int[np.ndarray, "token"], bool]]:
    """The new tokens of each row up to one of `ends`, and whether that occurred.

    numbers: prompt indices of the rows, for the installed edits. on_tokens: called at each step with the new token of every row;
    what it gets for rows that have ended means nothing. batch_tokens: of a pass over prompts. check: called before the first token
    is chosen, with whether the installed edits change what is predicted after a prompt.
    """
    rows, lengths = np.arange(len(ids)), ids.lengths
    longest = int(lengths.max())
    new: list[list[int]] = [[] for _ in rows]
    ended = np.zeros(len(rows), dtype=bool)
    shown = np.zeros(len(rows), dtype=np.int64)
    held = RowKeys(longest - lengths, longest + steps - 1, net.device)
    cache = held.as_cache()
    with unhooked(net.model), net.taps.settled() as state:
        logits = _after_prompts(net, ids, numbers, held, batch_tokens, check)
        state.rewind()
        for step in range(steps):
            chosen = choose(logits, rows)
            shown[rows] = chosen.cpu().numpy()
            for row in rows[~ended[rows]]:
                new[row].append(int(shown[row]))
                ended[row] = new[row][-1] in ends
            if on_tokens is not None:
                on_tokens(shown.copy())
            if step == steps - 1 or ended.all():
                break
            leaving = int(ended[rows].sum())
            if leaving >= _LEAVE and 4 * leaving >= len(rows):
                kept = torch.from_numpy(np.flatnonzero(~ended[rows])).to(net.device)
                held.keep(kept)
                rows, chosen = rows[~ended[rows]], chosen[kept]
            positions = torch.from_numpy(lengths[rows] + step).to(net.device)
            held.step(longest + step)
            with net.announced(numbers[rows], longest - lengths[rows]):
                inputs = {"input_ids": chosen[:, None], "position_ids": positions[:, None], net.cache_name: cache}
                logits = net.model(**inputs, **net.plain(use_cache=True)).logits[:, -1]
            if not held.attention.calls:
                raise NotImplementedError("attention by other functions than torch's scaled_dot_product_attention")
    return [(np.array(tokens, dtype=np.int64), bool(end)) for tokens, end in zip(new, ended)]


def _after_prompts(
    net: TokenNetwork,
    ids: Ragged,
    numbers: Int[np.ndarray, "row"],
    held: RowKeys,
    batch_tokens: int | None,
    check: EffectCheck | None,
) -> Float[Tensor, "row vocab"]:
    """The logits after each prompt, whose keys and values are put into the buffers of its rows.

    The shortest prompt is in a pack a second time, without the edits, so that the pass shows their effect.
    """
    head, count, shortest = net.head(), len(ids), int(ids.lengths.argmin())
    edited = any(not installed.asleep for installed in net.installed)
    first = ids.lengths.max() - ids.lengths
    planned = net.planned(ids, batch_tokens, [net.last], prefix=False)
    if check is not None and edited and planned.tree is not None:
        untouched = max(len(installed.start) - 1 for installed in net.installed if installed.start is not None)
        more = net.planned(Ragged.of([*ids, ids[shortest]]), batch_tokens, [net.last], prefix=False)
        if more.tree is not None:
            planned, numbers = more, np.append(numbers, untouched)
    inverse, distinct = planned.inverse, planned.ids
    rows = [np.flatnonzero(inverse[:count] == i) for i in range(len(distinct))]
    planned = replace(planned, inverse=np.arange(len(distinct)))
    encoded, hidden = Encoded(distinct, distinct.lengths - 1, distinct.lengths), CollectedRows()
    if planned.tree is not None:
        cache = held.as_cache()

        def cached(pack: Pack) -> object:
            source_row, column, row, position = _pack_cells(planned, pack, rows)
            _place(held, source_row, column, row, position + first[row], net.device)
            return cache

        run_packed(net, [net.last], encoded, planned, _LAST, hidden, cached, numbers if edited else None)
    else:
        _run_padded(net, planned, encoded, hidden, rows, numbers, held, first)
    last = hidden[net.last]
    if check is not None:
        check(len(distinct) > count and effect_shows(last[shortest], last[count]))
    logits = head(last[:, None])[:, -1]
    return logits[torch.from_numpy(inverse[:count]).to(logits.device)]


def _run_padded(
    net: TokenNetwork,
    planned: Plan,
    encoded: Encoded,
    hidden: CollectedRows,
    rows: Sequence[Int[np.ndarray, "row"]],
    numbers: Int[np.ndarray, "row"],
    held: RowKeys,
    first: Int[np.ndarray, "row"],
) -> None:
    cache = held.as_cache()
    reader = PaddedReader(RequestedRows(encoded, _LAST, planned.inverse, net.device), hidden, planned)
    with tapped(net.taps, [(net.tap(net.last), lambda value: reader(net.last, value))]) as run:
        for batch in planned.batches:
            ids, lengths = padded([planned.ids[i] for i in batch], net.pad)
            reader.begin(batch, ids.shape[1])
            each = [(row, i) for row, i in enumerate(batch) for _ in rows[i]]
            source_row = np.array([row for row, _ in each])
            target_row = np.concatenate([rows[i] for i in batch])
            n = lengths[source_row]
            column = np.concatenate([np.arange(size) for size in n])
            to = np.repeat(target_row, n)
            _place(held, np.repeat(source_row, n), column, to, column + first[to], net.device)
            inputs = {"input_ids": torch.from_numpy(ids).to(net.device), net.cache_name: cache}
            with net.announced(numbers[[rows[i][0] for i in batch]]):
                run(**inputs, **net.plain(use_cache=True))


def _pack_cells(planned: Plan, pack: Pack, rows: Sequence[Int[np.ndarray, "row"]]) -> tuple[Cells, Cells, Cells, Cells]:
    """Which tokens of a pack go to which row and position: those of a segment to every row below it."""
    tree = planned.tree
    assert tree is not None
    source, target, position = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    base = 0
    for segment in range(pack.first, pack.last):
        size = int(tree.stop[segment] - tree.start[segment])
        below = np.flatnonzero((tree.leaf >= segment) & (tree.leaf < tree.end[segment]))
        to = np.concatenate([rows[int(i)] for i in below])
        source.append(np.tile(base + np.arange(size), len(to)))
        target.append(np.repeat(to, size))
        position.append(np.tile(np.arange(tree.start[segment], tree.stop[segment]), len(to)))
        base += size
    tokens = np.concatenate(source)
    return np.zeros_like(tokens), tokens, np.concatenate(target), np.concatenate(position)


def _place(
    held: RowKeys,
    source_row: Int[np.ndarray, "n"],
    source_column: Int[np.ndarray, "n"],
    row: Int[np.ndarray, "n"],
    column: Int[np.ndarray, "n"],
    device: torch.device,
) -> None:
    a, b, c, d = (torch.from_numpy(np.asarray(x, dtype=np.int64)).to(device) for x in (source_row, source_column, row, column))
    held.prompts((a, b), (c, d))
