"""The default corpus: prose of the docstrings of packages that every installation has.

1. Every Python file of a package is parsed with `ast`, never imported; tests, vendored copies and generated files are left out.
2. A docstring's lines of equal indentation without a blank line between them are a paragraph. Prose is a paragraph of at least six
   words that begins with a capital letter, ends a sentence and consists of letters, spaces and little else; so code, signatures,
   tables and headings are left out.
3. A paragraph that came before, in any package, is left out. A document is what remains of a docstring.

Packages and files are read in a fixed order, so the same versions give the same corpus. It is kept in the cache.
"""

import ast
import gc
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from repscope import manifest
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.progress import progress

PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "torch": "torch",
    "transformers": "transformers",
}
VERSION = 1  #: of the rules
_WORDS = 6
_LEFT_OUT = {"tests", "test", "testing", "_vendor", "_vendored", "vendored", "externals", "third_party", "benchmarks"}
_GENERATED = b"automatically generated from"
_NOT_PROSE = re.compile(r">>>|\.\. |```|\||<[a-z/]|-{3}|==|\w=\w|^\w+ ?: |^\W*(Args|Raises|Examples?|Parameters)\b")
_LETTERS = re.compile(r"[A-Za-z ]")


@dataclass(frozen=True)
class InstalledDocs:
    """Documents with the labels package, version and object. versions: of the packages. notes: packages that were missing."""

    texts: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


def installed_docs(packages: Sequence[str] = tuple(PACKAGES)) -> InstalledDocs:
    """The corpus of the packages that are installed, from the cache if they have not changed.

    Raises
    ------
    UserError
        When none of them is installed with its source.
    """
    versions: dict[str, str] = {}
    roots: dict[str, Path] = {}
    for name in packages:
        spec = find_spec(name)
        if spec is not None and spec.origin and (root := Path(spec.origin)).name == "__init__.py":
            with suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(PACKAGES.get(name, name))
                roots[name] = root.parent
    if not roots:
        raise UserError(f"None of {', '.join(packages)} is installed with its source; give a corpus of your own.")
    missing = tuple(
        f"{name} is not installed, so its documentation is not in the corpus." for name in packages if name not in roots
    )
    key = hashlib.sha256(json.dumps([VERSION, sorted(versions.items()), [str(r) for r in roots.values()]]).encode()).hexdigest()[
        :16
    ]
    kept = cache_home() / "corpora" / f"installed-docs-{key}.json"
    rows = _remembered(kept)
    if rows is None:
        with _no_collection():
            rows = list(_documents(roots))
        with suppress(UserError, OSError), whole_file(kept, sync=False) as partial:
            partial.write_text(json.dumps({"seal": manifest.UNSEALED, "documents": rows}), encoding="utf-8")
            manifest.seal(partial)
    labels = {
        "package": tuple(package for package, _, _ in rows),
        "version": tuple(versions[package] for package, _, _ in rows),
        "object": tuple(name for _, name, _ in rows),
    }
    return InstalledDocs(tuple(text for _, _, text in rows), labels, versions, missing)


def _remembered(path: Path) -> list[tuple[str, str, str]] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        rows = json.loads(path.read_text(encoding="utf-8"))["documents"] if manifest.sealed(path) else None
        if isinstance(rows, list) and all(isinstance(row, list) and [type(x) for x in row] == [str] * 3 for row in rows):
            return [(row[0], row[1], row[2]) for row in rows]
    return None


def _documents(roots: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Package, object and text of each document."""
    seen: set[str] = set()
    files = [(package, root, path) for package, root in roots.items() for path in _sources(root)]
    with progress("Reading documentation", sum(path.stat().st_size for _, _, path in files)) as advance:
        for package, root, path in files:
            content = path.read_bytes()
            module = ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
            if _GENERATED not in content[:2000]:
                for name, docstring in docstrings(content, module):
                    new = [p for p in prose(docstring) if p not in seen]
                    seen.update(new)
                    if new:
                        yield package, name, "\n\n".join(dict.fromkeys(new))
            advance(len(content))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the collector of cycles, which would walk all syntax trees, that have none, and torch: half of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _sources(root: Path) -> list[Path]:
    found = [p for p in root.rglob("*.py") if not _LEFT_OUT & set(p.relative_to(root).parts) and p.is_file()]
    return sorted(found, key=lambda p: p.relative_to(root).parts)


def docstrings(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of the module, classes and functions of a file, in their order; none of a file with an error.

    >>> list(docstrings(b'class A:\\n  "Says."\\n  def f(self): "Runs."', "m"))
    [('m.A', 'Says.'), ('m.A.f', 'Runs.')]
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # newer syntax, or not Python
        return
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            text := ast.get_docstring(node)
        ):
            yield name, text
        inner: list[tuple[str, ast.AST]] = []
        for child in getattr(node, "body", []):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                inner.append((f"{name}.{child.name}", child))
            elif isinstance(child, (ast.If, ast.Try, ast.With)):
                inner.append((name, child))
        waiting += reversed(inner)


def prose(docstring: str) -> list[str]:
    """The paragraphs of prose of a docstring, each in one line.

    >>> prose("Sum.\\n\\nReturn the sum of all elements along one axis.\\n\\nx : int\\n    Index of the axis along which sums run.")
    ['Return the sum of all elements along one axis.', 'Index of the axis along which sums run.']
    """
    lines = inspect.cleandoc(docstring).splitlines()
    found = []
    for indent, group in groupby(lines, key=lambda line: len(line) - len(line.lstrip()) if line.strip() else -1):
        text = " ".join(" ".join(group).split())
        if indent >= 0 and _is_prose(text):
            found.append(text)
    return found


def _is_prose(text: str) -> bool:
    return (
        len(text.split()) >= _WORDS
        and text[0].isupper()
        and text.endswith((".", "!", "?"))
        and len(_LETTERS.findall(text)) > 0.75 * len(text)
        and not _NOT_PROSE.search(text)
    )
