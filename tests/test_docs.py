"""Docs are code: Python blocks of the README and the docs run, and their commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from repscope.cli import app, register
from repscope.models.loading import sources
from repscope.studies.catalogue import QUESTIONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language):
    for page in PAGES:
        for i, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)):
            yield pytest.param(text, id=f"{page.name}-{i}")


def _touched(lm):
    """Hooks, edits and other weights that a block left on the model."""
    hooked = [m for m in lm.model.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__]
    return hooked, list(lm.installed), [float(p.detach().sum()) for p in lm.model.parameters()]


@pytest.mark.model
@pytest.mark.parametrize("code", list(_blocks("python")))
def test_python_runs(code, tmp_path, monkeypatch, capsys, smollm, tiny_runs):
    """Each block by itself, in a namespace and a folder of its own; the default model is loaded once for all of them."""
    real = sources.load
    monkeypatch.setattr(sources, "load", lambda *args, **how: real(*args, **how) if args or how else smollm)
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r'\bstudy\("(\w+)"\)', code):
        tiny_runs.copied(name, tmp_path / "runs")  # a tiny run finds its steps there
    before = _touched(smollm)
    exec(compile(code, "<block>", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
    assert _touched(smollm) == before, "a block leaves the model as it was"


@pytest.mark.parametrize("text", list(_blocks("sh")))
def test_commands_are_taken_as_they_stand(text):
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        else:
            assert words[0] == "repscope"
            register(words[1:])
            app.parse_args(words[1:], exit_on_error=False, print_error=False)  # an option that it does not take raises


def test_the_readme_marks_the_studies_that_exist():
    rows = re.findall(r"^\| `(\w+)` \|.*\| \*\*here\*\* \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) == 10
    assert set(rows) == set(QUESTIONS)
