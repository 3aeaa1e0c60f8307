"""Two recurrent networks that act in turn and watch each other, with a shared population that is planted or absent.

1. In each trial one agent acts and receives an outcome, ±1; the other observes it. Outcomes are random. A stimulus is shown to
   both.
2. Each agent is a leaky tanh network: h ← (1 - α) h + α tanh(W h + input + noise). Inputs: its own outcome, the observed outcome,
   its role, the stimulus.
3. Planted: some units receive own and observed outcomes through the same weights ("shared"). Otherwise disjoint populations receive
   one each. Populations do not excite each other, so that without shared units a decoder of own outcomes says nothing about
   others'.
4. `stimulus`: no shared population, but outcomes mostly follow the stimulus, to which both agents respond: cross-decoding that is
   above chance and is not about outcomes.
5. Synapses: counts that are higher among shared units if `wired`, else independent of them. W is made of them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from repscope.errors import UserError

Kind = Literal["shared", "separate", "stimulus"]
LEAK, STEPS, STIMULI = 0.4, 12, 4


@dataclass(frozen=True, eq=False)
class TwoAgents:
    """One draw. For both agents, first axis: patterns at the end of each trial, synapses, and which units are shared.

    patterns: (agent, trial, unit). tables: per agent, columns agent ("self", "other"), outcome, stimulus. synapses: (agent, unit,
    unit), [pre, post]. shared: (agent, unit).
    """

    patterns: Float[np.ndarray, "agent trial unit"]
    tables: tuple[pd.DataFrame, pd.DataFrame]
    synapses: Float[np.ndarray, "agent unit unit"]
    shared: Bool[np.ndarray, "agent unit"]


def two_agents(
    kind: Kind = "shared",
    *,
    trials: int = 200,
    units: int = 60,
    share: float = 0.2,
    gain: float = 0.5,
    noise: float = 0.6,
    wired: bool = True,
    seed: int = 0,
) -> TwoAgents:
    """Draw two networks and run them.

    Parameters
    ----------
    share
        Share of the units in each population.
    gain, noise
        Size of the inputs, and standard deviation of the noise of units in each step.

    Raises
    ------
    UserError
        For populations that do not fit into the network, or fewer than 40 trials.
    """
    if not 0 < share <= 0.4 or units * share < 2:
        raise UserError(
            f"Populations of {share:g} of {units} units do not fit; give a share of up to 0.4 and at least two units of it."
        )
    if trials < 40:
        raise UserError(f"{trials} trials are too few for both agents and outcomes; give at least 40.")
    rng = np.random.default_rng(seed)
    acts = rng.permutation(np.arange(trials) % 2)  # which agent acts
    stimulus = rng.integers(STIMULI, size=trials)
    outcome = np.where(rng.random(trials) < 0.5, 1.0, -1.0)
    if kind == "stimulus":
        outcome = np.where(rng.random(trials) < 0.85, np.where(stimulus % 2 == 0, 1.0, -1.0), outcome)
    found = [_agent(kind, acts == a, outcome, stimulus, units, share, gain, noise, wired, rng) for a in (0, 1)]
    tables = [
        pd.DataFrame(
            {"agent": np.where(acts == a, "self", "other"), "outcome": np.where(outcome > 0, "won", "lost"), "stimulus": stimulus}
        )
        for a in (0, 1)
    ]
    patterns, synapses, shared = (np.stack(part) for part in zip(*found))
    return TwoAgents(patterns, (tables[0], tables[1]), synapses, shared)


def _agent(
    kind: Kind,
    acting: np.ndarray,
    outcome: np.ndarray,
    stimulus: np.ndarray,
    units: int,
    share: float,
    gain: float,
    noise: float,
    wired: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    k = round(units * share)
    order = rng.permutation(units)
    population = np.full(units, -1)
    population[order[:k]], population[order[k : 2 * k]] = 0, 1
    own, observed = rng.normal(0, gain, units), rng.normal(0, gain, units)
    if kind == "shared":
        observed, shared = own, population == 0
        own, observed = own * shared, observed * shared
    else:
        shared = np.zeros(units, dtype=bool)
        own, observed = own * (population == 0), observed * (population == 1)
    special = shared if kind == "shared" else population == 0
    rate = np.where(np.outer(special, special) & wired, 1.6, 0.4)
    synapses = rng.poisson(rate).astype(np.float64)
    np.fill_diagonal(synapses, 0)
    # Populations of own and of observed outcomes are not connected, nor through other units: each excites itself alone.
    inside = (population[:, None] == population[None]) if kind != "shared" else np.ones((units, units), dtype=bool)
    w = synapses * inside * rng.choice([-1.0, 1.0], (units, 1))
    w *= 0.6 / max(float(np.abs(np.linalg.eigvals(w)).max()), 1e-9)
    role, looks = rng.normal(0, gain, units), rng.normal(0, gain, (STIMULI, units))
    inputs = np.where(acting[:, None], outcome[:, None] * own, outcome[:, None] * observed)
    inputs = inputs + acting[:, None] * role + looks[stimulus]
    h = np.zeros((len(outcome), units))
    for _ in range(STEPS):
        h = (1 - LEAK) * h + LEAK * np.tanh(h @ w + inputs + noise * rng.standard_normal(h.shape))
    return h, synapses, shared
