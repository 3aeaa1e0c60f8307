"""What do fine-tuning, preference optimisation and RL change?

In small worlds with a reward that can be computed (`worlds.rewarded`), one world, corpus and network per seed:

1. Pretraining, and samples: of the base, of an expert that RL trained beyond the target, of another process.
2. Each method trains the same base, at several rates, until its reward (and, apart, its KL from the base) is a given one; at the
   main rate twice, with two training seeds, whose difference is the noise floor.
3. Drift of each matched network: weights, representations, next tokens, loss on the corpus; survival of a direction; how much
   constant vectors recover.
4. The same updates in float32 and with weights rounded to bfloat16, at small rates.
5. Gap: imitation at several compute levels, each brought to one reward by RL, DPO and expert SFT; drift by gap.
6. Summary over seeds: orders of the methods, differences, slopes.
"""

from collections.abc import Callable
from functools import partial

from repscope.studies.drift import drifts, gaps, precision, training
from repscope.studies.drift.networks import BATCH, Lab
from repscope.studies.drift.options import DriftOptions
from repscope.studies.drift.summary import summary
from repscope.studies.run.study import Cost, Setup, Step, Subject, trained_here
from repscope.worlds.rewarded.methods import METHODS


def subject(setup: Setup[DriftOptions]) -> Subject:
    """The models trained in the study."""
    return trained_here(setup, "small-language-models")


def steps(setup: Setup[DriftOptions]) -> list[Step]:
    """Pretraining, samples, one step per method, their drift, twins in bfloat16, gaps, summary."""
    o = setup.options
    lab = Lab(o)
    nets, gap_nets = o.seeds * (1 + len(o.all_rates)), o.seeds * len(o.levels)
    methods = tuple(f"train {name}" for name in METHODS)
    closers = tuple(f"gap {name}" for name in gaps.METHODS)
    made = [
        Step("pretraining", partial(training.pretraining, lab), _cost(lab, o.seeds * o.pretraining)),
        Step("samples", partial(training.sampling, lab), _cost(lab, o.seeds * o.updates), needs=("pretraining",)),
    ]
    for name in METHODS:
        compute = partial(training.method, lab, name)
        made.append(Step(f"train {name}", compute, _cost(lab, nets * o.updates), needs=("pretraining", "samples")))
    made += [
        Step("drift", partial(drifts.drift, lab), _cost(lab, 6 * nets * 10), needs=("pretraining", *methods)),
        Step("directions", partial(drifts.directions, lab), _cost(lab, 6 * o.seeds * 20), needs=("pretraining", *methods)),
        Step(
            "steering", partial(drifts.steering, lab), _cost(lab, 6 * o.seeds * (o.fitting + 30)), needs=("pretraining", *methods)
        ),
        Step(
            "precision",
            partial(precision.twins, lab),
            _cost(lab, 12 * o.seeds * o.small_updates * len(o.small_rates)),
            needs=("pretraining", "samples"),
        ),
        Step("imitation", partial(gaps.imitation, lab), _cost(lab, o.seeds * max(o.levels)), needs=("pretraining", "samples")),
    ]
    if not o.tiny:
        made.append(Step("networks", partial(drifts.folders, lab), lambda: Cost(disk_bytes=4e6), needs=("pretraining", *methods)))
    for name in gaps.METHODS:
        needs = ("pretraining", "samples", "imitation")
        made.append(Step(f"gap {name}", partial(gaps.closed, lab, name), _cost(lab, gap_nets * o.updates), needs=needs))
    joined = ("pretraining", *methods, "drift", "steering", "precision", "imitation", *closers)
    made.append(Step("summary", partial(summary, lab), lambda: Cost(fit_flops=1e8), needs=joined))
    return made


def _cost(lab: Lab, updates: float) -> Callable[[], Cost]:
    """Cost of updates of one network: 64 documents through its weights, forward and backward."""
    weights = 24 * lab.options.width**2 + (lab.worlds.vocabulary + lab.worlds.length) * lab.options.width
    tokens = updates * BATCH * lab.worlds.length
    return lambda: Cost(tokens=int(tokens), network_flops=6 * tokens * weights, memory_bytes=3e8)
