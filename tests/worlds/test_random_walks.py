"""Random walks: documents walk kept edges alone, path sums are those of plain loops, and a planted mixture is fitted."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.worlds.random_walks import PathSums, WalkGraphs, nearest_neighbours, unigram
from repscope.worlds.random_walks.path_sums import FITTED, PRECISION, UNWEIGHTED, divergence

GRAPHS = WalkGraphs((0, 1), entities=12, shifts=(1, 2, -3), held_out=0.2)


@pytest.mark.parametrize("hops", [1, 2, 4])
def test_documents_walk_kept_edges(hops):
    documents = GRAPHS.documents(40, 9, hops, torch.Generator().manual_seed(0))
    for graph in range(2):
        for document in documents[graph].tolist():
            for place in range(0, 9 - 2, 2 * hops + 1):
                walk = document[place : place + 2 * hops + 1]
                for e, r, tail in zip(walk[::2], walk[1::2], walk[2::2]):
                    assert GRAPHS.kept[graph, e, r - 12]
                    assert tail in GRAPHS.tails[graph, e, r - 12].tolist()
    assert documents.shape == (2, 40, 9)
    assert int((~GRAPHS.kept[0]).sum()) == round(0.2 * 36)


def test_paths_by_plain_loops():
    steps = GRAPHS.steps[0]
    sums, pairs = PathSums(steps, 2), GRAPHS.left_out(0)[:3]
    found = sums.predicted(pairs, UNWEIGHTED)
    for row, (e, r) in zip(found, pairs.tolist()):
        total = np.zeros(12)
        for a in range(3):
            for tail in range(12):
                if a != r:
                    total[tail] += steps[a, e, tail] / 3
                for b in range(3):
                    for last in range(12):
                        total[last] += steps[a, e, tail] * steps[b, tail, last] / 9
        np.testing.assert_allclose(row, total / total.sum())
    for weighting in (UNWEIGHTED, PRECISION, FITTED):
        assert sums.weights(0, weighting)[sums.paths.index((0,))] == 0, "the relation itself is not one of its paths"
        np.testing.assert_allclose(sums.predicted(pairs, weighting).sum(1), 1)


def test_a_relation_that_is_a_composition_has_that_path():
    """Relation 2 is relation 0 and then relation 1, exactly."""
    rng = np.random.default_rng(0)
    steps = np.zeros((3, 10, 10))
    for r in range(2):
        steps[r, np.arange(10), rng.permutation(10)] = 1
    steps[2] = steps[0] @ steps[1]
    whole = steps.copy()
    steps[2, 4] = 0
    sums = PathSums(steps, 2)
    assert sums.paths[int(sums.weights(2, FITTED).argmax())] == (0, 1)
    assert sums.predicted(np.array([[4, 2]]), FITTED)[0].argmax() == whole[2, 4].argmax()
    assert sums.weights(2, PRECISION)[sums.paths.index((0, 1))] == 1


def test_controls_need_no_path():
    steps = GRAPHS.steps[0]
    pairs = GRAPHS.left_out(0)
    np.testing.assert_allclose(unigram(steps, pairs)[0], steps[pairs[0, 1]].sum(0) / steps[pairs[0, 1]].sum())
    near = nearest_neighbours(steps, pairs)
    np.testing.assert_allclose(near.sum(1), 1)
    shuffled = GRAPHS.shuffled()[0]
    np.testing.assert_allclose(shuffled.sum(1), steps.sum(1), err_msg="each relation keeps its tails")
    assert not np.allclose(shuffled, steps)


def test_divergence_by_hand():
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25]])
    assert divergence({"p": p}, q)["p"][0] == pytest.approx(0.5 * np.log(2))
    assert divergence({"q": q}, q)["q"][0] == pytest.approx(0)


@pytest.mark.parametrize("sizes", [{"entities": 4}, {"shifts": (1,)}, {"held_out": 0.9}, {"seeds": ()}])
def test_mistakes_are_one_sentence(sizes):
    with pytest.raises(UserError):
        WalkGraphs(**({"seeds": (0,), "entities": 12} | sizes))
