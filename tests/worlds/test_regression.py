"""In-context regression: exact predictors against brute force, networks against one module, prompts against their definition."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from repscope.errors import UserError
from repscope.worlds.regression import Regression, discrete_mmse, network, ridge

WORLD = Regression(3, 6, 0.5, seed=4)


def test_ridge_is_the_closed_form_for_every_number_of_pairs():
    held = WORLD.prompts(7, None, np.random.default_rng(0))
    found = ridge(held.x, held.y, 0.5)
    for p in range(7):
        for k in range(6):
            x, y = held.x[p, :k], held.y[p, :k]
            w = np.linalg.solve(x.T @ x + 0.25 * np.eye(3), x.T @ y)
            np.testing.assert_allclose(found[p, k], w @ held.x[p, k], atol=1e-9)


def test_discrete_mmse_is_enumeration_of_the_tasks():
    tasks = WORLD.tasks(5)
    held = WORLD.prompts(7, tasks, np.random.default_rng(0))
    found = discrete_mmse(held.x, held.y, tasks, 0.5)
    for p in range(7):
        for k in range(6):
            odds = [np.prod([np.exp(-((y - w @ x) ** 2) / 0.5) for x, y in zip(held.x[p, :k], held.y[p, :k])]) for w in tasks]
            expected = sum(o * (w @ held.x[p, k]) for o, w in zip(odds, tasks)) / sum(odds)
            np.testing.assert_allclose(found[p, k], expected, atol=1e-9)


def test_a_task_that_is_impossible_in_floating_point_is_no_nan(monkeypatch):
    tasks = np.array([[0.0, 0.0, 0.0], [900.0, 0.0, 0.0]])
    held = WORLD.prompts(9, tasks, np.random.default_rng(0))
    found = discrete_mmse(held.x, held.y, tasks, 0.5)
    assert np.isfinite(found).all()
    monkeypatch.setattr("repscope.worlds.regression.predictors._CELLS", 24)  # several chunks give the same
    np.testing.assert_array_equal(discrete_mmse(held.x, held.y, tasks, 0.5), found)


def test_each_predictor_is_the_best_on_its_own_prompts():
    """With few tasks dMMSE is near the noise on them and fails on new ones, where ridge is best; ridge does not see the tasks."""
    tasks = WORLD.tasks(2)
    for given, better in ((tasks, "list"), (None, "ridge")):
        held = WORLD.prompts(4000, given, np.random.default_rng(1))
        errors = {
            "list": ((discrete_mmse(held.x, held.y, tasks, 0.5) - held.clean) ** 2).mean(0),
            "ridge": ((ridge(held.x, held.y, 0.5) - held.clean) ** 2).mean(0),
        }
        assert min(errors, key=lambda name: errors[name][4]) == better
    assert abs(((ridge(held.x, held.y, 0.5) - held.clean) ** 2)[:, 0].mean() - 3) < 0.3  # nothing known: the variance of w·x


def test_lists_are_nested_and_prompts_follow_their_seed():
    assert np.array_equal(WORLD.tasks(300)[:7], WORLD.tasks(7))
    one, two = (WORLD.prompts(5, WORLD.tasks(3), np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(one.x, two.x)
    assert np.array_equal(one.y, two.y)
    assert (
        0.2
        < (WORLD.prompts(999, None, np.random.default_rng(3)).y - WORLD.prompts(999, None, np.random.default_rng(3)).clean).std()
        < 0.8
    )


def test_networks_are_transformers_own():
    shape = network.Shape(3, 6, 16, 2, 2)
    generator = torch.Generator().manual_seed(0)
    state = {k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in network.initial(shape, [0, 1]).items()}
    held = WORLD.prompts(4, None, np.random.default_rng(0))
    found = network.answers(shape, state, held.x, held.y)
    tokens = torch.zeros(4, 12, 4)
    tokens[:, ::2, :3], tokens[:, 1::2, 3] = torch.from_numpy(held.x).float(), torch.from_numpy(held.y).float()
    for i in range(2):
        twin = GPT2Model(GPT2Config(**shape.blocks.settings())).eval()
        own = {k.removeprefix("transformer."): v[i] for k, v in state.items()}
        twin.load_state_dict(
            {k: v for k, v in own.items() if not k.startswith("read")} | {"wte.weight": twin.wte.weight}, strict=True
        )
        with torch.no_grad():
            inside = twin(inputs_embeds=tokens @ own["read_in.weight"] + own["read_in.bias"]).last_hidden_state
            expected = (inside @ own["read_out.weight"] + own["read_out.bias"])[:, ::2, 0]
        np.testing.assert_allclose(found[i], expected.numpy(), atol=2e-5)


def test_a_prediction_sees_only_the_pairs_before():
    shape = network.Shape(3, 6, 16, 1, 2)
    state, held = network.initial(shape, [0]), WORLD.prompts(2, None, np.random.default_rng(0))
    changed = held.y.copy()
    changed[:, 3] += 5
    one, two = (network.answers(shape, state, held.x, y) for y in (held.y, changed))
    np.testing.assert_array_equal(one[..., :4], two[..., :4])
    assert (one[..., 4:] != two[..., 4:]).all()


def test_mistakes():
    with pytest.raises(UserError, match="noise is positive"):
        Regression(noise=0)
    with pytest.raises(UserError, match="has no task"):
        WORLD.tasks(0)
