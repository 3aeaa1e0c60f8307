"""The learning coefficient: closed forms, known biases of rate and localisation, and modules left as they were."""

import numpy as np
import pytest
import torch
from torch import nn

from repscope.errors import UserError
from repscope.trace.learning_coefficient import Sampling, calibration, learning_coefficient


class Weights(nn.Module):
    """Parameters at zero."""

    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d, dtype=torch.float64))


def quadratic(module, generator):
    return 0.5 * module.w.square().sum()


def quartic(module, generator):
    return module.w.pow(4).sum()


def test_a_quadratic_has_half_its_dimensions():
    found = learning_coefficient(
        Weights(100), quadratic, Sampling(1000, beta=1.0, rate=4e-4, localisation=0, draws=300, burn_in=60, adjusted=True)
    )
    assert found.estimate.value == pytest.approx(50, rel=0.05)
    assert 0.5 < found.accepted < 1
    assert found.warning == ""
    assert found.frame().shape == (4 * 360, 4)


def test_a_degenerate_minimum_has_less():
    """Of w^4 in 64 dimensions exactly 64 / 4, whatever n beta is."""
    found = learning_coefficient(
        Weights(64), quartic, Sampling(1000, beta=1.0, rate=2e-3, localisation=0, draws=500, burn_in=200, adjusted=True)
    )
    assert found.estimate.value == pytest.approx(16, rel=0.1)


def test_a_product_of_two_weights_as_by_quadrature():
    """(w1 w2)^2 with localisation, forty pairs: the expectation over a grid."""
    n_beta, gamma = 200.0, 4.0
    grid = np.linspace(-4, 4, 2001)
    product = (grid[:, None] * grid[None]) ** 2
    density = np.exp(-n_beta * product - gamma / 2 * (grid[:, None] ** 2 + grid[None] ** 2))
    expected = n_beta * (product * density).sum() / density.sum()

    def loss(module, generator):
        return (module.w[:40] * module.w[40:]).square().sum()

    sampling = Sampling(200, beta=1.0, rate=0.004, localisation=gamma, draws=700, burn_in=100, adjusted=True)
    assert learning_coefficient(Weights(80), loss, sampling).estimate.value == pytest.approx(40 * expected, rel=0.1)


def test_biases_of_rate_and_localisation_are_those_that_are_stated():
    d, n_beta, rate, gamma = 100, 100.0, 0.008, 50.0
    plain = Sampling(100, beta=1.0, rate=rate, localisation=0, draws=250, burn_in=50)
    found = learning_coefficient(Weights(d), quadratic, plain).estimate.value
    assert found == pytest.approx(d / 2 / (1 - rate * n_beta / 4), rel=0.06)
    pulled = Sampling(100, beta=1.0, rate=rate / 4, localisation=gamma, draws=400, burn_in=50, adjusted=True)
    found = learning_coefficient(Weights(d), quadratic, pulled).estimate.value
    assert found == pytest.approx(d / 2 * n_beta / (n_beta + gamma), rel=0.06)


def test_the_module_is_left_as_it_was():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 1)).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    x, y = torch.randn(32, 3), torch.randn(32, 1)

    def loss(m, generator):
        rows = torch.randint(32, (8,), generator=generator)
        return (m[2](m[0](x[rows])) - y[rows]).square().mean()

    found = learning_coefficient(module, loss, Sampling(32, rate=1e-4, draws=20, burn_in=5))
    assert np.isfinite(found.traces).all()
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    same = learning_coefficient(module, loss, Sampling(32, rate=1e-4, draws=20, burn_in=5))
    np.testing.assert_array_equal(found.traces, same.traces)


def test_a_sweep_shows_the_rates_that_diverge():
    table = calibration(Weights(4), quartic, Sampling(1000, beta=1.0, localisation=0, draws=200, burn_in=50), (1e-3, 1e3))
    assert np.isfinite(table["value"][0])
    assert np.isnan(table["value"][1])
    assert "lower the rate" in table["warning"][1]


def test_mistakes_are_one_sentence():
    frozen = Weights(2)
    frozen.w.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to sample"):
        learning_coefficient(frozen, quadratic, Sampling(10))
    with pytest.raises(UserError, match="not a number"):
        learning_coefficient(Weights(2), lambda m, g: m.w.sum() * float("nan"), Sampling(10))
    with pytest.raises(UserError, match="two calls"):
        learning_coefficient(Weights(2), lambda m, g: m.w.sum() + torch.rand((), generator=g), Sampling(10, adjusted=True))
    with pytest.raises(UserError, match="two chains"):
        Sampling(10, chains=1)
    with pytest.raises(UserError, match="accepted no step"):
        learning_coefficient(Weights(100), quadratic, Sampling(100, beta=1.0, rate=1.0, adjusted=True, draws=20))
    with pytest.raises(UserError, match="above 0"):
        Sampling(10, rate=0)
