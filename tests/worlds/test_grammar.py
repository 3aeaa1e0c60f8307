"""Grammars: pairs that differ as they should, a control without differences, and learners equal to slow twins."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.worlds.grammar import ENGLISH, MATCHED, learn, make_pairs
from repscope.worlds.grammar.learners import NGrams, checkpoints
from repscope.worlds.small_lm import recurrent

NOUNS = ("dog", "cat", "bird", "horse", "cow", "goat", "king", "boy", "uncle", "actor", "queen", "girl", "aunt", "nurse")
PLURAL = {noun + "s" for noun in NOUNS}
FORMS = {"this": 0, "that": 0, "these": 1, "those": 1}


def test_pairs_differ_in_what_they_test():
    rng = np.random.default_rng(0)
    for grammar in (ENGLISH, MATCHED):
        for name, phenomenon in grammar.phenomena.items():
            for _ in range(20):
                good, bad = phenomenon.pair(rng)
                assert set(good) | set(bad) <= set(grammar.words)
                if len(good) == len(bad):
                    assert sum(a != b for a, b in zip(good, bad)) == 1, name
                else:  # an object too many
                    assert bad[: len(good)] == good
    good, _ = ENGLISH.phenomena["subject–verb, attractor"].pair(rng)
    nouns = [
        w
        for w in good
        if w.removesuffix("s")
        in ["dog", "cat", "bird", "horse", "cow", "goat", "king", "boy", "uncle", "actor", "queen", "girl", "aunt", "nurse"]
    ]
    assert nouns[0].endswith("s") != nouns[1].endswith("s")


def test_the_corpus_has_no_bad_agreement_and_the_phenomena_that_it_claims():
    rng, shown = np.random.default_rng(1), set()
    for _ in range(2000):
        words, shows = ENGLISH.sentence(rng)
        shown |= shows
        for i, word in enumerate(words):
            if word in FORMS and i + 1 < len(words):
                noun = next((w for w in words[i + 1 : i + 3] if w in PLURAL or w + "s" in PLURAL), None)
                if word != "that" or words[i - 1 : i] == [] or (words[i - 1] not in PLURAL and words[i - 1] + "s" not in PLURAL):
                    assert noun is not None
                    assert (noun in PLURAL) == bool(FORMS[word]), words
    assert shown == set(ENGLISH.phenomena)


def test_the_control_has_one_frequency_and_one_distance():
    frequencies = list(MATCHED.frequency(4000).values())
    assert max(frequencies) - min(frequencies) < 0.03
    assert {p.distance for p in MATCHED.phenomena.values()} == {1}
    assert len(MATCHED.phenomena) == len(ENGLISH.phenomena)
    spread = ENGLISH.frequency(4000).values()
    assert max(spread) > 10 * min(spread)


def test_pairs_are_different_repeat_with_the_seed_and_are_refused_where_there_are_too_few():
    one, again = make_pairs(ENGLISH, 10, 3), make_pairs(ENGLISH, 10, 3)
    assert torch.equal(one.good, again.good)
    rows = {tuple(row.tolist()) for row in torch.cat([one.good, one.bad], 1)}
    assert len(rows) == len(one.phenomenon) == 10 * len(ENGLISH.phenomena)
    with pytest.raises(UserError, match="no phenomenon of the grammar English 'reflexive nmber'"):
        make_pairs(ENGLISH, 2, phenomena=("reflexive nmber",))
    with pytest.raises(UserError, match="only 128 pairs of agreement 1"):
        make_pairs(MATCHED, 200)


def test_gru_is_torchs():
    shape = recurrent.Shape("gru", 11, 8, 2)
    state = recurrent.initial(shape, [1, 2])
    tokens = torch.randint(0, 11, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    ours = recurrent.logits(shape, state, tokens)
    for n in range(2):
        theirs = torch.nn.GRU(8, 8, 2, batch_first=True)
        for i in range(2):
            getattr(theirs, f"weight_ih_l{i}").data = state[f"gru.{i}.input"][n].T
            getattr(theirs, f"weight_hh_l{i}").data = state[f"gru.{i}.recurrent"][n].T
            getattr(theirs, f"bias_ih_l{i}").data = state[f"gru.{i}.bias"][n]
            getattr(theirs, f"bias_hh_l{i}").data = state[f"gru.{i}.recurrent_bias"][n]
        table = state["embed.weight"][n]
        with torch.no_grad():
            hidden = theirs(table[tokens[n]])[0]
        torch.testing.assert_close(ours[n], hidden @ table.T + state["head.bias"][n], atol=1e-5, rtol=1e-5)


def test_n_grams_are_distributions_and_witten_bells_by_hand():
    model = NGrams(2, 3)
    model.add([0, 1, 2, 1, 2])
    assert sum(model.probability((1,), w) for w in range(3)) == pytest.approx(1)
    unigram = (2 + 2 / 3) / (4 + 2)  # token 2: twice among 4, of 2 kinds, over a uniform third
    assert model.probability((), 2) == pytest.approx(unigram)
    assert model.probability((1,), 2) == pytest.approx((2 + 1 * unigram) / (2 + 1))
    assert model.probability((0, 9), 2) == pytest.approx(unigram)  # a context that was never seen
    np.testing.assert_allclose(model.nats([1, 2]), np.log([(2 + unigram) / 3]))


def test_learners_learn_and_mistakes_are_refused():
    pairs = make_pairs(ENGLISH, 5, phenomena=("subject–verb, adjacent", "auxiliary–verb"))
    for kind in ("GRU 64", "2-gram"):
        found = learn(kind, ENGLISH, pairs, 2, 40, 4)
        assert list(found.steps) == list(checkpoints(40, 4))
        assert found.sums.shape == (2, len(found.steps), 10)
        assert (found.losses[:, -1] < found.losses[:, 0]).all()
        assert np.isfinite(found.means).all()
    with pytest.raises(UserError, match="no kind of learner 'GRU'"):
        learn("GRU", ENGLISH, pairs, 2, 10)
    with pytest.raises(UserError, match="1 run has no order"):
        learn("GRU 64", ENGLISH, pairs, 1, 10)
