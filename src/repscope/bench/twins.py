"""Benchmark of digital twins on a patch of cortex whose receptive fields, tuning and rates without noise are known.

1. A twin is fitted to some neurons of `worlds.cortex_patch`; other neurons are held out.
2. Rows: CCnorm and FEVE of the twin and of a linear-nonlinear model per neuron; the share of receptive-field centres within one
   pixel of the planted ones, beside an untrained twin; the error of preferred orientations in degrees; the correlation of signal
   correlations with the true ones; CCnorm of held-out neurons against minutes of data.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope import stats
from repscope.align.twin.ceilings import score_twin
from repscope.align.twin.fitting import Fitted, Recording, fit_twin
from repscope.align.twin.held_out_neurons import LINEAR, UNTRAINED, Transfer, transfer
from repscope.align.twin.network import LinearNonlinear, TwinNetwork
from repscope.align.twin.tuning import grating_tuning, receptive_fields, signal_correlation
from repscope.conditions import ESTIMATE, over
from repscope.results import Result, Row
from repscope.worlds.cortex_patch import VisualCortex, noise_images, visual_cortex


@dataclass(frozen=True)
class TwinBench:
    """Sizes. trials: of training; validation has a fifth of it. amounts: trials of held-out neurons. rate: mean count per trial."""

    neurons: int = 40
    held_out: int = 10
    trials: int = 2000
    test: int = 100
    repeats: int = 10
    size: int = 16
    rate: float = 1.5
    epochs: int = 16
    amounts: tuple[int, ...] = (100, 400, 1600)


@dataclass(frozen=True, eq=False)
class Teacher:
    """Neurons whose truth is known, and their recording.

    cortex: the neurons, those to fit first, then those held out. train, validation: of all neurons. test: repeated images.
    repeats: (repeat, image, neuron).
    """

    cortex: VisualCortex
    train: Recording
    validation: Recording
    test: Float[np.ndarray, "image height width"]
    repeats: Float[np.ndarray, "repeat image neuron"]


def twin_bench(sizes: TwinBench | None = None, *, seed: int = 0) -> Result:
    """Fit a twin to neurons with known receptive fields and measure what it recovers."""
    b = sizes or TwinBench()
    known = teacher(b, seed)
    fitted, rows, _ = recovery(b, known, seed)
    if b.held_out:
        assert isinstance(fitted.model, TwinNetwork)
        rows += held_out(b, known, fitted.model, seed).rows(seed=seed)
    return Result.of(rows)


def teacher(b: TwinBench, seed: int = 0) -> Teacher:
    """Draw neurons and record them."""
    cortex = visual_cortex(b.neurons + b.held_out, size=b.size, rate=b.rate, seed=seed)
    rng = np.random.default_rng(seed)
    images = noise_images(b.trials + b.trials // 5, b.size, seed=seed + 1)
    whole = Recording.of(images, rng.poisson(cortex.rates(images)))
    test = noise_images(b.test, b.size, seed=seed + 2)
    repeats = rng.poisson(np.tile(cortex.rates(test), (b.repeats, 1, 1))).astype(np.float64)
    return Teacher(cortex, whole.of_trials(np.arange(b.trials)), whole.of_trials(np.arange(b.trials, len(whole))), test, repeats)


def recovery(b: TwinBench, known: Teacher, seed: int = 0, checkpoint: Path | None = None) -> tuple[Fitted, list[Row], pd.DataFrame]:
    """Fit a twin and the baseline to the first neurons: the twin, rows, and a table with one line per neuron."""
    ours = np.arange(b.neurons)
    parts = known.train.of_neurons(ours), known.validation.of_neurons(ours)
    fresh = TwinNetwork(b.neurons, seed=seed)
    twin = fit_twin(fresh, *parts, epochs=b.epochs, seed=seed, checkpoint=checkpoint)
    linear = fit_twin(LinearNonlinear(b.neurons, b.size**2), *parts, epochs=b.epochs, penalty=0.1, rate=0.003, seed=seed)
    predicted, test, cortex = twin.predict(known.test), known.test, known.cortex
    scores, baseline = (score_twin(p, known.repeats[..., ours]) for p in (predicted, linear.predict(test)))
    rows = scores.rows(seed=seed)
    rows += [r for r in baseline.rows(condition=LINEAR, seed=seed) if r.metric in ("CCnorm", "CCabs", "FEVE")]
    both = scores.counted & baseline.counted
    gain = stats.mean((scores.cc_norm - baseline.cc_norm)[both], unit="neuron", seed=seed)
    rows.append(Row.of(gain, metric="gain", definition="CCnorm", condition=over(LINEAR), seed=seed))
    centres = {}
    for condition, model in ((ESTIMATE, twin.model), (UNTRAINED, fresh)):
        centres[condition] = receptive_fields(model, test[:40]).centres
        distance = np.abs(centres[condition] - cortex.centres[ours]).max(1)
        near = stats.proportion((distance <= 1).astype(np.float64), unit="neuron", seed=seed)
        rows.append(Row.of(near, metric="centres within one pixel", condition=condition, seed=seed))
    tuning = grating_tuning(twin, (b.size, b.size))
    off = np.abs((tuning.preferred - cortex.orientations[ours] + np.pi / 2) % np.pi - np.pi / 2)
    rows.append(Row.over(np.degrees(off), "neuron", metric="error of preferred orientation", seed=seed))
    agreement = _agreement(signal_correlation(predicted), signal_correlation(cortex.rates(test)[:, ours]))
    pairs = b.neurons * (b.neurons - 1) // 2
    rows.append(Row(metric="signal correlation recovered", value=agreement, unit="pair", n=pairs, seed=seed))
    table = pd.DataFrame(
        {
            "neuron": [f"neuron {i}" for i in ours],
            "kind": np.where(cortex.complex_cells[ours], "complex", "simple"),
            "CCabs": scores.cc_abs,
            "CCmax": scores.cc_max,
            "CCabs of the LN model": baseline.cc_abs,
            "row": cortex.centres[ours, 0],
            "column": cortex.centres[ours, 1],
            "row found": centres[ESTIMATE][:, 0],
            "column found": centres[ESTIMATE][:, 1],
            "error of orientation": np.degrees(off),
        }
    )
    return twin, rows, table


def held_out(b: TwinBench, known: Teacher, twin: TwinNetwork, seed: int = 0) -> Transfer:
    """Readouts of the held-out neurons on the twin's frozen core, against amounts of data."""
    others = np.arange(b.neurons, b.neurons + b.held_out)
    held = known.train.of_neurons(others), known.validation.of_neurons(others)
    return transfer(twin, *held, known.test, known.repeats[..., others], trials=b.amounts, epochs=b.epochs, seed=seed)


def _agreement(a: Float[np.ndarray, "neuron neuron"], b: Float[np.ndarray, "neuron neuron"]) -> float:
    above = np.triu_indices(len(a), 1)
    return float(np.corrcoef(a[above], b[above])[0, 1])
