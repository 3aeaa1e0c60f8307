"""Judges of generators: classes of digits that a direction changes images to, with the selectivity of probabilities."""

import numpy as np
import pytest
import torch
from torch import nn

from repscope.discovery.generators import LatentBed, factor_changes
from repscope.discovery.generators.comparison import Found, judged
from repscope.discovery.generators.judges import GENERATOR_METRICS, KNOWN, DigitJudge
from repscope.models.generators import LatentGenerator
from repscope.worlds.digit_classifier import CLASS_NAMES, held_out_digits, train_classifier
from repscope.worlds.digits import digits


@pytest.fixture(scope="module")
def judge():
    return DigitJudge(train_classifier(0, 120), train_classifier(1, 120))


def test_a_direction_into_one_class_has_a_selectivity_of_one():
    """By hand: all images become a 3; half of them become a 3 and half a 5; every image goes to the next class."""
    start = np.eye(10)[np.arange(40) % 10]
    three, five = np.eye(10)[[3, 5]]
    into_one = np.tile(three, (40, 1))
    into_two = np.stack([three if i % 4 < 2 else five for i in range(40)])
    turned = np.roll(start, 1, 1)
    read = np.stack([np.stack([start] * 3), np.stack([into_one, into_two, turned])])
    found = factor_changes(read, np.array([0.0, 1.0]), KNOWN["digits"].spread, exclusive=True)
    assert found.top[0] == 3
    assert found.selectivity[0] == pytest.approx(1)
    assert found.change[0] == pytest.approx(0.9 / 0.3)
    assert found.selectivity[1] == pytest.approx(4 / 9, abs=0.06), "each class gains 0.4 of the 0.9 that move"
    assert found.selectivity[2] == 0, "no class gains on average"
    assert found.distinct == 1
    wrong = factor_changes(read, np.array([0.0, 1.0]), KNOWN["digits"].spread)
    assert wrong.selectivity[0] == pytest.approx(0.5), "sums of absolute changes count every move twice"


class Blended(nn.Module):
    """Each of the first ten latents adds its digit to a blank image."""

    def __init__(self):
        super().__init__()
        held = digits()
        each = [held.inputs[held.train[(held.labels[held.train] == c).nonzero()[0, 0]]] for c in range(10)]
        self.images = nn.Parameter(torch.stack(each), requires_grad=False)

    def forward(self, z):
        return (6 * z[:, :10]).softmax(-1) @ self.images


def test_judging_finds_planted_classes_and_only_those(judge):
    bed = LatentBed(LatentGenerator(Blended(), 12), samples=4, held=60, scale=3.0, seed=1)
    numbers, changes = judged(bed, Found(np.eye(12)[[2, 6, 11]]), judge)
    assert changes.top[:2].tolist() == [2, 6]
    assert (changes.selectivity[:2] > 0.9).all()
    assert changes.selectivity[2] == changes.change[2] == 0
    assert changes.distinct == 2
    assert (changes.monotonicity[:2] > 0.8).all()
    assert numbers["digits explained"] > 0.85
    assert "sprites explained" not in numbers


def test_the_generator_is_judged_beside_digits_and_permuted_pixels(judge):
    real = held_out_digits(256, 0)
    found = judge.quality(torch.rand(256, 64, generator=torch.Generator().manual_seed(0)), real, 0)
    assert {q.metric for q in found} == {*KNOWN["digits"].each, *KNOWN["digits"].whole} <= set(GENERATOR_METRICS)
    for metric in KNOWN["digits"].whole:
        noise, digits_, permuted = ([q for q in found if q.metric == metric and q.condition == c] for c in CONDITIONS)
        assert len(noise[0].values) == 16
        assert digits_[0].values.mean() > max(noise[0].values.mean(), permuted[0].values.mean()) + 0.2
    shares = [q for q in found if q.metric == "digit share"]
    assert [q.item for q in shares] == list(CLASS_NAMES)
    assert sum(float(q.values[0]) for q in shares) == pytest.approx(1)


CONDITIONS = ("estimate", "images of the data", "permuted pixels")
