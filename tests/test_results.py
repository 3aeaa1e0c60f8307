import numpy as np
import pandas as pd
import pytest

from repscope.errors import UserError
from repscope.results import COLUMNS, Result, Row, concat, identified, table_of


def rows(step="cities"):
    return [
        Row(step=step, metric="accuracy", site="resid_post.1", layer=1, item="cities.continent", value=0.8, lo=0.7, hi=0.9),
        Row(step=step, metric="accuracy", item="cities.continent", condition="bag of token embeddings", value=0.5),
    ]


def test_the_schema_is_that_of_the_design():
    assert list(COLUMNS) == [
        "study",
        "step",
        "metric",
        "definition",
        "model",
        "site",
        "layer",
        "token",
        "item",
        "condition",
        "split",
        "value",
        "lo",
        "hi",
        "level",
        "interval_method",
        "unit",
        "n",
        "seed",
        "row_id",
    ]


def test_saved_is_loaded_bit_for_bit(tmp_path):
    result = Result.of(
        rows(),
        arrays={"x": np.arange(6.0).reshape(2, 3)},
        side={"places": pd.DataFrame({"name": ["Å"]})},
        notes=("3 rows dropped.",),
    )
    result.save(tmp_path / "r")
    back = Result.load(tmp_path / "r")
    pd.testing.assert_frame_equal(back.table, result.table)
    np.testing.assert_array_equal(back.arrays["x"], result.arrays["x"])
    assert back.side["places"]["name"].tolist() == ["Å"]
    assert back.notes == result.notes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_a_row_id_names_the_question_not_the_answer():
    a, b = table_of(rows())["row_id"], table_of([Row(**{**vars(r), "value": 0.1, "n": 9}) for r in rows()])["row_id"]
    assert a.tolist() == b.tolist()
    assert a.is_unique
    moved = identified(table_of(rows()).assign(step="countries"))
    assert set(moved["row_id"]).isdisjoint(a)
    pd.testing.assert_series_equal(moved["row_id"], table_of(rows("countries"))["row_id"])


def test_selection_names_a_wrong_column():
    result = Result.of(rows())
    assert len(result.select(condition="estimate", layer=1)) == 1
    with pytest.raises(UserError, match="did you mean 'condition'"):
        result.select(conditon="estimate")


def test_results_join_and_draw_and_print():
    both = concat([Result.of(rows()), Result.of(rows("countries"), notes=("n",))])
    assert len(both.table) == 4
    assert both.notes == ("n",)
    assert "layer" in both.figure().to_json()
    assert "bag of token embeddings" in both._repr_html_()


def test_nothing_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="contains no result"):
        Result.load(tmp_path)
    with pytest.raises(ValueError, match="columns"):
        Result(pd.DataFrame({"a": [1]}))
