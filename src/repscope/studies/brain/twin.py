"""Steps of `brain` on digital twins: does a twin recover neurons whose truth is known, and does its core help with new neurons?

1. A twin and a linear-nonlinear model per neuron are fitted to simulated neurons of visual cortex (`bench.twins`).
2. Readouts of held-out neurons are fitted on the frozen core, against amounts of data; controls are the linear-nonlinear model and
   a core that was never trained.
With `sensorium`, a twin is fitted to the user's recording, and scored against its noise ceiling.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from repscope import stats
from repscope.align.twin.ceilings import score_twin
from repscope.align.twin.fitting import EPOCHS, fit_twin
from repscope.align.twin.held_out_neurons import LINEAR, UNTRAINED
from repscope.align.twin.network import CoreShape, LinearNonlinear, TwinNetwork
from repscope.align.twin.sensorium_folder import SensoriumRecording, sensorium_recording
from repscope.bench.twins import TwinBench, held_out, recovery, teacher
from repscope.conditions import over
from repscope.models.loading.stacked_weights import arrays_of, state_of
from repscope.results import Result, Row
from repscope.studies.brain import parts
from repscope.studies.brain.options import BrainOptions
from repscope.studies.run.study import Context, Cost, Step

_FLOPS = 6 * 2 * (49 * 24 + 9 * 24 * 16)  #: per pixel of an image, forward and backward, of the twin's core


@dataclass(frozen=True)
class TwinTask:
    """The options of a run and what the steps on twins make of them."""

    options: BrainOptions

    @property
    def sizes(self) -> TwinBench:
        """Of the simulated recording."""
        o = self.options
        if o.tiny:
            return TwinBench(o.neurons, 3, o.images, 40, 6, 12, 4.0, 2, (o.images // 4, o.images))
        amounts = tuple(max(8, round(o.images * share)) for share in (0.05, 0.2, 0.8))
        if o.short:
            return TwinBench(o.neurons, 8, o.images, 60, 8, 12, 3.0, 14, amounts)
        return TwinBench(neurons=o.neurons, trials=o.images, amounts=amounts)

    def steps(self) -> list[Step]:
        """The two steps."""
        again = 2 * sum(self.sizes.amounts) / self.sizes.trials
        made = [
            Step(parts.FITTED, self._fitted, partial(self._cost, 1.0)),
            Step(parts.HELD_OUT, self._held_out, partial(self._cost, again), needs=(parts.FITTED,)),
        ]
        if self.options.sensorium is not None:
            _ = self.recorded  # what is wrong with it is said before anything runs
            made.append(Step(parts.RECORDED, self._recorded, self._cost_recorded))
        return made

    @cached_property
    def recorded(self) -> SensoriumRecording:
        """The user's recording."""
        assert self.options.sensorium is not None
        return sensorium_recording(self.options.sensorium)

    def _fitted(self, context: Context) -> Result:
        b, seed = self.sizes, self.options.seed
        twin, rows, table = recovery(b, teacher(b, seed), seed, context.partial / "twin.pt")
        weights = arrays_of({k: v for k, v in twin.model.state_dict().items() if v.ndim})
        return Result.of(_of(rows, parts.SIMULATED_NEURONS), arrays=weights, side={"neurons": table})

    def _held_out(self, context: Context) -> Result:
        b, seed = self.sizes, self.options.seed
        twin = TwinNetwork(b.neurons, seed=seed)
        twin.load_state_dict(state_of(context.inputs[parts.FITTED].arrays), strict=False)
        found = held_out(b, teacher(b, seed), twin, seed)
        rows = found.rows(parts.HELD_OUT, seed)
        for control in (LINEAR, UNTRAINED):
            for m in found.trials:
                where: dict[str, Any] = {"item": parts.HELD_OUT, "split": found.label(m), "condition": over(control), "seed": seed}
                rows.append(Row.of(found.over(control, m, seed), metric="gain", definition="CCnorm of held-out neurons", **where))
        return Result.of(rows)

    def _recorded(self, context: Context) -> Result:
        held, seed, epochs = self.recorded, self.options.seed, 2 if self.options.tiny else EPOCHS
        _, channels, height, width = held.test.shape
        neurons = held.repeats.shape[-1]
        twin = fit_twin(
            TwinNetwork(neurons, CoreShape(inputs=channels), seed=seed),
            held.train,
            held.validation,
            epochs=epochs,
            seed=seed,
            checkpoint=context.partial / "recorded.pt",
        )
        pixels = channels * height * width
        linear = fit_twin(
            LinearNonlinear(neurons, pixels), held.train, held.validation, epochs=epochs, penalty=0.1, rate=0.003, seed=seed
        )
        scores, baseline = (score_twin(model.predict(held.test), held.repeats) for model in (twin, linear))
        rows = scores.rows(seed=seed)
        rows += [row for row in baseline.rows(condition=LINEAR, seed=seed) if row.metric in ("CCnorm", "CCabs", "FEVE")]
        both = scores.counted & baseline.counted
        gain = stats.mean((scores.cc_norm - baseline.cc_norm)[both], unit="neuron", seed=seed)
        rows.append(Row.of(gain, metric="gain", definition="CCnorm", condition=over(LINEAR), seed=seed))
        return Result.of(_of(rows, parts.RECORDED), notes=held.notes)

    def _cost_recorded(self) -> Cost:
        held = self.recorded
        images = len(held.train) * 20
        return Cost(images, float(images * _FLOPS * held.test.shape[-1] * held.test.shape[-2]), memory_bytes=1e9)

    def _cost(self, share: float) -> Cost:
        b = self.sizes
        images = int(share * b.trials * b.epochs)
        return Cost(images, float(images * _FLOPS * b.size**2), memory_bytes=3e8)


def _of(rows: list[Row], item: str) -> list[Row]:
    return [replace(row, item=item) for row in rows]
