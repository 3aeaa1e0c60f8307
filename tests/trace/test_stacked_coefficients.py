"""Stacked chains: closed forms per network, networks that do not touch each other, and mistakes."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.trace.stacked_coefficients import ChainSettings, stacked_coefficients

N = np.array([1000, 4000])


def quadratic(state, batch):
    """Curvatures 1 and 4, with a constant that differs by batch."""
    return torch.tensor([0.5, 2.0]) * state["w"].square().sum(-1) + 0.1 * (batch % 7)


def test_a_quadratic_has_half_its_dimensions_for_every_network():
    """Without localisation: half of 200, and what the rate e adds: the factor 1 / (1 - e n beta h / 4)."""
    settings = ChainSettings(rate=2e-4, localisation=0.0, draws=600, burn_in=200, chains=3)
    found = stacked_coefficients(quadratic, {"w": torch.zeros(2, 200)}, N, settings)
    stiff = N / np.log(N) * np.array([1.0, 4.0])
    np.testing.assert_allclose(found.values.mean(1), 100 / (1 - settings.rate * stiff / 4), rtol=0.07)
    assert found.traces.shape == (3, 600, 2)
    assert (np.abs(found.drift) < 0.2).all()


def test_localisation_makes_it_smaller_by_the_known_factor():
    settings = ChainSettings(rate=2e-4, localisation=400.0, draws=600, burn_in=200, chains=3)
    found = stacked_coefficients(quadratic, {"w": torch.zeros(2, 200)}, N, settings)
    stiff = N / np.log(N) * np.array([1.0, 4.0])
    expected = 100 * stiff / (stiff + 400) / (1 - settings.rate * (stiff + 400) / 4)
    np.testing.assert_allclose(found.values.mean(1), expected, rtol=0.07)


def test_the_start_is_left_as_it_was_and_networks_do_not_touch():
    start = {"w": torch.zeros(2, 8)}
    settings = ChainSettings(1e-3, 1.0, draws=5, burn_in=2)
    found = stacked_coefficients(quadratic, start, N, settings)
    assert not start["w"].any()
    assert not start["w"].requires_grad

    def broken(state, batch):
        each = quadratic(state, batch)
        return torch.stack([each[0], each[1] * torch.where(state["w"][1].any(), torch.inf, 1.0)])

    beside = stacked_coefficients(broken, start, N, settings)
    np.testing.assert_array_equal(beside.values[0], found.values[0])
    assert np.isnan(beside.values[1]).all()


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="not a number"):
        stacked_coefficients(lambda s, b: s["w"].sum(-1) * torch.nan, {"w": torch.zeros(2, 3)}, N, ChainSettings(1e-3, 0.0))
    with pytest.raises(UserError, match="three training examples"):
        stacked_coefficients(quadratic, {"w": torch.zeros(2, 3)}, np.array([2, 9]), ChainSettings(1e-3, 0.0))
    with pytest.raises(UserError, match="above 0"):
        ChainSettings(0.0, 1.0)
