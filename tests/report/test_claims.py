import math

import pandas as pd
import pytest

from report import synthetic
from repscope.report.claims import Claim, evaluate_claims, load_claims
from repscope.results import Row, table_of

SOURCE = {"authors": "A & B", "year": 2020, "url": "https://example.org/x"}


def claim(**changes) -> Claim:
    held = {
        "id": "c",
        "claim": "It adds something.",
        "source": SOURCE,
        "study": "entities",
        "over": "every item",
        "supported_when": "lo > threshold",
        "refuted_when": "hi < threshold",
        "refutation": "it adds nothing.",
        "test": {"metric": "gain", "condition": "over bag of token embeddings", "items": ["cities.*"]},
    }
    return Claim.model_validate(held | changes)


def rows(*intervals, study="entities", **where):
    """One row an interval (value, lo, hi), each of an item of its own."""
    held = {"metric": "gain", "condition": "over bag of token embeddings", "level": 0.95, "n": 50} | where
    return table_of(Row(study=study, item=f"cities.a{i}", value=v, lo=lo, hi=hi, **held) for i, (v, lo, hi) in enumerate(intervals))


UP, DOWN, ACROSS, BARE = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.0, -0.1, 0.1), (0.2, math.nan, math.nan)


@pytest.mark.parametrize(
    ("intervals", "every", "some"),
    [
        ([UP], "supported", "supported"),
        ([DOWN], "refuted", "refuted"),
        ([ACROSS], "undecided", "undecided"),
        ([BARE], "undecided", "undecided"),
        ([UP, UP], "supported", "supported"),
        ([UP, ACROSS], "undecided", "supported"),
        ([UP, DOWN], "refuted", "supported"),
        ([ACROSS, DOWN], "refuted", "undecided"),
        ([DOWN, DOWN], "refuted", "refuted"),
    ],
)
def test_verdicts(intervals, every, some):
    table = rows(*intervals)
    for over, expected in (("every item", every), ("some item", some)):
        (verdict,) = evaluate_claims([claim(over=over)], table)
        assert verdict.verdict == expected
        assert set(verdict.row_ids) == set(table["row_id"])


def test_the_threshold_and_the_side_count():
    (at_zero,) = evaluate_claims([claim()], rows(UP))
    (higher,) = evaluate_claims([claim(threshold=0.5)], rows(UP))
    (turned,) = evaluate_claims([claim(supported_when="hi < threshold", refuted_when="lo > threshold")], rows(UP))
    assert (at_zero.verdict, higher.verdict, turned.verdict) == ("supported", "refuted", "refuted")


def test_the_sentence_holds_the_numbers_and_says_what_was_joined():
    (one,) = evaluate_claims([claim()], rows(UP))
    assert one.sentence == (
        "Gain over bag of token embeddings against 0 (95 % interval): cities.a0 0.20 [0.10, 0.30], n 50. Decided by this one item."
    )
    (two,) = evaluate_claims([claim()], rows(UP, DOWN))
    assert "cities.a1 −0.20 [−0.30, −0.10], n 50, refuted; cities.a0 0.20" in two.sentence
    assert "Each of 2 items evaluated separately, not pooled (1 refuted, 1 supported); every one must" in two.sentence
    (many,) = evaluate_claims([claim()], rows(*[UP] * 9, DOWN))
    assert "; and 4 more." in many.sentence
    assert "cities.a9" in many.sentence, "what decides is named first"


def test_a_claim_without_rows_is_not_tested_and_other_studies_say_nothing():
    (verdict,) = evaluate_claims([claim()], rows(UP, metric="accuracy"))
    assert verdict.verdict == "not tested"
    assert "did not measure gain over bag of token embeddings of cities.*" in verdict.sentence
    assert evaluate_claims([claim()], rows(UP, study="drift")) == ()
    assert evaluate_claims([claim()], table_of([])) == ()


def test_filters_pick_only_their_rows():
    test = {"metric": "gain", "condition": "over bag of token embeddings", "items": ["cities.*"], "split": "entity"}
    (verdict,) = evaluate_claims([claim(test=test)], rows(DOWN, split="shared token"))
    assert verdict.verdict == "not tested"
    (verdict,) = evaluate_claims([claim(test=test)], rows(UP, split="entity"))
    assert verdict.verdict == "supported"


def test_the_shipped_claims_are_all_tested_by_the_rows_of_their_study():
    held = [c for c in load_claims() if c.study == "entities"]
    assert len({c.id for c in held}) == len(held) >= 8
    at = {"study": "entities", "item": "cities.continent", "value": 0.3, "lo": 0.2, "hi": 0.4}
    built = [
        Row(metric="extra loss", condition="over random change of MLP outputs", **at),
        Row(metric="extra loss", condition="over attention outputs replaced", **at),
        Row(metric="extra accuracy", condition="over sum over single tokens", **at),
        Row(metric="interaction at real names", **at | {"item": "cities, two tokens", "value": 1.3, "lo": 1.2, "hi": 1.4}),
        Row(metric="sparse gain", condition="over random rotation", **at),
    ]
    both = pd.concat([synthetic.table(blocks=2), table_of(built)])
    verdicts = {v.claim.id: v.verdict for v in evaluate_claims(held, both)}
    assert set(verdicts) == {c.id for c in held}
    assert verdicts.pop("random-encoders") == "refuted"
    assert set(verdicts.values()) == {"supported"}


def test_the_claims_of_relations_are_tested_by_rows_as_the_study_writes_them():
    at = {"split": "halves", "site": "chosen on the other half", "study": "relations"}
    cases = [
        Row(metric="faithfulness", item="a", value=0.8, lo=0.7, hi=0.9, **at),
        Row(metric="faithfulness", item="b", value=0.3, lo=0.2, hi=0.4, **at),
        Row(metric="gain", definition="concept accuracy", condition="over ridge probe", item="a", value=0, lo=-0.1, hi=0.1, **at),
        Row(metric="gain", definition="edit success", condition="over random direction", item="a", value=1, lo=0.9, hi=1, **at),
        Row(metric="REMEDI efficacy", item="a", value=0.7, lo=0.6, hi=0.8, study="relations"),
        Row(metric="REMEDI AUC", item="a", value=0.4, lo=0.3, hi=0.45, study="relations"),
    ]
    verdicts = {v.claim.id: v.verdict for v in evaluate_claims(load_claims(), table_of(cases))}
    assert verdicts == {
        "linear-relations": "supported",
        "concepts-beat-probes": "undecided",
        "facts-edited-through-the-map": "supported",
        "sentences-become-edits": "supported",
        "vectors-tell-wrong-answers": "refuted",
    }


def test_a_network_that_adds_nothing_supports_no_claim_that_it_does():
    verdicts = {v.claim.id: v.verdict for v in evaluate_claims(load_claims(), synthetic.table(blocks=2, gap=0.0))}
    assert verdicts["composition"] == "undecided"
    assert verdicts["last-token"] != "supported"
    assert verdicts["random-encoders"] != "refuted"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[claims]\n", "not a list of claims"),
        ("a = 1\n", "not a list of claims"),
        ('[[claims]]\nid = "x"\n', "wrong at claim"),
        (None, "the claim 'c' twice"),
        ("refuted_when", "two different rules"),
        ("typo", "wrong at typo"),
    ],
)
def test_a_bad_file_is_our_fault_and_says_where(text, says, tmp_path):
    good = (
        '[[claims]]\nid = "c"\nclaim = "a"\nstudy = "s"\nover = "every item"\nsupported_when = "lo > threshold"\n'
        'refuted_when = "hi < threshold"\nrefutation = "b"\nsource = { authors = "A", year = 2020, url = "https://x.org" }\n'
        'test = { metric = "m", condition = "c", items = ["*"] }\n'
    )
    held = {None: good + good, "refuted_when": good.replace("hi < threshold", "lo > threshold"), "typo": good + "typo = 1\n"}
    path = tmp_path / "claims.toml"
    path.write_text(good)
    assert load_claims(path)[0].threshold == 0.0
    path.write_text(held.get(text, text))
    with pytest.raises(RuntimeError, match=says):
        load_claims(path)
