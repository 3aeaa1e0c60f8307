"""The emergence study: whole on tiny networks, with its controls; the user's ladder; a killed run goes on; mistakes are told."""

import json

import numpy as np
import pandas as pd
import pytest

from repscope.cli import run as command
from repscope.conditions import ESTIMATE
from repscope.results import select
from repscope.studies.catalogue import study
from repscope.studies.emergence import names
from repscope.studies.emergence.figures import steps_text
from repscope.studies.emergence.given_ladder import read_ladder
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.emergence.two_hop import TwoHop
from repscope.studies.run.runner import Run


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("emergence", tmp_path_factory.mktemp("runs"))


def test_every_curve_has_its_kinds_and_its_control(done):
    table, task = done.table, TwoHop(done.setup.options)
    last = names.at(task.checkpoints[-1])
    for phi in done.setup.options.ratios:
        rows = select(table, metric=names.ACCURACY, item=names.item(phi), split=last)
        assert set(rows["condition"]) == {*names.QUERIES.values(), names.FACTS, names.FACTS_OOD}
        assert set(rows["unit"]) == {"run"}
        assert len(select(table, metric=names.ACCURACY, item=names.item(phi), condition=names.UNTRAINED)) == 1
        assert len(select(table, metric=names.LAG, item=names.item(phi))) == 1
        assert len(select(table, metric=names.SHARPNESS, item=names.item(phi), condition=names.EVEN)) == 1
    probed = select(table, metric=names.BRIDGE, split=last)
    assert set(probed["condition"]) == {ESTIMATE, names.PERMUTED}
    assert set(select(table, metric=names.PATCHED, split=last)["token"]) == {"h", "r1"}


def test_accuracy_is_that_of_the_saved_hits_by_hand(done):
    task, arrays = TwoHop(done.setup.options), done.results["two-hop"].arrays
    phi = done.setup.options.ratios[1]
    places = [i for i, (ratio, _) in enumerate(task.worlds.networks) if ratio == phi]
    expected = np.mean([arrays["hits/held-out queries"][-1, i].mean() for i in places])
    row = select(done.table, metric=names.ACCURACY, item=names.item(phi), split=names.at(30), condition=ESTIMATE)
    assert row["value"].iloc[0] == pytest.approx(expected)


def test_the_best_path_sum_stands_beside_every_control(done):
    for hops in done.setup.options.walk_lengths:
        at = select(done.table, split=names.walks(hops))
        best = select(at, metric=names.KL, item=names.BEST, condition=ESTIMATE)
        assert len(best) == 1
        assert len(select(at, metric=names.KL, item=names.BEST, condition=names.UNTRAINED)) == 1
        nearer = select(at, metric=names.NEARER)
        assert set(nearer["condition"]) == {names.UNIGRAM, names.NEIGHBOURS, names.SHUFFLED_GRAPH}
        other = select(at, metric=names.KL, condition=names.UNIGRAM)["value"].iloc[0]
        gap = nearer[nearer["condition"] == names.UNIGRAM]["value"].iloc[0]
        assert gap == pytest.approx(other - best["value"].iloc[0], abs=1e-9)


def test_the_control_of_the_shuffled_graph_has_the_same_choice(done):
    """For every length of paths, one row: the weighting that is nearest on the choosing half."""
    for hops in done.setup.options.walk_lengths:
        rows = select(done.table, metric=names.KL, split=names.walks(hops), condition=names.SHUFFLED_GRAPH)
        assert set(rows["item"]) == {f"paths of at most {n}" for n in (1, 2, 3)}
        assert set(rows["definition"]) <= set(names.WEIGHTED.values())


def test_learning_coefficients_stand_beside_those_before_training(done):
    task, arrays = TwoHop(done.setup.options), done.results["two-hop"].arrays
    for phi in done.setup.options.ratios:
        rows = select(done.table, metric=names.COEFFICIENT, item=names.item(phi))
        assert list(rows["split"]) == [names.at(step) for step in task.sampled]
        assert list(rows["condition"]) == [names.UNTRAINED, *[ESTIMATE] * (len(task.sampled) - 1)]
        places = [i for i, (ratio, _) in enumerate(task.worlds.networks) if ratio == phi]
        assert rows["value"].iloc[-1] == pytest.approx(arrays["coefficients"][-1, places].mean())


def test_the_ladder_has_its_known_gains_and_its_refusals(done):
    side = done.results["ladder"].side["gains"]
    assert set(side["known"].dropna()) == {1.0, 4.0, 0.5}
    rows = select(done.table, metric=names.GAIN, condition=names.KNOWN)
    assert set(rows["value"]) == {1.0, 4.0, 0.5}
    given = side[side["refusal"] == ""]
    assert given["gain"].notna().all()
    assert side[side["refusal"] != ""]["gain"].isna().all()


def test_a_killed_run_goes_on(done, tmp_path, monkeypatch):
    found = study("emergence")
    run = Run(found, found.options(tiny=True), out=tmp_path)

    def killed(self, state, step):
        if step == 20:
            raise KeyboardInterrupt
        return loss(self, state, step)

    loss = TwoHop.loss
    monkeypatch.setattr(TwoHop, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run.answer()
    monkeypatch.undo()
    again = Run(found, found.options(tiny=True), out=tmp_path)
    again.answer()
    np.testing.assert_array_equal(again.results["two-hop"].table["value"], done.results["two-hop"].table["value"])


def ladder_frame(rng, enhanced=1.5):
    compute = np.repeat(np.logspace(18, 20, 6), 2)
    loss = 2 + (compute / 1e18) ** -0.3
    rows = [{"compute": c, "loss": v * np.exp(0.002 * rng.standard_normal()), "enhancement": ""} for c, v in zip(compute, loss)]
    better = 2 + (3 * 1e19 / 1e18) ** -0.3
    tricks = [{"compute": 1e19, "loss": v, "enhancement": name} for name, v in (("trick", better), ("magic", enhanced))]
    return pd.DataFrame([*rows, *tricks])


def test_a_table_of_the_users(tmp_path, capsys):
    file = tmp_path / "ladder.csv"
    ladder_frame(np.random.default_rng(0)).to_csv(file, index=False)
    assert command(["study", "emergence", "--ladder", str(file), "--draws", "200", "--out", str(tmp_path / "runs"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    table = pd.read_parquet(next((tmp_path / "runs").rglob("table.parquet")))
    gains = table[table["metric"] == names.GAIN].set_index("item")
    trick = gains.loc["trick, compute 1e+19"]
    assert trick["lo"] < 3 < trick["hi"]
    assert np.isnan(gains.loc["magic, compute 1e+19", "value"])
    assert "not above the floor" in json.dumps(said)
    shares = ladder_frame(np.random.default_rng(0)).assign(score=lambda f: 1 - f["loss"] / 4).drop(columns="loss")
    shares.to_csv(file, index=False)
    assert read_ladder(file)["loss"].to_numpy() == pytest.approx(ladder_frame(np.random.default_rng(0))["loss"] / 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="compute"), "no column compute"),
        (lambda f: f.assign(score=0.5), "one of the columns loss and score"),
        (lambda f: f[f["enhancement"] == ""], "no enhancement"),
        (lambda f: f[f["enhancement"] != ""], "no ladder"),
        (lambda f: f.assign(loss=["x", *f["loss"][1:]]), "line 2, has no number"),
        (lambda f: f[(f["compute"] < 2e18) | (f["enhancement"] != "")], "three parameters"),
        (lambda f: f.rename(columns={"loss": "score"}), "outside of 0 to 1"),
    ],
)
def test_mistakes_in_a_table_are_one_sentence(change, said, tmp_path, capsys):
    file = tmp_path / "ladder.csv"
    change(ladder_frame(np.random.default_rng(0))).to_csv(file, index=False)
    assert command(["study", "emergence", "--ladder", str(file), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ratios", "500"], "needs more queries"),
        (["--ratios", "0"], "above 0"),
        (["--rungs", "1", "--rungs", "2"], "at least five"),
        (["--width", "6"], "multiple of 4"),
        (["--walk-lengths", "9"], "1 to 8 steps"),
        (["--ladder", "x.csv", "--steps", "20"], "which --ladder replaces"),
        (["--checkpoints", "x"], "belong together"),
        (["--probe-tasks", "next-item"], "and --checkpoints belong together"),
        (["--checkpoints", "x", "--heads", "--probe-tasks", "next-item", "--shots", "1"], "--shots 2 or more"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, capsys):
    assert command(["study", "emergence", "--tiny", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_steps_in_words():
    assert steps_text({"value": np.inf, "lo": np.inf, "hi": np.inf}) == "not reached"
    assert steps_text({"value": 520.4, "lo": 500.0, "hi": np.inf}) == "520 [500, ∞]"
    assert steps_text(None) == "–"


def test_the_plan_and_the_page(done, tmp_path, capsys):
    page = (done.folder / "report.html").read_text()
    for said in ("The bridge entity", "Unseen edges as sums", "Compute-equivalent gains", "Transitions", "learning coefficient"):
        assert said in page
    assert command(["study", "emergence", "--plan", "--short", "--out", str(tmp_path)]) == 0
    assert "two-hop" in capsys.readouterr().out
    assert EmergenceOptions(short=True).sized().steps < EmergenceOptions().steps
