import json

import altair as alt
import pandas as pd
import pytest

from report import synthetic
from repscope.conditions import CONDITIONS, ESTIMATE, PARAMETRISED, SHARED
from repscope.errors import UserError
from repscope.report.charts import grids, layers, modules, runs
from repscope.report.style import STYLES, Style, spec_of, styles_of
from repscope.results import Row, table_of

TABLE = synthetic.table(blocks=6)
CITY = TABLE[TABLE["item"] == "cities.continent"]
CHARTS = {
    "by_layer": lambda: layers.by_layer(CITY, metric_title="accuracy"),
    "context_cut": lambda: layers.context_cut(CITY),
    "heat_map": lambda: layers.heat_map(CITY),
    "gains": lambda: layers.gains(TABLE),
    "places": lambda: layers.places(*synthetic.places(synthetic.HOSTILE)),
    "predicted_against_true": lambda: layers.predicted_against_true(synthetic.numbers(), "log10 people"),
    "lens": lambda: layers.lens(synthetic.lens()),
}


METHODS = table_of(
    Row(metric="recovered", model="planted", item=item, condition=condition, value=value, lo=value - 0.1, hi=value + 0.1, n=5)
    for item, condition, value in (
        ("ours", "estimate", 1.9),
        ("random", "random direction", 0.1),
        ("truth", "oracle", 2.5),
        ("b", "estimate", 2.0),
    )
)
BLOCKS = pd.DataFrame(
    [
        {"kind": kind, "block": b, "value": (1 + b) * 10.0**-i}
        for i, kind in enumerate(("query", "MLP input", "norm"))
        for b in range(6)
    ]
)
CHARTS["by_block"] = lambda: modules.by_block(BLOCKS, value_title="norm", rules=[("rounding to bfloat16", 0.0017)], log=True)
SHIFTS = pd.DataFrame(
    [
        {"x": x, "part": part, "value": v}
        for x in range(1, 9)
        for part, v in (("unshifted", 0.5), ("marginal", 0.3), ("shifted", 0.2))
    ]
)
CHARTS["stacked_shares"] = lambda: modules.stacked_shares(
    SHIFTS, x_title="position", value_title="share", parts=("unshifted", "marginal", "shifted")
)
CHARTS["ranked"] = lambda: layers.ranked(METHODS, title="share")


def rows(chart: alt.LayerChart) -> list[dict]:
    """All records that a chart carries."""
    return [record for records in spec_of(chart)["datasets"].values() for record in records]


@pytest.mark.parametrize("name", CHARTS)
def test_every_figure_is_valid_and_renders(name, tmp_path):
    chart = CHARTS[name]()
    spec = json.dumps(spec_of(chart))  # checked against the schema of Vega-Lite
    assert len(spec) < 100_000, "data in a page stay small"
    svg = layers.save(chart, tmp_path / "figure.svg").read_text()
    assert svg.startswith("<svg")
    assert svg.count("mark-") >= 2
    assert svg.count("<path") > 10


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_figures_for_papers(suffix, magic, tmp_path):
    assert layers.save(CHARTS["gains"](), tmp_path / f"a.{suffix}").read_bytes().startswith(magic)


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(UserError, match=r"figure format '\.jpg'.*\.png"):
        layers.save(CHARTS["gains"](), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_every_condition_of_the_study_has_a_style_and_keeps_it():
    layered = [c for c in CITY["condition"].unique() if not c.startswith(("context:", "over "))]
    shown = styles_of([*layered, SHARED])
    assert len({s.color for s in shown.values()}) == len({s.dash for s in shown.values()}) == len(layered) + 1
    assert styles_of(["over bag of token embeddings"])["over bag of token embeddings"] == shown["bag of token embeddings"]
    alone, together = styles_of(["my control"]), styles_of(["my control", *shown])
    assert alone["my control"] == together["my control"]
    unknown = styles_of([f"control {i}" for i in range(5)])
    assert len({s.color for s in unknown.values()}) == 5
    assert not {s.color for s in unknown.values()} & {s.color for s in STYLES.values()}


def test_each_condition_has_one_style_and_only_the_estimate_a_solid_line():
    for known in (*CONDITIONS.values(), *PARAMETRISED.values()):
        assert (known.style in STYLES) != (known.style == "ramp"), known
    solid = [c.name for c in CONDITIONS.values() if STYLES[c.style].dash == Style("").dash]
    assert solid == [ESTIMATE]
    assert {STYLES[c.style].color for c in CONDITIONS.values() if c.name.startswith(("random direction", "shuffled"))} == {
        "#8C8C8C"
    }


@pytest.mark.parametrize(
    "together",
    [
        [
            "estimate",
            "ridge map, whole half",
            "ridge map, the same examples",
            "translation",
            "logit lens",
            "map on another subject's vector",
            "map from the embedding",
            "majority object",
        ],
        [
            "estimate",
            "ridge probe",
            "logistic probe",
            "class means",
            "difference of means",
            "shuffled objects",
            "mean of the inverses",
            "majority object",
        ],
        ["estimate", "random direction", "mean vector of other subjects"],
    ],
)
def test_controls_of_relations_that_stand_together_look_different(together):
    styles = styles_of(together)
    assert len({s.color for s in styles.values()}) == len({s.dash for s in styles.values()}) == len(together)
    assert styles_of(["over translation"])["over translation"] == styles["translation"] if "translation" in styles else True


CELLS = pd.DataFrame(
    [(x, y, 0.1 * i, 0.0, 0.5, 9) for i, (x, y) in enumerate([("4", "0"), ("8", "0"), ("4", "2"), ("8", "2")])],
    columns=["x", "y", "value", "lo", "hi", "n"],
)


def test_a_grid_writes_each_value_in_its_cell():
    chart = grids.grid(CELLS, x_title="rank", y_title="block", value_title="accuracy")
    assert [r["value"] for r in rows(chart)] == [0.0, 0.1, 0.2, 0.3]
    spec = spec_of(chart)
    assert spec["layer"][0]["encoding"]["y"]["sort"] == ["2", "0"], "the first row stands at the bottom"


def test_a_dose_curve_draws_its_controls_as_rules():
    frame = pd.DataFrame(
        {
            "dose": [1.0, 2.0, None],
            "condition": ["estimate", "estimate", "random direction"],
            "value": [0.5, 0.7, 0.1],
            "lo": [0.4, 0.6, 0.0],
            "hi": [0.6, 0.8, 0.2],
            "n": [9, 9, 9],
        }
    )
    drawn = rows(grids.dose(frame, x_title="dose", value_title="success"))
    assert {r["condition"] for r in drawn if "dose" not in r} == {"random direction"}
    assert {r["dose"] for r in drawn if "dose" in r} == {1, 2}


def test_names_in_a_plane():
    frame = pd.DataFrame({"name": ["<b>", "Chile"], "x": [0.1, 0.2], "y": [0.0, -1.0], "n": [3, 4]})
    assert {r["name"] for r in rows(grids.plane(frame, x_title="a", y_title="b")) if "name" in r} == {"<b>", "Chile"}


def test_cut_contexts_are_ordered_by_length_and_darken():
    names = [f"context: last {k} tokens" for k in (10, 2, 1)]
    styles = styles_of(names)
    assert list(styles) == names[::-1]
    light = [sum(int(s.color[i : i + 2], 16) for i in (1, 3, 5)) for s in styles.values()]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 3


def test_by_layer_draws_all_controls_with_intervals_and_nothing_else():
    drawn = rows(CHARTS["by_layer"]())
    assert {r["condition"] for r in drawn} == {ESTIMATE, SHARED, *synthetic.FLAT, *synthetic.LAYERED}
    assert all(r["lo"] < r["value"] < r["hi"] for r in drawn)
    blocks = sorted(r["block"] for r in drawn if r["condition"] == "estimate")
    assert blocks == [-1, 0, 1, 2, 3, 4, 5], "other tokens and the chosen-layer score stay out"
    assert [r["condition"] for r in drawn if "block" not in r] == list(synthetic.FLAT)
    assert all(r["value"] == float(f"{r['value']:.4g}") for r in drawn)


def test_context_cut_draws_full_and_cut():
    assert {r["condition"] for r in rows(CHARTS["context_cut"]())} == {
        "full context",
        "last token",
        "last 2 tokens",
        "last 3 tokens",
    }


@pytest.mark.parametrize("name", ["by_layer", "context_cut", "heat_map", "gains"])
def test_the_index_of_a_table_means_nothing(name, monkeypatch):
    expected = rows(CHARTS[name]())
    monkeypatch.setitem(globals(), "CITY", CITY.set_axis([7] * len(CITY)))
    monkeypatch.setitem(globals(), "TABLE", TABLE.set_axis([7] * len(TABLE)))
    assert rows(CHARTS[name]()) == expected


@pytest.mark.parametrize("figure", [layers.context_cut, layers.heat_map])
def test_figures_of_one_item_refuse_two(figure):
    with pytest.raises(ValueError, match="draws one item"):
        figure(TABLE)


def test_values_beyond_the_axis_are_named_in_its_title():
    far = TABLE.assign(value=TABLE["value"].mask((TABLE["metric"] == "gain") & (TABLE["item"] == "cities.latitude"), -1.7))
    assert "−0.5 or below" in str(spec_of(layers.gains(far))["layer"][1]["encoding"]["x"]["title"])
    assert "or below" not in str(spec_of(layers.gains(TABLE))["layer"][1]["encoding"]["x"]["title"])


def runs_frame(groups):
    """Distances between as many runs as there are groups."""
    n = len(groups)
    cells = [
        {"a": i, "b": j, "value": abs(i - j), "name_a": f"run {i}", "name_b": f"run {j}", "group_a": groups[i]}
        for i in range(n)
        for j in range(n)
    ]
    return pd.DataFrame(cells)


@pytest.mark.parametrize(
    ("groups", "written"), [(["a"] * 3 + ["b"] * 2, True), (["a"] * 9 + ["b"] * 9, False), (list("abc"), True)]
)
def test_a_matrix_of_runs_labels_groups_and_writes_few_numbers(groups, written, tmp_path):
    spec = spec_of(runs.distances(runs_frame(groups), value_title="gap"))
    texts = [layer["encoding"]["text"] for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    assert sum(text["field"] == "value" for text in texts) == written
    labels = [r["group"] for records in spec["datasets"].values() for r in records if "group" in r]
    assert list(dict.fromkeys(labels)) == list(dict.fromkeys(groups))
    assert layers.save(runs.distances(runs_frame(groups), value_title="gap"), tmp_path / "a.svg").read_text().startswith("<svg")


def test_heat_map_shows_what_lies_above_shuffled_labels():
    chart = CHARTS["heat_map"]()
    drawn = rows(chart)
    assert len(drawn) == 4 * 7
    assert all(r["above"] == pytest.approx(r["value"] - r["control"], abs=1e-3) for r in drawn)
    x = spec_of(chart)["layer"][0]["encoding"]["x"]["sort"]
    assert [label.split("\n") for label in x] == [[t, "n 300"] for t in ("first", "−3", "−2", "last")]
    with pytest.raises(ValueError, match="shuffled labels"):
        layers.heat_map(CITY[CITY["condition"] == "estimate"])


def test_gains_has_a_row_an_item_and_control_and_a_zero_line():
    drawn = rows(CHARTS["gains"]())
    assert {"zero": 0} in drawn
    assert len(drawn) - 1 == int((TABLE["metric"] == "gain").sum())


def test_places_thins_the_backdrop_and_keeps_the_land():
    frame, backdrop = synthetic.places()
    data = spec_of(layers.places(frame, backdrop))["datasets"].values()
    land = pd.DataFrame(next(d for d in data if "name" not in d[0]))
    assert 1500 < len(land) <= 2500
    assert (land["x"].min(), land["x"].max()) < (-150, 170)
    assert (land["x"] > 60).sum() > 500, "thinning by cell leaves Asia its shape"
    with pytest.raises(KeyError):
        layers.places(frame.drop(columns="group"), backdrop)


def test_lens_shows_white_space_and_puts_the_last_block_on_top():
    chart = layers.lens(synthetic.lens((" a", "\n", "x" * 60)))
    drawn = rows(chart)
    assert {r["says"] for r in drawn} == {"·a", "⏎", "x" * 15 + "…"}
    assert spec_of(chart)["layer"][0]["encoding"]["y"]["sort"][:: len(range(-1, 12)) - 1] == ["11", "emb"]


def test_missing_intervals_become_null_not_nan():
    table = CITY.assign(lo=float("nan"), hi=float("nan"))
    drawn = rows(layers.by_layer(table, metric_title="accuracy"))
    assert {r["lo"] for r in drawn} == {None}


def test_methods_stand_best_first_with_their_controls_and_nothing_at_the_edge():
    spec = spec_of(layers.ranked(METHODS, title="share"))
    assert spec["layer"][0]["encoding"]["y"]["sort"] == ["truth", "b", "ours", "random"]
    assert max(r["value"] for r in rows(layers.ranked(METHODS, title="share"))) == 2.5
    assert "clamp" not in spec["layer"][1]["encoding"]["x"]["scale"]
    with pytest.raises(ValueError, match="one metric"):
        layers.ranked(pd.concat([METHODS, METHODS.assign(metric="mmcs")]), title="share")
