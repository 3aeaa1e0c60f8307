"""Most likely tokens of sums: those of each sum computed by itself, whatever the final norm."""

import numpy as np
import pytest
import torch

from families import build
from repscope.models.language import LanguageModel
from repscope.read import token_sums
from repscope.read.known_facts import HEAD_ROWS, most_likely
from repscope.read.token_sums import most_likely_of_sums

SUMS = [(0.5, 1.0), (1.0, 1.0), (7.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize(("family", "linear"), [("llama", True), ("gpt2", False)])
def test_each_sum_has_the_token_that_it_has_alone(family, linear, tokenizer, monkeypatch):
    """Without a fast path for GPT-2, whose norm subtracts the mean and adds a bias."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})  # nor by half precision
    lm = LanguageModel(build(family), tokenizer, family)
    rng = np.random.default_rng(0)
    states, bias = rng.normal(size=(HEAD_ROWS + 5, lm.anatomy.width)).astype(np.float32), rng.normal(size=lm.anatomy.width)
    rows = []
    unembed = LanguageModel.unembed
    monkeypatch.setattr(LanguageModel, "unembed", lambda self, x, **how: (rows.append(len(x)), unembed(self, x, **how))[1])
    found = most_likely_of_sums(lm, states, bias.astype(np.float32), SUMS)
    assert (sum(rows) < 2 * len(states)) == linear
    for (a, c), tokens in zip(SUMS, found):
        assert (tokens == most_likely(lm, a * states + c * bias)).all()
    assert len({tuple(tokens) for tokens in found}) == len(SUMS)


@pytest.mark.parametrize("part", [1, 7, 1 << 17])
def test_of_equal_entries_the_first_is_taken_whatever_the_parts(part, monkeypatch):
    monkeypatch.setattr(token_sums, "_PART", part)
    rng = np.random.default_rng(0)
    x, b = rng.integers(0, 3, (4, 50)).astype(np.float32), rng.integers(0, 3, 50).astype(np.float32)
    found = token_sums._largest(x, b, SUMS)
    assert found.tolist() == [(a * x + c * b).argmax(-1).tolist() for a, c in SUMS]
