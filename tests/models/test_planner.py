"""The planner against brute force on small cases."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repscope.models.engine.planner import _BATCH_COSTS, plan
from repscope.models.engine.prefix_tree import packs, tree
from repscope.models.prompts import Ragged

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)
#: few letters, so that prompts share beginnings, end inside one another and come twice
PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=12)


def ids_of(lengths):
    return Ragged.of(np.arange(n) + 1000 * i for i, n in enumerate(lengths))


@given(LENGTHS, st.integers(1, 120))
def test_every_prompt_runs_once_within_the_budget(lengths, budget):
    made = plan(ids_of(lengths), budget, share=True, pack="no")
    assert sorted(int(i) for b in made.batches for i in b) == list(range(len(lengths)))
    for batch in made.batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(LENGTHS)
def test_cuts_cost_no_more_than_any_other_cut_at_the_distinct_lengths(lengths):
    made = plan(ids_of(lengths), 10_000, share=False, pack="no")
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
    ids = Ragged.of([[1, 2, 3], [1, 2, 3], [1, 2, 4]])
    made = plan(ids, 100, share=True, pack="no")
    assert len(made.ids) == 2
    assert made.inverse.tolist() == [0, 0, 1]
    assert made.prefix == 0
    long = Ragged.of([*range(50), i] for i in range(5))
    assert plan(long, 100, share=True, pack="no").prefix == 50
    assert plan(long, 100, share=False, pack="no").prefix == 0


@given(PROMPTS)
def test_a_tree_holds_every_prompt_once_and_no_more_tokens_than_they_have(prompts):
    ids = Ragged.of(dict.fromkeys(map(tuple, prompts)))
    held = tree(ids, share=True)
    for i, row in enumerate(ids):
        chain = [*held.chain(int(held.leaf[i])), int(held.leaf[i])]
        spelled = [ids[int(held.prompt[s])][held.start[s] : held.stop[s]] for s in chain]
        np.testing.assert_array_equal(np.concatenate(spelled), row)
        positions = np.arange(len(row))
        holders = held.holder(np.full(len(row), i), positions)
        assert holders.tolist() == [s for s, part in zip(chain, spelled) for _ in part]
    distinct = len({tuple(row[: n + 1]) for row in ids for n in range(len(row))})
    assert distinct <= held.tokens <= len(ids.flat)
    for s in range(len(held.start)):  # depth first: a subtree is a run of segments
        below = [t for t in range(len(held.start)) if s in held.chain(t)]
        assert below == list(range(s + 1, held.end[s]))
        assert held.start[s] < held.stop[s]


@given(PROMPTS, st.integers(1, 90))
def test_packs_hold_every_segment_once_and_go_on_from_one_chain(prompts, budget):
    held = tree(Ragged.of(dict.fromkeys(map(tuple, prompts))), share=True)
    made = packs(held, budget)
    assert [s for p in made for s in range(p.first, p.last)] == list(range(len(held.start)))
    for p in made:
        assert p.last - p.first == 1 or (held.stop - held.start)[p.first : p.last].sum() <= budget
        needed = {a for s in range(p.first, p.last) for a in held.chain(s) if a < p.first}
        assert needed == set(p.kept)


def test_nested_beginnings_run_once_each():
    start, left, right = list(range(50)), list(range(50, 90)), list(range(90, 130))
    ids = Ragged.of([*start, *middle, 200 + i, 300] for middle in (left, right) for i in range(20))
    assert tree(ids, share=True).tokens == 50 + 40 + 40 + 40 * 2
    assert plan(ids, 1024, share=True).tokens == 210
    assert plan(ids, 1024, share=True, pack="no").tokens == 50 + 40 * 42


def test_prompts_of_one_length_that_share_nothing_are_not_packed():
    made = plan(ids_of([16] * 8), 64, share=True)
    assert made.tree is None
    assert made.why == "it would save next to nothing"


@given(PROMPTS)
def test_ragged_rows_are_those_given(prompts):
    rows = Ragged.of(prompts)
    assert [row.tolist() for row in rows] == prompts
    assert [rows[i].tolist() for i in range(-1, len(rows))] == [prompts[i] for i in range(-1, len(prompts))]
    twice = Ragged.joined([rows, rows.take(np.arange(len(rows))[::-1])])
    assert [row.tolist() for row in twice] == prompts + prompts[::-1]
