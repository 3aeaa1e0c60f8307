"""Rows of in-context regression: complete, resumable, and able to come out either way."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from repscope.errors import UserError
from repscope.trace.bayes import RegressionOptions, regression, regression_result
from repscope.worlds.regression import Regression, discrete_mmse, network, ridge

TINY = RegressionOptions.tiny()


def test_rows_are_complete_and_have_controls():
    found = regression_result(TINY)
    errors = found.select(metric="regression error", item="2 tasks, unseen tasks, k = 1")
    assert set(errors["condition"]) == {"estimate", "dMMSE", "ridge", "untrained network"}
    assert (errors["unit"] == "prompt").all()
    assert (errors["lo"] < errors["value"]).all()
    new = found.table[found.table["item"].str.startswith("new tasks")]
    assert "dMMSE" not in set(new["condition"])
    assert not new["item"].str.contains("pretraining").any()
    assert not found.table["row_id"].duplicated().any()
    zero = found.select(metric="regression error", item="new tasks, unseen tasks, k = 0", condition="ridge")["value"].item()
    assert 0.4 < zero < 2.0  # nothing known: the variance of w·x, over the dimension
    assert len(found.side["networks"]) == 3
    assert list(found.side["losses"].columns) == ["step", "2 tasks, 0", "new tasks, 0"]


@pytest.mark.parametrize(("exact", "sign"), [("dMMSE", -1), ("ridge", 1)])
def test_nearer_to_ridge_has_the_sign_of_the_predictor_that_answers(monkeypatch, exact, sign):
    """Networks replaced by one of the predictors: their distance to it is 0, and the sign follows."""
    tasks, noise = TINY.world.tasks(2), TINY.world.noise

    def answers(shape, state, x, y):
        return (discrete_mmse(x, y, tasks, noise) if exact == "dMMSE" else ridge(x, y, noise))[None]

    monkeypatch.setattr(network, "answers", answers)
    found = regression_result(TINY)
    own = found.select(metric="regression distance", condition="estimate", item="2 tasks, unseen tasks")
    values = dict(zip(own["definition"].str.split(",").str[0], own["value"]))
    assert values[f"to {exact}"] == 0
    assert sign * found.select(metric="nearer to ridge", condition="estimate", item="2 tasks, unseen tasks")["value"].item() > 0.05


def test_killed_is_uninterrupted(tmp_path, monkeypatch):
    saved = tmp_path / "state.safetensors"
    options = replace(TINY, steps=12)
    monkeypatch.setattr(regression, "Training", lambda *a, **k: Training(*a, keep=4, **k))
    from repscope.worlds.small_lm import Training

    whole, draw = regression_result(options), Regression.prompts

    def killed(self, count, tasks, rng):
        calls.append(count)
        if len(calls) > 2 * 9:
            raise KeyboardInterrupt
        return draw(self, count, tasks, rng)

    calls = []
    monkeypatch.setattr(Regression, "prompts", killed)
    with pytest.raises(KeyboardInterrupt):
        regression_result(options, saved=saved)
    assert saved.is_file()
    monkeypatch.setattr(Regression, "prompts", draw)
    again = regression_result(options, saved=saved)
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert all(np.array_equal(again.arrays[k], v) for k, v in whole.arrays.items())


def test_mistakes():
    with pytest.raises(UserError, match="trains or evaluates nothing"):
        RegressionOptions(seeds=0)
    with pytest.raises(UserError, match="one number twice"):
        RegressionOptions(diversities=(2, 2))
