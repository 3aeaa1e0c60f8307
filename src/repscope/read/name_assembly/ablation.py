"""Which blocks build the vector of a name: outputs of MLPs or attention replaced at the name's tokens, by range of blocks.

1. Prompts of as many tokens with the name at equal positions form a group; each group runs once, unchanged, and the inputs of all
   blocks, the outputs of MLPs and attention at the name's tokens, and the vector at the name's last token are recorded.
2. An ablation of blocks a … b runs blocks a … target from the recorded input of block a (`block_calls`), with hooks in a … b:
   mean       the output becomes the mean over all names at that place (last token of a name, the one before, earlier ones)
   resample   the output becomes that of another name of as many tokens, drawn at random, token by token
   noise      a random vector is added whose norm is that of the change made by `mean`, token by token: equal energy
   cut        attention from each token of the name to the name's other tokens is set to 0, and the rest scaled to sum 1
   cut before the same to the tokens between the prompt's first and the name, which say nothing of it: the control of `cut`
   In a network that is not causal, `cut` also keeps other tokens from reading the name, which could pass it on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.base import tapped
from repscope.models.engine.hooks import Handler, HookPoint, unhooked
from repscope.models.engine.positions import as_float
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.prompts import Encoded
from repscope.models.sites import Site
from repscope.models.variants.block_calls import BlockCalls, block_calls

Part = Literal["mlp_out", "attn_out", "pattern"]
Way = Literal["mean", "resample", "noise", "cut", "cut before"]
OUTPUTS: tuple[Part, ...] = ("mlp_out", "attn_out")
PLACES = 3  #: places of a token in a name, from its end: last, the one before, all earlier ones
_GROUP_TOKENS = 1024  #: most tokens of a group


@dataclass(frozen=True)
class Ablation:
    """What is changed at the name's tokens. part: outputs of MLPs or attention, or attention itself. first, last: blocks."""

    part: Part
    way: Way
    first: int
    last: int

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if (self.part == "pattern") != self.way.startswith("cut"):
            raise UserError(f"{self.way!r} does not act on {self.part}; attention is cut, outputs are replaced.")
        if not 0 <= self.first <= self.last:
            raise UserError(f"Blocks {self.first} to {self.last} are no range; the first block is 0.")


@dataclass(frozen=True, eq=False)
class _Group:
    """Names of one number of tokens in prompts of one length.

    entities: (row), indices. ids: (row, token). start, stop: of the name. inputs: by block, (row, token, d_model). outputs: by part
    and block, (row, name token, d_model). donors: (row), the row whose outputs replace those of each.
    """

    entities: Int[np.ndarray, "row"]
    ids: Int[Tensor, "row token"]
    start: int
    stop: int
    inputs: dict[int, Float[Tensor, "row token d_model"]]
    outputs: dict[tuple[str, int], Float[Tensor, "row name_token d_model"]]
    donors: Int[np.ndarray, "row"]

    @property
    def places(self) -> Int[np.ndarray, "name_token"]:
        """The place of each token of the name, counted from its end."""
        return np.minimum(np.arange(self.stop - self.start)[::-1], PLACES - 1).copy()


@dataclass(frozen=True, eq=False)
class NameRuns:
    """Recorded runs over names, from which ablations start.

    target: block after which the vector is read. intact: (entity, d_model), the vector at the name's last token. causal: whether
    attention is. alone: names without another of as many tokens, which `resample` leaves unchanged.
    """

    net: TokenNetwork
    target: int
    intact: Float[np.ndarray, "entity d_model"]
    causal: bool
    alone: int
    seed: int
    _groups: Sequence[_Group] = field(repr=False, default=())
    _calls: Mapping[int, BlockCalls] = field(repr=False, default_factory=dict)
    _means: Mapping[tuple[str, int], Float[Tensor, "place d_model"]] = field(repr=False, default_factory=dict)

    @property
    def has_before(self) -> bool:
        """Whether tokens stand between the prompt's first one and the name."""
        return all(group.start > 1 for group in self._groups)

    def ablated(self, ablation: Ablation) -> Float[np.ndarray, "entity d_model"]:
        """The vectors after an ablation.

        Raises
        ------
        UserError
            For blocks above the target, and attention that cannot be changed.
        """
        if ablation.last > self.target:
            raise UserError(f"Block {ablation.last} is above block {self.target}, after which the vector is read.")
        out = np.empty_like(self.intact)
        for number, group in enumerate(self._groups):
            hooks = [
                (self.net.write_tap(Site(ablation.part, block)), self._handler(ablation, block, group, number))
                for block in range(ablation.first, ablation.last + 1)
            ]
            calls = self._calls[group.ids.shape[1]]
            with torch.no_grad():
                end = calls.run(group.ids, group.inputs[ablation.first], ablation.first, self.target, hooks)
            out[group.entities] = as_float(end[:, group.stop - 1]).cpu().numpy()
        return out

    def _handler(self, ablation: Ablation, block: int, group: _Group, number: int) -> Handler:
        name = slice(group.start, group.stop)
        if ablation.part == "pattern":
            return lambda value: _cut(value, name, before=ablation.way == "cut before", causal=self.causal)
        key = (ablation.part, block)
        mean = self._means[key][torch.from_numpy(group.places)]
        if ablation.way == "mean":
            new = mean.expand(len(group.ids), -1, -1)
        elif ablation.way == "resample":
            new = group.outputs[key][torch.from_numpy(group.donors)]
        else:
            drawn = np.random.SeedSequence([self.seed, number, block, OUTPUTS.index(ablation.part)]).generate_state(1)
            generator = torch.Generator().manual_seed(int(drawn[0]))
            change = mean - group.outputs[key]
            noise = torch.randn(change.shape, generator=generator).to(change)
            step = noise * (change.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))
            return lambda value: torch.cat([value[:, : name.start], value[:, name] + step.to(value), value[:, name.stop :]], dim=1)
        return lambda value: torch.cat([value[:, : name.start], new.to(value), value[:, name.stop :]], dim=1)


def name_runs(net: TokenNetwork, encoded: Encoded, target: int, *, seed: int = 0) -> NameRuns:
    """Run a network over prompts with names, once, and record what ablations start from.

    Parameters
    ----------
    encoded
        Prompts with the span of the name.
    target
        Block after which the vector is read, at the name's last token.
    seed
        Of the donors and of the noise.

    Raises
    ------
    UserError
        For a block that there is not, a network without outputs of MLPs and attention, under edits, and fewer than two names.
    """
    if len(encoded.ids) < 2:
        raise UserError("One name has no other to compare with; give two or more.")
    if not 0 <= target < net.blocks:
        raise UserError(f"There is no block {target} to read the vector at; the network has blocks 0 to {net.blocks - 1}.")
    net.resolve([f"{part}.0" for part in OUTPUTS])  # says what is missing
    rng = np.random.default_rng([seed, 7])
    calls: dict[int, BlockCalls] = {}
    groups = []
    intact = np.empty((len(encoded.ids), net.anatomy.width if net.anatomy else 0), dtype=np.float32)
    for entities in _grouped(encoded):
        length = int(encoded.ids.lengths[entities[0]])
        if length not in calls:
            calls[length] = block_calls(net, length)
        group = _recorded(net, encoded, entities, target, rng)
        intact[entities] = as_float(group.inputs.pop(target + 1)[:, group.stop - 1]).cpu().numpy()
        groups.append(group)
    alone = sum(len(g.entities) for g in groups if len(g.entities) == 1)
    return NameRuns(net, target, intact, net.causal, alone, seed, groups, calls, _mean_outputs(groups))


def ranges(target: int, count: int) -> list[tuple[int, int]]:
    """Blocks 0 … target in so many ranges of nearly equal size, then all of them as one."""
    cuts = np.array_split(np.arange(target + 1), min(count, target + 1))
    found = [(int(part[0]), int(part[-1])) for part in cuts]
    return found + ([(0, target)] if len(found) > 1 else [])


def _grouped(encoded: Encoded) -> list[Int[np.ndarray, "row"]]:
    same: dict[tuple[int, int, int], list[int]] = {}
    for i, length in enumerate(encoded.ids.lengths):
        same.setdefault((int(length), int(encoded.start[i]), int(encoded.stop[i])), []).append(i)
    found: list[np.ndarray] = []
    for (length, _, _), rows in same.items():
        found += np.array_split(np.array(rows), -(-len(rows) * length // _GROUP_TOKENS))
    return [part for part in found if len(part)]


def _recorded(
    net: TokenNetwork, encoded: Encoded, entities: Int[np.ndarray, "row"], target: int, rng: np.random.Generator
) -> _Group:
    start, stop = int(encoded.start[entities[0]]), int(encoded.stop[entities[0]])
    ids = torch.from_numpy(np.stack([encoded.ids[int(i)] for i in entities])).to(net.device)
    inputs: dict[int, Tensor] = {}
    outputs: dict[tuple[str, int], Tensor] = {}

    def keep_input(block: int, value: Tensor) -> None:
        inputs[block] = value.clone()

    def keep_output(key: tuple[str, int], value: Tensor) -> None:
        outputs[key] = value[:, start:stop].clone()

    reads: list[tuple[HookPoint, object]] = []
    for block in range(target + 1):
        reads.append((net.tap(Site("resid_pre", block)), lambda value, block=block: keep_input(block, value)))
        for part in OUTPUTS:
            reads.append((net.tap(Site(part, block)), lambda value, key=(part, block): keep_output(key, value)))
    reads.append((net.tap(Site("resid_post", target)), lambda value: keep_input(target + 1, value)))
    with unhooked(net.module), tapped(net.taps, reads) as run:  # type: ignore[arg-type]
        run(input_ids=ids, **net.plain())
    order = rng.permutation(len(entities))
    donors = np.empty(len(entities), dtype=np.int64)
    donors[order] = np.roll(order, 1)  # a cycle: nobody is its own donor
    return _Group(entities, ids, start, stop, inputs, outputs, donors)


def _mean_outputs(groups: Sequence[_Group]) -> dict[tuple[str, int], Float[Tensor, "place d_model"]]:
    """The mean output over all names at each place; a place that no name has is the mean over the others."""
    means = {}
    for key in groups[0].outputs:
        width = groups[0].outputs[key].shape[-1]
        sums, counts = torch.zeros(PLACES, width, dtype=torch.float64), torch.zeros(PLACES, dtype=torch.float64)
        for group in groups:
            for token, place in enumerate(group.places):
                sums[place] += group.outputs[key][:, token].double().sum(0).cpu()
                counts[place] += len(group.entities)
        overall = sums.sum(0) / counts.sum()
        mean = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], overall)
        means[key] = mean.to(groups[0].outputs[key])
    return means


def _cut(
    weights: Float[Tensor, "row query head key"], name: slice, *, before: bool, causal: bool
) -> Float[Tensor, "row query head key"]:
    """Attention weights without those from the name's tokens to its other tokens (or, `before`, to those before the name)."""
    queries, keys = weights.shape[1], weights.shape[3]
    at = torch.arange(max(queries, keys), device=weights.device)
    inside = (at >= name.start) & (at < name.stop)
    if before:
        barred = inside[:queries, None] & ((at > 0) & (at < name.start))[None, :keys]
    else:
        barred = inside[:queries, None] & inside[None, :keys] & (at[:queries, None] != at[None, :keys])
        if not causal:
            barred = barred | (~inside[:queries, None] & inside[None, :keys])
    kept = weights.masked_fill(barred[None, :, None, :], 0.0)
    return kept / kept.sum(-1, keepdim=True).clamp_min(1e-12)
