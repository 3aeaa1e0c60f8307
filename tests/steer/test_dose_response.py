"""Dose, choice and the short way: planted directions whose truth is known, so that each of them could come out wrong."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from repscope.conditions import RANDOM
from repscope.data.contrasts import Choice, Contrast
from repscope.directions import Direction
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.results import COLUMNS, ESTIMATE
from repscope.steer.dose_response import PROMPTED, by_group, dose, working_range
from repscope.steer.effects import log_odds
from repscope.steer.quick import learn
from repscope.steer.selection import best, choose
from repscope.worlds.tiny import tiny

#: "!" against "?" as the next byte: the unembedding itself tells which way to push
CHOICES = [Choice(p, "!", "?", g) for p, g in (("The soup", "a"), ("A map", "a"), ("We", "b"), ("It was", "c"))]
OPENINGS = ["The sea", "My friend", "In a town"]


@pytest.fixture(scope="module")
def lm():
    return tiny()


@pytest.fixture(scope="module")
def planted(lm):
    """The direction at the last block that the head reads as "!" rather than "?"."""
    yes, no = (lm.tokenizer(c)["input_ids"][0] for c in "!?")
    weight = lm.model.get_output_embeddings().weight.detach().double().numpy()
    return Direction.of(weight[yes] - weight[no], "resid_post.3", "planted")


@pytest.fixture(scope="module")
def found(lm, planted):
    return dose(lm, planted, CHOICES, OPENINGS, strengths=(-0.5, 0.5, 1.0, 2.0), random=4, instruction="Shout. ", new_tokens=6)


def test_a_planted_direction_has_its_effect_and_chance_has_none(found, lm, planted):
    table = found.table
    effect = table[(table.metric == "effect") & (table.condition == ESTIMATE)].set_index("strength")["value"]
    null = table[(table.metric == "effect") & (table.condition == RANDOM)].set_index("strength")
    assert list(effect.index) == [-0.5, 0.5, 1.0, 2.0]
    assert effect[-0.5] < 0 < effect[0.5] < effect[1.0] < effect[2.0]
    assert (null["hi"] < [effect[s] for s in null.index]).all()
    added = [Edit.add("resid_post.3", s * found.direction.norm * planted.vector) for s in (-0.5, 0.5, 1.0, 2.0)]
    odds = log_odds(lm, CHOICES, added)
    slow = by_group(odds[1:] - odds[0], [c.group for c in CHOICES]).mean(1)
    np.testing.assert_allclose(effect, slow, atol=1e-9)


def test_all_numbers_have_controls_and_intervals(found):
    assert list(found.result.table.columns) == list(COLUMNS)
    assert found.result.table["row_id"].is_unique
    table = found.table
    for metric in ("effect", "kl", "damage", "repeats"):
        conditions = set(table[table.metric == metric].condition)
        assert {ESTIMATE, RANDOM} <= conditions
    assert PROMPTED in set(table[table.metric == "effect"].condition)
    assert (table.lo <= table.value + 1e-12).all()
    assert (table.value <= table.hi + 1e-12).all()
    kl = table[(table.metric == "kl") & (table.condition == ESTIMATE)].set_index("strength")["value"]
    assert 0 < kl[0.5] < kl[1.0] < kl[2.0]
    texts = found.result.side["texts"]
    assert len(texts) == 5 * len(OPENINGS)
    assert "<table" in found._repr_html_()


def test_the_working_range_is_stored_in_the_direction(found):
    d = found.direction
    span = working_range(found.table)
    if span is None:
        assert d.works is None
    else:
        assert d.works == pytest.approx((span[0] * d.norm, span[1] * d.norm))
        assert span[0] <= d.scale / d.norm <= span[1]
        assert d.does["effect_lo"] <= d.does["effect"] <= d.does["effect_hi"]
        assert "working" in d.card() or "works" in d.card()


def rows(*cells):
    return pd.DataFrame(
        [{"strength": s, "condition": c, "metric": m, "value": v, "lo": v - 0.5, "hi": v + 0.5} for s, c, m, v in cells]
    )


def test_the_rule_of_the_working_range():
    def table(effects, damages, null=0.0):
        return rows(
            *((s, ESTIMATE, "effect", e) for s, e in effects.items()),
            *((s, RANDOM, "effect", null) for s in effects),
            *((s, ESTIMATE, "damage", d) for s, d in damages.items()),
        )

    strong = {-1.0: -5.0, 0.1: 0.4, 0.2: 2.0, 0.4: 3.0, 0.8: 9.0}
    assert working_range(table(strong, {-1.0: 0, 0.1: 0.0, 0.2: 0.1, 0.4: 0.5, 0.8: 2.0})) == (0.2, 0.4)
    assert working_range(table(strong, dict.fromkeys(strong, 0.6))) is None  # all cost too much
    assert working_range(table(strong, dict.fromkeys(strong, 0.0), null=9.0)) is None  # chance does as much
    gap = {0.1: 2.0, 0.2: 0.2, 0.4: 3.0}
    assert working_range(table(gap, dict.fromkeys(gap, 0.0))) == (0.1, 0.1)  # a range has no hole


def test_the_best_of_candidates_is_chosen_by_effect_within_the_cost(lm, planted):
    rng = np.random.default_rng(0)
    weak = [Direction.of(rng.standard_normal(32), f"resid_post.{b}", f"weak {b}", norm=1.0) for b in (1, 2)]
    held = [*weak, replace(planted, norm=1.0)]
    chosen = choose(lm, held, CHOICES, OPENINGS, strengths=(0.2, 1.0), most_kl=10.0)
    assert chosen.direction.name == "planted"
    assert chosen.direction.scale == pytest.approx(1.0)
    assert (chosen.table.condition == RANDOM).sum() == 3 * 3 * 2
    cheap = best(held, chosen.table, most_kl=float(chosen.table[chosen.table.strength == 0.2].kl.max()))
    assert cheap.scale <= 1.0
    assert best(held, chosen.table, most_kl=0.0).scale == pytest.approx(0.2)  # none is that cheap: the cheapest
    with pytest.raises(UserError, match="give it a norm"):
        choose(lm, [planted], CHOICES, OPENINGS)
    with pytest.raises(UserError, match="nothing to choose from"):
        choose(lm, [], CHOICES, OPENINGS)


def test_groups_count_once():
    values = np.array([[1.0, 3.0, 5.0, 7.0]])
    np.testing.assert_allclose(by_group(values, ["a", "a", "b", ""]), [[2.0, 5.0, 7.0]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"choices": []}, "no choice"),
        ({"openings": []}, "no opening"),
        ({"strengths": (-0.5,)}, "above 0"),
        ({"strengths": (float("nan"), 1.0)}, "above 0"),
        ({"random": 1}, "no range"),
    ],
)
def test_mistakes(lm, planted, change, says):
    how = {"choices": CHOICES, "openings": OPENINGS} | change
    with pytest.raises(UserError, match=says):
        dose(lm, planted, **how)


def test_a_direction_is_learned_once(lm, monkeypatch, tmp_path):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    words = ["soup", "film", "walk", "hotel", "book", "talk", "road", "song"]
    texts = Contrast(
        "shout",
        "loud",
        "calm",
        tuple(f"The {w} is good!" for w in words),
        tuple(f"The {w} is good?" for w in words),
        choices=tuple(CHOICES),
        openings=tuple(OPENINGS),
    )
    made = learn(lm, texts)
    assert len(made) == 1
    assert made[0].name == "shout"
    assert made.model == lm.fingerprint
    monkeypatch.setattr(sys.modules["repscope.steer.quick"], "fit", None)  # the second time nothing is fitted
    again = learn(lm, texts)
    np.testing.assert_array_equal(again[0].vector, made[0].vector)
    assert again[0].scale == made[0].scale
    with pytest.raises(UserError, match="no choices"):
        learn(lm, replace(texts, choices=(), paired=False))
