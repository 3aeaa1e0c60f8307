"""The tree of CONTRIBUTING.md, one line per file, from the first sentence of each module's docstring.

python tests/tree.py --write    put the tree of now into CONTRIBUTING.md
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
_COLUMN, _WIDTH = 32, 98
_BLOCK = re.compile(r"(<!-- tree -->\n```\n)(.*?)(```\n<!-- end of tree -->)", re.DOTALL)


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, cut to one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[.?!])\s", text)[0].rstrip(".")
    while len(first) > _WIDTH:  # shorter by a clause, or by a word
        shorter = max(first[:_WIDTH].rfind(mark) for mark in ("; ", ": ", ", "))
        first = first[:shorter] if shorter > _WIDTH // 3 else first[:_WIDTH].rpartition(" ")[0] + " …"
    return first


def tree(folder: Path = ROOT / "src" / "repscope", depth: int = 0) -> list[str]:
    """Lines of a folder: its own sentence, its files, then its folders."""
    indent = "  " * depth
    lines = [f"{indent + folder.name + '/':<{_COLUMN}}{sentence(folder / '__init__.py')}"]
    files = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
    lines += [f"{indent + '  ' + p.name:<{_COLUMN}}{sentence(p)}" for p in files]
    for inner in sorted(p for p in folder.iterdir() if (p / "__init__.py").is_file()):
        lines += tree(inner, depth + 1)
    return lines


def drawn() -> list[str]:
    """The lines that CONTRIBUTING.md holds now."""
    found = _BLOCK.search(PAGE.read_text())
    return found.group(2).splitlines() if found else []


if __name__ == "__main__" and "--write" in sys.argv:
    PAGE.write_text(_BLOCK.sub(lambda m: m.group(1) + "\n".join(tree()) + "\n" + m.group(3), PAGE.read_text()))
