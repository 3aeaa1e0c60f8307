"""Cost estimate of a planned capture: blocks, tokens, passes, FLOPs, memory and seconds.

FLOPs are multiply-adds × 2 of every linear map in the blocks that run, and of attention's two products over the pairs of tokens
that attend to one another. Seconds are FLOPs over the rate of matrix products measured here, times the share of it that passes
have reached (benchmarks/RESULTS.md). What a capture took stands beside it: `Activations.seconds`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from repscope.models.engine.hooks import linear_map
from repscope.models.engine.memory import token_flops
from repscope.models.engine.planner import Plan
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.prompts import Ragged
from repscope.models.sites import Site

REACHED = 0.75  #: share of the rate of products that a pass reaches


@dataclass(frozen=True)
class Forecast:
    """What a capture will run.

    plan: distinct prompts, passes, what is shared. model, sites: which. prompts, given: how many prompts, and their tokens.
    blocks, of: how many blocks run, of how many. flops: of all passes. working: bytes of the largest pass's activations. rows:
    bytes of the result. read: bytes of weights read from disk, 0 where they are in memory. seconds: about how long, without that.
    """

    plan: Plan
    model: str
    sites: tuple[str, ...]
    prompts: int
    given: int
    blocks: int
    of: int
    flops: float
    working: float
    rows: float
    read: float
    seconds: float

    @property
    def tokens(self) -> int:
        """Token positions that the network computes, padding included."""
        return self.plan.tokens

    def __str__(self) -> str:
        plan, sites = self.plan, ", ".join(self.sites[:3]) + (f" … ({len(self.sites)})" if len(self.sites) > 3 else "")
        saved = 1 - self.tokens / self.given
        shared = plan.tree is not None and bool(plan.tree.start.any())
        layout = f"padded ({plan.why})" if plan.tree is None else "packed, shared beginnings once" if shared else "packed"
        if plan.prefix:
            layout += f", a prefix of {plan.prefix} tokens once"
        lines = [
            ("network", f"{self.model}: {sites}"),
            ("blocks", f"{self.blocks} of {self.of}"),
            ("prompts", f"{self.prompts:,}, {len(plan.ids):,} distinct"),
            (
                "tokens",
                f"{self.tokens:,} in {plan.passes:,} passes, for {self.given:,} given ({abs(saved):.0%} "
                f"{'saved' if saved >= 0 else 'more than given, as padding'})",
            ),
            ("layout", layout),
            ("compute", f"{_scaled(self.flops)}FLOP"),
            ("memory", f"{_scaled(self.working)}B a pass"),
            ("result", f"{_scaled(self.rows)}B"),
            *([("weights", f"{_scaled(self.read)}B read from disk")] if self.read else []),
            ("time", f"about {_time(self.seconds)}"),
        ]
        return "\n".join(f"{name:<8} {said}" for name, said in lines)

    def __repr__(self) -> str:
        return str(self)


def forecast(net: TokenNetwork, planned: Plan, sites: Sequence[Site], ids: Ragged, rows: int, element: int) -> Forecast:
    """The forecast of a plan's run at sites, of which the result holds so many rows, `element` bytes a number."""
    deepest = max(net.blocks - 1 if s.layer is None else s.layer for s in sites)
    run = [] if all(s.kind == "embed" for s in sites) else list(net.block_list)[: deepest + 1]
    assert net.anatomy is not None
    z = next((s for s in net.anatomy.taps if s.kind == "z"), None)
    mixed = 4.0 * attention_pairs(planned) * (_features(net, z, 0) if z is not None else 0) * len(run)
    flops = planned.tokens * token_flops(run) + mixed
    size = net.model.dtype.itemsize
    weights = sum(token_flops([block]) for block in run) / 2 * size * planned.passes
    features = sum(_features(net, site, int(ids.lengths.max())) for site in sites)
    return Forecast(
        planned,
        net.name,
        tuple(map(str, sites)),
        len(ids),
        len(ids.flat),
        len(run),
        net.blocks,
        flops,
        planned.largest * net.token_bytes,
        float(rows) * features * element,
        weights if net.offloaded else 0.0,
        flops / REACHED / product_rate(net.device.type),
    )


def _features(net: TokenNetwork, site: Site, longest: int) -> int:
    """How many numbers one row of a site is."""
    assert net.anatomy is not None
    tap, width = net.tap(site), net.anatomy.width
    heads = 1 if site.head is not None else (tap.kv_heads if site.kind in ("k", "v") else tap.heads) or 1
    if site.kind == "pattern":
        return heads * longest
    if site.kind == "head_out":
        return heads * width
    held = linear_map(net.module.get_submodule(tap.path)) if site.kind in ("z", "mlp_act") else None
    if held is not None:
        return len(held) // (tap.heads if site.head is not None else 1)
    return heads * (width // tap.heads) if site.kind in ("q", "k", "v") else width


def attention_pairs(plan: Plan) -> int:
    """Pairs of tokens whose products attention takes, in all passes."""
    if plan.tree is not None:
        start, stop = plan.tree.start, plan.tree.stop
        return int(((start + stop + 1) * (stop - start) // 2).sum())
    longest = [int(plan.ids.lengths[batch[-1]]) for batch in plan.batches]
    return plan.prefix**2 + sum(len(b) * (n - plan.prefix) * n for b, n in zip(plan.batches, longest))


def product_rate(device: str = "cpu") -> float:
    """Floating-point operations a second of a float32 matrix product here, measured once in a fifth of a second."""
    return _rate(device, torch.get_num_threads())


@lru_cache(maxsize=4)
def _rate(device: str, threads: int) -> float:
    """Under torch's present setting of threads, which is part of the key."""
    drawn = torch.Generator(device).manual_seed(0)  # leaves torch's own state, on which a user's script may stand
    a, b = (torch.randn(768, 768, device=device, generator=drawn) for _ in range(2))
    rates: list[float] = []
    began = time.perf_counter()
    (a @ b).sum().item()
    while not rates or time.perf_counter() - began < 0.2:  # a busy machine may take longer for the first product alone
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        (a @ b).sum().item()
        rates.append(5 * 2 * 768**3 / (time.perf_counter() - started))
    return float(np.median(rates))


def _scaled(value: float) -> str:
    for bound, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:.3g} {name}"
    return f"{value:.0f} "


def _time(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
