"""Held-out neurons: how well does a core that was fitted on other neurons predict new ones, against minutes of their data?

1. A twin is fitted on some neurons. Its core is frozen; for other neurons only positions, weights and biases are fitted, on the
   first m trials.
2. Controls at each m: a linear-nonlinear model per neuron (`LN model`), and the same readouts on a core that was never trained
   (`untrained core`). If the shared core knows something, it is ahead of both where data are few.
3. Scores are CCnorm on repeated test stimuli, over held-out neurons; the differences are paired by neuron.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope import stats
from repscope.align.twin.ceilings import TwinScores, score_twin
from repscope.align.twin.fitting import Recording, fit_twin
from repscope.align.twin.network import LinearNonlinear, TwinNetwork
from repscope.errors import UserError
from repscope.results import Row
from repscope.stats import Estimate

READOUT = ("position", "spread", "weights", "bias")
TWIN, LINEAR, UNTRAINED = "estimate", "LN model", "untrained core"


@dataclass(frozen=True, eq=False)
class Transfer:
    """Scores of held-out neurons. trials: amounts of data. scores: by condition, one `TwinScores` per amount."""

    trials: tuple[int, ...]
    scores: dict[str, list[TwinScores]]
    seconds_per_trial: float

    def over(self, condition: str, at: int, seed: int = 0) -> Estimate:
        """CCnorm of the frozen core minus that of a control at one amount of data, paired by neuron."""
        ours, theirs = (self.scores[c][self.trials.index(at)] for c in (TWIN, condition))
        both = ours.counted & theirs.counted
        return stats.mean((ours.cc_norm - theirs.cc_norm)[both], unit="neuron", seed=seed)

    def label(self, at: int) -> str:
        """An amount of data in minutes, as the column `split` has it."""
        return f"{at * self.seconds_per_trial / 60:.3g} min"

    def rows(self, item: str = "", seed: int = 0) -> list[Row]:
        """Rows of the shared schema: CCnorm by condition; the amount of data, in minutes, is the column `split`."""
        return [
            Row.of(
                score.mean("cc_norm", seed),
                metric="CCnorm of held-out neurons",
                item=item,
                condition=name,
                seed=seed,
                split=self.label(m),
            )
            for name, by in self.scores.items()
            for m, score in zip(self.trials, by)
        ]


def transfer(
    twin: TwinNetwork,
    recording: Recording,
    validation: Recording,
    test_stimuli: Any,
    test_responses: Float[np.ndarray, "repeat stimulus neuron"],
    *,
    trials: Sequence[int],
    seconds_per_trial: float = 1.0,
    epochs: int = 40,
    seed: int = 0,
) -> Transfer:
    """Fit readouts of held-out neurons to growing amounts of data on a frozen core.

    Parameters
    ----------
    twin
        A twin of other neurons, fitted.
    recording, validation
        Of the held-out neurons.
    test_stimuli, test_responses
        Repeated stimuli and the held-out neurons' responses.
    trials
        Amounts of data: numbers of trials, from the first.
    seconds_per_trial
        To say amounts in minutes.

    Raises
    ------
    UserError
        For amounts that the recording does not have.
    """
    if not trials or min(trials) < 8 or max(trials) > len(recording):
        raise UserError(f"Amounts of data must lie between 8 and the {len(recording)} trials recorded; {list(trials)} do not.")
    neurons = recording.responses.shape[-1]
    pixels = int(np.prod(recording.stimuli.shape[1:]))
    fresh, trained = (TwinNetwork(neurons, twin.shape, seed=seed + 1) for _ in range(2))
    trained.core.load_state_dict(twin.core.state_dict())
    found: dict[str, list[TwinScores]] = {TWIN: [], LINEAR: [], UNTRAINED: []}
    for m in trials:
        part = recording.of_trials(np.arange(m))
        linear = LinearNonlinear(neurons, pixels)
        for name, model, only in ((TWIN, trained, READOUT), (UNTRAINED, fresh, READOUT), (LINEAR, linear, ())):
            fitted = fit_twin(
                model,
                part,
                validation,
                epochs=epochs,
                only=only,
                seed=seed,
                penalty=0.1 if name == LINEAR else 0.01,
                rate=0.003 if name == LINEAR else 0.02,
            )
            found[name].append(score_twin(fitted.predict(test_stimuli), test_responses))
    return Transfer(tuple(trials), found, seconds_per_trial)
