"""The last block of a pass: its MLP runs only on the tokens that are read.

Nothing is computed after the last requested site, so the rows of other tokens behind the attention of its block serve nobody. They
are not computed, and are zeros. Attention runs as ever, as it needs the keys and values of all tokens.

That an MLP maps each token by itself is not looked up: a packed pass with and without this is compared once for each kind of block.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.models.engine.base import BaseNetwork
from repscope.models.sites import Site

_WORTH = 256  #: tokens of a run above which the trial, of some twenty tokens, is worth it
_BEHIND = ("mlp_out", "resid_post")  #: sites of a block that may be read behind its MLP


class LastMLP:
    """Hooks on the MLP of the last block. rows: (token), the tokens of the next pass that are read; None for all."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.rows: Int[Tensor, token] | None = None
        self._tokens = 0

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Before other hooks are attached, so that these see rows of all tokens behind the MLP."""
        handles = [
            self.module.register_forward_pre_hook(self._narrow, with_kwargs=True),
            self.module.register_forward_hook(self._widen),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _narrow(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.rows is None:
            return None
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise NotImplementedError("an MLP of several arguments")
        self._tokens = args[0].shape[-2]
        return (args[0].index_select(-2, self.rows),), {}

    def _widen(self, _: nn.Module, args: Any, output: Any) -> Tensor | None:
        if self.rows is None:
            return None
        if not isinstance(output, Tensor):
            raise NotImplementedError("an MLP of several results")
        whole: Float[Tensor, "*row token feature"] = output.new_zeros(*output.shape[:-2], self._tokens, output.shape[-1])
        return whole.index_copy_(-2, self.rows, output)


def last_mlp(net: BaseNetwork, sites: Sequence[Site]) -> LastMLP | None:
    """The MLP of the last block that these sites, in the order of the pass, need; None if all its tokens may be read or changed.

    It is the module around the projection of its neurons.
    """
    last = sites[-1]
    if net.anatomy is None or last.kind not in _BEHIND or any(site.kind == "module" for site in sites):
        return None
    layer = last.layer
    neurons = net.anatomy.taps.get(Site("mlp_act", layer))
    block = net.anatomy.taps[Site("resid_post", layer)].path
    if neurons is None or any(site.kind == "mlp_act" and site.layer == layer for site in sites):
        return None
    path = neurons.path.rpartition(".")[0]
    if not path.startswith(f"{block}."):
        return None
    return LastMLP(net.module.get_submodule(path))


def worth_narrowing(tokens: int, read: int) -> bool:
    """Whether a run over so many tokens, of which so many are read at most, saves more than a trial costs."""
    return tokens >= _WORTH and 2 * read <= tokens


def kind_of(net: BaseNetwork, sites: Sequence[Site], mlp: LastMLP) -> str:
    """What a trial holds for: blocks of one class with MLPs of one class, read at one kind of site."""
    assert net.anatomy is not None
    block = net.module.get_submodule(net.anatomy.taps[Site("resid_post", sites[-1].layer)].path)
    parts = " ".join(f"{name}:{type(module).__name__}" for name, module in block.named_modules())
    return f"last block {sites[-1].kind} {type(mlp.module).__name__} {parts}"


def distinct_cells(cells: Int[Tensor, "position"], tokens: int) -> Int[Tensor, "token"] | None:
    """The tokens of a pack that are read, each once; None if they are more than half, which is not worth it."""
    read: Tensor = torch.unique(cells)
    return read if 2 * len(read) <= tokens else None
