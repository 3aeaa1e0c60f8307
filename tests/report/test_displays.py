"""Objects in a notebook: cards without scripts that name what they are, and figures."""

import base64
import re

import numpy as np
import pytest

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.stacked_weights import stack
from repscope.report import displays
from repscope.results import Result, Row
from repscope.worlds.hans.classifier import random_weights
from repscope.worlds.hans.fine_tuning import World
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def lm():
    return tiny()


def seen(card):
    """The text of a card's figure; fails for scripts and for anything from outside."""
    assert "<script" not in card
    assert "http" not in re.sub(r"base64,[^\"]*", "", card)
    found = re.search(r"svg\+xml;base64,([^\"]+)", card)
    return base64.b64decode(found.group(1)).decode() if found else ""


def drawn(chart):
    """The records of a chart with one data set."""
    (values,) = chart.to_dict()["datasets"].values()
    return values


def rows(layers, metric="r2", item="cities.<latitude>"):
    return [
        Row(study="entities", step="cities", model="abc", metric=metric, item=item, condition=c, layer=k, value=0.5, lo=0.4, hi=0.6)
        for k in layers
        for c in ("estimate", "shuffled labels")
    ]


def test_a_result_names_its_study_and_model_and_draws_its_controls_in_their_colours():
    result = Result.of(rows([0, 1, 2]), notes=("<i>one note</i>",))
    card = result._repr_html_()
    assert "Result: 6 rows" in card
    assert "entities" in card
    assert "abc" in card
    assert "cities.&lt;latitude&gt;" in card
    assert "&lt;i&gt;one note" in card
    assert "shuffled labels" in seen(card)
    spec = result.figure().to_dict()
    colour = spec["spec"]["layer"][0]["encoding"]["color"]["scale"]
    assert dict(zip(colour["domain"], colour["range"])) == {"estimate": "#0072B2", "shuffled labels": "#8C8C8C"}


def test_a_result_without_blocks_is_drawn_by_condition_and_an_empty_one_says_what_to_read():
    spec = Result.of(rows([None])).figure().to_dict()
    assert spec["spec"]["layer"][0]["encoding"]["y"]["field"] == "condition"
    with pytest.raises(UserError, match="no rows with a value"):
        Result.of([]).figure()
    assert "Result: 0 rows" in Result.of([])._repr_html_()


def test_many_panels_are_cut_and_a_card_stays_small():
    many = Result.of([r for i in range(30) for r in rows([0, 1], item=f"set.{i}")])
    assert len({row["panel"] for row in drawn(many.figure())}) == 12
    assert not seen(many._repr_html_())


def test_activations_show_norms_by_block(lm):
    acts = lm.capture(["one", "three"], ["resid_post"], "last")
    card = acts._repr_html_()
    assert f"Activations at {lm.blocks} sites" in card
    assert str(acts.model) in card
    assert "norm of a row" in seen(card)
    values = drawn(acts.figure())
    expected = np.median(np.linalg.norm(acts[f"resid_post.{lm.blocks - 1}"], axis=1))
    assert values[-1]["value"] == pytest.approx(expected, rel=1e-3)


def test_directions_show_their_cosines():
    made = [Direction.of(v, "resid_post.1", n, model="abc") for v, n in zip(np.array([[1.0, 0], [1, 1]]), ("<a>", "b"))]
    held = DirectionSet(made, "abc", "a note")
    card = held._repr_html_()
    assert "2 directions" in card
    assert "a note" in card
    assert "&lt;a&gt;" in card
    assert "|cosine|" in seen(card)
    assert sorted(v["cosine"] for v in drawn(held.figure())) == pytest.approx([0.7071, 0.7071, 1, 1])
    apart = DirectionSet([*made, Direction.of(np.ones(3), "z.0", "c", model="abc")], "abc")
    assert not seen(apart._repr_html_())
    with pytest.raises(UserError):
        apart.figure()


def test_a_checkpoint_set_shows_its_runs(tmp_path):
    import pandas as pd

    shape = World(width=16).shape()
    table = pd.DataFrame({"run": ["a", "b"], "group": ["rule", "lexical overlap"]})
    state = stack(random_weights(shape, seed) for seed in (0, 1))
    held = CheckpointSet.written(tmp_path / "set", shape, table, {10: state, 20: state})
    card = held._repr_html_()
    assert "Checkpoint set: 4 checkpoints" in card
    assert "a/step-000010.safetensors" in card
    assert "training step" in seen(card)
    assert len(drawn(held.figure())) == 4


def test_a_jacobian_shows_its_ends_and_draws_singular_values_when_asked(lm, monkeypatch):
    jac = lm.jacobian(["one two"], ["resid_post.0", "resid_post.1"], f"resid_post.{lm.blocks - 1}")
    with monkeypatch.context() as forbidden:
        forbidden.setattr(type(jac), "mean", lambda self: pytest.fail("a card computes nothing"))
        card = jac._repr_html_()
    assert "resid_post.1" in card
    assert not seen(card)
    values = [v for v in drawn(jac.figure()) if v["source"] == "resid_post.0"]
    expected = np.linalg.svd(jac["resid_post.0"].matrix()[0], compute_uv=False)[: len(values)]
    assert [v["value"] for v in values] == pytest.approx(expected, rel=1e-3)


def test_each_class_has_a_figure_and_a_card():
    assert displays._FIGURES.keys() == displays._CARDS.keys()


def test_xarray_has_named_dimensions(lm):
    pytest.importorskip("xarray")
    at = ["resid_post.0", "resid_post.1"]
    last = lm.capture(["one", "three"], at, "last")
    array = last.to_xarray()
    assert array.dims == ("prompt", "site", "hidden")
    assert np.array_equal(array.sel(site="resid_post.1"), last["resid_post.1"])
    assert array.attrs["model"] == str(last.model)
    equal = lm.capture(["one", "two"], at, "all")
    assert equal.to_xarray().dims == ("prompt", "site", "token", "hidden")
    assert np.array_equal(equal.to_xarray().isel(prompt=1).sel(site="resid_post.0"), equal["resid_post.0"][equal.offsets[1] :])
    ragged = lm.capture(["one", "three"], at, "all").to_xarray()
    assert ragged.dims == ("row", "site", "hidden")
    assert ragged["prompt"].values.tolist() == sorted(ragged["prompt"].values.tolist())


def test_pandas_has_one_row_per_captured_row(lm):
    acts = lm.capture(["one", "three"], ["resid_post.0", "resid_post.1"], "all")
    frame = acts.to_pandas()
    assert frame.index.names == ["prompt", "token"]
    assert frame.columns.names == ["site", "hidden"]
    assert np.array_equal(frame["resid_post.1"].to_numpy(), acts["resid_post.1"])
    assert len(frame.loc[1]) == np.diff(acts.offsets)[1]


def test_a_result_as_xarray_asks_for_what_distinguishes_its_rows():
    pytest.importorskip("xarray")
    result = Result.of(rows([0, 1]))
    cube = result.to_xarray("condition", "layer")
    assert cube["value"].shape == (2, 2)
    assert cube.attrs["metric"] == "r2"
    assert result.to_xarray(condition="estimate", layer=0)["hi"].item() == 0.6
    with pytest.raises(UserError, match=r"select one value of: condition"):
        result.to_xarray("layer")
    with pytest.raises(UserError, match="no column"):
        result.to_xarray("layr")
    with pytest.raises(UserError, match="No row"):
        result.to_xarray("layer", item="x")
