"""What the steps of `brain` share: the families of networks, simulated recordings, and their comparison by either method."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float, Int

from repscope.align import (
    FamilyComparison,
    NetworkScores,
    compare_families,
    crossvalidated_rdm,
    encode,
    encoding_scores,
    rdm,
    rsa_scores,
)
from repscope.errors import UserError
from repscope.models.loading.stacked_weights import State, select_runs, state_of
from repscope.results import Result
from repscope.studies.brain import names
from repscope.studies.brain.options import BrainOptions
from repscope.worlds.brain import FAMILIES, Shape, Simulation, digits, features, initial, simulate, simulate_unrelated
from repscope.worlds.small_lm import Training

Layers = list[Float[np.ndarray, "network condition unit"]]
TRUTHS = (*FAMILIES, names.RANDOM)


@dataclass(frozen=True)
class BrainTask:
    """The options of a run and what its steps make of them."""

    options: BrainOptions

    @property
    def shape(self) -> Shape:
        """Of all networks."""
        return Shape(16, 8) if self.options.tiny else Shape()

    @property
    def schedule(self) -> Training:
        """Of every training."""
        return Training(self.options.steps, self.options.rate, warm_up=max(1, min(40, self.options.steps // 10)))

    @property
    def simulation(self) -> Simulation:
        """Sizes of simulated recordings."""
        o = self.options
        return Simulation(o.subjects, o.repeats, o.channels, o.own, o.noise)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that run: encoding models only where himalaya is installed.

        Raises
        ------
        UserError
            When they were asked for by name and cannot run.
        """
        o = self.options
        if names.ENCODING not in o.methods or find_spec("himalaya") is not None:
            return o.methods
        if o.given("methods"):
            raise UserError("Encoding models need himalaya; install it with pip install 'repscope[brain]', or give --methods RSA.")
        return tuple(m for m in o.methods if m != names.ENCODING)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out, in sentences."""
        if len(self.methods) == len(self.options.methods):
            return ()
        return ("Encoding models were left out, as himalaya is not installed; pip install 'repscope[brain]' adds them.",)

    def initial(self, family: str) -> State:
        """Networks before training: those that are compared, then one that generates each recording."""
        o = self.options
        first = 100_003 * o.seed + 10_007 * FAMILIES.index(family)
        return initial(self.shape, family, [first + i for i in range(o.networks + o.recordings)])

    def states(self, inputs: Mapping[str, Result]) -> dict[str, State]:
        """Networks of all families after training."""
        found = {family: state_of(inputs[f"train {family}"].arrays) for family in names.TRAINED}
        return found | {names.CONTROL: self.initial(names.CONTROL)}

    def candidates(self, states: Mapping[str, State]) -> dict[str, State]:
        """The networks of each family that are compared."""
        return {family: select_runs(state, range(self.options.networks)) for family, state in states.items()}

    @property
    def labels(self) -> list[str]:
        """The family of each candidate."""
        return [family for family in FAMILIES for _ in range(self.options.networks)]

    def stimuli(self, recording: int) -> Int[np.ndarray, "condition"]:
        """Images of a recording: a random draw of those that no network was trained on."""
        rng = np.random.default_rng([self.options.seed, recording, 5])
        return rng.choice(len(digits().stimuli), self.options.conditions, replace=False)

    def recorded(
        self, truth: str, region: str, recording: int, states: Mapping[str, State]
    ) -> Float[np.ndarray, "subject repeat condition channel"]:
        """A simulated recording of a region: channels mix the units of one layer of one network, or random signals."""
        layer = names.REGIONS.index(region)
        rng = np.random.default_rng([self.options.seed, recording, TRUTHS.index(truth), layer])
        if truth == names.RANDOM:
            units = (self.shape.first, self.shape.second)[layer]
            return simulate_unrelated(self.options.conditions, units, self.simulation, rng)
        own = select_runs(states[truth], [self.options.networks + recording])
        return simulate(features(own, digits().stimuli[self.stimuli(recording)])[layer][0], self.simulation, rng)

    def compared(self, method: str, layers: Layers, recorded: np.ndarray, recording: int) -> FamilyComparison:
        """All candidates with one recording."""
        score = rsa if method == names.RSA else encoding
        found = score(layers, recorded, self.options, recording)
        return compare_families(found, self.labels)

    @cached_property
    def accuracy_images(self) -> tuple[Int[np.ndarray, "image"], Int[np.ndarray, "image"]]:
        """Indices of training images and of stimuli with which digits are read out."""
        held = digits()
        return np.arange(min(600, len(held.train))), np.arange(len(held.stimuli))


def rsa(layers: Layers, recorded: np.ndarray, options: BrainOptions, seed: int) -> NetworkScores:
    """RDMs of networks: squared distances of units; of subjects: crossnobis over repeats."""
    networks = [np.stack([rdm(layer[i]) for layer in layers]) for i in range(len(layers[0]))]
    subjects = np.stack([crossvalidated_rdm(one) for one in recorded])
    return rsa_scores(networks, subjects, options.measure, seed=seed)


def encoding(layers: Layers, recorded: np.ndarray, options: BrainOptions, seed: int) -> NetworkScores:
    """Ridge regression from the units of each layer to all channels of all subjects."""
    y = np.concatenate(list(recorded.mean(1)), axis=1)
    return encoding_scores([[encode(layer[i], y, seed=seed) for layer in layers] for i in range(len(layers[0]))], seed=seed)


def stacked(states: Mapping[str, State], images: Float[np.ndarray, "image pixel"]) -> Layers:
    """Activations of all networks of all families, family after family."""
    each = [features(states[family], images) for family in states]
    return [np.concatenate([one[layer] for one in each]) for layer in range(len(each[0]))]
