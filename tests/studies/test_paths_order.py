"""The order of learning in `paths`: BLiMP's summary, shares of variance, and the verdict of each kind."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from repscope.conditions import ESTIMATE, MATCHED_GRAMMAR, ORTHOGONAL, REGRESSED_OUT, WITHIN_TERMS
from repscope.data.model_summary import is_model_summary, model_summary
from repscope.errors import UserError
from repscope.results import Row, table_of
from repscope.studies.catalogue import study
from repscope.studies.paths import attribution
from repscope.studies.paths import order_names as names
from repscope.studies.paths.blimp_order import blimp_order
from repscope.studies.paths.order_verdict import order_verdict
from repscope.studies.run.runner import Run


def summary(path, n=24, seed=0):
    """A summary in BLiMP's format: two neural models that share difficulty, an n-gram model that does not."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    lines = []
    for i in range(n):
        of = {"ngram": rng.random(), "lstm": 0.9 * hard[i] + 0.1 * rng.random(), "gpt2": 0.9 * hard[i] + 0.1 * rng.random()}
        lines.append({"UID": f"p{i}", "linguistics_term": f"t{i % 4}"} | {k: round(v, 3) for k, v in of.items()})
    lines.append({"UID": "overall", "linguistics_term": "overall", "ngram": 0.5, "lstm": 0.5, "gpt2": 0.5})
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_summary_gives_scipys_correlations_and_a_page(tmp_path):
    file = summary(tmp_path / "models_summary.jsonl")
    assert is_model_summary(file)
    found = blimp_order(file)
    frame = pd.read_json(file, lines=True)[:-1]
    for pair in (("ngram", "gpt2"), ("lstm", "gpt2")):
        row = found.select(metric=names.ORDER, condition=ESTIMATE, item=" – ".join(pair)).iloc[0]
        assert row["value"] == pytest.approx(spearmanr(frame[pair[0]], frame[pair[1]])[0], abs=1e-12)
        assert (row["unit"], row["n"]) == ("paradigm", 24)
        centred = frame[list(pair)] - frame.groupby("linguistics_term")[list(pair)].transform("mean")
        within = found.select(metric=names.ORDER, condition=WITHIN_TERMS, item=" – ".join(pair)).iloc[0]
        assert within["value"] == pytest.approx(spearmanr(*centred.to_numpy().T.round(12))[0])
    paths = study("paths")
    run = Run(paths, paths.options(published=(file,)), out=tmp_path / "runs")
    assert "find the same paradigms hard" in run.answer().read_text()
    assert [s.name for s in paths.steps(run.setup)] == ["BLiMP summary"]
    assert run.verdict.reply == "Partly"  # the n-gram model shares nothing


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([{"UID": "a", "x": 0.5, "y": 0.5}] * 2, "paradigm 'a' twice"),
        ([{"UID": "a", "x": 1.5, "y": 0.5}], "not a number from 0 to 1"),
        ([{"UID": c, "x": 0.5, "y": 0.1} for c in "abc"], "2 models and 3 paradigms"),
        ([{"UID": c, "x": 0.5, **({"y": 0.1} if c != "d" else {})} for c in "abcd"], "'d' of s.jsonl has other models"),
        ([[1]], "no object with a UID"),
    ],
)
def test_broken_summaries_are_refused(tmp_path, lines, says):
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(UserError, match=says):
        model_summary(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"Line 1 of s\.jsonl is no JSON"):
        model_summary(path)


def order_rows(classes=0.6, orthogonal=0.0, left=0.5, matched=0.05, width=0.1):
    def row(value, **where):
        return Row(metric=names.ORDER, value=value, lo=value - width, hi=value + width, **where)

    over = {"item": names.OVER_LOSSES, "definition": f"{names.LOSS}, {names.ALL_RUNS}"}
    return [
        row(classes, split=names.DIGITS, item="MLP 64", definition=names.CLASSES),
        row(classes, split=names.DIGITS, item="CNN", definition=names.CLASSES),
        row(orthogonal, split=names.DIGITS, item="MLP 64", definition=names.WITHIN, condition=ORTHOGONAL),
        row(left, split="English", condition=REGRESSED_OUT, **over),
        row(matched, split="matched", condition=MATCHED_GRAMMAR, **over),
    ]


@pytest.mark.parametrize(
    ("rows", "reply", "words"),
    [
        ({}, "Yes", "beyond frequency, distance and length"),
        ({"left": 0.0}, "Partly", "is not shared"),
        ({"left": 0.25}, "Partly", "may not be shared"),
        ({"classes": 0.0, "left": 0.0}, "No", "explain the order"),
        ({"orthogonal": 0.4, "left": 0.2}, "Cannot tell", "do not show"),
        ({"matched": 0.4, "classes": 0.2}, "Cannot tell", "do not show"),
    ],
)
def test_verdicts_on_the_order(rows, reply, words):
    verdict = order_verdict(table_of(order_rows(**rows)))
    assert verdict.reply == reply
    assert words in verdict.why
    assert len(verdict.sentence.split()) <= 30
    assert order_verdict(table_of([])) is None


def test_planted_factors_get_the_variance():
    plan = attribution.design(3, 4, ("rule", "lexical overlap"), 0)
    assert len(plan) == 3 * 4 * 4 * 2
    assert not plan.duplicated(["init", "group", "head_seed", "data_seed"]).any()
    rng = np.random.default_rng(0)
    rule = (plan["group"] == "rule") * 0.6 + 0.2 + 0.02 * rng.standard_normal(len(plan))
    rows = {r.item: r for r in attribution.share_rows(plan, rule.to_numpy(), ESTIMATE, 0)}
    assert rows[attribution.EARLY].value > 0.95
    assert rows[attribution.HEAD].hi < 0.2
    found = attribution.result({ESTIMATE: (plan, np.full(len(plan), 0.5))}, 0)
    assert found.table.empty
    assert "behave alike" in found.notes[0]
    cell = {"item": "0.004", "token": "400", "split": "pretraining 0"}
    phases = table_of([Row(metric="share of the rule", value=0.5, **cell), Row(metric="spread", value=0.1, n=4, **cell)])
    assert attribution.path_dependence_rows(phases, 100, 0)[0].value == pytest.approx((0.01 - 0.0025) / 0.01)
    assert attribution.path_dependence_rows(phases, 10, 0)[0].value == 0
    with pytest.raises(ValueError, match="at least 2 heads"):
        study("paths").options(crossed=1)
