"""Positions of edits in each prompt, and the check that edits change the requested rows.

1. An edit's choice of tokens is resolved to a first position and one after the last, relative to each prompt.
2. Before an operation, one prompt runs twice in one batch, with and without edits. If its rows differ by more than rounding, the
   edits work; else the prompt runs again alone, both ways, and is compared bit for bit. An edit without effect is an error.
   Generation sees the effect within its pass over the prompts (`decoding`), where it shows there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from repscope.errors import UserError, unknown
from repscope.models.edits import EVERYWHERE, WHERE
from repscope.models.engine.positions import CollectedRows
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.prompts import Encoded, Prompt, Ragged, encode, token_ends
from repscope.models.sites import PICKS, Site, Tokens

_TRIED = 4  #: prompts, the shortest first, on which an edit is tried before it is refused as without effect
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
_LOW = 3e-2
_CHUNK = 64
_BATCH_TOKENS = 1024


def resolve_edit_positions(
    net: TokenNetwork, tokenizer: Any, prompts: Any, ids: Ragged, ends: Int[np.ndarray, "prompt"] | None = None
) -> None:
    """Set the positions of the installed edits; `ends` is the end of each prompt, where generated tokens begin.

    An additional last entry represents a row without edits.

    Raises a `UserError` for an absent span, a prompt too short for an index, or a number of vectors other than one per prompt.
    """
    stop = ids.lengths if ends is None else ends
    everywhere = np.full(len(ids), EVERYWHERE)
    for installed in net.installed:
        edit = installed.edit
        if edit.per_prompt and len(edit.arrays["vector"]) != len(ids):
            held = len(edit.arrays["vector"])
            raise UserError(f"{edit} has {held} vectors for {len(ids)} prompts; give one for each.")
        if edit.tokens == "all":
            first, last = -everywhere, everywhere
        elif edit.tokens == "prompt":
            first, last = np.zeros_like(stop), stop
        elif edit.tokens == "generated":
            first, last = stop, everywhere
        elif edit.picked.span:
            _see_span(edit.picked.span, prompts)
            spans = encode(tokenizer, prompts, edit.picked, causal=net.causal)
            first, last = spans.start, spans.stop
        else:
            first, last = token_ends(edit.picked, stop)
        installed.start, installed.stop = np.append(first, EVERYWHERE), np.append(last, EVERYWHERE)


def check_effect(net: TokenNetwork, encoded: Encoded, sites: Sequence[Site], picked: Tokens) -> None:
    """Check on a few prompts that the installed edits, with resolved positions, change a requested row.

    Raises a `UserError` when they change none.
    """
    untouched = len(encoded.ids)
    order = np.argsort(encoded.ids.lengths, kind="stable")
    for i in order[:_TRIED]:
        both = _rows(net, encoded, sites, picked, [i, i], [i, untouched])
        for rows in both:
            if effect_shows(*rows.chunk(2)):
                return
        edited_alone, plain_alone = (_rows(net, encoded, sites, picked, [i], [n]) for n in (i, untouched))
        if any(not torch.equal(a, b) for a, b in zip(edited_alone, plain_alone)):
            return
    for begin in range(_TRIED, len(order), _CHUNK):
        # None of those: the edits may act on few prompts only. Compare the same batches with and without edits, bit for bit.
        which = list(order[begin : begin + _CHUNK])
        edited_rows, plain_rows = (_rows(net, encoded, sites, picked, which, n) for n in (which, [untouched] * len(which)))
        if any(not torch.equal(a, b) for a, b in zip(edited_rows, plain_rows)):
            return
    named = ", ".join(str(installed.edit) for installed in net.installed)
    at = ", ".join(str(site) for site in sites[:3])
    where = "no logit" if list(sites) == [net.last] else f"nothing at {at} ({picked})"
    raise UserError(f"{named} changes {where}; edit an earlier site, other tokens, or with a vector of larger norm.")


def effect_shows(edited: Tensor, plain: Tensor) -> bool:
    """Whether rows of one batch, with and without edits, differ by more than rounding."""
    a, b = edited.double(), plain.double()
    return bool((a - b).norm() > 10 * _ROUNDING.get(plain.dtype, _LOW) * b.norm())


def _rows(
    net: TokenNetwork, encoded: Encoded, sites: Sequence[Site], picked: Tokens, which: Sequence[int], numbers: Sequence[int]
) -> list[Tensor]:
    """The rows of some prompts at each site, run one by one; `numbers` are their prompt indices for the edits."""
    some = Encoded(encoded.ids.take(np.array(which)), encoded.start[list(which)], encoded.stop[list(which)])
    rows = CollectedRows()
    net.run(sites, some, net.planned(some.ids, _BATCH_TOKENS, share=False), picked, rows, np.array(numbers))
    return [rows[site] for site in sites]


def _see_span(span: str, prompts: Any) -> None:
    """Check that a span is in the prompts.

    Raises a `UserError` when it is not; suggests the available spans and other choices of tokens.
    """
    for prompt in prompts:
        spans = prompt.spans if isinstance(prompt, Prompt) else ()
        if span not in spans:
            raise unknown("choice of tokens", span, (*spans, *PICKS, *WHERE), "A span's name needs a Prompt that has it.")
