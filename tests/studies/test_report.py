"""`repscope report`: the page of a finished run of any study is drawn again from its files, without a network."""

import json
import re
from pathlib import Path

import pytest

from repscope.cli import run
from repscope.conditions import condition
from repscope.report.glossary import load_glossary
from repscope.report.style import STYLES
from repscope.studies.catalogue import QUESTIONS, study
from repscope.studies.run.folder import MARK, RunFolder
from repscope.studies.run.runner import load_record


def forbidden(*args, **kwargs):
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize("name", [*QUESTIONS, "contrast", "verify", "bench-discovery"])
def test_a_page_is_drawn_again_as_it_was(tiny_runs, tmp_path, monkeypatch, capsys, name):
    """And every condition of its table is one of the closed list, with a style; every metric is in the glossary."""
    found = study(name)
    page = tiny_runs.copied(name, tmp_path).run_folder.page
    table = load_record(found, RunFolder(page.parent)).table
    for name in table["condition"].unique():
        assert condition(name).style in {*STYLES, "ramp"}
    for metric in table["metric"].unique():
        assert any(entry.defines(metric, found.name) for entry in load_glossary()), metric
    text = page.read_text()
    heading = re.findall(r'<title>(.*?)</title>|<p class="context">(.*?)</p>', text, re.S)
    assert not any(part.strip() in ("None", "nan", "") for line in heading for part in "".join(line).split(" · ")), heading
    page.unlink()
    monkeypatch.setattr("repscope.worlds.tiny.tiny", forbidden)
    monkeypatch.setattr("repscope.models.loading.sources.load", forbidden)
    assert run(["report", page.parent.name, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert page.read_text() == text
    facts = json.loads((page.parent / MARK).read_text())
    assert facts["answer"] == list(found.answer(load_record(found, RunFolder(page.parent))).lines)


def test_an_unfinished_run_and_no_run_are_said(tmp_path, capsys):
    (tmp_path / "entities-x-1").mkdir()
    (tmp_path / "entities-x-1" / MARK).write_text('{"study": "entities"}')
    assert run(["report", "entities", "--out", str(tmp_path)]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert run(["report", "paths", "--out", str(tmp_path)]) == 2
    assert "There is no run" in capsys.readouterr().err


@pytest.mark.browser
def test_a_page_as_pdf(tiny_runs, tmp_path, capsys):
    tiny_runs.copied("verify", tmp_path)
    assert run(["report", "verify", "--pdf", "--out", str(tmp_path)]) == 0
    page, pdf = reversed(capsys.readouterr().out.splitlines()[-2:])
    assert Path(pdf).read_bytes().startswith(b"%PDF")
    assert Path(page).is_file()


def test_pdf_without_a_browser_says_what_to_install(tiny_runs, tmp_path, capsys, monkeypatch):
    tiny_runs.copied("verify", tmp_path)
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("repscope.report.pdf._NAMES", ())
    assert run(["report", "verify", "--pdf", "--out", str(tmp_path)]) == 2
    assert "needs Chromium or Chrome" in capsys.readouterr().err
