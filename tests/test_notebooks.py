"""The notebooks of the docs run in their tiny form, and are stored with their outputs."""

import ast
import json
import re
from pathlib import Path

import pytest

from repscope.studies.catalogue import QUESTIONS

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 300_000
SIZE = re.compile(r"^TINY = (True|False)", re.MULTILINE)  #: the size of the stored run


def cells(path):
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def shown(value):
    """What a notebook would display: the richest of its representations."""
    for name in ("_repr_mimebundle_", "_repr_html_"):
        if (made := getattr(value, name, None)) is not None:
            return made()
    return repr(value)


def test_each_question_that_can_be_answered_has_a_notebook():
    assert {path.stem for path in BOOKS} == set(QUESTIONS)


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_its_tiny_form(path, tiny_runs, tmp_path, monkeypatch, capsys):
    """Cell by cell in one namespace, as a kernel does it; the last expression of a cell is displayed."""
    import altair as alt

    tiny_runs.copied(path.stem, tmp_path / "runs")  # the study finds its steps there
    monkeypatch.chdir(tmp_path)
    space, displayed = {"__name__": "__main__"}, []
    assert sum(SIZE.search("".join(c["source"])) is not None for c in cells(path)) == 1
    with alt.renderers.enable("svg"):
        for cell in cells(path):
            tree = ast.parse(SIZE.sub("TINY = True", "".join(cell["source"])))
            last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, path.name, "exec"), space)
            if last is not None and (value := eval(compile(last, path.name, "eval"), space)) is not None:
                displayed.append(shown(value))
    assert len(displayed) >= 2
    assert all(displayed)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_stored_with_its_outputs(path):
    assert path.stat().st_size < MOST_BYTES
    kinds = set()
    for cell in cells(path):
        assert cell["execution_count"]
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", "warnings and progress are not stored"
            kinds |= set(output.get("data", {}))
    assert kinds & {"image/svg+xml", "image/png", "application/vnd.vegalite.v6+json"}
    assert len(json.loads(path.read_text())["cells"]) <= 9
