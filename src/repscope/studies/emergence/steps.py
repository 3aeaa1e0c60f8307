"""When does a skill appear, and how much compute is a trick worth? In small worlds, trained in the study.

1. Two-hop facts: networks of several phi (trained queries per fact) and graphs, trained at once. At checkpoints on a log axis:
   facts, trained and held-out queries, queries out of distribution; probes of the bridge entity; patches of the bridge; local
   learning coefficients.
2. Transitions of these curves: step of 50 %, steepest rise, sharpness, lag of held-out behind trained queries.
3. Random walks: networks trained on walks over a knowledge graph, beside weighted sums over its paths on edges that were left out.
4. The compute ladder: the scaling law, gains of known size, imitation and RL as multiples of pre-training compute.
With `ladder`, the user's table alone; with `checkpoints`, the curves of the user's probes, tasks, relations and minimal pairs.
Controls: untrained networks, shuffled labels of probes, queries without the patch, even learning, gains that are known.
"""

from functools import partial

from repscope.studies.emergence import given_checkpoints, given_ladder, ladder, two_hop, walks
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Cost, Setup, Step, Subject, trained_here


def steps(setup: Setup[EmergenceOptions]) -> list[Step]:
    """Two-hop facts and their transitions; random walks; the ladder."""
    o = setup.options
    if o.ladder is not None:
        return [Step("ladder table", partial(given_ladder.climbed, o), lambda: Cost(fit_flops=1e10))]
    if o.checkpoints is not None:
        asked = _asked(setup)
        asked.check()
        return [Step("probes", partial(given_checkpoints.probed, asked), asked.cost)]
    hops, rungs, graphs = two_hop.TwoHop(o), ladder.ComputeLadder(o), walks.Walks(o)
    _ = hops.worlds  # refuses sizes that leave no queries
    return [
        Step("two-hop", partial(two_hop.train, hops), partial(two_hop.train_cost, hops), version=2),
        Step("transitions", partial(two_hop.transitions, hops), lambda: Cost(fit_flops=1e10), needs=("two-hop",)),
        Step("walks", partial(walks.walked, graphs), partial(walks.cost, graphs), version=2),
        Step("ladder", partial(ladder.climb, rungs), partial(ladder.cost, rungs)),
    ]


def subject(setup: Setup[EmergenceOptions]) -> Subject:
    """The networks trained in the study, or the user's table."""
    if setup.options.checkpoints is not None:
        checkpoints = _asked(setup).checkpoints
        digest = checkpoints.fingerprint().digest
        facts = {"model": str(setup.options.checkpoints), "precision": setup.options.dtype, "fingerprint": digest}
        return Subject("checkpoints", digest, facts, key={"checkpoints": digest})
    if setup.options.ladder is not None:
        return Subject("ladder", "ladder", {"model": "none: a table of losses", "precision": "float64"})
    return trained_here(setup, "small-transformers")


def _asked(setup: Setup[EmergenceOptions]) -> given_checkpoints.Asked:
    return setup.once("asked", lambda: given_checkpoints.Asked(setup.options))
