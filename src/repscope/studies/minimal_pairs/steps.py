"""Minimal pairs scored by a model, or by each checkpoint of a series: one step each, so that a killed run continues.

1. Pairs are read, and drawn where there are more than asked for.
2. Every network scores them (`read.pair_scores`), with the sentence of fewer tokens as baseline.
3. Control: the same network with random weights, of a series its last checkpoint.
"""

import hashlib
from dataclasses import replace
from functools import partial

from repscope.read.pair_scores import minimal_pairs
from repscope.results import Result, identified
from repscope.studies.minimal_pairs.options import MinimalPairsOptions
from repscope.studies.minimal_pairs.task import Checkpoint, network, pairs_of, series
from repscope.studies.run.provenance import beside_weights
from repscope.studies.run.study import Context, Cost, Setup, Step, Subject

_CHARACTERS = 4  #: per token, a guess for forecasts


def subject(setup: Setup[MinimalPairsOptions]) -> Subject:
    """The model, or all checkpoints."""
    o, held = setup.options, series(setup.options)
    facts = {"data": pairs_of(setup).name}
    if not held:
        lm = setup.network
        facts |= {"model": lm.source.name, "precision": lm.source.precision, "fingerprint": lm.fingerprint}
        return Subject(lm.source.name, lm.fingerprint, facts, {"fingerprint": lm.fingerprint}, beside_weights([lm.source.path]))
    whole = hashlib.sha256("\n".join(one.fingerprint() for one in held).encode()).hexdigest()
    name = o.model.rstrip("/").rsplit("/", 1)[-1]
    facts |= {"model": f"{name}, {len(held)} checkpoints", "precision": o.dtype, "fingerprint": whole}
    return Subject(name, whole, facts, {"fingerprint": whole})


def steps(setup: Setup[MinimalPairsOptions]) -> list[Step]:
    """One step per network."""
    held = series(setup.options)
    pairs_of(setup)  # a mistake in the file shows before any network runs
    if not held:
        return [Step("scores", partial(_scores, None, setup.options.control, setup), partial(_cost, setup))]
    last = held[-1]
    return [
        Step(f"scores {one.name}", partial(_scores, one, setup.options.control and one is last, setup), partial(_cost, setup))
        for one in held
    ]


def _scores(one: Checkpoint | None, control: bool, setup: Setup[MinimalPairsOptions], context: Context) -> Result:
    o = setup.options
    lm = network(setup, one)
    found = minimal_pairs(lm, pairs_of(setup), o.convention, control=control, batch_tokens=o.batch_tokens, seed=o.seed)
    if one is None:
        return found
    table = identified(found.table.assign(split=one.run, token=str(one.step)))
    side = {f"pairs-{one.name}": found.side["pairs"]}
    return replace(found, table=table, side=side)


def _cost(setup: Setup[MinimalPairsOptions]) -> Cost:
    held = pairs_of(setup)
    tokens = sum(map(len, (*held.good, *held.bad))) // _CHARACTERS * (2 if setup.options.control else 1)
    if series(setup.options):
        return Cost(tokens)
    weights = sum(p.numel() for p in setup.network.model.parameters())
    return Cost(tokens, 2.0 * weights * tokens, memory_bytes=4.0 * setup.network.vocabulary * setup.options.batch_tokens)
