"""Whether prompts are packed under edits: what is known without a pass, and the trial that compares packed with plain passes.

In a pack (`packed_pass`) an edit finds its prompts by the columns of the one row. Each prompt is a segment of its own there: what
two of them share may be edited in one and not in the other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from repscope.models.edits import EVERYWHERE, Installed
from repscope.models.engine.attention_probe import PARTS
from repscope.models.engine.base import BaseNetwork, tapped
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.packed_pass import run_packed
from repscope.models.engine.planner import packed
from repscope.models.engine.positions import CollectedRows
from repscope.models.engine.proved_network import STOPS, ProvedNetwork
from repscope.models.prompts import Encoded, Ragged
from repscope.models.sites import Site, Tokens


def cannot_place(net: BaseNetwork, edits: Sequence[Installed]) -> str:
    """Why edits do not find their positions in packs, as far as known without a forward pass; empty if no reason is found."""
    for installed in edits:
        if installed.start is None or installed.edit.function is not None or installed.site.kind == "module":
            return f"{installed.edit} finds its positions in rows"
        if net.write_tap(installed.site).part in PARTS or installed.edit.axis != -1:
            return f"{installed.edit} finds its positions in rows"
    return ""


def kinds_of(net: BaseNetwork, edits: Sequence[Installed]) -> str:
    """What a trial of these edits holds for: sites and operations of the same kinds, in modules of the same classes."""
    found = []
    for installed in edits:
        tap, edit = net.write_tap(installed.site), installed.edit
        where = (type(net.module.get_submodule(tap.path)).__name__, tap.side, tap.part, tap.flat, tap.head is not None)
        found.append((installed.site.kind, edit.kind, edit.tokens == "all", edit.per_prompt, *where))
    return " ".join(map(str, sorted(set(found))))


def edited_packing_differs(net: ProvedNetwork, edits: Sequence[Installed], last: Site, lengths: Sequence[int]) -> str:
    """Why packing changes the output of the edited network; empty if it does not.

    Random prompts are packed under the installed edits, which act inside each on tokens of its own, and compared with each alone.
    """
    most = min((len(i.edit.arrays["vector"]) for i in edits if i.edit.per_prompt), default=len(lengths))
    ids = Ragged.of(net.trial(lengths)[: max(1, most)])
    rows, alone = CollectedRows(), list[Tensor]()
    plan, numbers = packed(ids, len(ids.flat), share=False), np.arange(len(ids))
    with _aimed(edits, ids):
        try:
            run_packed(net, [last], Encoded.whole(ids), plan, Tokens("all"), rows, numbers=numbers)
        except STOPS as error:
            return f"an edited packed pass stops with {type(error).__name__}"
        with unhooked(net.module), tapped(net.taps, [(net.tap(last), alone.append)]) as run:
            for number, row in enumerate(ids):
                with net.announced(np.array([number])):
                    run(**net.inputs(row[None], np.array([len(row)]), None))
    ours = torch.split(rows[last], ids.lengths.tolist())
    same = all(net.agree(mine, hidden[0]) for mine, hidden in zip(ours, alone, strict=True))
    return "" if same else "packed under edits, prompts come out otherwise"


@contextmanager
def _aimed(edits: Sequence[Installed], ids: Ragged) -> Iterator[None]:
    """Let edits act on the prompts of a trial: on a part of each, or everywhere if they do so; what they note is forgotten."""
    before = [(i.start, i.stop, i.hit, i.moved) for i in edits]
    first = ids.lengths // 3
    try:
        for installed in edits:
            everywhere = np.full(len(ids), EVERYWHERE)
            installed.start, installed.stop = first, first + 1 + ids.lengths // 3
            if installed.edit.tokens == "all":
                installed.start, installed.stop = -everywhere, everywhere
        yield
    finally:
        for installed, held in zip(edits, before):
            installed.start, installed.stop, installed.hit, installed.moved = held
