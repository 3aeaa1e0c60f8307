"""Most likely tokens with most of the vocabulary ruled out in half precision: those of the whole product, whatever the numbers."""

import numpy as np
import pytest
import torch

from families import build
from repscope.models.language import LanguageModel
from repscope.read import known_facts, largest_logits, token_sums
from repscope.read.known_facts import most_likely
from repscope.read.largest_logits import largest_products
from repscope.read.token_sums import most_likely_of_each, most_likely_of_sums


@pytest.mark.parametrize("tokens", [16, 1000, 9001])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_answer_is_that_of_the_whole_product(tokens, scale):
    torch.manual_seed(tokens)
    weight = torch.randn(tokens, 64) * torch.linspace(0.2, 3, tokens)[torch.randperm(tokens), None]
    x = scale * torch.randn(50, 64)
    found = largest_products(weight, x)
    if tokens > 16:
        assert found is not None
    assert found is None or (found == (x @ weight.T).argmax(1)).all()


def test_tokens_that_bfloat16_cannot_tell_apart_are_told_apart():
    """Each state has rivals that differ from the largest by less than half precision resolves, on either side of it."""
    torch.manual_seed(0)
    weight, x = torch.randn(5000, 64), torch.randn(40, 64)
    best = (x @ weight.T).argmax(1)
    for row, token in enumerate(best.tolist()):
        for place, sign in ((row, 1), (4000 + row, -1)):
            weight[place] = weight[token] * (1 + sign * 2e-4 * (row % 5 - 2))
    whole, rounded = (x @ weight.T).argmax(1), (x.bfloat16() @ weight.bfloat16().T).argmax(1)
    assert (whole != rounded).sum() > 5  # a product in half precision alone would be wrong
    assert (largest_products(weight, x) == (x.double() @ weight.double().T).argmax(1)).all()


def test_of_equal_tokens_the_first_is_taken():
    torch.manual_seed(0)
    weight = torch.randn(3000, 32)
    weight[2000:] = weight[:1000]
    x = torch.randn(30, 32) + weight[:30]
    found = largest_products(weight, x)
    assert found is not None
    assert (found == (x @ weight.T).argmax(1)).all()
    assert (found < 2000).all()


def test_nothing_is_ruled_out_where_nothing_can_be():
    torch.manual_seed(0)
    weight, x = torch.randn(3000, 32), torch.randn(20, 32)
    for bad in (torch.nan, torch.inf):
        odd = x.clone()
        odd[3, 4] = bad
        assert largest_products(weight, odd) is None
        wrong = weight.clone()
        wrong[7, 3] = bad
        assert largest_products(wrong, x) is None
    assert largest_products(torch.ones(3000, 32), x) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_of_a_network_with_and_without(family, tokenizer, monkeypatch):
    """Heads that scale or cap their logits are left to the whole product."""
    lm = LanguageModel(build(family), tokenizer, family)
    rng = np.random.default_rng(0)
    states, bias = (rng.normal(size=size).astype(np.float32) for size in ((300, lm.anatomy.width), lm.anatomy.width))
    sets = [(states[a : a + 30], bias, [(0.5, 1.0), (3.0, 1.0)]) for a in range(0, 300, 30)]
    slow = [most_likely_of_sums(lm, *given) for given in sets]
    monkeypatch.setattr(known_facts, "largest_logits", lambda *_, **__: None)
    whole = [most_likely(lm, states), most_likely(lm, states, normed=True)]
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(token_sums, "_TOGETHER", 200)
    monkeypatch.setattr(largest_logits, "_ROWS", 128)
    quick = largest_logits.largest_logits(lm, states)
    if family in ("llama", "gpt2"):
        assert quick is not None
    for normed in (False, True):
        assert (most_likely(lm, states, normed=normed) == whole[normed]).all()
    for a, b in zip(most_likely_of_each(lm, sets), slow, strict=True):
        assert (a == b).all()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert largest_logits.largest_logits(lm, states) is None
    for a, b in zip(most_likely_of_each(lm, sets), slow, strict=True):
        assert (a == b).all()
