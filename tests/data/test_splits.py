import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from repscope.data.splits import folds, halves, purged_folds
from repscope.errors import UserError


@given(n=st.integers(5, 200), k=st.integers(2, 5), seed=st.integers(0, 9))
def test_folds_are_even_and_seeded(n, k, seed):
    fold = folds(n, k, seed)
    sizes = np.bincount(fold, minlength=k)
    assert fold.min() >= 0
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(fold, folds(n, k, seed))


def test_another_seed_gives_other_folds():
    assert not np.array_equal(folds(100, 5, 0), folds(100, 5, 1))


def test_every_fold_has_its_share_of_each_class():
    classes = np.repeat([0, 1, 2], [50, 30, 10])
    fold = folds(90, 5, stratify=classes)
    for f in range(5):
        assert np.bincount(classes[fold == f]).tolist() == [10, 6, 2]


@given(groups=st.lists(st.integers(0, 40), min_size=60, max_size=120), seed=st.integers(0, 5))
@settings(max_examples=40)
def test_groups_stay_whole_and_large_ones_are_never_tested(groups, seed):
    ids, k = np.array(groups), 3
    try:
        fold = folds(ids, k, seed)
    except UserError:
        assert sum(np.bincount(ids)[np.unique(ids)] <= len(ids) / k) < k
        return
    for g in np.unique(ids):
        of_group = fold[ids == g]
        assert len(set(of_group)) == 1
        assert (of_group[0] == -1) == (len(of_group) > len(ids) / k)
    assert set(range(k)) <= set(fold.tolist())


def test_groups_keep_classes_about_even():
    ids = np.repeat(np.arange(40), 2)
    classes = np.repeat(np.arange(40) % 2, 2)
    fold = folds(ids, 4, stratify=classes)
    assert all(np.bincount(classes[fold == f]).tolist() == [10, 10] for f in range(4))


def test_too_few_for_folds():
    with pytest.raises(UserError, match="there are 3 entities"):
        folds(3, 5)
    with pytest.raises(UserError, match=r"largest of 2 groups has 19\); use fewer folds or `purged_folds`"):
        folds(np.array([0] * 19 + [1]), 5)


@given(groups=st.lists(st.integers(0, 20), min_size=4, max_size=80), seed=st.integers(0, 5))
def test_halves_keep_groups_whole(groups, seed):
    ids = np.array(groups)
    if len(np.unique(ids)) < 2:
        with pytest.raises(UserError, match="cannot be split in two"):
            halves(ids, seed)
        return
    half = halves(ids, seed)
    assert 0 < half.sum() < len(ids)
    for g in np.unique(ids):
        assert len(set(half[ids == g])) == 1
        if 2 * (ids == g).sum() > len(ids):
            assert half[ids == g].all()


def test_halves_of_single_entities_are_even_in_every_class():
    classes = np.repeat([0, 1], [30, 70])
    half = halves(100, 3, stratify=classes)
    assert np.bincount(classes[half]).tolist() == [15, 35]


@given(tokens=st.lists(st.lists(st.integers(0, 250), max_size=3), min_size=50, max_size=80), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_purged_training_sets_share_no_token_with_what_they_are_tested_on(tokens, seed):
    classes = np.arange(len(tokens)) % 2
    try:
        pairs = purged_folds(tokens, 4, seed, classes)
    except UserError:
        reject()  # too few remain; hypothesis complains when that is the rule
    assert sorted(np.concatenate([test for _, test in pairs]).tolist()) == list(range(len(tokens)))
    for train, test in pairs:
        assert not set(train) & set(test)
        tested = {t for i in test for t in tokens[i]}
        assert not tested & {t for i in train for t in tokens[i]}
        left_out = set(range(len(tokens))) - set(train) - set(test)
        assert all(tested & set(tokens[i]) for i in left_out)  # nothing is lost without need
        assert abs(np.bincount(classes[test], minlength=2) - np.bincount(classes) / 4).max() <= 1


def test_the_search_keeps_more_than_chance_and_sharers_together():
    rng = np.random.default_rng(0)
    families = rng.permutation(np.repeat(np.arange(50), 4))  # 50 families of four names that share one token
    tokens = [[f"family {g}", f"own {i}"] for i, g in enumerate(families)]
    plain = folds(200, 5)
    at_random = np.mean([200 - np.isin(families, families[plain == f]).sum() for f in range(5)])
    pairs = purged_folds(tokens, 5)
    assert np.mean([len(train) for train, _ in pairs]) > 150 > at_random  # 160 when no family is torn
    again = purged_folds(tokens, 5)
    assert all(np.array_equal(a, b) for one, two in zip(pairs, again, strict=True) for a, b in zip(one, two, strict=True))


def test_a_token_that_all_share_is_named():
    tokens = [["the", f"word {i}"] for i in range(60)]
    with pytest.raises(UserError, match=r"0 of 60 entities.*token 'the' is in 60"):
        purged_folds(tokens, 5)


def test_a_token_that_marks_a_class_leaves_no_such_class_to_train_on():
    tokens = [["ium" if i % 2 else f"word {i}"] for i in range(80)]
    with pytest.raises(UserError, match="not of every class, remain to train on"):
        purged_folds(tokens, 5, stratify=np.arange(80) % 2)


def test_folds_do_not_depend_on_the_hash_seed_of_the_process():
    """Sets of text have another order in every process; folds must not."""
    code = (
        "import random; from repscope.data.splits import purged_folds\n"
        "draw, words = random.Random(0), ['san', 'los', 'new', 'la', 'el', 'rio', 'de'] + [f'w{i}' for i in range(150)]\n"
        "names = [[draw.choice(words[: 7 if draw.random() < 0.4 else None]), *draw.sample(words[7:], 2)] for _ in range(120)]\n"
        "print([test.tolist() for _, test in purged_folds(names, k=8, seed=0)])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
