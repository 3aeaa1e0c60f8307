"""The `contrast` study end to end on a tiny random network: all its controls, and nothing of the second half in what is chosen."""

import json

import numpy as np
import pytest

import repscope as rs
from repscope.cli import run as main
from repscope.conditions import ESTIMATE, RANDOM, SWAPPED
from repscope.directions import DirectionSet
from repscope.errors import UserError
from repscope.results import CHOSEN
from repscope.steer.from_texts import METHODS
from repscope.studies.contrast import STUDY as CONTRAST
from repscope.studies.contrast.options import ContrastOptions
from repscope.studies.contrast.steps import halves
from repscope.studies.run.runner import Run
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = Run(
        CONTRAST, ContrastOptions(tiny=True, most_damage=50.0, strengths=(0.5, 1.0, 3.0)), out=tmp_path_factory.mktemp("runs")
    )
    made.answer()
    return made


def test_every_step_has_its_controls(run):
    table = run.table
    assert {ESTIMATE, SWAPPED} == set(table[table["step"] == "fit"]["condition"])
    assert {ESTIMATE, RANDOM} == set(table[table["step"] == "choose"]["condition"])
    dosed = table[(table["step"] == "dose") & (table["split"] == "reporting half")]
    assert {ESTIMATE, RANDOM, "prompting"} <= set(dosed[dosed["metric"] == "effect"]["condition"])
    assert table["row_id"].is_unique
    assert {"group of choices", "random direction", "opening", "text", "choice", "swap"} >= set(table["unit"]) - {""}


def test_halves_share_no_group_and_no_opening():
    for name in ("sentiment", "refusal"):
        first, second = halves(ContrastOptions(contrast=name))
        assert not set(first.yes_groups) & set(second.yes_groups)
        assert not {c.group for c in first.choices} & {c.group for c in second.choices}
        assert not set(first.openings) & set(second.openings)


def test_the_page_the_direction_and_its_files(run):
    page = (run.folder / "report.html").read_text()
    for text in ("Effect by strength", "Damage to fluency", "Candidates", "Continuations", "by block"):
        assert text in page
    kept = DirectionSet.load(run.folder / "artifacts" / "sentiment.safetensors")
    arrays = run.results["dose"].arrays
    assert kept.model == run.subject.fingerprint
    assert kept[0].scale == pytest.approx(float(arrays["scale"][0]))
    assert (kept[0].works is None) == bool(np.isnan(arrays["works"][0]))
    if kept[0].works is not None:
        at = run.table[(run.table["site"] == CHOSEN) & (run.table["item"] == "sentiment") & (run.table["split"] == "halves")]
        assert {ESTIMATE, RANDOM, "prompting"} <= set(at[at["metric"] == "effect"]["condition"])
        assert f"over {RANDOM}" in set(at[at["metric"] == "gain"]["condition"])
    gguf = DirectionSet.load(run.folder / "artifacts" / "sentiment.gguf")
    np.testing.assert_array_equal(gguf[0].weights, kept[0].weights)
    assert json.loads((run.folder / "run.json").read_text())["study"] == "contrast"
    assert run.headline().lines


def test_a_second_run_computes_nothing(run):
    again = Run(CONTRAST, run.options, out=run.out)
    again.answer()
    assert not again.took


def test_own_files_and_their_mistakes(tmp_path):
    pairs = tmp_path / "shout.csv"
    pairs.write_text("positive,negative\n" + "".join(f"The tale {i} ends well!,The tale {i} ends badly.\n" for i in range(24)))
    made = Run(CONTRAST, ContrastOptions(tiny=True, contrast=str(pairs)), out=tmp_path / "runs")
    made.answer()
    assert (made.folder / "artifacts" / "shout.safetensors").is_file()
    labelled = tmp_path / "loose.csv"
    labelled.write_text("text,label\n" + "".join(f"text {i},{'yes' if i % 2 else 'no'}\n" for i in range(24)))
    with pytest.raises(UserError, match="columns prompt, yes and no"):
        Run(CONTRAST, ContrastOptions(tiny=True, contrast=str(labelled)), out=tmp_path / "l").answer()
    asked = tmp_path / "asked.csv"
    asked.write_text("prompt,yes,no\n" + "".join(f"Question {i}:, yes, no\n" for i in range(12)))
    loose = ContrastOptions(tiny=True, contrast=str(labelled), choices=str(asked), positive="yes", methods=tuple(METHODS)[:3])
    Run(CONTRAST, loose, out=tmp_path / "runs").answer()
    with pytest.raises(UserError, match="no block 9"):
        Run(CONTRAST, ContrastOptions(tiny=True, blocks=(9,)), out=tmp_path / "b").answer()
    with pytest.raises(UserError, match="no method"):
        Run(CONTRAST, ContrastOptions(tiny=True, methods=("means",)), out=tmp_path / "m").answer()
    with pytest.raises(UserError, match="contrast 'sentimen'"):
        Run(CONTRAST, ContrastOptions(tiny=True, contrast="sentimen"), out=tmp_path / "s").answer()
    assert not any((tmp_path / name).exists() for name in ("l", "b", "m", "s"))


DISHES = ["soup", "fish", "rice", "bread", "tea", "cake", "stew", "pie", "plum", "bean", "leek", "kale"]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "dishes.csv"
    path.write_text("positive,negative\n" + "".join(f"The {d} was a joy.,The {d} was a bore.\n" for d in DISHES))
    return path


def test_five_lines_of_python_make_the_direction_of_the_study(pairs, tmp_path):
    lm = tiny()
    options = ContrastOptions(contrast=str(pairs), blocks=(1, 2), methods=tuple(METHODS)[:2], random=2, new_tokens=4)
    made = Run(CONTRAST, options, out=tmp_path / "runs", lm=lm)
    made.answer()
    kept = DirectionSet.load(made.artifact("dishes.safetensors"))[0]

    first, second = rs.contrast(pairs).with_choices().halves()
    fits = rs.steer.fit(lm, first, at=["resid_post.1", "resid_post.2"], methods=tuple(METHODS)[:2])
    best = rs.steer.choose(lm, fits.directions, first.choices, first.openings[:6]).direction
    found = rs.steer.dose(lm, best, first.choices, first.openings, random=2, new_tokens=4).direction

    np.testing.assert_array_equal(found.weights, kept.weights)
    assert (found.site, found.scale) == (kept.site, kept.scale)
    assert not {*first.openings} & {*second.openings}
    rows = made.results["fit"].side["directions"]["name"].tolist()
    np.testing.assert_array_equal(made.results["fit"].arrays["vectors"][rows.index(best.name)], fits.directions[best.name].vector)


def test_steer_takes_a_file_as_python_does(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr("repscope.models.loading.sources.load", lambda *args, **how: tiny())
    assert main(["steer", "tiny", str(pairs), "--prompt", "The day", "--tokens", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = rs.steer.learn(tiny(), rs.contrast(pairs), fresh=True)
    assert said["directions"] == [{"name": "dishes", "site": found[0].site, "scale": found[0].scale}]
    with rs.steer.steering(lm := tiny(), found):
        assert said["continuations"][0]["steered"].endswith(str(lm.generate(["The day"], max_new_tokens=3)[0]))
