"""The planted dictionary has the frequencies, correlations and directions that were asked for."""

import pytest
import torch

from repscope.errors import UserError
from repscope.worlds.planted.dictionary import planted_dictionary


def test_planted_rows_have_the_frequencies_and_correlations_asked_for():
    made = planted_dictionary(3, width=16, features=24, active=3, correlation=0.6, noise=0.0)
    x, z = made.rows(40_000)
    active = (z > 0).double()
    assert active.mean(0) == pytest.approx(made.frequencies.double(), abs=0.012)
    assert float(active.sum(1).mean()) == pytest.approx(3, abs=0.05)
    assert float(made.frequencies.max() / made.frequencies.min()) == pytest.approx(4, rel=1e-4)
    torch.testing.assert_close(x, z @ made.truth + made.offset)
    correlations = torch.corrcoef(active.T)
    within = [float(correlations[i, j]) for i in range(24) for j in range(i) if i // 4 == j // 4]
    across = [float(correlations[i, j]) for i in range(24) for j in range(i) if i // 4 != j // 4]
    assert min(within) > 0.15 > 0.03 > max(map(abs, across))
    again = planted_dictionary(3, width=16, features=24, active=3, correlation=0.6, noise=0.0).rows(10)[0]
    assert torch.equal(again, made.rows(10)[0])
    assert not torch.equal(again, made.rows(10, "test")[0])
    with pytest.raises(UserError, match="active per row"):
        planted_dictionary(features=4, active=5)
    with pytest.raises(UserError, match="correlation"):
        planted_dictionary(correlation=1.0)
    with pytest.raises(UserError, match="zero or not finite"):
        made.recovery(torch.zeros(3, 16))
    with pytest.raises(UserError, match="must be"):
        made.recovery(torch.ones(3, 4))
    assert made.recovery(made.truth.flip(0) * 7).mmcs.value == pytest.approx(1, abs=1e-6)
    assert made.recovery(-made.truth).mmcs.value < 0.7
