"""Losses along straight lines between large networks, with one network in memory.

1. `make` builds the network; the user's own is never modified. Ends are mappings name → tensor, such as `checkpoints.Weights`,
   whose tensors are views of memory-mapped files. Memory: the network and the two files of a line.
2. A point α: every weight becomes (1 − α) a + α b in place, one tensor at a time; in float32 if a, b and the network differ in
   precision. Tied weights are one tensor of the network, written once under the name in the file.
3. Buffers. Integers and booleans must be equal in a and b, except the counter of batch norms, which does not affect a pass.
   Statistics of batch norms are valid for neither end at an interior point, so they are *repaired*: recomputed by passes over the
   data, averaged over batches, also at the ends for comparability (REPAIR's reset: Jordan et al. 2023). Other buffers are
   interpolated.
4. `evaluate` is the only call into the network: network → losses by name, a number, or (example, 2), two sums per example whose
   ratio is the loss. Every end is evaluated once.
5. With `kept`, every point is appended to that file as a line of JSON, and an interrupted computation resumes after the last one.
   The caller names the file by all that the losses depend on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repscope.errors import UserError
from repscope.manifest import stamped, unstamped
from repscope.models.loading.checkpoint_files import Weights
from repscope.progress import progress
from repscope.trace.interpolation import POINTS, Curves, check_states
from repscope.untrusted import parse_json

End = Mapping[str, Tensor]
Measured = Mapping[str, float | Float[np.ndarray, "example 2"]]
Passes = Callable[[nn.Module], object]

_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


class Random(Mapping[str, Tensor]):
    """Control end of a line from a to b: per tensor at the same distance from `a` as `b`, in a random direction.

    Parameters
    ----------
    a, b
        The ends of the line.
    seed
        Of the direction, which is the same at every read of a tensor.
    """

    def __init__(self, a: End, b: End, seed: int) -> None:
        self._a, self._b, self._seed = a, b, seed
        self._places = {name: place for place, name in enumerate(sorted(a))}

    def __getitem__(self, name: str) -> Tensor:
        a = self._a[name]
        if not a.is_floating_point() or name.endswith(_STATISTICS):
            return a
        length = torch.linalg.vector_norm(self._b[name].float() - a.float())
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + self._places[name])
        moved = torch.randn(a.shape, generator=generator)
        return moved.mul_(length / torch.linalg.vector_norm(moved).clamp_min(1e-30)).add_(a)

    def __iter__(self) -> Iterator[str]:
        return iter(self._a)

    def __len__(self) -> int:
        return len(self._a)


@torch.no_grad()
def stream_losses(
    make: Callable[[], nn.Module],
    ends: Sequence[End],
    evaluate: Callable[[nn.Module], Measured],
    pairs: Int[np.ndarray, "pair end"] | Sequence[tuple[int, int]] | None = None,
    points: int = POINTS,
    *,
    passes: Passes | None = None,
    repair: bool = True,
    kept: Path | None = None,
) -> Curves:
    """Losses along lines between networks, with one network in memory at a time.

    Parameters
    ----------
    make
        Builds the network; its weights are overwritten.
    ends
        The weights of each run.
    evaluate
        Losses of the network in evaluation mode.
    pairs
        Ends of lines; every pair when None.
    points
        Per line, ends included.
    passes
        Passes data through the network to repair the statistics of batch norms: as one batch, or in batches of equal size.
    repair
        Whether to repair them; otherwise they are interpolated.
    kept
        File of the points measured so far.

    Raises
    ------
    UserError
        If ends do not fit the network or buffers that cannot be interpolated differ; for weights that are not finite; for batch
        norms without `passes`; and as `interpolation.curves`.
    """
    lines = check_states(len(ends), pairs, points)
    alphas = np.linspace(0.0, 1.0, points)
    module = make().eval().requires_grad_(False)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if norms and repair and passes is None:
        raise UserError(
            f"The network has {len(norms)} batch norms, whose statistics are those of neither end at a point between; give "
            "passes=… over data to repair them, or repair=False to interpolate them."
        )
    slots = slots_of(module, ends[0])
    for end in ends[1:]:
        if not isinstance(end, Random):  # which derives from two checked ends
            slots_of(module, end)
    cells = _read(kept)
    # An end is cell (run, run, 0); an interior point of a line is (a, b, its number).
    wanted = [(int(run), int(run), 0) for run in np.unique(lines)]
    wanted += [(int(a), int(b), point) for a, b in lines for point in range(1, points - 1)]
    with progress("Paths", len(wanted)) as advance:
        for a, b, point in wanted:
            if (a, b, point) not in cells:
                release(end for end in ends if end is not ends[a] and end is not ends[b])
                _write(slots, ends[a], ends[b], float(alphas[point]))
                if norms and repair and passes is not None:
                    _repaired(module, norms, passes)
                measured = {name: np.asarray(value, dtype=np.float64) for name, value in evaluate(module).items()}
                cells[a, b, point] = measured
                if kept is not None:
                    _append(kept, (a, b, point), measured)
            advance(1)
    found = {}
    for name in cells[wanted[0]]:
        rows = [
            [cells[a, a, 0][name], *(cells[a, b, p][name] for p in range(1, points - 1)), cells[b, b, 0][name]]
            for a, b in lines.tolist()
        ]
        found[name] = np.array(rows)
    return Curves.of(len(ends), lines, alphas, found)


def release(ends: Iterable[End]) -> None:
    """Release the memory-mapped files of ends, so that only those of one line stay open."""
    for end in ends:
        if isinstance(end, Weights):
            end.close()


def slots_of(module: nn.Module, end: End) -> dict[str, Tensor]:
    """Name in a checkpoint → tensor of the network; resolves ties and a base model's names.

    Tied weights that a checkpoint stores under several names have one slot.

    Raises
    ------
    UserError
        For tensors that are missing or of another size, and for tied weights stored twice with different values.
    """
    base = f"{getattr(module, 'base_model_prefix', '')}."
    places: dict[tuple[object, ...], list[str]] = {}
    held = module.state_dict()
    for name, value in held.items():
        key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)
        places.setdefault(key, []).append(name)
    found = {}
    for names in places.values():
        asked = [spelt for name in names for spelt in (name, name.removeprefix(base), base + name)]
        stored = list(dict.fromkeys(name for name in asked if name in end))
        if not stored:
            raise UserError(
                f"A checkpoint lacks {names[0]} of a {type(module).__name__}; load it with transformers and save it again."
            )
        spelt = stored[0]
        for other in stored[1:]:
            if end[other].shape != end[spelt].shape or not torch.equal(end[other], end[spelt]):
                raise UserError(
                    f"{other} differs from {spelt} in {_said(end)}, and the {type(module).__name__} that it is compared with ties "
                    "them; give networks that all tie them, or all have tie_word_embeddings false in config.json and store both."
                )
        if end[spelt].shape != held[names[0]].shape:
            raise UserError(
                f"{spelt} is {list(end[spelt].shape)} in a checkpoint and {list(held[names[0]].shape)} in a "
                f"{type(module).__name__}; give checkpoints of one network."
            )
        found[spelt] = held[names[0]]
    return found


def check_slots(module: nn.Module, end: End) -> None:
    """Refuse a checkpoint whose tensors are not one to one those of the network loaded from it.

    Raises
    ------
    UserError
        If loading renamed, merged or transposed tensors: overwriting by name would be wrong.
    """
    for name, value in slots_of(module, end).items():
        if not torch.equal(end[name].to(value.dtype), value):
            raise UserError(
                f"{name} is not in the file as it is in the network that was loaded from it; save the checkpoints again "
                "with this version of transformers."
            )


def _write(slots: Mapping[str, Tensor], a: End, b: End, alpha: float) -> None:
    for name, place in slots.items():
        if name not in a or name not in b:
            raise UserError(f"A checkpoint lacks {name}, which another has; give checkpoints of one network.")
        x, y = a[name], b[name]
        if x.shape != place.shape or y.shape != place.shape:
            raise UserError(f"{name} is {list(x.shape)} in one checkpoint and {list(y.shape)} in another; they must agree.")
        if not place.is_floating_point() and not place.is_complex():
            if not name.endswith(_COUNTER) and not torch.equal(x, y):
                raise UserError(f"{name} holds whole numbers that differ between two checkpoints; there is nothing between.")
            place.copy_(x)
        elif a is b:
            if not torch.isfinite(x).all():
                raise UserError(f"{name} holds values that are not finite in {_said(a)}; its training diverged.")
            place.copy_(x)
        elif x.dtype == y.dtype == place.dtype:
            torch.lerp(x, y, alpha, out=place)
        else:
            place.copy_(torch.lerp(x.float(), y.float(), alpha))


def _said(end: End) -> str:
    return str(getattr(end, "path", "one checkpoint"))


def _repaired(module: nn.Module, norms: Sequence[_BatchNorm], passes: Passes) -> None:
    with _counting(norms):
        passes(module)


@contextmanager
def _counting(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Only batch norms in training mode, with reset statistics and equal weights of all batches."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's name for a cumulative average
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.eval()


Cell = tuple[int, int, int]


def _read(kept: Path | None) -> dict[Cell, dict[str, np.ndarray]]:
    found: dict[Cell, dict[str, np.ndarray]] = {}
    if kept is None or not kept.is_file():
        return found
    for line in kept.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # incomplete, as the process was killed, or damaged
            cell = parse_json(unstamped(line) or "")
            a, b, point = cell["at"]
            found[a, b, point] = {name: np.array(values) for name, values in cell["losses"].items()}
    return found


def _append(kept: Path, at: Cell, measured: Mapping[str, np.ndarray]) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as file:
        # The line break comes first, so that an incomplete line of a killed process stays separate.
        cell = {"at": at, "losses": {name: values.tolist() for name, values in measured.items()}}
        file.write("\n" + stamped(json.dumps(cell)))
