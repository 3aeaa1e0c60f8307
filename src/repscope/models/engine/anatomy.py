"""Detection of a transformer's sites from its module structure, verified by one forward pass.

No table of model names is used.

1. One forward pass of two short inputs, which differ in the last token only, records inputs and outputs of every module, and the
   operands of every attention product.
2. The blocks are the outermost `ModuleList` whose children each ran once and mapped a hidden state (row, token, feature) to another
   of equal shape; of several such lists, the one with the most parameters. Lists that did not run (a vision tower) are ignored.
3. In each block with input x and output y, find the module outputs a (inside or right after attention) and m with
       sequential   x + a = mid,  mid + m = y        mid is the input of the norm before the MLP
       parallel     x + a + m = y                    no mid: both branches read x
       post-norm    norm(x + a) = mid,  norm(mid + m) = y
   The outermost modules that satisfy this are the sites. If there are none, the reason is stored.
4. In each attention, pattern · v must be the input of a linear map (z). If the output of that map is a, the contribution of each
   head is head_out, and the contributions must sum to a minus the bias.
5. The final norm is a module after the blocks whose input is the last block's output, or whose output is the network's.
6. The network is causal if the last token does not affect the output at earlier positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repscope.models.engine.attention_probe import PARTS, AttentionCall, AttentionProducts, distinct_heads
from repscope.models.engine.hooks import HookPoint, first_tensor, head_outputs, hidden_argument, linear_map, parameter, unhooked
from repscope.models.sites import KINDS, Site

Form = Literal["sequential", "parallel", "post-norm", "residual only"]
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  #: relative; wider than rounding, far below any wrong choice
_LOW_PRECISION = 3e-2
_IN_ATTENTION = (*PARTS, "z", "head_out")


@dataclass(frozen=True)
class Anatomy:
    """The sites of one network.

    taps: site → where to read it. writes: site → where to replace it, if different. refused: kind → why this network has none.
    blocks: their number. form: how blocks add up. causal: whether later tokens do not affect earlier ones. error: largest relative
    error of the identities. width: features of the residual stream. heads, kv_heads: of the first block with attention, 0 if none
    is visible. prefix: path of the list of blocks.
    """

    taps: Mapping[Site, HookPoint]
    writes: Mapping[Site, HookPoint]
    refused: Mapping[str, str]
    blocks: int
    form: Form
    causal: bool
    error: float
    width: int
    heads: int
    kv_heads: int
    prefix: str


@dataclass
class _Seen:
    """Input and output of one module at its first call, and its number of calls."""

    path: str
    module: nn.Module
    order: int
    taken: Tensor | None
    given: Tensor | None
    calls: int = 1


@dataclass
class _Found:
    taps: dict[str, HookPoint]
    form: Form
    error: float
    refused: dict[str, str] = field(default_factory=dict)
    writes: dict[str, HookPoint] = field(default_factory=dict)


_Operands = dict[str, Tensor]  #: part → (row, token, head, feature)


def resolve(model: nn.Module, embedding: nn.Module | None, inputs: Mapping[str, Tensor]) -> Anatomy | None:
    """Find and verify the sites of a transformer; None if no list of blocks is found (such a network has `module:` sites only).

    `model` is the network without its head, `embedding` its input-embedding module. `inputs` are the keyword arguments of a pass
    over two inputs of equal length, which differ in the last token only; for a network without tokens, any two inputs (it is not
    causal).
    """
    seen, operands = _record(model, inputs)
    prefix, blocks, why = _blocks(model, seen, inputs)
    if not blocks:
        return None
    by_path = {s.path: s for s in seen}
    names = {id(m): p for p, m in model.named_modules()}
    taps: dict[Site, HookPoint] = {}
    writes: dict[Site, HookPoint] = {}
    refused: dict[str, str] = {}
    if embedding is not None and id(embedding) in names:
        taps[Site("embed")] = HookPoint(names[id(embedding)], "out")
    else:
        refused["embed"] = "it has no input-embedding module"
    forms: list[Form] = []
    worst = 0.0
    last: Tensor | None = None
    heads: tuple[int, int] = (0, 0)
    for kind in KINDS if why else ():
        if KINDS[kind].per_block:
            refused[kind] = why
    for layer in range(0 if why else len(blocks)):
        path = f"{prefix}.{layer}"
        block = by_path[path]
        inside = sorted((s for s in seen if s.path.startswith(path + ".")), key=lambda s: s.order)
        found = _block(block, inside)
        _heads(found, inside, {p: o for p, o in operands.items() if p.startswith(path + ".")})
        for kind, tap in found.taps.items():
            taps[Site(kind, layer)] = tap
            heads = (tap.heads, tap.kv_heads) if tap.part == "q" and not heads[0] else heads
        for kind, tap in found.writes.items():
            writes[Site(kind, layer)] = tap
        for kind, reason in found.refused.items():
            refused.setdefault(kind, f"block {layer}: {reason}")
        forms.append(found.form)
        worst = max(worst, found.error)
        last = block.given
    final = by_path[""].given
    end = final if final is not None and final.dim() == 3 else last
    if end is None:
        return None
    causal = is_causal(end)
    after = max(s.order for s in seen if s.path.startswith(prefix + "."))
    behind = [s for s in seen if s.order > after and s.path]
    norm = next((s for s in behind if last is not None and _same(s.taken, last) and _like(s.given, last)), None)
    if norm is None and last is None:  # the blocks are refused, but what the head reads is known
        norm = next((s for s in behind if "norm" in type(s.module).__name__.lower() and _same(s.given, end)), None)
    if norm is not None:
        taps[Site("final_norm")] = HookPoint(norm.path, "out")
    else:
        refused["final_norm"] = "no norm takes the output of the last block"
    form: Form = forms[0] if len(set(forms)) == 1 else "residual only"
    width = int((last if last is not None else end).shape[-1])
    ordered = dict(sorted(taps.items(), key=lambda item: item[0].depth))
    return Anatomy(ordered, writes, refused, len(blocks), form, causal, worst, width, heads[0], heads[1], prefix)


def _blocks(model: nn.Module, seen: list[_Seen], inputs: Mapping[str, Tensor]) -> tuple[str, nn.ModuleList, str]:
    """Path and list of the transformer blocks (possibly empty), and why they have no sites."""
    by_path = {s.path: s for s in seen}
    given = next(iter(inputs.values()))
    shape = tuple(given.shape) if not given.is_floating_point() else (len(given),)
    found: dict[str, nn.ModuleList] = {}
    whys: dict[str, str] = {}
    for path, child in model.named_modules():
        if not isinstance(child, nn.ModuleList) or not len(child) or any(path.startswith(f"{p}.") for p in found):
            continue
        ran = [by_path.get(f"{path}.{i}") for i in range(len(child))]
        if any(s is None or not _maps(s) for s in ran):
            continue
        why = next((w for i, s in enumerate(ran) if s is not None and (w := _no_state(s, i, shape))), "") or _broken_chain(ran)
        if why and len({type(c) for c in child}) > 1:
            continue
        found[path], whys[path] = child, why
    if not found:
        return "", nn.ModuleList(), ""
    sizes = {path: sum(p.numel() for p in child.parameters()) for path, child in found.items()}
    best = max(found, key=lambda path: (not whys[path] or "streams" in whys[path], sizes[path]))
    return best, found[best], whys[best]


def _maps(s: _Seen) -> bool:
    """Whether a module's output has the shape of its input, with row and token axes."""
    return s.taken is not None and s.given is not None and s.taken.shape == s.given.shape and s.taken.dim() > 2


def _no_state(s: _Seen, layer: int, shape: tuple[int, ...]) -> str:
    """Why a block's input is not (row, token, feature); empty if it is."""
    assert s.taken is not None
    sizes = " × ".join(map(str, s.taken.shape))
    if s.taken.dim() > 3:
        return f"block {layer} takes {sizes} for {shape[0]} rows: parallel streams, not one residual stream"
    if tuple(s.taken.shape[: len(shape)]) != shape:
        return f"block {layer} takes {sizes}, which is no vector for each token"
    if s.calls > 1:
        return f"block {layer} runs {s.calls} times in one pass, so it has no one output"
    return ""


def _broken_chain(ran: Sequence[_Seen | None]) -> str:
    """Why modules of a list are not consecutive blocks; empty if each one's input is the previous one's output."""
    for layer, (a, b) in enumerate(pairwise(ran)):
        if a is not None and b is not None and not _same(b.taken, a.given):
            return f"block {layer + 1} does not take what block {layer} gives"
    return ""


def is_causal(end: Float[Tensor, "row token feature"]) -> bool:
    """Whether the last token, the only one that differs between the first two rows, does not affect earlier positions."""
    gap = (end[0, :-1] - end[1, :-1]).norm() / end[0, :-1].norm().clamp_min(1e-30)
    return bool(gap <= _tolerance(end.dtype))


def _record(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[list[_Seen], dict[str, _Operands]]:
    """One forward pass: input and output of each module's first call, in order of completion, and attention operands by path."""
    seen: dict[str, _Seen] = {}
    operands: dict[str, _Operands] = {}
    running: list[str] = []
    calls_around: list[AttentionCall | None] = []
    handles = []

    def record(part: str, value: Tensor) -> None:
        operands.setdefault(running[-1], {})[part] = value.detach().clone()

    def hooks_for(path: str) -> tuple[Any, Any]:
        def begin(module: nn.Module, args: Any) -> None:
            # A softmax and a product belong to one attention only if they run in one module (or the softmax is itself a module).
            calls_around.append(products.call)
            if products.call is None or module._modules or module._parameters:
                products.call = AttentionCall(record, frozenset(PARTS), rows)
            running.append(path)

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            running.pop()
            products.call = calls_around.pop()
            if path in seen:
                seen[path].calls += 1
                return
            taken, given = hidden_argument(args, kwargs), first_tensor(output)
            seen[path] = _Seen(path, module, len(seen), _kept(taken), _kept(given))

        return begin, end

    products = AttentionProducts()
    rows = len(next(iter(inputs.values())))
    try:
        for path, module in model.named_modules():
            begin, end = hooks_for(path)
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end, with_kwargs=True))
        with unhooked(model), products:
            model(inputs[""]) if "" in inputs else model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values()), operands


def _kept(x: Tensor | None) -> Tensor | None:
    return x.detach().clone() if x is not None and x.is_floating_point() else None


_PARALLEL = "attention and MLP both read the block's input (a parallel block), so there is no state between them"


def _block(block: _Seen, inside: list[_Seen]) -> _Found:
    """Find a block's parts among its submodules, in order of completion."""
    x, y = block.taken, block.given
    assert x is not None
    assert y is not None
    base = {"resid_pre": HookPoint(block.path, "in"), "resid_post": HookPoint(block.path, "out")}
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
                taps = base | {"attn_out": _at(a, "out", block), "mlp_out": _at(m, "out", block)}
                neurons, refused = _neurons(block, m, inside)
                if reader is None:
                    return _Found(taps | neurons, "parallel", error, refused | {"resid_mid": _PARALLEL})
                # The norm's input is not the stream itself: an edit there would miss the path around the MLP.
                entry = min((s for s in inside if _same(s.taken, x)), key=lambda s: s.order)
                write = {"resid_mid": HookPoint(a.path, "out", "mid", base=entry.path)}
                taps |= neurons | {"resid_mid": _at(reader, "in", block)}
                return _Found(taps, "sequential", error, refused, write)
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
                written_to = {"attn_out": a, "resid_mid": first, "mlp_out": m}
                neurons, refused = _neurons(block, m, inside)
                taps = base | {kind: _at(s, "out", block) for kind, s in written_to.items()} | neurons
                return _Found(taps, "post-norm", _error(total, second.taken), refused)
    why = "no two modules inside it write outputs that add up from its input to its output"
    return _Found(base, "residual only", 0.0, dict.fromkeys(("attn_out", "resid_mid", "mlp_out", "mlp_act"), why))


def _at(s: _Seen, side: Literal["in", "out"], block: _Seen) -> HookPoint:
    """A module's input or output; some families merge the row and token axes in their MLP."""
    value = s.taken if side == "in" else s.given
    assert value is not None
    flat = value.dim() == 2
    return HookPoint(s.path, side, base=block.path if flat else "", flat=flat)


def _neurons(block: _Seen, m: _Seen, inside: list[_Seen]) -> tuple[dict[str, HookPoint], dict[str, str]]:
    """The MLP's neurons (the input of its last projection to the residual width), or why there are none."""
    assert m.given is not None
    for s in reversed([s for s in inside if s.order <= m.order]):
        if linear_map(s.module) is None or s.taken is None or s.given is None or _in_attention(block.path, s):
            continue
        if s.given.shape[-1] == m.given.shape[-1] and s.taken.numel() % m.given[..., 0].numel() == 0:
            return {"mlp_act": _at(s, "in", block)}, {}
    return {}, {"mlp_act": "no single projection writes the MLP's output (a mixture of experts)"}


def _heads(found: _Found, inside: list[_Seen], operands: Mapping[str, _Operands]) -> None:
    """Find a block's attention heads (operands and output projection) and add them to `found`."""
    path = next((p for p, parts in operands.items() if set(parts) == set(PARTS)), None)
    if path is None:
        why = "no attention runs inside that torch shows (none, or a fused kernel; try attn_implementation='sdpa')"
        found.refused |= dict.fromkeys(_IN_ATTENTION, why)
        return
    q, k, v, pattern = (operands[path][part] for part in PARTS)
    heads, kv_heads = q.shape[2], distinct_heads(k)
    if k.shape[2] != v.shape[2] or heads % k.shape[2] or pattern.shape[1:3] != q.shape[1:3]:
        found.refused |= dict.fromkeys(_IN_ATTENTION, "its queries, keys, values and weights have no heads in common")
        return
    values = v[:, :, :: v.shape[2] // kv_heads].repeat_interleave(heads // kv_heads, dim=2)
    z = torch.einsum("bqhk,bkhf->bqhf", pattern.to(values.dtype), values).flatten(-2)
    projection = next((s for s in inside if linear_map(s.module) is not None and _same(s.taken, z)), None)
    if projection is None or projection.taken is None or projection.given is None:
        found.refused |= dict.fromkeys(_IN_ATTENTION, "what attention gathers is not what a linear map takes there")
        return
    for part in PARTS:
        found.taps[part] = HookPoint(path, "in", part, heads=heads, kv_heads=kv_heads)  # type: ignore[arg-type]
    at = HookPoint(projection.path, "in", "heads", heads=heads)
    found.taps["z"] = at
    found.error = max(found.error, _error(z.reshape(projection.taken.shape), projection.taken))
    attn_out = next((s for s in inside if "attn_out" in found.taps and s.path == found.taps["attn_out"].path), None)
    if attn_out is None or attn_out.given is None or not _same(attn_out.given, projection.given):
        found.refused["head_out"] = "a norm lies between the heads and the residual stream, so no head adds by itself"
        return
    total = head_outputs(projection.taken, projection.module, heads).detach().sum(-2)
    bias = parameter(projection.module, "bias")
    error = _error(total + bias.detach().to(total.device) if bias is not None else total, projection.given)
    if error > _tolerance(total.dtype):
        found.refused["head_out"] = "what the heads give does not add up to what attention adds"
        return
    found.taps["head_out"] = replace(at, part="head_out", side="out")
    found.error = max(found.error, error)


def _in_attention(block: str, s: _Seen) -> bool:
    head = s.path.removeprefix(block + ".").split(".")[0].lower()
    return ("attn" in head or "attention" in head) and "norm" not in head


def _under_attention(block: str, s: _Seen, inside: list[_Seen]) -> bool:
    """Whether a module is attention, inside it, or a norm of its output (the sandwich norms of Gemma 2, OLMo 2)."""
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
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or not _like(a, b):
        return False
    return _error(a.reshape(b.shape), b) <= _tolerance(b.dtype)
