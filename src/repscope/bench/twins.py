"""Benchmark of digital twins on a patch of cortex whose receptive fields, tuning and rates without noise are known.

1. A twin is fitted to some neurons of `worlds.cortex_patch`; other neurons are held out.
2. Rows: CCnorm and FEVE of the twin and of a linear-nonlinear model per neuron; the share of receptive-field centres within one
   pixel of the planted ones, beside an untrained twin; the error of preferred orientations in degrees; the correlation of signal
   correlations with the true ones; CCnorm of held-out neurons against minutes of data.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.align.twin.ceilings import score_twin
from repscope.align.twin.fitting import Recording, fit_twin
from repscope.align.twin.held_out_neurons import LINEAR, UNTRAINED, transfer
from repscope.align.twin.network import LinearNonlinear, TwinNetwork
from repscope.align.twin.tuning import grating_tuning, receptive_fields, signal_correlation
from repscope.results import Result, Row
from repscope.worlds.cortex_patch import noise_images, visual_cortex


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


def twin_bench(sizes: TwinBench | None = None, *, seed: int = 0) -> Result:
    """Fit a twin to neurons with known receptive fields and measure what it recovers."""
    b = sizes or TwinBench()
    every = b.neurons + b.held_out
    cortex = visual_cortex(every, size=b.size, rate=b.rate, seed=seed)
    rng = np.random.default_rng(seed)
    images = noise_images(b.trials + b.trials // 5, b.size, seed=seed + 1)
    whole = Recording.of(images, rng.poisson(cortex.rates(images)))
    test = noise_images(b.test, b.size, seed=seed + 2)
    repeats = rng.poisson(np.tile(cortex.rates(test), (b.repeats, 1, 1))).astype(np.float64)
    train, validation = whole.of_trials(np.arange(b.trials)), whole.of_trials(np.arange(b.trials, len(whole)))
    ours, others = np.arange(b.neurons), np.arange(b.neurons, every)
    parts = train.of_neurons(ours), validation.of_neurons(ours)
    fresh = TwinNetwork(b.neurons, seed=seed)
    twin = fit_twin(fresh, *parts, epochs=b.epochs, seed=seed)
    linear = fit_twin(LinearNonlinear(b.neurons, b.size**2), *parts, epochs=b.epochs, penalty=0.1, rate=0.003, seed=seed)
    predicted = twin.predict(test)
    rows = score_twin(predicted, repeats[..., ours]).rows(seed=seed)
    baseline = score_twin(linear.predict(test), repeats[..., ours]).rows(condition=LINEAR, seed=seed)
    rows += [r for r in baseline if r.metric in ("CCnorm", "CCabs", "FEVE")]
    for condition, model in (("estimate", twin.model), (UNTRAINED, fresh)):
        distance = np.abs(receptive_fields(model, test[:40]).centres - cortex.centres[ours]).max(1)
        near = stats.proportion((distance <= 1).astype(np.float64), unit="neuron", seed=seed)
        rows.append(Row.of(near, metric="centres within one pixel", condition=condition, seed=seed))
    tuning = grating_tuning(twin, (b.size, b.size))
    off = np.abs((tuning.preferred - cortex.orientations[ours] + np.pi / 2) % np.pi - np.pi / 2)
    rows.append(Row.over(np.degrees(off), "neuron", metric="error of preferred orientation", seed=seed))
    agreement = _agreement(signal_correlation(predicted), signal_correlation(cortex.rates(test)[:, ours]))
    pairs = b.neurons * (b.neurons - 1) // 2
    rows.append(Row(metric="signal correlation recovered", value=agreement, unit="pair", n=pairs, seed=seed))
    if b.held_out:
        held = train.of_neurons(others), validation.of_neurons(others)
        assert isinstance(twin.model, TwinNetwork)
        found = transfer(twin.model, *held, test, repeats[..., others], trials=b.amounts, epochs=b.epochs, seed=seed)
        rows += found.rows(seed=seed)
    return Result.of(rows)


def _agreement(a: Float[np.ndarray, "neuron neuron"], b: Float[np.ndarray, "neuron neuron"]) -> float:
    above = np.triu_indices(len(a), 1)
    return float(np.corrcoef(a[above], b[above])[0, 1])
