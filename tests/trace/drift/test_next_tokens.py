"""Divergences, ranks and token shift against brute force; networks with themselves, with floors and with given answers."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

import repscope as rs
from repscope.errors import UserError
from repscope.models.prompts import Ragged
from repscope.trace.drift.next_tokens import SHIFTS, Answered, answered, divergences, hidden_before, next_tokens, token_ranks

from .conftest import small

METRICS = {"KL", "KL from base", "JS", *SHIFTS}


def value(result, metric, condition="estimate", item=""):
    (row,) = result.select(metric=metric, condition=condition, item=item).itertuples()
    return row


@settings(max_examples=30)
@given(st.integers(0, 999), st.floats(0.1, 60))
def test_divergences_are_scipys(seed, scale):
    rng = np.random.default_rng(seed)
    base, tuned = scale * rng.standard_normal((2, 3, 4, 11))
    q, p = softmax(base, -1), softmax(tuned, -1)
    found = divergences(base, tuned)
    np.testing.assert_allclose(found.tuned_base, rel_entr(p, q).sum(-1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.base_tuned, rel_entr(q, p).sum(-1), rtol=1e-9, atol=1e-12)
    m = (p + q) / 2
    np.testing.assert_allclose(found.js, (rel_entr(p, m) + rel_entr(q, m)).sum(-1) / 2, rtol=1e-7, atol=1e-9)
    assert (found.js <= np.log(2) + 1e-12).all()
    np.testing.assert_allclose(divergences(base + 5, tuned - 3).tuned_base, found.tuned_base, atol=1e-9)


def test_equal_logits_diverge_by_exactly_zero_and_masked_tokens_by_nothing():
    logits = torch.randn(5, 7) * 30
    logits[:, 2] = -torch.inf
    same = divergences(logits, logits.clone())
    assert not same.tuned_base.any()
    assert not same.base_tuned.any()
    assert not same.js.any()
    allowed = divergences(torch.zeros(2), torch.tensor([0.0, -torch.inf]))
    assert float(allowed.tuned_base) == pytest.approx(np.log(2))
    assert np.isinf(allowed.base_tuned)
    apart = divergences(torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0]))
    assert float(apart.js) == pytest.approx(np.log(2))


def test_mistakes_of_logits_are_told():
    with pytest.raises(UserError, match="vocabularies must be equal"):
        divergences(np.zeros((2, 5)), np.zeros((2, 6)))
    with pytest.raises(UserError, match="tuned network are NaN"):
        divergences(np.zeros(3), np.array([0.0, np.nan, 1.0]))


def test_ranks_are_those_of_a_sort_and_ties_with_the_best_are_first():
    logits = np.random.default_rng(0).permuted(np.tile(np.arange(9.0), (20, 1)), axis=1)
    ids = np.arange(20) % 9
    by_hand = [int(np.flatnonzero(np.argsort(-row) == i)[0]) + 1 for row, i in zip(logits, ids)]
    assert token_ranks(logits, ids).tolist() == by_hand
    assert token_ranks(np.array([[3.0, 3.0, 1.0]]), np.array([1])).tolist() == [1]


@pytest.fixture(scope="module")
def found(base, tuned, other, prompts):
    return next_tokens(base, tuned, prompts[:17], new_tokens=6, other=other, reference=["A map of Paris", "The sea"])


def test_numbers_are_those_of_the_logits(found, base, tuned, prompts):
    """One prompt at a time, with transformers' own forward pass."""
    sums, classes, tokens = np.zeros(3), np.zeros(3), 0
    for prompt in prompts[:17]:
        text = answered(tuned, [prompt], new_tokens=6)
        ids, start = torch.from_numpy(text.ids[0])[None], int(text.start[0])
        q, p = (lm.model(input_ids=ids).logits[0, start - 1 : -1].detach().double() for lm in (base, tuned))
        apart = divergences(q, p)
        sums += [apart.tuned_base.sum(), apart.base_tuned.sum(), apart.js.sum()]
        ranks = [1 + int((row > row[k]).sum()) for row, k in zip(q, ids[0, start:])]
        classes += [sum(r == 1 for r in ranks), sum(1 < r <= 3 for r in ranks), sum(r > 3 for r in ranks)]
        tokens += len(ranks)
    for metric, expected in zip(("KL", "KL from base", "JS", *SHIFTS), np.concatenate([sums, classes]) / tokens):
        assert value(found, metric).value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rows_have_bins_intervals_controls_and_losses(found, base):
    assert {"", "position 1", "position 2–3", "position 4–6", "reference"} <= set(found.table["item"])
    assert set(found.table["metric"]) == {*METRICS, "loss"}
    assert value(found, "KL").lo < value(found, "KL").value < value(found, "KL").hi
    assert value(found, "KL").n == 17
    for name in ("other prompts", "another seed"):
        assert value(found, "KL", name).value > 0
        assert sum(value(found, s, name).value for s in SHIFTS) == pytest.approx(1)
    side = found.side["positions"]
    assert side["n"].tolist() == [17] * 6
    assert (side["KL"] @ side["n"] / side["n"].sum()) == pytest.approx(value(found, "KL").value)
    score = base.token_scores(
        [rs.Prompt("A map of Paris", {"continuation": (1, 14)}), rs.Prompt("The sea", {"continuation": (1, 7)})], None
    )
    expected = -score.logprob.sum() / score.tokens.sum()
    assert value(found, "loss", "base network", "reference").value == pytest.approx(expected, rel=1e-5)
    difference = value(found, "loss", item="reference, tuned minus base").value
    assert difference == pytest.approx(value(found, "loss", item="reference").value - expected, rel=1e-4)


def test_a_network_with_itself_is_unshifted_exactly(base, prompts):
    same = next_tokens(base, base, prompts[:5], new_tokens=4)
    for metric in ("KL", "KL from base", "JS", "marginal", "shifted"):
        assert value(same, metric).value == 0, metric
    assert value(same, "unshifted").value == 1
    assert value(same, "KL", "other prompts").value > 0


def test_given_answers_are_ranked_and_generated_ones_are_the_greedy_ones(base, tuned, prompts):
    texts = answered(tuned, prompts[:3], new_tokens=5)
    written = tuned.generate(prompts[:3], 5)
    for i, answer in enumerate(written):
        np.testing.assert_array_equal(texts.ids[i][texts.start[i] :], answer.ids)
    given = next_tokens(base, tuned, prompts[:3], answers=[" xyz", " q", " zebra"])
    assert value(given, "shifted").value > 0.5
    side = given.side["positions"]
    assert side["n"].tolist() == [3, 3, 2, 2, 1, 1]
    assert side["KL"].notna().all()


def test_what_cannot_be_compared_is_refused(base, tuned, llama, prompts):
    with pytest.raises(UserError, match="1 prompts; at least 2"):
        next_tokens(base, tuned, prompts[:1])
    with pytest.raises(UserError, match="make other tokens"):
        next_tokens(base, llama, prompts[:2])
    with pytest.raises(UserError, match="2 prompts and 1 answers"):
        next_tokens(base, tuned, prompts[:2], answers=["a"])
    with pytest.raises(UserError, match="Prompt 0 is no text"):
        next_tokens(base, tuned, [[1, 2], [3, 4]], answers=["a", "b"])
    with pytest.raises(UserError, match="has one token"):
        next_tokens(base, tuned, prompts[:2], new_tokens=1, reference=["a"])
    wide = small(base.tokenizer, vocab_size=300)
    with pytest.raises(UserError, match="vocabularies must be equal"):
        next_tokens(base, wide, prompts[:2], new_tokens=1)


def test_an_answer_may_have_the_padding_token_anywhere(base, tuned):
    """Greedy answers of a network that predicts the padding token are answers like any other."""
    lms = [copy.deepcopy(lm) for lm in (base, tuned)]
    for lm in lms:
        lm.tokenizer = copy.deepcopy(lm.tokenizer)
        lm.tokenizer.add_special_tokens({"pad_token": "Z"})
    pad = lms[0].tokenizer.pad_token_id
    assert pad not in (lms[0].tokenizer.eos_token_id, lms[0].tokenizer.bos_token_id)
    texts = Answered(Ragged.of(np.array(row) for row in ([5, 6, 7, pad, 9], [5, 6, 8, pad, 9])), np.array([3, 3]))
    for lm in lms:
        for i, hidden in enumerate(hidden_before(lm, texts, [0, 1])):
            logits = lm.model(input_ids=torch.from_numpy(texts.ids[i])[None]).logits[0, 2:-1].detach()
            np.testing.assert_allclose(lm.unembed(hidden, normed=True), logits, rtol=1e-4, atol=1e-5)
