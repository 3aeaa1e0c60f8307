"""The planner against brute force on small cases."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repscope.models.plan import _BATCH_COSTS, plan

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)


def ids_of(lengths):
    return [np.arange(n) + 1000 * i for i, n in enumerate(lengths)]


@given(LENGTHS, st.integers(1, 120))
def test_every_prompt_runs_once_within_the_budget(lengths, budget):
    made = plan(ids_of(lengths), budget, share_prefix=True)
    assert sorted(int(i) for b in made.batches for i in b) == list(range(len(lengths)))
    for batch in made.batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(LENGTHS)
def test_cuts_cost_no_more_than_any_other_cut_at_the_distinct_lengths(lengths):
    made = plan(ids_of(lengths), 10_000, share_prefix=False)
    ours = made.tokens + _BATCH_COSTS * len(made.batches)
    ordered = sorted(lengths)
    edges = [i for i, (a, b) in enumerate(pairwise(ordered), start=1) if a != b]
    best = min(
        sum((b - a) * ordered[b - 1] + _BATCH_COSTS for a, b in pairwise([0, *chosen, len(ordered)]))
        for mask in range(2 ** len(edges))
        for chosen in [[e for j, e in enumerate(edges) if mask >> j & 1]]
    )
    assert ours == best


def test_repeats_run_once_and_a_prefix_only_where_it_pays():
    ids = [np.array([1, 2, 3]), np.array([1, 2, 3]), np.array([1, 2, 4])]
    made = plan(ids, 100, share_prefix=True)
    assert len(made.ids) == 2
    assert made.inverse.tolist() == [0, 0, 1]
    assert made.prefix == 0
    long = [np.concatenate([np.arange(50), [i]]) for i in range(5)]
    assert plan(long, 100, share_prefix=True).prefix == 50
    assert plan(long, 100, share_prefix=False).prefix == 0
