"""HANS in miniature: rule and heuristic agree where they must, and part where they must."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repscope.errors import UserError
from repscope.worlds.hans.examples import HansExamples

TASK = HansExamples()


def parts(tokens, task=TASK):
    return tokens[:, 1 : task.length + 1], tokens[:, task.length + 2 :]


def rule(tokens, task=TASK):
    premise, hypothesis = parts(tokens, task)
    return (premise == hypothesis).all(1).astype(int)


def bag(tokens, task=TASK):
    premise, hypothesis = parts(tokens, task)
    return np.array([set(h) <= set(p) for p, h in zip(premise, hypothesis)]).astype(int)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_rule_and_heuristic_agree_on_ambiguous_texts_and_part_on_permuted_ones(seed, length):
    task = HansExamples(words=2 * length + 3, length=length)
    rng = np.random.default_rng(seed)
    tokens, labels = task.ambiguous(rng, 40)
    assert tokens.shape == (40, task.tokens)
    assert (rule(tokens, task) == labels).all()
    assert (bag(tokens, task) == labels).all()
    tokens, labels = task.permuted(rng, 40)
    assert (rule(tokens, task) == 0).all()
    assert (bag(tokens, task) == 1).all()
    assert (labels == 0).all()


def test_both_labels_and_every_order_occur():
    rng = np.random.default_rng(0)
    assert 0.45 < TASK.ambiguous(rng, 4000)[1].mean() < 0.55
    premise, hypothesis = parts(TASK.permuted(rng, 4600)[0])
    orders = {tuple(np.argmax(h[:, None] == p, 1)) for p, h in zip(premise, hypothesis)}
    assert len(orders) == 23  # all of 24 but the one that is the premise


def test_a_nudge_labels_permuted_texts_as_its_arm_has_it():
    for arm, label in (("rule", 0), ("lexical overlap", 1)):
        tokens, labels = TASK.biased(np.random.default_rng(1), 40, arm)
        assert (labels[-10:] == label).all()
        assert (bag(tokens)[-10:] == 1).all()
        assert (rule(tokens)[-10:] == 0).all()
        assert (rule(tokens)[:30] == labels[:30]).all()
    tokens, labels = TASK.biased(np.random.default_rng(1), 40, "none")
    assert (rule(tokens) == labels).all()


def test_the_masked_word_can_be_filled_in():
    tokens, places, answers = TASK.masked(np.random.default_rng(2), 50, 1.0)
    assert (tokens[np.arange(50), places] == TASK.words + 2).all()
    tokens[np.arange(50), places] = answers
    assert (rule(tokens) == 1).all()


def test_sizes_without_examples_are_refused():
    with pytest.raises(UserError, match="do not give premises of 5"):
        HansExamples(words=9, length=5)
