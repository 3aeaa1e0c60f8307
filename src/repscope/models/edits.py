"""Edits of activations at a site: add, replace, project out, affine map, clamp along a direction, any function of a row.

An `Edit` describes operation, site and tokens, independently of any module; `BaseNetwork.edit` installs it within a context.

    x' = x + scale · v                 add
    x' = v                             replace
    x' = x - Q Qᵀ x                    project out; Q spans the directions given
    x' = W x + b                       affine
    x' = x + (clip(c) - c) u           clamp, with c = u · x the coordinate along a unit vector
    x' = f(x)                          map; observe reads x and leaves it

Arithmetic is in float32 or wider. Edits at one site act in the order given, sites in the order of the forward pass. Positions are
relative to the prompt, so padding, caches and batches have no effect.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError, unknown
from repscope.models.sites import PICKS, Site, Tokens

EVERYWHERE = 1 << 40  #: a position beyond any prompt
Kind = Literal["add", "replace", "project_out", "affine", "clamp", "map", "observe"]
WHERE = ("prompt", "generated")
Arrays = Mapping[str, Tensor]


def _clamped(x: Tensor, a: Arrays) -> Tensor:
    along = x @ a["unit"]
    return x + (along.clamp(float(a["low"]), float(a["high"])) - along)[..., None] * a["unit"]


#: operation of each kind on rows (position, feature), given its arrays
_CHANGES: dict[Kind, Callable[[Tensor, Arrays], Tensor]] = {
    "add": lambda x, a: x + a["vector"],
    "replace": lambda x, a: a["vector"].expand_as(x).clone(),  # some model families modify it in place afterwards
    "project_out": lambda x, a: x - (x @ a["basis"].T) @ a["basis"],
    "affine": lambda x, a: x @ a["weight"].T + a["bias"],
    "clamp": _clamped,
}


@dataclass(frozen=True, eq=False)
class Edit:
    """One change at one site. Made by `Edit.add`, `replace`, `project_out`, `affine`, `clamp`, `map` and `observe`.

    site: a kind without a block (`resid_post`) means all blocks. tokens: `all`, `last`, `first`, an index, a span name with or
    without such a choice (`subject`, `subject.last`), `prompt`, or `generated` for the tokens after the prompt. arrays: vectors and
    matrices of the operation. per_prompt: whether `vector` has one row per prompt. axis: feature axis of a `module:` site in a
    network that is not a transformer (1 for image channels). function, name: of `map` and `observe`.
    """

    kind: Kind
    site: Site
    tokens: str
    arrays: Arrays
    per_prompt: bool = False
    axis: int = -1
    function: Callable[[Tensor], Any] | None = None
    name: str = ""

    @classmethod
    def add(
        cls,
        site: str | Site,
        vector: Any,
        *,
        scale: float | None = None,
        tokens: str | int | None = None,
        per_prompt: bool = False,
        axis: int = -1,
    ) -> "Edit":
        """Add a vector.

        Parameters
        ----------
        site
            Where.
        vector
            (feature), or (prompt, feature) with `per_prompt`; an array, a tensor or a `Direction`.
        scale
            Factor of the vector; by default the direction's own scale, else 1.
        tokens
            Positions; by default the direction's own, else all.

        Raises
        ------
        UserError
            For a non-finite vector, an unknown site or an invalid choice of tokens.
        """
        factor = scale if scale is not None else float(getattr(vector, "scale", 1.0))
        at = tokens if tokens is not None else getattr(vector, "tokens", "all")
        return _made("add", site, at, {"vector": factor * _array(vector)}, per_prompt, axis)

    @classmethod
    def replace(
        cls, site: str | Site, value: Any, *, tokens: str | int = "all", per_prompt: bool = False, axis: int = -1
    ) -> "Edit":
        """Replace activations by a value: (feature), (prompt, feature) with `per_prompt`, or 0 for zero ablation."""
        return _made("replace", site, tokens, {"vector": _array(value)}, per_prompt, axis)

    @classmethod
    def project_out(cls, site: str | Site, directions: Any, *, tokens: str | int = "all", axis: int = -1) -> "Edit":
        """Project out one direction (feature), or the span of several (direction, feature).

        Raises
        ------
        UserError
            When the directions are zero.
        """
        rows = _array(directions)
        if not rows.numel() or not rows.dim():
            raise UserError(f"There is no direction to project out at {site}; an empty list spans nothing.")
        if not bool(torch.isfinite(rows).all()):
            raise UserError(f"The directions to project out at {site} are not finite.")
        rows = rows[None] if rows.dim() == 1 else rows.flatten(1)
        _, lengths, basis = torch.linalg.svd(rows, full_matrices=False)
        kept = lengths > lengths.max().clamp_min(1e-30) * 1e-7
        if not bool(kept.any()) or float(lengths.max()) == 0:
            raise UserError(f"The directions to project out at {site} are zero; they span nothing.")
        return _made("project_out", site, tokens, {"basis": basis[kept]}, False, axis)

    @classmethod
    def affine(cls, site: str | Site, weight: Any, bias: Any = 0.0, *, tokens: str | int = "all", axis: int = -1) -> "Edit":
        """Map x to W x + b; `weight` is (feature, feature), `bias` (feature) or a number."""
        return _made("affine", site, tokens, {"weight": _array(weight), "bias": _array(bias)}, False, axis)

    @classmethod
    def clamp(
        cls,
        site: str | Site,
        direction: Any,
        low: float = -float("inf"),
        high: float = float("inf"),
        *,
        tokens: str | int = "all",
        axis: int = -1,
    ) -> "Edit":
        """Clamp the coordinate along the normalised direction between `low` and `high`, in the site's own units.

        Raises
        ------
        UserError
            When the direction is zero, or low is above high.
        """
        vector = _array(direction).flatten()
        if low > high:
            raise UserError(f"The clamp at {site} runs from {low} to {high}; low must not be above high.")
        if float(vector.norm()) == 0:
            raise UserError(f"The direction to clamp along at {site} has zero norm; give another.")
        arrays = {
            "unit": vector / vector.norm(),
            "low": torch.tensor(low, dtype=torch.float64),
            "high": torch.tensor(high, dtype=torch.float64),
        }
        return _made("clamp", site, tokens, arrays, False, axis)

    @classmethod
    def map(
        cls, site: str | Site, function: Callable[[Tensor], Tensor], *, tokens: str | int = "all", name: str = "", axis: int = -1
    ) -> "Edit":
        """Map each row by a function.

        Parameters
        ----------
        function
            Rows (position, feature) of float32 or wider to as many of the same width, several feature axes (heads) flattened; each
            row from itself alone, as which rows come together depends on the batch. Differentiable, if gradients are to pass it.
        name
            What errors call it.
        """
        edit = _made("map", site, tokens, {}, False, axis)
        return replace(edit, function=function, name=name)

    @classmethod
    def observe(
        cls, site: str | Site, function: Callable[[Tensor], Any], *, tokens: str | int = "all", name: str = "", axis: int = -1
    ) -> "Edit":
        """Call a function with the rows, as `map` does, and change nothing: for an edit at a later site that depends on them."""
        edit = _made("observe", site, tokens, {}, False, axis)
        return replace(edit, function=function, name=name)

    def __repr__(self) -> str:
        if self.function is not None:
            return f"Edit({self.name or self.kind} at {self.site}, tokens={self.tokens})"
        return f"Edit({self.kind} at {self.site}, tokens={self.tokens})"

    @property
    def picked(self) -> Tokens:
        """Positions within the prompt; all for `prompt` and `generated`, which the forward pass then restricts."""
        return Tokens("all") if self.tokens in WHERE else Tokens.spanning(self.tokens)

    def changed(self, x: Tensor, prompts: Int[Tensor, "position"] | None, arrays: Arrays) -> Tensor:
        """Edited rows (position, *feature), each of which belongs to a prompt.

        Raises
        ------
        UserError
            When the arrays do not fit the site.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.function is not None:
            return self._mapped(x, wide, self.function)
        if self.per_prompt:
            assert prompts is not None
            arrays = {"vector": arrays["vector"][prompts]}
        given = arrays.get("vector")
        shape = None if given is None else tuple(given.shape[1:] if self.per_prompt else given.shape)
        fits = shape is None or shape in ((), tuple(x.shape[1:]))
        try:
            if given is not None:
                new = _CHANGES[self.kind](wide, arrays) if fits else wide
            else:
                new = _CHANGES[self.kind](wide.flatten(1), arrays).reshape(wide.shape)
        except RuntimeError:
            fits = False
        if not fits:
            shapes = ", ".join(f"{name} {tuple(a.shape[self.per_prompt :])}" for name, a in arrays.items() if a.dim())
            raise UserError(f"The {self} has {shapes}; the site's features are {tuple(x.shape[1:])}.")
        return self._narrow(x, new)

    def _mapped(self, x: Tensor, wide: Tensor, function: Callable[[Tensor], Any]) -> Tensor:
        rows = wide.flatten(1)
        new = function(rows)
        if self.kind == "observe":
            return x
        if not isinstance(new, Tensor) or new.shape != rows.shape:
            given = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise UserError(f"The function of {self} gives {given} for rows {tuple(rows.shape)}; it must keep the shape.")
        return self._narrow(x, new.to(wide.dtype).reshape(wide.shape))

    def _narrow(self, x: Tensor, new: Tensor) -> Tensor:
        """New values in the precision of the site."""
        if self.site.kind == "pattern":  # masked keys (future tokens, padding) stay masked
            new = torch.where(x == 0, torch.zeros_like(new), new)
        made = new.to(x.dtype)
        if x.dtype == torch.float16 and bool((~torch.isfinite(made) & torch.isfinite(new)).any()):
            raise UserError(
                f"The {self} gives values beyond float16 (at most 65,504); load the model with dtype='float32' or 'bfloat16'."
            )
        return made


@dataclass
class Pass:
    """Layout of prompts in one forward pass, from which edits find their positions.

    prompts: (row), prompt of each row. offset: (row), padding columns before it. total: columns so far including the cache, set by
    the pass itself. If all rows are the same prompt, one row may represent them. cells: of a pack, one row of several prompts, the
    prompt and the position of each column; they replace prompts and offset.
    """

    prompts: Int[np.ndarray, "row"]
    offset: Int[np.ndarray, "row"]
    total: int = 0
    columns: int = 0
    cells: tuple[Int[np.ndarray, "column"], Int[np.ndarray, "column"]] | None = None


@dataclass
class Installed:
    """An edit installed at one site of a network within a context.

    current: returns the running pass, None for a plain call of the module. start, stop: (prompt), first position and the one after
    the last, for the current operation. hit, moved: whether it was reached and whether it changed anything. planned: whether a
    `plan` used it, without running.
    """

    edit: Edit
    site: Site
    current: Callable[[], Pass | None]
    asleep: bool = False
    start: Int[np.ndarray, "prompt"] | None = None
    stop: Int[np.ndarray, "prompt"] | None = None
    hit: bool = False
    moved: bool = False
    planned: bool = False
    _arrays: dict[tuple[torch.device, torch.dtype], Arrays] = field(default_factory=dict)

    def __call__(self, value: Tensor) -> Tensor | None:
        """The edited tensor, None where nothing changes."""
        if self.asleep:
            return None
        now = self.current()
        if now is None and (self.edit.tokens != "all" or self.edit.per_prompt):
            raise UserError(
                f"{self.edit} must know where prompts begin and end, which is unknown in a plain call of the module: "
                "use capture, logits, score or generate."
            )
        if now is None or self.start is None or self.stop is None:
            return self._whole(value, now)
        rows = len(now.prompts)
        if value.dim() == 2 and now.columns and len(value) == rows * now.columns:  # rows and tokens as one axis
            new = self._placed(torch.unflatten(value, 0, (rows, now.columns)), now)
            return None if new is None else new.flatten(0, 1)
        return self._placed(value, now)

    def _in_pack(self, value: Float[Tensor, "1 token *feature"], cells: tuple[Any, Any]) -> Tensor | None:
        assert self.start is not None
        assert self.stop is not None
        prompts, position = cells
        if value.shape[:2] != (1, len(position)):
            raise ValueError(f"{self.edit} got {tuple(value.shape)} in a pack of {len(position)} tokens")
        inside = (position >= self.start[prompts]) & (position < self.stop[prompts])
        if not inside.any():
            return None
        if inside.all() and not self.edit.per_prompt:
            return self._noted(value, self.edit.changed(value.flatten(0, 1), None, self._on(value)).reshape(value.shape))
        column, whose = (torch.from_numpy(x).to(value.device) for x in (np.flatnonzero(inside), prompts[inside]))
        new = value.clone()
        new[0, column] = self.edit.changed(value[0, column], whose, self._on(value))
        return self._noted(value, new)

    def _placed(self, value: Float[Tensor, "row token *feature"], now: Pass) -> Tensor | None:
        assert self.start is not None
        assert self.stop is not None
        if now.cells is not None:
            return self._in_pack(value, now.cells)
        total = now.total or value.shape[1]
        first = total - value.shape[1]
        low, high = self.start[now.prompts] + now.offset, self.stop[now.prompts] + now.offset
        if high.max() <= first or low.min() >= total:
            return None
        if low.max() <= first and high.min() >= total and not self.edit.per_prompt:
            return self._noted(value, self.edit.changed(value.flatten(0, 1), None, self._on(value)).reshape(value.shape))
        columns = np.arange(first, total)
        mask = torch.from_numpy((columns >= low[:, None]) & (columns < high[:, None])).to(value.device)
        row, column = mask.expand(len(value), -1).nonzero(as_tuple=True)
        prompts = torch.from_numpy(now.prompts).to(value.device).expand(len(value))[row]
        new = value.clone()
        new[row, column] = self.edit.changed(value[row, column], prompts, self._on(value))
        return self._noted(value, new)

    def _whole(self, value: Tensor, now: Pass | None) -> Tensor:
        """Edit every position; `axis` is the feature axis, all other axes are positions."""
        if not -value.dim() <= self.edit.axis < value.dim():
            raise UserError(f"{self.edit} has axis={self.edit.axis}, but the tensor there has {value.dim()} axes.")
        moved = value.movedim(self.edit.axis, -1)
        rows = moved.flatten(0, 1) if self.edit.axis == -1 and moved.dim() > 2 else moved.flatten(0, -2)
        prompts = None
        if self.edit.per_prompt:
            assert now is not None
            prompts = torch.from_numpy(now.prompts).to(value.device).repeat_interleave(len(rows) // len(now.prompts))
        new = self.edit.changed(rows, prompts, self._on(value)).reshape(moved.shape).movedim(-1, self.edit.axis)
        return self._noted(value, new)

    def _noted(self, old: Tensor, new: Tensor) -> Tensor:
        self.hit = True
        self.moved = self.moved or not torch.equal(old, new)
        return new

    def _on(self, value: Tensor) -> Arrays:
        key = (value.device, torch.promote_types(value.dtype, torch.float32))
        if key not in self._arrays:
            self._arrays[key] = {name: self._narrowed(name, a, key[1]).to(key[0]) for name, a in self.edit.arrays.items()}
        return self._arrays[key]

    def _narrowed(self, name: str, array: Tensor, dtype: torch.dtype) -> Tensor:
        """An array of the edit, cast to the precision of its arithmetic; its values must be in range."""
        made = array.to(dtype)
        if bool((torch.isfinite(array) & ~torch.isfinite(made)).any()) and name not in ("low", "high"):
            raise UserError(f"The {name} of {self.edit} exceeds float32, the precision of edits; give smaller numbers.")
        return made


def _made(kind: Kind, site: str | Site, tokens: str | int, arrays: Arrays, per_prompt: bool, axis: int) -> Edit:
    for name, array in arrays.items():
        if not bool(torch.isfinite(array).all()) and (name not in ("low", "high") or bool(array.isnan())):
            raise UserError(f"The {name} of the edit at {site} is not finite, or not a number (nan).")
    Tokens.spanning(tokens)
    if not str(tokens) or str(tokens).endswith("."):
        raise unknown("choice of tokens", tokens, (*PICKS, *WHERE))
    edit = Edit(kind, Site.parse(site), str(tokens), arrays, per_prompt, axis)
    if edit.picked.pooled:
        raise UserError(f"An edit acts on positions, but {tokens!r} is an average: choose all, last or a span.")
    if per_prompt and arrays["vector"].dim() < 2:
        raise UserError(f"The edit at {site} has one vector, not one per prompt: give (prompt, feature).")
    return edit


def _array(given: Any) -> Tensor:
    """A number, an array, a tensor, a direction (its unit vector) or several of these, as a tensor on the CPU."""
    if hasattr(given, "vector"):
        given = given.vector
    elif hasattr(given, "directions") or (isinstance(given, Sequence) and any(hasattr(one, "vector") for one in given)):
        given = np.stack([np.asarray(one.vector) for one in given])
    elif isinstance(given, Sequence) and any(isinstance(one, Tensor) for one in given):
        given = np.stack([one.detach().cpu().double().numpy() for one in given])
    try:
        tensor = given.detach().cpu() if isinstance(given, Tensor) else torch.from_numpy(np.array(given, dtype=np.float64))
    except (ValueError, TypeError) as error:
        raise UserError(f"An edit cannot use {str(given)[:40]!r}: give a number, or an array of one shape.") from error
    return tensor.to(torch.float64, copy=True)
