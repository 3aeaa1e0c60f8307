"""Whether an ability is hidden or lost: probes, relearning curves, and constant vectors with a known answer."""

import copy

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.results import CHOSEN
from repscope.trace.drift.wrap_around import BASE, NEVER, constant_vector, readable, relearning

from .conftest import WORDS, steered
from .test_directions import LABELS, TEXTS, value

SITE = "resid_post.1"


def test_an_ability_behind_a_changed_head_is_readable_and_one_in_zeroed_blocks_is_not(base):
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    headless = readable(base, LanguageModel(model, base.tokenizer, "headless"), TEXTS, LABELS, at=[SITE], tokens="mean")
    assert value(headless, "accuracy", item="ability").value == value(headless, "accuracy", BASE, "ability").value > 0.9
    assert value(headless, "accuracy", "shuffled labels", "ability").value < 0.7
    assert value(headless, "accuracy", "random weights", "ability").n == 20
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    lost = readable(base, LanguageModel(model, base.tokenizer, "lost"), TEXTS, LABELS, at=[SITE], tokens="mean")
    assert value(lost, "accuracy", item="ability").value == 0.5


def train(rate, seed):
    """A made-up learner whose score is rate · step."""
    return ((step, rate * step) for step in range(0, 1000, 10))


def test_steps_are_interpolated_and_compared_with_a_network_that_never_had_it():
    result = relearning(train, {"estimate": [0.1, 0.05], NEVER: [0.01, 0.01]}, target=0.55, limit=100)
    assert value(result, "steps to relearn", item="").value == pytest.approx((5.5 + 11) / 2)
    assert value(result, "steps to relearn", NEVER, "").value == pytest.approx(55)
    saved = value(result, "steps to relearn", item="saved")
    assert saved.value == pytest.approx(1 - 16.5 / 110)
    assert saved.lo <= saved.value <= saved.hi
    curves = result.side["curves"]
    assert curves[curves["condition"] == "estimate"]["step"].max() == 20, "training stops at the target"


def test_a_run_that_does_not_arrive_counts_as_the_limit_and_one_that_is_there_as_zero():
    result = relearning(train, {"estimate": [1.0], NEVER: [0.001]}, target=0.5, limit=50)
    assert value(result, "steps to relearn", NEVER, "").value == 50
    assert "did not reach" in result.notes[0]
    there = relearning(lambda n, s: iter([(0, 0.9)]), {"estimate": [0], NEVER: [0]}, target=0.5, limit=50)
    assert value(there, "steps to relearn", item="").value == 0


@pytest.mark.parametrize(
    ("learner", "networks", "says"),
    [
        (train, {"estimate": [1.0]}, "no network for 'never had the ability'"),
        (lambda n, s: iter([(5, 0.0)]), {"estimate": [1], NEVER: [1]}, "begin with 0 and rise"),
        (lambda n, s: iter([(0, 0.0), (0, 0.1)]), {"estimate": [1], NEVER: [1]}, "begin with 0 and rise"),
        (lambda n, s: iter([(0, 0.0), (9, 0.1)]), {"estimate": [1], NEVER: [1]}, "ended after step 9"),
    ],
)
def test_mistakes_of_a_learner_are_told(learner, networks, says):
    with pytest.raises(UserError, match=says):
        relearning(learner, networks, target=0.5, limit=50)


# ---- constant vectors

PROMPTS = [f"{a} of {b}" for a in WORDS[:4] for b in WORDS[:4]]


@pytest.fixture(scope="module")
def vector():
    return (2 * np.random.default_rng(3).standard_normal(32)).astype(np.float32)


def test_a_network_that_adds_a_constant_is_recovered_by_it_alone(base, tuned, vector):
    planted = steered(base, 1, vector)
    how = {"at": [SITE, "resid_post.3"], "new_tokens": 3, "random": 2, "scales": (0.5, 1.0)}
    result = constant_vector(base, planted, PROMPTS, other=(base, tuned), **how)
    np.testing.assert_allclose(result.arrays[f"vector {SITE}"], vector, atol=1e-4)
    recovered = value(result, "recovered KL", item="", site=SITE)
    assert recovered.value == pytest.approx(1, abs=1e-6)
    assert value(result, "scale", item="", site=SITE).value == 1
    for control in ("random direction", "vector of another pair"):
        assert value(result, "recovered KL", control, "", site=SITE).value < 0.6
    chosen = value(result, "recovered KL", item=SITE, site=CHOSEN)
    assert chosen.value == recovered.value
    assert chosen.n == 8


def test_the_scale_is_chosen_on_one_half_and_may_be_zero(base, tuned):
    result = constant_vector(base, tuned, PROMPTS, at=[SITE], new_tokens=2, random=2, scales=(1000.0,))
    assert value(result, "scale", "random direction", "", site=SITE).value in (0, 500, 1000)
    rows = result.select(metric="recovered KL")
    zero = result.select(metric="scale", value=0.0)
    assert all(rows[(rows["condition"] == c)]["value"].eq(0).all() for c in zero["condition"])


def test_equal_networks_have_no_vector(base):
    result = constant_vector(base, base, PROMPTS[:8], at=[SITE], new_tokens=2)
    assert not len(result.table)
    assert "no vector to add" in result.notes[0]


def test_wrong_scales_are_refused(base, tuned):
    with pytest.raises(UserError, match="factors above 0"):
        constant_vector(base, tuned, PROMPTS, scales=(0.0,))
    with pytest.raises(UserError, match="2 prompts; at least 8"):
        constant_vector(base, tuned, PROMPTS[:2])
