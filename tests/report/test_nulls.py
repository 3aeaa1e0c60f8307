"""A comparison is evidence only where the score that it speaks for is above its own null: supported, refuted, cannot tell."""

import math

import pytest

from repscope.report.claims import evaluate_claims, load_claims
from repscope.results import Row, table_of

CLAIMS = {claim.id: claim for claim in load_claims()}
AT = {"study": "entities", "site": "chosen on the other half", "token": "last", "split": "entity"}


def scores(metric, item="cities.x", model="m", **sides):
    """Rows of one item: a score a side as value or (value, half of its interval), and the gain of the first over each."""
    names = {k.replace("_", " "): v if isinstance(v, tuple) else (v, 0.03) for k, v in sides.items()}
    at = AT | {"item": item, "model": model}
    rows = [Row(metric=metric, condition=k, value=v, lo=v - h, hi=v + h, **at) for k, (v, h) in names.items()]
    ours = names["estimate"][0]
    for name, (value, _) in names.items():
        if name != "estimate":
            gain = ours - value
            rows.append(Row(metric="gain", condition=f"over {name}", value=gain, lo=gain - 0.02, hi=gain + 0.02, **at))
    return rows


def verdict(claim, *rows):
    (found,) = evaluate_claims([CLAIMS[claim]], table_of([r for part in rows for r in part]))
    return found


READ = {"shuffled_labels": 0.2, "majority_class": 0.22}
NOTHING = {"shuffled_labels": -1.7}


@pytest.mark.parametrize(
    ("claim", "metric", "sides", "expected"),
    [
        # random weights as good as training, of something that both read
        ("random-encoders", "accuracy", {"estimate": 0.60, "random_weights": 0.62, **READ}, "supported"),
        ("random-encoders", "r2", {"estimate": 0.40, "random_weights": 0.45, **NOTHING}, "supported"),
        # training adds much; random weights at their null do not matter to that
        ("random-encoders", "accuracy", {"estimate": 0.60, "random_weights": 0.22, **READ}, "refuted"),
        # nothing reads it: the case of the issue, and its neighbours
        ("random-encoders", "r2", {"estimate": -0.20, "random_weights": -0.05, **NOTHING}, "undecided"),
        ("random-encoders", "r2", {"estimate": -0.05, "random_weights": -0.20, **NOTHING}, "undecided"),
        ("random-encoders", "r2", {"estimate": 0.01, "random_weights": 0.00}, "undecided"),
        ("random-encoders", "accuracy", {"estimate": 0.22, "random_weights": 0.23, **READ}, "undecided"),
        ("random-encoders", "accuracy", {"estimate": 0.26, "random_weights": 0.24, "majority_class": 0.22}, "undecided"),
        ("random-encoders", "accuracy", {"estimate": 0.9, "random_weights": 0.9, "majority_class": 0.9}, "undecided"),
        # beats shuffled labels, whose R² is far below 0, and still reads nothing
        ("linear-attributes", "r2", {"estimate": -0.20, **NOTHING}, "undecided"),
        ("linear-attributes", "r2", {"estimate": 0.20, **NOTHING}, "supported"),
        ("linear-attributes", "accuracy", {"estimate": 0.60, **READ}, "supported"),
        ("linear-attributes", "accuracy", {"estimate": 0.80, "shuffled_labels": 0.7, "majority_class": 0.85}, "undecided"),
        ("linear-attributes", "accuracy", {"estimate": 0.15, **READ}, "refuted"),
        ("linear-attributes", "r2", {"estimate": -0.60, "shuffled_labels": -0.2}, "refuted"),
        ("last-token", "r2", {"estimate": -0.1, "first_token_alone": -0.5, **NOTHING}, "undecided"),
        ("last-token", "r2", {"estimate": -0.5, "first_token_alone": -0.1, **NOTHING}, "undecided"),
        ("last-token", "r2", {"estimate": 0.5, "first_token_alone": -0.1, **NOTHING}, "supported"),
        ("last-token", "r2", {"estimate": -0.1, "first_token_alone": 0.5, **NOTHING}, "refuted"),
    ],
)
def test_a_comparison_decides_only_above_its_null(claim, metric, sides, expected):
    assert verdict(claim, scores(metric, **sides)).verdict == expected


def test_what_reads_nothing_is_named_with_its_null():
    said = verdict("random-encoders", scores("r2", estimate=-0.20, random_weights=-0.05, shuffled_labels=-1.7)).sentence
    assert "(random weights −0.05 [−0.08, −0.02] is not above the mean of the training values, 0.00)" in said


def test_an_unreadable_item_supports_nothing_beside_readable_ones():
    readable = scores("accuracy", "cities.a", estimate=0.6, random_weights=0.3, **READ)
    unreadable = scores("r2", "cities.b", estimate=-0.2, random_weights=-0.05)
    assert verdict("random-encoders", readable, unreadable).verdict == "undecided"
    alike = scores("accuracy", "cities.c", estimate=0.6, random_weights=0.6, **READ)
    assert verdict("random-encoders", readable, unreadable, alike).verdict == "supported"


def test_the_null_is_of_the_same_model_and_place():
    here = scores("accuracy", model="a", estimate=0.6, random_weights=0.6)
    elsewhere = scores("accuracy", model="b", estimate=0.9, random_weights=0.3, majority_class=0.95)
    found = verdict("random-encoders", here, elsewhere)
    assert "over random weights against 0.05" in found.sentence
    assert found.verdict == "supported", "the null of b is not that of a"


@pytest.mark.parametrize(
    ("claim", "where", "values", "expected"),
    [
        ("linear-relations", "faithfulness", {"estimate": 0.8, "majority object": 0.3}, "supported"),
        ("linear-relations", "faithfulness", {"estimate": 0.8, "majority object": 0.9}, "undecided"),
        ("linear-relations", "faithfulness", {"estimate": 0.8, "map on another subject's vector": 0.85}, "undecided"),
        ("linear-relations", "faithfulness", {"estimate": 0.3, "majority object": 0.1}, "refuted"),
        ("concepts-beat-probes", "concept accuracy", {"estimate": 0.7, "ridge probe": 0.5, "majority object": 0.4}, "supported"),
        ("concepts-beat-probes", "concept accuracy", {"estimate": 0.7, "ridge probe": 0.5, "majority object": 0.9}, "undecided"),
        ("concepts-beat-probes", "concept accuracy", {"estimate": 0.5, "ridge probe": 0.7, "shuffled objects": 0.1}, "refuted"),
        ("concepts-beat-probes", "concept accuracy", {"estimate": 0.1, "ridge probe": 0.3, "shuffled objects": 0.4}, "undecided"),
        ("facts-edited-through-the-map", "edit success", {"estimate": 0.6, "random direction": 0.0}, "supported"),
        ("prompting-steers-more", "effect", {"estimate": 0.5, "prompting": 2.0, "random direction": 0.1}, "supported"),
        ("prompting-steers-more", "effect", {"estimate": -0.5, "prompting": 0.0, "random direction": 0.1}, "undecided"),
        ("prompting-steers-more", "effect", {"estimate": 2.0, "prompting": 0.5, "random direction": 0.1}, "refuted"),
    ],
)
def test_the_rule_holds_in_every_study(claim, where, values, expected):
    study = CLAIMS[claim].study
    at = AT | {"study": study, "item": "i", "split": "halves", "token": ""}
    rows = [Row(metric=where, condition=k, value=v, lo=v - 0.05, hi=v + 0.05, **at) for k, v in values.items()]
    ours = values["estimate"]
    rows += [
        Row(
            metric="gain",
            definition=where if study == "relations" else "",
            condition=f"over {k}",
            value=ours - v,
            lo=ours - v - 0.03,
            hi=ours - v + 0.03,
            **at,
        )
        for k, v in values.items()
        if k != "estimate"
    ]
    assert verdict(claim, rows).verdict == expected


def test_a_gain_of_a_named_score_is_compared_with_that_scores_null():
    at = AT | {"study": "contrast", "split": "halves", "token": "all"}

    def rows(means, probe):
        held = {"difference of means": means, "logistic regression": probe, "random direction": 0.2}
        made = [Row(metric="effect", item="s", condition=k, value=v, lo=v - 0.05, hi=v + 0.05, **at) for k, v in held.items()]
        gain = means - probe
        return [
            *made,
            Row(
                metric="gain",
                item="s: difference of means",
                condition="over logistic regression",
                value=gain,
                lo=gain - 0.02,
                hi=gain + 0.02,
                **at,
            ),
        ]

    assert verdict("means-steer-more-than-probes", rows(0.9, 0.5)).verdict == "supported"
    assert verdict("means-steer-more-than-probes", rows(0.1, -0.5)).verdict == "undecided"
    assert verdict("means-steer-more-than-probes", rows(0.1, 0.9)).verdict == "refuted"
    assert verdict("means-steer-more-than-probes", rows(-0.9, -0.1)).verdict == "undecided"


def test_a_score_without_an_interval_is_not_above_anything():
    sides = scores("accuracy", estimate=0.6, random_weights=(0.6, math.nan), **READ)
    assert verdict("random-encoders", sides).verdict == "undecided"
