"""The notebooks of the docs run in their tiny form, and are stored with their outputs."""

import ast
import json
from pathlib import Path

import pytest

from repscope.studies.catalogue import ANSWERED

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def shown(value):
    """What a notebook would display: the richest of its representations."""
    for name in ("_repr_mimebundle_", "_repr_html_"):
        if (made := getattr(value, name, None)) is not None:
            return made()
    return repr(value)


def test_each_question_that_can_be_answered_has_a_notebook():
    assert {path.stem for path in BOOKS} == set(ANSWERED)


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_its_tiny_form(path, tmp_path, monkeypatch, capsys):
    """Cell by cell in one namespace, as a kernel does it; the last expression of a cell is displayed."""
    import altair as alt

    monkeypatch.chdir(tmp_path)
    space, displayed = {"__name__": "__main__"}, []
    assert sum("TINY = False" in "".join(c["source"]) for c in cells(path)) == 1
    with alt.renderers.enable("svg"):
        for cell in cells(path):
            tree = ast.parse("".join(cell["source"]).replace("TINY = False", "TINY = True"))
            last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, path.name, "exec"), space)
            if last is not None and (value := eval(compile(last, path.name, "eval"), space)) is not None:
                displayed.append(shown(value))
    assert len(displayed) >= 2
    assert all(displayed)
    assert capsys.readouterr().out.strip()
