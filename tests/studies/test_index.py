"""The index of a folder of runs, and the tour that ends with it."""

import json
import re

import pytest

from repscope.cli import run as command
from repscope.studies.catalogue import QUESTIONS, study
from repscope.studies.index import write_index
from repscope.studies.run.folder import MARK
from repscope.studies.run.runner import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of one question; its mark is made that of a run that is no test and has a verdict."""
    out = tmp_path_factory.mktemp("runs")
    found = study("entities")
    page = Run(found, found.options(tiny=True), out=out).answer()
    return out, page


def text_of(path):
    return re.sub(r"<script.*?</script>|<style.*?</style>", "", path.read_text(), flags=re.S)


def test_each_question_in_order_with_its_answer_its_figure_or_its_command(runs):
    out, page = runs
    html = text_of(write_index(out))
    heads = re.findall(r"<h2>(.*?)</h2>", html)
    assert heads == [entry.question for entry in QUESTIONS.values()]
    assert f'href="{page.relative_to(out)}"' in html
    assert "gives no verdict" in html
    assert html.count('class="chart"') == 1, "the headline figure of the one run"
    assert "repscope study relations --short" in html


def test_the_verdict_of_the_newest_run_that_is_no_test_run_stands_there(runs):
    out, page = runs
    facts = json.loads((page.parent / MARK).read_text())
    other = out / "entities-real"
    (other / ".steps").mkdir(parents=True)
    for part in (page.parent / ".steps").iterdir():
        (other / ".steps" / part.name).symlink_to(part)
    (other / "report.html").write_text("older than the test run")
    facts["given"] |= {"tiny": False}
    facts["options"] |= {"tiny": False}
    facts["verdict"] = {"reply": "No", "sentence": "No. <b>Nothing</b> was found."}
    (other / MARK).write_text(json.dumps(facts))
    html = text_of(write_index(out))
    assert "No. &lt;b&gt;Nothing&lt;/b&gt; was found." in html
    assert 'href="entities-real/report.html"' in html


def test_an_empty_folder_lists_the_commands(tmp_path):
    html = text_of(write_index(tmp_path))
    assert html.count("Not run yet.") == sum(bool(entry.module) for entry in QUESTIONS.values())


def test_the_tour_runs_what_fits_and_ends_with_the_index(tmp_path, capsys, monkeypatch):
    ran = []

    def answer(self):
        ran.append((self.study.name, self.options.short))
        return self.folder / "report.html"

    monkeypatch.setattr(Run, "answer", answer)
    monkeypatch.setattr(Run, "folder", property(lambda self: self.out / self.study.name))
    monkeypatch.setattr(Run, "verdict", None)
    minutes = {"relations": 2.0, "paths": 1.0, "discover": 30.0}
    monkeypatch.setattr(Run, "minutes_left", lambda self: minutes.get(self.study.name, 40.0))
    assert command(["tour", "--minutes", "3", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert ran == [("entities", True), ("relations", True), ("paths", True)]
    assert "discover is left out: its short form takes about 30 min." in told.err
    assert told.out.splitlines()[-1] == str(tmp_path / "index.html")
    ran.clear()
    monkeypatch.setattr(Run, "minutes_left", lambda self: pytest.fail("a forecast is made where no time is left"))
    assert command(["tour", "--minutes", "0", "--out", str(tmp_path), "--json"]) == 0
    assert [name for name, _ in ran] == ["entities"], "the first always runs"
    told = json.loads(capsys.readouterr().out)
    assert told["index"] == str(tmp_path / "index.html")
    assert [s["study"] for s in told["studies"]] == ["entities"]


def test_a_forecast_has_the_factor_of_the_first_pattern_that_fits():
    from repscope.studies.run.forecast import factor, forecast_seconds, raw_seconds
    from repscope.studies.run.study import Cost

    assert factor("paths", "planted 12") > factor("paths", "plain 0") > 0
    assert factor("no such study", "step") == 1
    cost = Cost(network_flops=1e12, fit_flops=1e11)
    expected = 0.05 + factor("paths", "planted *") * raw_seconds(cost, 5e10)
    assert forecast_seconds("paths", "planted 0", cost, 5e10) == pytest.approx(expected)
    assert raw_seconds(cost, 1e11) == pytest.approx(raw_seconds(cost, 5e10) / 2)
