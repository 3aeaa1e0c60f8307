"""Repeated tokens: documents repeat, scores are those of transformers' attention weights, planted copying is found."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.worlds.repeated_tokens import RepeatedTokens, evaluate_copies
from repscope.worlds.small_lm import huggingface, transformer
from repscope.worlds.small_lm.transformer import Shape


def test_documents_repeat_with_periods_of_their_own():
    world = RepeatedTokens()
    found = world.documents(2, 200, torch.Generator().manual_seed(0)).numpy()
    periods = set()
    for row in found.reshape(-1, world.length):
        period = int(np.flatnonzero(row[1:] == row[0])[0]) + 1
        np.testing.assert_array_equal(row[period:], row[: world.length - period])
        assert len(set(row[:period])) == period
        periods.add(period)
    assert periods == set(range(5, 13))
    tests = world.tests(2, 5, torch.Generator().manual_seed(0))
    assert tests.shape == (2, 5, 20)
    assert torch.equal(tests[..., :10], tests[..., 10:])


def test_scores_are_those_of_transformers():
    world = RepeatedTokens(vocabulary=9, length=12, periods=(3, 5), tested=5)
    shape = Shape(9, 12, 16, 2, 2)
    state = {k: v + 0.3 * torch.randn(v.shape) for k, v in transformer.initial(shape, [0, 1]).items()}
    tests = world.tests(2, 4, torch.Generator().manual_seed(1))
    found = evaluate_copies(shape, state, tests)
    for network in range(2):
        model = huggingface(shape, state, network)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            out = model(tests[network], output_attentions=True)
        weights = torch.stack(out.attentions, 1).double().numpy()  # (document, block, head, query, key)
        own = np.stack([weights[..., q, q - 4] for q in range(5, 9)], -1).mean(-1)
        others = np.stack([weights[..., q, [k for k in range(1, 5) if k != q - 4]].mean(-1) for q in range(5, 9)], -1).mean(-1)
        np.testing.assert_allclose(found["induction"][network], own.reshape(4, -1), atol=1e-5)
        np.testing.assert_allclose(found["other tokens"][network], others.reshape(4, -1), atol=1e-5)
        logs = out.logits.double().log_softmax(-1)
        for name, places in (("", range(6, 10)), ("other ", range(1, 5))):
            nats = torch.stack([logs[torch.arange(4), p - 1, tests[network, :, p]] for p in places], -1)
            np.testing.assert_allclose(found[f"{name}scores"][network], nats.mean(-1), atol=1e-4)


@pytest.mark.parametrize("sizes", [{"periods": (5, 30)}, {"tested": 13}, {"periods": (1, 4)}])
def test_documents_in_which_nothing_repeats_are_refused(sizes):
    with pytest.raises(UserError):
        RepeatedTokens(**sizes)
