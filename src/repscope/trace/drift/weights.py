"""How far tuning moved the weights: norms, cosines, unchanged entries, and the spectrum of the change, by module kind and block.

For W of the base, W' of the tuned checkpoint and D = W' − W, entries pooled over the tensors of a group:

1. relative Frobenius norm ‖D‖ / ‖W‖ and cosine ⟨W, W'⟩ / (‖W‖ ‖W'‖);
2. unchanged in float32: share of entries with equal bits; unchanged in bfloat16: the same after rounding both to bfloat16; hidden
   by bfloat16: the second minus the first, the share of entries whose change bfloat16 does not show. Updates smaller than bfloat16
   resolves look like sparse updates there (arXiv 2511.08567 on arXiv 2505.11711);
3. of every matrix D that is not zero: effective rank exp H(s / Σ s), its share of min(rows, columns), and the top-k energy
   Σ_{i≤k} s² / Σ s².

Controls: a random matrix of the same shape (effective rank and top-k energy do not depend on its norm), and the relative norm of
the change that rounding W to bfloat16 makes. Groups: each kind in each block, each kind, and all. Intervals: bootstrap over
tensors.

Tensors are streamed: memory is a few parts of fixed size, and for spectra what `spectra` states. Matrices alone have spectra.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from repscope import stats
from repscope.conditions import ESTIMATE, RANDOM, ROUNDING
from repscope.manifest import stamped, unstamped
from repscope.progress import progress
from repscope.results import Result, Row
from repscope.trace.drift import spectra as spectrum_of
from repscope.trace.drift.entrywise import Audit, Sums
from repscope.trace.drift.module_kinds import block_of, kind_of
from repscope.trace.drift.pair import Pair, TensorPair
from repscope.trace.drift.stored import Checkpoint
from repscope.untrusted import parse_json

NORM, COSINE = "relative Frobenius norm", "cosine"
UNCHANGED32, UNCHANGED16, HIDDEN = "unchanged in float32", "unchanged in bfloat16", "hidden by bfloat16"
RANK, RANK_SHARE, ENERGY = "effective rank", "share of the full rank", "top-k energy"
ALL = "all weights"  #: item of the rows over all tensors
UNIT = "tensor"

#: columns of `_sums`, in its order
_BASE, _TUNED, _CHANGE, _SAME32, _SAME16, _ROUNDING, _ENTRIES = range(7)
Columns = Float[np.ndarray, "draw column"]


@dataclass(frozen=True)
class TensorDrift:
    """What was measured of one tensor. spectrum: singular values of the change, descending; None where it has none."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    sums: Sums
    spectrum: Float[np.ndarray, "value"] | None


def weight_drift(
    base: "Pair | Mapping[str, Tensor] | Checkpoint",
    tuned: "Mapping[str, Tensor] | Checkpoint | None" = None,
    *,
    spectra: bool = True,
    rounding: bool = False,
    top: int = spectrum_of.TOP,
    seed: int = 0,
    kept: Path | None = None,
) -> Result:
    """How far the weights of a tuned checkpoint are from those of its base.

    Parameters
    ----------
    base, tuned
        A pair, or two mappings name → tensor.
    spectra
        Whether to compute singular values of the change of every matrix: much slower than all else.
    rounding
        Whether to add the control of rounding the base to bfloat16.
    top
        Number of singular values in the top-k energy.
    seed
        Of intervals and random matrices.
    kept
        File of the tensors measured so far, by which an interrupted computation continues.

    Returns
    -------
    Result
        Rows by kind and block (item and layer), by kind, and for all weights; side tables `tensors` and `spectrum`.

    Raises
    ------
    UserError
        For weights that are not finite, names or shapes that differ, and damaged files.
    """
    pair = base if isinstance(base, Pair) else Pair.of(base, tuned if tuned is not None else {})
    found = list(measured(pair, spectra=spectra, rounding=rounding, kept=kept))
    rows = [*_rows(found, rounding, top, seed), *(_controls(found, top, seed) if spectra else ())]
    return Result.of(rows, side=_side(found, top), notes=(*pair.notes, *_notes(found, spectra)))


def measured(
    pair: Pair, *, spectra: bool = False, rounding: bool = False, kept: Path | None = None, threads: int | None = None
) -> Iterator[TensorDrift]:
    """The tensors of a pair, one after the other, as for `weight_drift`.

    Parameters
    ----------
    threads
        Tensors that are read at the same time; torch's number of threads if None. Spectra use all threads for one tensor.
    """
    own, done = threading.local(), _read(kept)
    total = sum(stored.entries for stored in pair.base.stored.values())

    def one(tensor: TensorPair) -> tuple[TensorDrift, bool]:
        found = done.get(tensor.name)
        if found is not None and not (spectra and found.spectrum is None and len(found.shape) == 2):
            return found, False
        if not hasattr(own, "audit"):
            own.audit = Audit(rounding=rounding)
        return _one(tensor, own.audit, spectra), True

    workers = 1 if spectra else max(1, threads or torch.get_num_threads())
    with progress("Weights", total) as advance, pair.closing():
        for found, new in _mapped(one, pair.tensors(), workers):
            if new and kept is not None:
                _append(kept, found)
            advance(found.sums.entries)
            yield found


def _mapped(
    function: Callable[[TensorPair], tuple[TensorDrift, bool]], tensors: Iterator[TensorPair], workers: int
) -> Iterator[tuple[TensorDrift, bool]]:
    """Results in order, from several threads if there are: numpy and torch give the lock back while they compute."""
    if workers == 1:
        yield from map(function, tensors)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, tensors)
    finally:
        pool.shutdown(cancel_futures=True)


def _one(tensor: TensorPair, audit: Audit, spectra: bool) -> TensorDrift:
    sums, labels = Sums(), (tensor.source.base.label, tensor.source.tuned.label)
    for x, y, d in tensor.parts():
        sums += audit.sums(x, y, d, name=tensor.name, labels=labels)
    spectrum = _spectrum(tensor, sums) if spectra and len(tensor.base.shape) == 2 else None
    return TensorDrift(tensor.name, tensor.base.shape, (tensor.base.dtype, tensor.tuned.dtype), sums, spectrum)


def _spectrum(tensor: TensorPair, sums: Sums) -> Float[np.ndarray, "value"]:
    rows, columns = tensor.base.shape
    if sums.change == 0:
        return np.zeros(min(rows, columns))
    if tensor.factors is not None:
        return spectrum_of.of_product(tensor.factors.b, tensor.factors.a) * abs(tensor.factors.scale)
    return spectrum_of.of_matrix(tensor.rows(), (rows, columns))


# ------------------------------------------------------------------------------------------------------------------ rows


def _ratio(top: int, bottom: int, root: bool = False) -> Callable[[Columns], Float[np.ndarray, "draw"]]:
    def of(means: Columns) -> Float[np.ndarray, "draw"]:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(means[:, top] == 0, 0.0, means[:, top] / means[:, bottom])
        return np.asarray(np.sqrt(share) if root else share)

    return of


def _cosine(means: Columns) -> Float[np.ndarray, "draw"]:
    x, y, d = means[:, _BASE], means[:, _TUNED], means[:, _CHANGE]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = (d - (np.sqrt(x) - np.sqrt(y)) ** 2) / (2 * np.sqrt(x * y))  # 1 − cosine, without cancellation
    return np.where(d == 0, 1.0, 1.0 - np.maximum(away, 0.0))


def _hidden(means: Columns) -> Float[np.ndarray, "draw"]:
    return np.asarray((means[:, _SAME16] - means[:, _SAME32]) / means[:, _ENTRIES])


_POOLED: dict[str, Callable[[Columns], Float[np.ndarray, "draw"]]] = {
    NORM: _ratio(_CHANGE, _BASE, root=True),
    COSINE: _cosine,
    UNCHANGED32: _ratio(_SAME32, _ENTRIES),
    UNCHANGED16: _ratio(_SAME16, _ENTRIES),
    HIDDEN: _hidden,
}


def groups_of(found: list[TensorDrift]) -> dict[tuple[str, int | None], list[TensorDrift]]:
    """Tensors by kind and block, by kind, and all, in this order."""
    groups: dict[tuple[str, int | None], list[TensorDrift]] = {}
    for tensor in found:
        kind, block = kind_of(tensor.name), block_of(tensor.name)
        for group in dict.fromkeys(((kind, block), (kind, None))):
            groups.setdefault(group, []).append(tensor)
    return dict(sorted(groups.items(), key=lambda g: (g[0][1] is None, g[0][0], g[0][1] or 0))) | {(ALL, None): found}


def _sums(found: list[TensorDrift]) -> Float[np.ndarray, "tensor column"]:
    sums = (t.sums for t in found)
    return np.array([[s.base, s.tuned, s.change, s.same32, s.same16, s.rounding, s.entries] for s in sums], dtype=np.float64)


def _rows(found: list[TensorDrift], rounding: bool, top: int, seed: int) -> Iterator[Row]:
    for (kind, block), tensors in groups_of(found).items():
        where: dict[str, Any] = {"item": kind, "layer": block, "seed": seed}
        sums, over = _sums(tensors), block is None and len(tensors) > 1
        wanted = {(metric, ESTIMATE): of for metric, of in _POOLED.items()}
        if rounding and block is None:
            wanted[NORM, ROUNDING] = _ratio(_ROUNDING, _BASE, root=True)
        if over:
            named = {f"{metric}/{condition}": of for (metric, condition), of in wanted.items()}
            estimates = stats.functions_of_ratios(sums, np.ones_like(sums), named, unit=UNIT, seed=seed)
            for (metric, condition), estimate in zip(wanted, estimates.values()):
                yield Row.of(estimate, metric=metric, condition=condition, **where)
        else:
            means = sums.mean(0, keepdims=True)
            for (metric, condition), of in wanted.items():
                yield Row(value=float(of(means)[0]), metric=metric, condition=condition, unit=UNIT, n=len(tensors), **where)
        if any(t.spectrum is not None for t in tensors):
            yield from _of_spectra([s for _, s in _changed(tensors)], ESTIMATE, top, where)


def _of_spectra(spectrums: list[Float[np.ndarray, "value"]], condition: str, top: int, where: dict[str, Any]) -> Iterator[Row]:
    spectrums = spectrums or [np.zeros(1)]
    ranks = np.array([spectrum_of.effective_rank(s) for s in spectrums])
    columns = {
        (RANK, "mean over changed matrices of exp H(s / Σ s)"): ranks,
        (RANK_SHARE, "effective rank over min(rows, columns)"): ranks / np.array([len(s) for s in spectrums]),
        (ENERGY, f"k = {top}"): np.array([spectrum_of.top_energy(s, top) for s in spectrums]),
    }
    for (metric, definition), values in columns.items():
        yield Row.over(values, UNIT, metric=metric, definition=definition, condition=condition, **where)


def _controls(found: list[TensorDrift], top: int, seed: int) -> Iterator[Row]:
    """Effective rank and energy of random matrices of the shapes of each kind."""
    drawn: dict[tuple[int, ...], np.ndarray] = {}
    for (kind, block), tensors in groups_of(found).items():
        shapes = [shape for shape, _ in _changed(tensors)]
        if block is not None or not shapes:
            continue
        for shape in shapes:
            if shape not in drawn:
                drawn[shape] = spectrum_of.of_random((shape[0], shape[1]), seed + len(drawn))
        where = {"item": kind, "layer": None, "seed": seed}
        yield from _of_spectra([drawn[shape] for shape in shapes], RANDOM, top, where)


def _changed(tensors: list[TensorDrift]) -> list[tuple[tuple[int, ...], Float[np.ndarray, "value"]]]:
    """Shape and spectrum of the matrices that changed."""
    return [(t.shape, t.spectrum) for t in tensors if t.spectrum is not None and t.spectrum.any()]


def _side(found: list[TensorDrift], top: int) -> dict[str, pd.DataFrame]:
    tensors = [
        {
            "tensor": t.name,
            "kind": kind_of(t.name),
            "layer": block_of(t.name),
            "shape": " × ".join(map(str, t.shape)),
            "stored": " and ".join(dict.fromkeys(t.dtypes)),
            "entries": t.sums.entries,
            "base_squares": t.sums.base,
            "tuned_squares": t.sums.tuned,
            "change_squares": t.sums.change,
            "same_float32": t.sums.same32,
            "same_bfloat16": t.sums.same16,
            "effective_rank": np.nan if t.spectrum is None else spectrum_of.effective_rank(t.spectrum),
            "top_energy": np.nan if t.spectrum is None else spectrum_of.top_energy(t.spectrum, top),
        }
        for t in found
    ]
    side = {"tensors": pd.DataFrame(tensors).astype({"layer": "Int64"})}
    if values := [t for t in found if t.spectrum is not None and t.spectrum.any()]:
        parts = [(t.name, t.spectrum) for t in values if t.spectrum is not None]
        side["spectrum"] = pd.DataFrame(
            {
                "tensor": np.repeat([name for name, _ in parts], [len(s) for _, s in parts]),
                "index": np.concatenate([np.arange(len(s)) for _, s in parts]),
                "singular_value": np.concatenate([s for _, s in parts]),
            }
        )
    return side


def _notes(found: list[TensorDrift], spectra: bool) -> Iterator[str]:
    if mixed := [t for t in found if t.dtypes[0] != t.dtypes[1]]:
        a, b = mixed[0].dtypes
        yield (
            f"{len(mixed)} of {len(found)} tensors are stored as {a} in the base and {b} in the tuned checkpoint, {mixed[0].name} "
            "first: rounding alone changes most entries."
        )
    if zero := [t for t in found if t.sums.base == 0 < t.sums.change]:
        yield f"{len(zero)} tensors are zero in the base and have no relative norm of their own, {zero[0].name} first."
    if spectra and (stacks := [t for t in found if len(t.shape) > 2]):
        yield f"{len(stacks)} tensors have more than two axes and no spectrum, {stacks[0].name} first."


# --------------------------------------------------------------------------------------------------------- finished tensors


def _read(kept: Path | None) -> dict[str, TensorDrift]:
    found: dict[str, TensorDrift] = {}
    if kept is None or not kept.is_file():
        return found
    for line in kept.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError, KeyError, TypeError):  # a line that was incomplete when the process was killed, or damaged
            given = parse_json(unstamped(line) or "")
            spectrum = None if given["spectrum"] is None else np.array(given["spectrum"], dtype=np.float64)
            a, b = given["dtypes"]
            found[given["name"]] = TensorDrift(given["name"], tuple(given["shape"]), (a, b), Sums(**given["sums"]), spectrum)
    return found


def _append(kept: Path, found: TensorDrift) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    spectrum = None if found.spectrum is None else found.spectrum.tolist()
    record = {"name": found.name, "shape": found.shape, "dtypes": found.dtypes, "sums": asdict(found.sums), "spectrum": spectrum}
    with kept.open("a", encoding="utf-8") as file:
        # The line break comes first, so that an incomplete line of a killed process stays separate.
        file.write("\n" + stamped(json.dumps(record)))
