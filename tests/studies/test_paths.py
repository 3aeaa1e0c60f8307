"""The paths study: whole in seconds on tiny networks, with its controls; a killed run goes on; mistakes are told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repscope.cli import run as command
from repscope.errors import UserError
from repscope.results import ESTIMATE
from repscope.studies.catalogue import study
from repscope.studies.run.runner import Run
from repscope.trace.barriers import GAP, HEIGHTS, height

TINY = {"tiny": True}


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("paths", tmp_path_factory.mktemp("runs"))


def test_the_page_has_figures_controls_and_how_it_was_made(done):
    page = (done.folder / "report.html").read_text()
    for said in (
        "Which runs are in one basin",
        "When is a recipe open?",
        "Control: independent pretrainings",
        "shuffled groups",
        "no early bias",
    ):
        assert said in page
    known = json.loads((done.folder / "run.json").read_text())
    assert known["model"] == "small-transformers"
    assert "verified" not in known


def test_every_number_has_its_control(done):
    table = done.table
    for condition in (ESTIMATE, "matched on ID loss", "no early bias"):
        assert set(table[(table["condition"] == condition) & (table["metric"] == "height")]["item"]) >= {
            f"across: {h}" for h in HEIGHTS
        }
    assert len(done.results["summary"].select(metric="ratio", condition="shuffled groups"))
    ari = done.results["summary"].select(metric="ARI", condition=ESTIMATE)
    assert {"spectral, Euclidean distance", f"spectral, {GAP}, δ = 1 (published)"} <= set(ari["item"])


def test_the_gap_is_never_below_the_barrier(done):
    for name, result in done.results.items():
        for key, losses in result.arrays.items():
            if key.endswith("losses/loss"):
                assert (height(losses, GAP) >= height(losses, "chord") - 1e-12).all(), (name, key)


def test_planted_runs_are_kept_as_checkpoints(done):
    from repscope.models.checkpoints import CheckpointSet

    found = CheckpointSet.open(done.artifact("planted-1"))
    assert sorted(found.table["group"].unique()) == ["lexical overlap", "rule"]
    assert found.shape.width == 16


def test_the_same_seed_gives_the_same_table_and_a_finished_run_is_kept(done, tmp_path):
    again = Run(done.study, done.study.options(**TINY), out=tmp_path)
    again.answer()
    pd.testing.assert_frame_equal(again.table, done.table)
    stamp = (done.folder / ".steps").stat().st_mtime_ns
    Run(done.study, done.options, out=done.out).answer()
    assert (done.folder / ".steps").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--forks", "2000"], "2000 is not"),
        (["--early-bias", "50", "--steps", "20"], "An early bias of 50 steps is longer than the 20"),
        (["--runs", "1"], "greater than or equal to 2"),
        (["--published", "none.csv"], "There is no file none.csv"),
        (["--points", "2"], "greater than or equal to 3"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, says, tmp_path, capsys):
    assert command(["study", "paths", "--tiny", *words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def feather(path):
    rng = np.random.default_rng(0)
    small = np.arange(30) % 3 == 0
    frame = pd.DataFrame(
        {
            "Run": [f"Run {i}" for i in range(30)],
            "MNLI dev acc.": 0.84 - 0.002 * small + rng.normal(0, 0.002, 30),
            "Lexical (nonent)": 0.3 - 0.2 * small + rng.normal(0, 0.05, 30),
        }
    )
    frame.to_csv(path, index=False)
    (path.parent / "small.txt").write_text(", ".join(map(str, np.flatnonzero(small))))


def test_a_published_table_stands_on_the_page(tmp_path, capsys):
    feather(tmp_path / "table.csv")
    words = [
        "--published",
        str(tmp_path / "table.csv"),
        "--clusters",
        str(tmp_path / "small.txt"),
        "--pretrainings",
        "1",
        "--apart",
        "0",
    ]
    assert command(["study", "paths", "--tiny", *words, "--out", str(tmp_path / "runs")]) == 0
    page = capsys.readouterr().out.splitlines()[-1]
    text = Path(page).read_text()
    assert "A published table" in text
    assert "in-domain accuracy" in text


def test_a_mistake_in_a_step_is_told(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    paths = study("paths")
    with pytest.raises(UserError):
        Run(
            paths, paths.options(**TINY, published=(tmp_path / "table.csv",), pretrainings=1, apart=0), out=tmp_path / "runs"
        ).answer()
