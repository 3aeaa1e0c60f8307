"""Representations of two networks on the same prompts, beside brute force and their floors."""

import numpy as np
import pytest

from repscope.align import procrustes, rsa, unbiased_cka
from repscope.errors import UserError
from repscope.trace.drift.representations import DEFINITIONS, _batches, _energies, representations

from .conftest import small, steered

SITE = "resid_post.2"


def value(result, metric, condition="estimate", site=SITE):
    (row,) = result.select(metric=metric, condition=condition, site=site).itertuples()
    return row


@pytest.fixture(scope="module")
def found(base, tuned, other, prompts):
    return representations(base, tuned, prompts, other=other)


def test_numbers_are_those_of_the_rows(found, base, tuned, prompts):
    x, y = (lm.capture(prompts, SITE)[SITE].astype(np.float64) for lm in (base, tuned))
    batches = _batches(len(prompts), 1, 0)
    order, size = np.concatenate(batches), len(batches[0])
    assert {len(b) for b in batches} == {size} == {8}
    assert value(found, "CKA").value == pytest.approx(unbiased_cka(x[order], y[order], batch=size), abs=1e-5)
    assert value(found, "RSA").value == pytest.approx(np.mean([rsa(x[b], y[b]) for b in batches]), abs=1e-4)
    first, second = np.concatenate(batches[:4]), np.concatenate(batches[4:])
    expected = procrustes(x[first], y[first], held_out=(x[second], y[second]))
    assert value(found, "Procrustes distance").value == pytest.approx(expected, abs=1e-3)
    delta = y - x
    variances = np.mean([x[b].var(0, ddof=1).sum() for b in batches])
    assert value(found, "relative change").value == pytest.approx(np.sqrt((delta**2).sum(1).mean() / variances), rel=1e-5)
    common = np.mean([np.mean([delta[i] @ delta[j] for i in b for j in b if i != j]) for b in batches])
    assert value(found, "mean shift").value == pytest.approx(common / (delta**2).sum(1).mean(), rel=1e-5)


def test_rows_have_intervals_floors_and_all_pairs(found, base, tuned):
    assert set(found.table["metric"]) == set(DEFINITIONS)
    assert set(found.table["condition"]) == {"estimate", "other prompts", "another seed"}
    assert len(found.table) == 5 * 3 * 4
    assert (found.table["lo"] <= found.table["value"] + 1e-9).all()
    assert (found.table["value"] <= found.table["hi"] + 1e-9).all()
    assert set(found.table["model"]) == {tuned.fingerprint}
    assert found.arrays["CKA"].shape == (4, 4)
    assert found.arrays["CKA"][2, 2] == pytest.approx(value(found, "CKA").value)
    assert list(found.side["sites"]["site"]) == [f"resid_post.{i}" for i in range(4)]
    cka = [value(found, "CKA", c).value for c in ("estimate", "other prompts")]
    assert cka[0] > 0.5 > abs(cka[1])
    assert value(found, "Procrustes distance", "other prompts").value > 1.2 > value(found, "Procrustes distance").value


def test_a_network_with_itself_does_not_differ(base, prompts):
    same = representations(base, base, prompts, at=[SITE])
    assert value(same, "CKA").value == pytest.approx(1, abs=1e-6)
    assert value(same, "RSA").value == 1
    assert value(same, "Procrustes distance").value < 1e-2
    assert value(same, "mean shift").value == value(same, "relative change").value == 0
    assert value(same, "relative change", "other prompts").value > 1


def test_a_constant_vector_is_all_mean_shift_where_it_is_added(base, prompts):
    vector = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    result = representations(base, steered(base, 1, vector), prompts, at=["resid_post.1"])
    shift, control = (value(result, "mean shift", c, "resid_post.1") for c in ("estimate", "other prompts"))
    assert shift.value == pytest.approx(1, abs=1e-4)
    assert control.value < 0.3
    assert value(result, "CKA", site="resid_post.1").value == pytest.approx(1, abs=1e-5)


def test_mean_shift_of_unrelated_changes_is_zero_on_average_also_within_prompts():
    rng, prompt = np.random.default_rng(0), np.repeat(np.arange(8), 3)
    found = []
    for _ in range(300):
        delta = np.repeat(rng.standard_normal((8, 4)), 3, axis=0)  # tokens of one prompt change alike
        found.append(_energies(np.zeros((24, 4)), delta, prompt)[0])
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(300)


def test_all_tokens_are_a_sample_of_each_prompt(base, tuned, prompts):
    result = representations(base, tuned, prompts[:16], at=[SITE], tokens="all")
    assert 0 < value(result, "CKA").value < 1
    assert result.table["token"].unique().tolist() == ["all"]


def test_what_cannot_be_compared_is_refused(base, tuned, prompts, llama):
    with pytest.raises(UserError, match="5 prompts; at least 16"):
        representations(base, tuned, prompts[:5])
    with pytest.raises(UserError, match="make other tokens of prompt"):
        representations(base, llama, prompts, at=[SITE])
    with pytest.raises(UserError, match="has the blocks 0 to 3"):
        representations(base, tuned, prompts, at="resid_post.7")
    narrow = small(base.tokenizer, num_hidden_layers=4)
    with pytest.raises(UserError, match="16 features in one network and 32"):
        representations(base, narrow, prompts, at=[SITE])
    shallow = small(base.tokenizer, hidden_size=32)
    with pytest.raises(UserError, match="has 4 of these sites"):
        representations(base, shallow, prompts)
