"""CONTRIBUTING's tree is the folder: one line per file, each saying what its docstring says."""

import ast
from pathlib import Path

import pytest

import tree

FILES = sorted((tree.ROOT / "src" / "repscope").rglob("*.py"))


def test_the_tree_is_the_folder():
    assert tree.drawn() == tree.tree(), "run `python tests/tree.py --write`"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(tree.ROOT)))
def test_every_file_says_what_it_holds(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module's docstring is its line in the tree"
