"""Anatomy: where the sites of a transformer are, found from the structure of the module and proved by one small forward pass.

Knows modules and tensors, never text, and holds no table of model names.

1. The blocks are the `ModuleList` of like children that holds the most parameters and has attention inside.
2. One forward pass of two short prompts, which differ in their last token, records what every module inside takes and gives.
3. In each block, with x its input and y its output, look for the module outputs a (under or right after attention) and m with
       sequential   x + a = mid,  mid + m = y        mid is what the norm before the MLP takes
       parallel     x + a + m = y                    there is no mid: both branches read x
       post-norm    norm(x + a) = mid,  norm(mid + m) = y
   The outermost modules that satisfy it are the sites. A block in which none do has no such sites, and the reason is kept.
4. The network is causal when the last token changes nothing before it. It may then be padded on the right without a mask,
   and a shared prefix may be computed once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repscope.models.sites import KINDS, Site

Form = Literal["sequential", "parallel", "post-norm", "unknown"]
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  #: relative; wider than rounding, far below any wrong choice
_LOW_PRECISION = 3e-2


@dataclass(frozen=True)
class Tap:
    """Where a site is read: the input or the output of the module at a path."""

    path: str
    side: Literal["in", "out"]


@dataclass(frozen=True)
class Anatomy:
    """The sites of one network.

    taps: site → where to read it. refused: kind → why this network has none. blocks: how many. form: how blocks add up.
    causal: whether later tokens leave earlier ones as they are. error: the largest relative error of the identities.
    width: features of the residual stream.
    """

    taps: Mapping[Site, Tap]
    refused: Mapping[str, str]
    blocks: int
    form: Form
    causal: bool
    error: float
    width: int


@dataclass
class _Seen:
    """What one module took and gave, in the order of calls."""

    path: str
    module: nn.Module
    order: int
    taken: Tensor | None
    given: Tensor | None


@dataclass
class _Found:
    taps: dict[str, Tap]
    form: Form
    error: float
    refused: dict[str, str] = field(default_factory=dict)


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or mapping: blocks return either, by family and version."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return next((v for v in value if isinstance(v, Tensor)), None)
    return None


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The hidden states among a module's arguments, wherever the caller put them."""
    if args and (found := first_tensor(args[0])) is not None:
        return found
    named = kwargs.get("hidden_states", kwargs.get("x"))
    return named if isinstance(named, Tensor) else None


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; each submodule's training flag is as before afterwards."""
    training = [m for m in module.modules() if m.training]
    try:
        for m in training:
            m.training = False
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True


def find_blocks(module: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The path and the list of the transformer blocks, None where there is no such list."""
    lists = [
        (path, child)
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList)
        and len(child)
        and len({type(c) for c in child}) == 1
        and any(_is_attention(p, m) for p, m in child[0].named_modules() if p)
    ]
    return max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()), default=None)


def resolve(model: nn.Module, embedding: nn.Module, inputs: Mapping[str, Tensor]) -> Anatomy | None:
    """Find and prove the sites of a transformer.

    Parameters
    ----------
    model
        The network without its head. Left as it was.
    embedding
        Its input-embedding module.
    inputs
        Keyword arguments of one forward pass over two prompts of one length that differ in the last token only.

    Returns
    -------
    Anatomy or None
        None where there is no list of blocks with attention inside; such a network has `module:` sites only.
    """
    located = find_blocks(model)
    if located is None:
        return None
    prefix, blocks = located
    seen = _record(model, inputs)
    by_path = {s.path: s for s in seen}
    names = {id(m): p for p, m in model.named_modules()}
    taps: dict[Site, Tap] = {Site("embed"): Tap(names[id(embedding)], "out")}
    refused: dict[str, str] = {}
    forms: list[Form] = []
    worst = 0.0
    last: Tensor | None = None
    for layer in range(len(blocks)):
        path = f"{prefix}.{layer}"
        block = by_path.get(path)
        if block is None or block.taken is None or block.given is None or block.taken.shape != block.given.shape:
            for kind in KINDS:
                if KINDS[kind].per_block:
                    refused.setdefault(kind, f"block {layer} does not map one hidden state to another of its shape")
            continue
        inside = sorted((s for s in seen if s.path.startswith(path + ".")), key=lambda s: s.order)
        found = _block(block, inside)
        for kind, tap in found.taps.items():
            taps[Site(kind, layer)] = tap
        for kind, reason in found.refused.items():
            refused.setdefault(kind, f"block {layer}: {reason}")
        forms.append(found.form)
        worst = max(worst, found.error)
        last = block.given
    causal = False
    if last is not None:
        gap = (last[0, :-1] - last[1, :-1]).norm() / last[0, :-1].norm().clamp_min(1e-30)
        causal = bool(gap <= _tolerance(last.dtype))
        after = max(s.order for s in seen if s.path.startswith(prefix + "."))
        norm = next((s for s in seen if s.order > after and _same(s.taken, last) and _like(s.given, last)), None)
        if norm is not None:
            taps[Site("final_norm")] = Tap(norm.path, "out")
        else:
            refused["final_norm"] = "no norm takes the output of the last block"
    form: Form = forms[0] if forms and len(set(forms)) == 1 else "unknown"
    width = int(last.shape[-1]) if last is not None else 0
    ordered = dict(sorted(taps.items(), key=lambda item: item[0].depth))
    return Anatomy(ordered, refused, len(blocks), form, causal, worst, width)


def _record(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[_Seen]:
    """One forward pass; what each module took and gave at its first call, in the order in which they finished."""
    seen: dict[str, _Seen] = {}
    handles = []

    def hook_for(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if path not in seen:
                taken, given = hidden_argument(args, kwargs), first_tensor(output)
                seen[path] = _Seen(path, module, len(seen), _kept(taken), _kept(given))

        return hook

    try:
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_hook(hook_for(path), with_kwargs=True))
        with at_rest(model):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values())


def _kept(x: Tensor | None) -> Tensor | None:
    return x.detach().clone() if x is not None and x.is_floating_point() else None


def _block(block: _Seen, inside: list[_Seen]) -> _Found:
    """Find a block's parts among the modules inside it, in the order in which they finished."""
    x, y = block.taken, block.given
    assert x is not None
    assert y is not None
    base = {"resid_pre": Tap(block.path, "in"), "resid_post": Tap(block.path, "out")}
    written = [s for s in inside if _like(s.given, x)]
    # Outermost first: a module that only passes its child's output on is the one a reader would name.
    written.sort(key=lambda s: s.path.count("."))
    attention = [s for s in written if _under_attention(block.path, s, inside)]
    rest = [s for s in written if s not in attention]
    for a in attention:
        mid = x + _as(a.given, x)
        reader = next((s for s in inside if s.order >= a.order and _same(s.taken, mid)), None)
        for m in rest:
            if m.order <= a.order and m.path.startswith(a.path):
                continue
            error = _error(mid + _as(m.given, x), y)
            if error <= _tolerance(x.dtype):
                taps = base | {"attn_out": Tap(a.path, "out"), "mlp_out": Tap(m.path, "out")}
                taps |= _neurons(block.path, m, inside, x.shape[-1])
                if reader is not None:
                    return _Found(taps | {"resid_mid": Tap(reader.path, "in")}, "sequential", error)
                why = "attention and MLP both read the block's input (a parallel block), so there is no state between them"
                return _Found(taps, "parallel", error, {"resid_mid": why})
    for a in attention:
        # Post-norm: some norm takes x + a and gives mid; another takes mid + m and gives y.
        first = next((s for s in inside if s.order >= a.order and _same(s.taken, x + _as(a.given, x))), None)
        if first is None or first.given is None or not _like(first.given, x):
            continue
        mid = first.given
        for m in rest:
            total = mid + _as(m.given, x)
            second = next((s for s in inside if _same(s.taken, total) and _same(s.given, y)), None)
            if second is not None and second.taken is not None:
                taps = base | {
                    "attn_out": Tap(a.path, "out"), "resid_mid": Tap(first.path, "out"), "mlp_out": Tap(m.path, "out"),
                }  # fmt: skip
                taps |= _neurons(block.path, m, inside, x.shape[-1])
                return _Found(taps, "post-norm", _error(total, second.taken))
    why = "no two modules inside it write outputs that add up from its input to its output"
    return _Found(base, "unknown", 0.0, dict.fromkeys(("attn_out", "resid_mid", "mlp_out", "mlp_act"), why))


def _neurons(block: str, m: _Seen, inside: list[_Seen], width: int) -> dict[str, Tap]:
    """The MLP's neurons: what its last projection to the residual width takes."""
    for s in reversed([s for s in inside if s.order <= m.order]):
        weight = getattr(s.module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or s.taken is None or s.given is None:
            continue
        if s.given.shape[-1] == width and not _in_attention(block, s):
            return {"mlp_act": Tap(s.path, "in")}
    return {}


def _is_attention(path: str, module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return ("attention" in kind or "attn" in kind) and "norm" not in kind


def _in_attention(block: str, s: _Seen) -> bool:
    head = s.path.removeprefix(block + ".").split(".")[0].lower()
    return ("attn" in head or "attention" in head) and "norm" not in head


def _under_attention(block: str, s: _Seen, inside: list[_Seen]) -> bool:
    """Whether a module is attention, inside it, or a norm applied to its output (the sandwich norms of Gemma 2, OLMo 2)."""
    if _in_attention(block, s):
        return True
    if not isinstance(getattr(s.module, "weight", None), Tensor):
        return False
    return any(_in_attention(block, t) and t.order < s.order and _same(s.taken, t.given) for t in inside)


def _tolerance(dtype: torch.dtype) -> float:
    return _TOLERANCE.get(dtype, _LOW_PRECISION)


def _as(given: Tensor | None, x: Tensor) -> Float[Tensor, "prompt token d_model"]:
    assert given is not None
    return given.reshape(x.shape)


def _like(given: Tensor | None, x: Tensor) -> bool:
    return given is not None and given.numel() == x.numel() and given.shape[-1] == x.shape[-1]


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or not _like(a, b):
        return False
    return _error(a.reshape(b.shape), b) <= _tolerance(b.dtype)
