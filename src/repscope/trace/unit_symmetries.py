"""Permutation symmetries of a network: axes that can be permuted jointly at equal function.

Input: a module. Output: `Symmetries`, groups of units with every axis that follows the order of a group. They are derived by
tracing the forward pass (torch.fx), not from names of architectures:

1. The features of the input and of the output are fixed.
2. A linear or convolutional layer creates a new group on its output axis; its input axis follows the group that it reads.
3. Layers that are equivariant to permutations of units (activations, dropout, pooling, normalisation) pass the group on; their
   gains, biases and running statistics follow it.
4. Flattening (channel, row, column) turns each unit into a block of row × column neighbours.
5. A sum merges two groups: a residual stream has one order wherever it is read and written.
6. A weight used in two places, or under two names, ties the groups of both.
7. repscope's pre-LN transformer (`SmallTransformer`) is recognised by its names: one order of the residual stream, one of each
   block's hidden units, and one of its heads; inside a head, one order of the query and key dimensions and one of the value and
   output dimensions.

Other symmetries (scaling through ReLU, sign flips through tanh, rotations between queries and keys) are not considered. Other kinds
of layers are refused. Linear layers must read (row, feature), not sequences.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from repscope.errors import UserError


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor that follows the order of a group.

    Attributes
    ----------
    tensor
        Its name in the state dict.
    axis
        Index of the axis.
    group
        The group whose order it follows.
    block
        Number of adjacent entries per unit: the positions of a flattened channel, else 1.
    weighed
        Whether the tensor counts in comparisons. Running statistics have another scale: they are only permuted.
    """

    tensor: str
    axis: int
    group: str
    block: int = 1
    weighed: bool = True


@dataclass(frozen=True)
class Heads:
    """Groups split into `count` equal parts that are permuted jointly; inside a part, each group has its own order."""

    count: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Symmetries:
    """The permutations that preserve a network's function.

    Attributes
    ----------
    sizes
        Units of each group.
    axes
        Every axis that follows a group.
    heads
        Groups that are permuted only as heads.
    """

    sizes: Mapping[str, int]
    axes: tuple[Axis, ...]
    heads: tuple[Heads, ...] = ()

    @property
    def moves(self) -> tuple[Heads, ...]:
        """Units of permutation: each free group as one head, and heads with all their groups."""
        bound = {group for h in self.heads for group in h.groups}
        return (*(Heads(1, (group,)) for group in self.sizes if group not in bound), *self.heads)


def symmetries(module: nn.Module) -> Symmetries:
    """The symmetries of an MLP, a convolutional network (residual ones too) or a small transformer of repscope.

    Raises
    ------
    UserError
        For a layer of unknown symmetry, or a network without permutable units.
    """
    found = _transformer(module) or _Followed(module).found()
    if not found.sizes:
        raise UserError(f"{type(module).__name__} has no hidden units to permute; interpolate its weights as they are.")
    return found


def _refused(what: str, why: str = "") -> UserError:
    return UserError(
        f"{what} has no known symmetry{f' ({why})' if why else ''}; its network cannot be matched, but weights can still be "
        "interpolated without matching."
    )


_FIXED = ""  #: the group of fixed axes


@dataclass(frozen=True)
class _Stream:
    """An activation between layers: the group of axis 1, and its form (`input`, `image`, `flattened` image or `flat`)."""

    group: str
    form: str


class _Followed:
    """The groups of a module, derived by tracing its forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.sizes: dict[str, int] = {}
        self.parent: dict[str, str] = {_FIXED: _FIXED}
        self.axes: dict[tuple[str, int], Axis] = {}
        self.names: dict[int, list[str]] = {}  # all names of a tensor
        for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
            self.names.setdefault(id(tensor), []).append(name)

    def found(self) -> Symmetries:
        try:
            graph = fx.Tracer().trace(self.module)
        except Exception as error:  # a forward pass without a tensor may raise anything
            raise _refused(type(self.module).__name__, "its forward pass cannot be followed") from error
        streams: dict[fx.Node, _Stream | None] = {}
        for node in graph.nodes:
            streams[node] = self._after(node, streams)
        axes = [Axis(x.tensor, x.axis, self._root(x.group), x.block, x.weighed) for x in self.axes.values()]
        axes = [x for x in axes if x.group != _FIXED]
        return Symmetries({x.group: self.sizes[x.group] for x in axes}, tuple(axes))

    def _after(self, node: fx.Node, streams: dict[fx.Node, _Stream | None]) -> _Stream | None:
        """Output of a step of the forward pass."""
        if node.op == "placeholder":
            return _Stream(_FIXED, "input")
        read = [streams[n] for n in node.all_input_nodes]
        came = [s for s in read if s is not None]
        if node.op == "output":
            for stream in came:
                self._tie(stream.group, _FIXED, "The output")
            return None
        if node.op == "call_method" and node.target == "size":
            return None
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            what, rule = f"Layer {node.target} ({type(layer).__name__})", _LAYERS.get(type(layer))
            if rule is not None and len(read) == len(came) == 1:
                return rule(self, what, str(node.target), layer, came[0])
            raise _refused(what)
        what = f"{getattr(node.target, '__name__', node.target)} in {type(self.module).__name__}'s forward pass"
        if node.op == "call_function" and node.target in _SUMS and 1 <= len(came) == len(read) <= 2:
            return came[0] if len(came) == 1 else self._sum(what, *came)
        if node.op in ("call_function", "call_method") and len(came) >= 1:
            if node.target in (torch.flatten, "flatten") and _flattens(node.args[1:], node.kwargs):
                return _flattened(came[0])
            if node.target in (torch.mean, "mean") and came[0].form == "image" and _averages(node.args[1:], node.kwargs):
                return _Stream(came[0].group, "flat")
            rows = node.args[1] if len(node.args) > 1 else None
            if node.target in ("view", "reshape") and isinstance(rows, fx.Node) and node.args[2:] == (-1,):
                return _flattened(came[0])
            if (node.target in _EACH or (node.target in _POOLS and came[0].form != "flat")) and len(read) == 1:
                return came[0]
        raise _refused(what)

    def linear(self, what: str, name: str, layer: nn.Linear, came: _Stream) -> _Stream:
        if came.form == "image":
            raise _refused(what, "it reads an image's last axis")
        self._follows(what, f"{name}.weight", 1, came, layer.in_features)
        return self._made(what, name, layer, layer.out_features, "flat")

    def conv(self, what: str, name: str, layer: nn.Conv2d, came: _Stream) -> _Stream:
        if came.form not in ("input", "image") or layer.groups != 1:
            raise _refused(what, "its channels are in groups" if layer.groups != 1 else "it does not read an image")
        self._follows(what, f"{name}.weight", 1, came, layer.in_channels)
        return self._made(what, name, layer, layer.out_channels, "image")

    def norm(self, what: str, name: str, layer: Any, came: _Stream) -> _Stream:
        shape = getattr(layer, "normalized_shape", None)
        if shape is not None and (len(shape) != 1 or came.form == "image"):
            raise _refused(what, "it normalises over positions")
        count = shape[0] if shape is not None else layer.num_features
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, tensor, None) is not None:
                self._follows(what, f"{name}.{tensor}", 0, came, count, weighed=not tensor.startswith("running"))
        return came

    def flatten(self, what: str, name: str, layer: nn.Flatten, came: _Stream) -> _Stream:
        if (layer.start_dim, layer.end_dim) != (1, -1):
            raise _refused(what, "it flattens other axes than those behind the first")
        return _flattened(came)

    def pool(self, what: str, name: str, layer: nn.Module, came: _Stream) -> _Stream:
        if came.form not in ("input", "image"):
            raise _refused(what, "it does not read an image")
        return came

    def each(self, what: str, name: str, layer: nn.Module, came: _Stream) -> _Stream:
        return came

    def _made(self, what: str, name: str, layer: nn.Module, count: int, form: str) -> _Stream:
        if name not in self.parent:
            self.parent[name], self.sizes[name] = name, count
        made = _Stream(name, form)
        for tensor in ("weight", "bias"):
            if getattr(layer, tensor) is not None:
                self._follows(what, f"{name}.{tensor}", 0, made, count)
        return made

    def _follows(self, what: str, tensor: str, axis: int, came: _Stream, count: int, weighed: bool = True) -> None:
        """Record that an axis of `count` entries follows the group of its input."""
        block = 1
        if (root := self._root(came.group)) != _FIXED:
            block, rest = divmod(count, self.sizes[root])
            if rest or (block != 1 and came.form != "flattened"):
                raise _refused(what, f"it takes {count} features where {self.sizes[root]} units come")
        for name in self.names[id(_tensor(self.module, tensor))]:
            before = self.axes.setdefault((name, axis), Axis(name, axis, came.group, block, weighed))
            if _FIXED not in (self._root(before.group), root) and before.block != block:
                raise _refused(what, "its weight is used in two ways")
            self._tie(before.group, came.group, what)

    def _sum(self, what: str, one: _Stream, other: _Stream) -> _Stream:
        if one.form != other.form and "input" not in (one.form, other.form):
            raise _refused(what, f"it adds {one.form} and {other.form} features")
        self._tie(one.group, other.group, what)
        return one if one.form != "input" else other

    def _tie(self, one: str, other: str, what: str) -> None:
        kept, gone = sorted((self._root(one), self._root(other)), key=lambda g: (g != _FIXED, list(self.parent).index(g)))
        if kept != _FIXED and self.sizes[kept] != self.sizes[gone]:
            raise _refused(what, f"it brings {self.sizes[kept]} and {self.sizes[gone]} units together")
        self.parent[gone] = kept

    def _root(self, group: str) -> str:
        while self.parent[group] != group:
            group = self.parent[group]
        return group


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, last = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), last)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _flattened(came: _Stream) -> _Stream:
    return _Stream(came.group, "flattened") if came.form == "image" else came


def _flattens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    start = args[0] if args else kwargs.get("start_dim", 0)
    end = args[1] if len(args) > 1 else kwargs.get("end_dim", -1)
    return bool((start, end) == (1, -1))


def _averages(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a mean is over the positions of an image."""
    axes = args[0] if args else kwargs.get("dim")
    return axes in ((2, 3), [2, 3], (-2, -1), [-2, -1]) and len(args) < 2 and not kwargs.get("keepdim", False)


_Rule = Callable[[_Followed, str, str, Any, _Stream], _Stream]

_POOLINGS = " ".join(f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for d in (1, 2, 3))
_ACTIVATIONS = """
ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign Tanh Sigmoid LogSigmoid Hardtanh Hardswish Hardsigmoid
Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout Softmax LogSoftmax
"""


def _named(module: Any, names: str) -> tuple[Any, ...]:
    return tuple(getattr(module, name) for name in names.split())


# One row per kind of layer. Others are refused: a layer that mixes units would silently be permuted wrongly.
_LAYERS: dict[type[nn.Module], _Rule] = {
    nn.Linear: _Followed.linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _Followed.conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm), _Followed.norm),
    nn.Flatten: _Followed.flatten,
    **dict.fromkeys(_named(nn, _POOLINGS), _Followed.pool),
    **dict.fromkeys(_named(nn, _ACTIVATIONS), _Followed.each),
}
_SUMS = (operator.add, operator.iadd, torch.add)
_POOLS = _named(functional, "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d")
_EACH = (
    *_named(functional, "relu leaky_relu elu gelu silu tanh sigmoid softplus dropout dropout2d softmax log_softmax"),
    *_named(torch, "relu tanh sigmoid softmax log_softmax"),
    *("relu", "relu_", "tanh", "sigmoid", "contiguous"),
)


#: group, tensor and axis inside each block of a small transformer
_INNER = (
    *(("qk", "q.weight", 0), ("qk", "k.weight", 0), ("vo", "v.weight", 0), ("vo", "o.weight", 1)),
    *(("hidden", "up.weight", 0), ("hidden", "up.bias", 0), ("hidden", "down.weight", 1)),
)


def _transformer(module: nn.Module) -> Symmetries | None:
    """The symmetries of repscope's small transformer, or None for other modules."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    blocks, heads = getattr(module, "blocks", None), getattr(module, "heads", None)
    if not isinstance(blocks, nn.ModuleList) or not isinstance(heads, int) or len(shapes.get("embed.weight", ())) != 2:
        return None
    residual = {"embed.weight": 1, "position.weight": 1, "ln_final.weight": 0, "ln_final.bias": 0}
    residual |= {name: 1 for name in ("head.weight", "unembed.weight") if name in shapes}
    axes, sizes, bound, unmoved = [], {"residual": shapes["embed.weight"][1]}, [], {"head.bias"}
    for layer in range(len(blocks)):
        at = f"blocks.{layer}."
        residual |= {f"{at}{norm}.{gain}": 0 for norm in ("ln1", "ln2") for gain in ("weight", "bias")}
        residual |= {f"{at}{reads}.weight": 1 for reads in ("q", "k", "v", "up")}
        residual |= {f"{at}o.weight": 0, f"{at}down.weight": 0, f"{at}down.bias": 0}
        axes += [Axis(at + tensor, axis, at + group) for group, tensor, axis in _INNER]
        bound.append(Heads(heads, (at + "qk", at + "vo")))
    axes += [Axis(tensor, axis, "residual") for tensor, axis in residual.items()]
    if {x.tensor for x in axes} != set(shapes) - unmoved:
        return None
    for x in axes:
        if sizes.setdefault(x.group, shapes[x.tensor][x.axis]) != shapes[x.tensor][x.axis]:
            return None
    return Symmetries(sizes, tuple(axes), tuple(bound))
