"""Stacked small transformers: every weight has a leading axis of runs for batched products.

Takes weights as a dictionary (names of `small`, a run axis in front) and ids; gives logits by run. Two paths, proved equal to the
plain module in the tests:

1. `logits`, `words`: differentiable, each run with ids of its own. In the last block only the token that is read asks: one query,
   one MLP a text.
2. `classify`: no gradients, one set of texts for all runs, as interpolated networks are evaluated.
   a. In the first block a token's state depends on its word and its place alone, of which there are few: the exponentials of
      scores and what each head writes of a value are made once for each (pair of) these and looked up.
   b. In the last block queries go through the keys' weights, and weighted means of states through the values' and the output's, so
      that no key or value is ever made.
   c. A norm's gain and shift go into the weights that follow it. Chunks of runs and texts stay inside the processor's cache.
   Where a look-up table under- or overflows, the chunk is run by the plain path.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope.models.loading.stacked_weights import Shape, State, runs_of

Part = TypeVar("Part")

_EPS = 1e-5  #: of torch's layer norms
_ROWS = 5120  #: runs × texts × tokens of a chunk: its tensors stay in the cache
_RUNS = 4


def logits(shape: Shape, state: State, ids: Int[Tensor, "run example token"]) -> Float[Tensor, "run example class"]:
    """Logits of classes, each run on ids of its own (a run axis of one is for all). Differentiable."""
    x = _embedded(shape, state, ids)
    for block in range(shape.blocks):
        x = _block(shape, state, x, block, first=block == shape.blocks - 1)
    read = _norm(x[:, :, 0], state, "ln_final")
    return _linear(read, state, "head")


def words(
    shape: Shape, state: State, ids: Int[Tensor, "run example token"], places: Int[Tensor, "run example"]
) -> Float[Tensor, "run example vocabulary"]:
    """Logits of words at one place of each text. Differentiable."""
    x = _embedded(shape, state, ids)
    for block in range(shape.blocks):
        x = _block(shape, state, x, block)
    where = places[..., None, None].expand(*places.shape, 1, x.shape[-1])
    read = _norm(x.gather(2, where)[:, :, 0], state, "ln_final")
    return torch.bmm(read, state["unembed.weight"].mT)


@torch.no_grad()
def classify(shape: Shape, state: State, ids: Int[Tensor, "example token"]) -> Float[Tensor, "run example class"]:
    """Logits of classes of the same texts for every run; see the module."""
    if shape.blocks < 2:
        return logits(shape, state, ids[None])
    found = torch.empty(runs_of(state), len(ids), shape.classes)
    step = max(1, _ROWS // (_RUNS * shape.tokens))
    codes, inverse = torch.unique(ids + shape.vocabulary * torch.arange(ids.shape[1]), return_inverse=True)

    @torch.no_grad()  # a thread of its own does not inherit it
    def group(start: int) -> None:
        held = {name: value[start : start + _RUNS] for name, value in state.items()}
        table = _Table(shape, held, codes)
        folded = [_Folded(shape, held, block) for block in range(shape.blocks)]
        scratch = _Scratch()
        for a in range(0, len(ids), step):
            part = _classified(shape, held, table, folded, inverse[a : a + step], scratch)
            if not torch.isfinite(part).all():
                part = logits(shape, held, ids[None, a : a + step])
            found[start : start + _RUNS, a : a + step] = part

    in_threads(group, range(0, runs_of(state), _RUNS))
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Set torch to one thread and restore the user's setting afterwards.

    Small products are fastest on one thread, and sums split over threads round differently.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_threads(work: Callable[[Part], None], starts: Sequence[Part]) -> None:
    """Work on each part, as many at once as torch has threads, each on one: small products gain nothing from being divided."""
    threads = min(torch.get_num_threads(), len(starts))
    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(work, starts))


# ---------------------------------------------------------------------------------------------- the differentiable path


def _embedded(shape: Shape, state: State, ids: Int[Tensor, "run example token"]) -> Float[Tensor, "run example token width"]:
    table = state["embed.weight"]
    if len(ids) == 1:
        found = table[:, ids[0]]
    else:
        offsets = shape.vocabulary * torch.arange(len(table))[:, None, None]
        found = functional.embedding(ids + offsets, table.flatten(0, 1))
    return found + state["position.weight"][:, None]


def _block(shape: Shape, state: State, x: Tensor, block: int, *, first: bool = False) -> Tensor:
    """One block over (run, example, token, width); with `first` only the first token asks and goes on."""
    name = f"blocks.{block}."
    runs, texts = x.shape[:2]
    a = _norm(x, state, name + "ln1")
    asking, kept = (a[:, :, :1], x[:, :, :1]) if first else (a, x)
    q = _by_head(shape, torch.bmm(asking.flatten(1, 2), state[name + "q.weight"].mT), runs * texts)
    both = torch.cat([state[name + "k.weight"], state[name + "v.weight"]], 1)
    kv = torch.bmm(a.flatten(1, 2), both.mT).view(runs * texts, shape.tokens, 2, shape.heads, -1)
    k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
    mixed = (weights @ v).transpose(1, 2).reshape(runs, -1, shape.width)
    x = torch.baddbmm(kept.flatten(1, 2), mixed, state[name + "o.weight"].mT)
    hidden = torch.relu(_linear(_norm(x, state, name + "ln2"), state, name + "up"))
    return (x + _linear(hidden, state, name + "down")).view(runs, texts, -1, shape.width)


def _by_head(shape: Shape, x: Tensor, texts: int) -> Tensor:
    return x.view(texts, -1, shape.heads, shape.width // shape.heads).transpose(1, 2)


def _norm(x: Tensor, state: State, name: str) -> Tensor:
    by_run = (len(x), *[1] * (x.ndim - 2), -1)
    normed = functional.layer_norm(x, x.shape[-1:], eps=_EPS)
    return torch.addcmul(state[name + ".bias"].view(by_run), normed, state[name + ".weight"].view(by_run))


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return torch.baddbmm(state[name + ".bias"][:, None], x, state[name + ".weight"].mT)


# ---------------------------------------------------------------------------------------------- texts that all runs share


class _Table:
    """What the first block needs of each (word, place) that occurs, and of each pair of them."""

    def __init__(self, shape: Shape, state: State, codes: Int[Tensor, "code"]) -> None:
        runs, n, heads, inner = runs_of(state), len(codes), shape.heads, shape.width // shape.heads
        self.size = n
        self.states = state["embed.weight"][:, codes % shape.vocabulary] + state["position.weight"][:, codes // shape.vocabulary]
        a = _norm(self.states, state, "blocks.0.ln1")
        q, k, v = (torch.bmm(a, state[f"blocks.0.{p}.weight"].mT).view(runs, n, heads, inner) for p in "qkv")
        scores = torch.einsum("rahi,rbhi->rahb", q, k) / math.sqrt(inner)
        # A text has only some of these keys: the largest of all is a bound. A text whose keys all lie far below it divides by zero,
        # which is not finite, and takes the plain path.
        self.exponentials = (scores - scores.amax(-1, keepdim=True)).exp_().reshape(runs, n * heads * n)
        o = state["blocks.0.o.weight"].view(runs, shape.width, heads, inner)
        self.values = torch.einsum("rbhi,rwhi->rbhw", v, o).reshape(runs, n * heads, shape.width)


class _Folded:
    """A block's weights with the gains and shifts of its norms taken in."""

    def __init__(self, shape: Shape, state: State, block: int) -> None:
        name, runs, d, heads = f"blocks.{block}.", runs_of(state), shape.width, shape.heads
        self.o = state[name + "o.weight"].mT
        gain, shift = state[name + "ln2.weight"], state[name + "ln2.bias"]
        up = state[name + "up.weight"]
        self.up = (up * gain[:, None]).mT
        self.up_bias = torch.baddbmm(state[name + "up.bias"][:, None], shift[:, None], up.mT)
        self.down, self.down_bias = state[name + "down.weight"].mT, state[name + "down.bias"][:, None]
        gain, shift = state[name + "ln1.weight"][:, None], state[name + "ln1.bias"][:, None]
        q, k, v = (state[f"{name}{p}.weight"] for p in "qkv")
        both = torch.cat([q, k, v], 1)
        self.qkv, self.qkv_bias = (both * gain).mT, torch.bmm(shift, both.mT)
        # For the last block, by head: queries through keys, and values through the output. A shift in the keys moves all scores
        # of a
        # query alike, and drops out; one in the values is added once, as weights sum to 1.
        by_head = [w.view(runs, heads, -1, d) for w in (q, k * gain, v * gain)]
        out = state[name + "o.weight"].view(runs, d, heads, -1)
        asks = torch.einsum("rhid,rhie->rdhe", by_head[0], by_head[1]).reshape(runs, d, heads * d)
        self.asks, self.asks_bias = asks * gain.mT, torch.bmm(shift, asks)
        self.mix = torch.einsum("rhid,rwhi->rhdw", by_head[2], out).reshape(runs, heads * d, d)
        self.mix_bias = torch.bmm(torch.bmm(shift, v.mT), self.o)


class _Scratch:
    """Room for intermediate results, the same for every chunk: what was just written is still in the processor's cache."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Room of that name and shape, whatever was in it."""
        size = math.prod(shape)
        if name not in self._held or self._held[name].numel() < size:
            self._held[name] = torch.empty(size)
        return self._held[name][:size].view(shape)


def _classified(
    shape: Shape, state: State, table: _Table, folded: list[_Folded], inverse: Int[Tensor, "example token"], room: _Scratch
) -> Float[Tensor, "run example class"]:
    runs, (texts, tokens) = runs_of(state), inverse.shape
    heads, width = shape.heads, shape.width
    head = torch.arange(heads)
    asking = inverse[:, :, None] * heads + head  # example, token, head
    pairs = (asking[..., None] * table.size + inverse[:, None, None]).flatten()
    weights = torch.index_select(table.exponentials, 1, pairs, out=room("weights", runs, len(pairs))).view(-1, tokens)
    weights.div_(torch.mv(weights, weights.new_ones(tokens), out=room("sums", len(weights)))[:, None])
    keys = (inverse[:, None] * heads + head[:, None]).flatten()  # in the order of the weights: head, token
    values = torch.index_select(table.values, 1, keys, out=room("values", runs, len(keys), width))
    x = torch.index_select(table.states, 1, inverse.flatten(), out=room("x", runs, texts * tokens, width))
    torch.baddbmm(
        x.view(runs * texts, tokens, width),
        weights.view(runs * texts, tokens, -1),
        values.view(runs * texts, -1, width),
        out=room("y", runs * texts, tokens, width),
    )
    y = _mlp(room("y", runs, texts * tokens, width), folded[0], room, "x")
    for block in folded[1:-1]:
        y = _mlp(_attended(shape, y, block, texts, room), block, room, "x")
    y = _mlp(_asked(shape, y, folded[-1], texts, room), folded[-1], room, "z")
    read = _centred(y, room)
    gain, shift, out = state["ln_final.weight"], state["ln_final.bias"], state["head.weight"]
    bias = torch.baddbmm(state["head.bias"][:, None], shift[:, None], out.mT)
    return torch.baddbmm(bias, read, (out * gain[:, None]).mT)


def _centred(x: Tensor, room: _Scratch) -> Tensor:
    """A layer norm without gain and shift; torch's own is three times slower on rows this short."""
    runs, rows, width = x.shape
    means = x.new_full((width,), 1 / width)  # sums over short rows are quicker as products
    found, squares, along = room("centred", *x.shape), room("squares", *x.shape), room("means", runs * rows)
    torch.mv(x.reshape(-1, width), means, out=along)
    torch.sub(x, along.view(runs, rows, 1), out=found)
    torch.mul(found, found, out=squares)
    torch.mv(squares.view(-1, width), means, out=along)
    return found.mul_(along.add_(_EPS).rsqrt_().view(runs, rows, 1))


def _mlp(x: Tensor, block: _Folded, room: _Scratch, into: str) -> Tensor:
    hidden = room("hidden", *x.shape[:2], block.up.shape[2])
    torch.baddbmm(block.up_bias, _centred(x, room), block.up, out=hidden).relu_()
    return torch.baddbmm(x, hidden, block.down, out=room(into, *x.shape)).add_(block.down_bias)


def _attended(shape: Shape, x: Tensor, block: _Folded, texts: int, room: _Scratch) -> Tensor:
    runs, rows, width = x.shape
    qkv = torch.baddbmm(block.qkv_bias, _centred(x, room), block.qkv).view(runs * texts, -1, 3, shape.heads, width // shape.heads)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
    mixed = (weights @ v).transpose(1, 2).reshape(runs, rows, width)
    return torch.baddbmm(x, mixed, block.o, out=room("y", runs, rows, width))


def _asked(shape: Shape, x: Tensor, block: _Folded, texts: int, room: _Scratch) -> Tensor:
    """Attention of the first token alone: (run, example, width)."""
    runs, rows, width = x.shape
    a = _centred(x, room).view(runs, texts, rows // texts, width)
    asks = torch.baddbmm(block.asks_bias, a[:, :, 0], block.asks).view(runs, texts, shape.heads, width)
    weights = torch.softmax((asks @ a.mT).div_(math.sqrt(width // shape.heads)), -1)
    mixed = torch.bmm((weights @ a).view(runs, texts, -1), block.mix).add_(block.mix_bias)
    return mixed.add_(x.view(runs, texts, -1, width)[:, :, 0])
