"""Does the network represent things as a brain does, and would the comparison have found the right family of networks?

1. Families: small networks of one architecture are trained on images of digits as classifiers, autoencoders and contrastively;
   untrained ones are their control. Several seeds each.
2. Simulated recordings: channels of several subjects mix the units of a network of one family that is not among those compared,
   with individual differences and noise; an early region mixes layer 1, a late region layer 2.
3. RSA, then encoding models: all networks are compared with each recording, at the layer that the other half of the stimuli
   chooses. A family is found if it is more similar than every other one, by intervals over networks and stimuli.
4. With `recording`, the user's recording is compared in the same way.
5. The other parts of the study have files of their own: `twin`, `wiring`, `wiring_given`, `sharing`.
Controls: recordings of random signals, which no family should win; recordings of untrained networks, which no trained family should
win; the noise ceiling.
"""

from functools import partial
from typing import Any

import numpy as np

from repscope.conditions import ESTIMATE, UNTRAINED
from repscope.models.loading.stacked_weights import State, arrays_of
from repscope.results import Result, Row
from repscope.studies.brain import names, parts
from repscope.studies.brain.given import GivenTask, given_result
from repscope.studies.brain.measures import simulated_rows
from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.sharing import SharingTask
from repscope.studies.brain.task import TRUTHS, BrainTask, stacked
from repscope.studies.brain.twin import TwinTask
from repscope.studies.brain.wiring import WiringTask
from repscope.studies.brain.wiring_given import GivenWiring
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject, trained_here
from repscope.worlds.brain import digits, features, loss_of
from repscope.worlds.small_lm import train_by


def steps(setup: Setup[BrainOptions]) -> list[Step]:
    """Those of the parts that were asked for."""
    o = setup.options
    made = _representation(setup) if parts.REPRESENTATION in o.parts else []
    if parts.TWIN in o.parts:
        made += TwinTask(o).steps()
    if parts.WIRING in o.parts:
        made += [*WiringTask(o).steps(), *GivenWiring(o).steps()]
    if parts.SELF_OTHER in o.parts:
        made += SharingTask(o).steps()
    return made


def _representation(setup: Setup[BrainOptions]) -> list[Step]:
    """Trainings, then one step per method."""
    task = BrainTask(setup.options)
    trainings = tuple(f"train {family}" for family in names.TRAINED)
    made = [Step(name, partial(_train, task, name.removeprefix("train ")), partial(_training_cost, task)) for name in trainings]
    for method in task.methods:
        made.append(Step(method, partial(_simulated, task, method), partial(_comparison_cost, task, method), needs=trainings))
    if setup.options.recording is not None:
        given = GivenTask(task)
        needs = () if given.files else trainings
        made.append(Step(names.GIVEN, partial(given_result, given), lambda: Cost(fit_flops=1e10), needs=needs))
        _ = given.recording, given.files  # what is wrong with them is said before anything runs
    return made


def subject(setup: Setup[BrainOptions]) -> Subject:
    """The networks trained in the study."""
    return trained_here(setup, "small-networks")


def _training_cost(task: BrainTask) -> Cost:
    o = task.options
    images = o.steps * o.batch * (o.networks + o.recordings)
    return Cost(images, 6.0 * images * (64 * task.shape.first + task.shape.first * task.shape.second), memory_bytes=2e8)


def _comparison_cost(task: BrainTask, method: str) -> Cost:
    o = task.options
    count = (o.recordings if method == names.RSA else o.encoded) * len(TRUTHS) * len(names.REGIONS)
    if method == names.RSA:
        each = 500.0 * o.subjects * o.conditions**2
    else:
        each = 10.0 * (20 * o.conditions**3 + 20.0 * o.conditions**2 * o.subjects * o.channels)
    return Cost(0, 0.0, 4 * o.networks * count * each, memory_bytes=2e8)


def _train(task: BrainTask, family: str, context: Context) -> Result:
    """Train a family; how well digits can be read out of its last layer, before and after."""
    start = task.initial(family)
    loss = loss_of(family, task.options.batch, task.options.seed)
    found = train_by(loss, start, task.schedule, saved=context.partial / "training.safetensors", title=f"train {family}")
    rows = []
    for condition, state in ((ESTIMATE, found.state), (UNTRAINED, start)):
        where: dict[str, Any] = {"item": family, "condition": condition, "seed": task.options.seed, "split": "held-out images"}
        definition = "nearest class mean, last layer"
        rows.append(Row.over(_accuracy(task, state), "network", metric=names.DIGITS, definition=definition, **where))
    return Result.of(rows, arrays=arrays_of(found.state))


def _accuracy(task: BrainTask, state: State) -> np.ndarray:
    """Share of held-out images whose nearest class mean in the last layer is that of their digit, per network."""
    held, (train, test) = digits(), task.accuracy_images
    x, y = features(state, held.train[train])[-1], features(state, held.stimuli[test])[-1]
    means = np.stack([x[:, held.labels[train] == digit].mean(1) for digit in range(10)], 1)
    nearest = ((y[:, :, None] - means[:, None]) ** 2).sum(-1).argmin(-1)
    return np.asarray((nearest == held.stimulus_labels[test]).mean(1))


def _simulated(task: BrainTask, method: str, context: Context) -> Result:
    """All families with all simulated recordings."""
    from repscope.progress import progress

    o = task.options
    states = task.states(context.inputs)
    candidates = task.candidates(states)
    count = o.recordings if method == names.RSA else min(o.encoded, o.recordings)
    found = {(truth, region): list[Any]() for region in names.REGIONS for truth in TRUTHS}
    with progress(method, count) as advance:
        for recording in range(count):
            layers = stacked(candidates, digits().stimuli[task.stimuli(recording)])
            for truth, region in found:
                recorded = task.recorded(truth, region, recording, states)
                found[truth, region].append(task.compared(method, layers, recorded, recording))
            advance(1)
    return Result.of(simulated_rows(found, method, o.seed), notes=task.notes if method == names.RSA else ())
