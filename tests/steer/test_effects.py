"""What a vector does: forks against edits, many vectors against one, and text that has no control but its own random numbers."""

import numpy as np
import pytest
import torch

from repscope.data.contrasts import Choice
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.prompts import Prompt, with_continuation
from repscope.steer.effects import divergence, in_turn, log_odds, repeated, written
from repscope.worlds.tiny import tiny

CHOICES = [
    Choice("The soup was", " good", " bad", "a"),
    Choice("I found the long film", " dull and slow", " fine", "b"),
    Choice("It", " is", " was", "c"),
]


@pytest.fixture(scope="module")
def lm():
    return tiny()


def vectors(count, seed=0, length=4.0):
    drawn = np.random.default_rng(seed).standard_normal((count, 32))
    return length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("tokens", ["all", "prompt", "last", "generated"])
@pytest.mark.parametrize("site", ["resid_post.0", "resid_post.2", "mlp_out.1", "embed"])
def test_log_odds_are_those_of_the_edited_model(lm, site, tokens):
    added = [Edit.add(site, v, tokens=tokens) for v in vectors(3)]
    found = log_odds(lm, CHOICES, added)

    def slow():
        plain = lm.score([c.prompt for c in CHOICES], [c.yes for c in CHOICES]).logprob
        return plain - lm.score([c.prompt for c in CHOICES], [c.no for c in CHOICES]).logprob

    np.testing.assert_allclose(found[0], slow(), atol=2e-5)
    for row, one in zip(found[1:], added):
        with lm.edit(one):
            np.testing.assert_allclose(row, slow(), atol=2e-5)


def test_many_vectors_at_many_sites_are_each_alone(lm):
    added = [Edit.add(f"resid_post.{i % 4}", v) for i, v in enumerate(vectors(11))]
    together = log_odds(lm, CHOICES, added)
    for i, one in enumerate(added):
        np.testing.assert_allclose(log_odds(lm, CHOICES, [one])[1], together[i + 1], atol=2e-5)


def test_divergence_is_the_sum_over_the_vocabulary(lm):
    text = with_continuation("The soup was", " good and hot")
    added = [Edit.add("resid_post.1", v) for v in vectors(2)]
    found = divergence(lm, [text, text], added)

    def logp():
        start = len(lm.tokenizer("The soup was")["input_ids"])
        rows = torch.from_numpy(lm.logits([text.text], "all")).double().log_softmax(-1)
        return rows[start - 1 : -1]

    plain = logp()
    for row, one in zip(found, added):
        with lm.edit(one):
            steered = logp()
        slow = float((plain.exp() * (plain - steered)).sum(-1).mean())
        np.testing.assert_allclose(row, slow, rtol=1e-4)
    assert (found > 0).all()


def test_a_vector_of_no_length_does_nothing(lm):
    nothing = Edit.add("resid_post.1", np.zeros(32))
    odds = log_odds(lm, CHOICES, [nothing])
    np.testing.assert_array_equal(odds[0], odds[1])
    assert divergence(lm, [with_continuation("The soup", " was")], [nothing])[0, 0] == 0


def test_what_is_written_and_what_the_unsteered_model_says_of_it(lm):
    openings = ["The soup was", "We met at", "He"]
    far = Edit.add("resid_post.2", vectors(1, length=30.0)[0])
    plain, again, steered = written(lm, openings, [None, None, far], new_tokens=8)
    assert plain.texts == again.texts
    assert plain.texts != steered.texts
    np.testing.assert_array_equal(plain.nats, again.nats)
    one = lm.score([openings[0]], [steered.texts[0]])
    assert steered.nats[0] == pytest.approx(-one.logprob[0] / one.tokens[0], abs=1e-5)
    told = written(lm, openings, [None], new_tokens=8, prefixes=["Be brief. "])[0]
    expected = lm.generate(["Be brief. " + o for o in openings], 8, temperature=1.0)
    assert told.texts == tuple(c.text for c in expected)


def test_repeats_and_turns(lm):
    assert repeated(np.array([5, 5, 5, 5, 5])) == pytest.approx(2 / 3)
    assert repeated(np.array([1])) == 0
    assert in_turn(lm, "Hello", False) == Prompt("Hello")
    with pytest.raises(UserError, match="no chat template"):
        in_turn(lm, "Hello", True)


def test_mistakes(lm):
    with pytest.raises(UserError, match="choice of tokens 'first'"):
        log_odds(lm, CHOICES, [Edit.add("resid_post.1", vectors(1)[0], tokens="first")])
    with pytest.raises(UserError, match="blocks 0 to 3"):
        log_odds(lm, CHOICES, [Edit.add("resid_post.9", vectors(1)[0])])
    with pytest.raises(UserError, match="covers no token"):
        log_odds(lm, [Choice("The", "", " b")], [])


def test_an_edit_changes_the_same_rows_in_forks_below_an_edit(lm):
    """Forks run inside an edit of all tokens as well: the effect of a vector on a steered model."""
    one = Edit.add("resid_post.2", vectors(1)[0])
    with lm.edit(Edit.add("resid_post.0", vectors(1, seed=5)[0])):
        inside = log_odds(lm, CHOICES[:1], [one])
        with lm.edit(one):
            both = lm.score([CHOICES[0].prompt], [CHOICES[0].yes]).logprob - lm.score([CHOICES[0].prompt], [CHOICES[0].no]).logprob
    np.testing.assert_allclose(inside[1], both, atol=2e-5)
