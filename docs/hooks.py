"""Pages of the site that are made when it is built: from the README, the glossary, the public names and the benchmarks.

1. `on_files` adds index.md (the README), contributing.md, glossary.md, api.md and the benchmarks' tables.
2. Links between files of the repository become links between pages.
3. After the build, a page that would load anything from another host fails the build.
"""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import repscope
from repscope.conditions import CONDITIONS, PARAMETRISED, Condition
from repscope.report.glossary import GlossaryEntry, load_glossary

ROOT = Path(__file__).parents[1]
ROOMS = ("discovery", "read", "steer", "trace")
#: links in the repository → links in the site
LINKS = (
    (r"\]\((?:\.\./)?benchmarks/([\w-]+\.md)\)", r"](benchmarks/\1)"),
    (r"\]\(docs/([^)]+)\)", r"](\1)"),
    (r"\]\((?:\.\./)?CONTRIBUTING\.md\)", "](contributing.md)"),
    (r"\]\((?:\.\./)?README\.md\)", "](index.md)"),
    (r"\[([^\]]+)\]\((?:CITATION\.cff|LICENSE|findings/[^)]*|benchmarks/[^)]*\.py|(?:\.\./)?src/[^)]*)\)", r"`\1`"),
)
#: scripts of nbconvert's template: mermaid from another host, and an empty address where requirejs is left out
NOT_NEEDED = re.compile(
    r'<script type="module">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>|<script src=""></script>', re.DOTALL
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    made: dict[str, Callable[[], str]] = {
        "index.md": lambda: _linked((ROOT / "README.md").read_text()),
        "contributing.md": lambda: _linked((ROOT / "CONTRIBUTING.md").read_text()),
        "glossary.md": glossary_page,
        "api.md": api_page,
    }
    for path in sorted((ROOT / "benchmarks").glob("RESULTS*.md")):
        made[f"benchmarks/{path.name}"] = lambda path=path: path.read_text()  # type: ignore[misc]
    for name, text in made.items():
        files.append(File.generated(config, name, content=text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of pages in docs/."""
    return markdown if page.file.src_uri.startswith(("benchmarks/", "notebooks/")) else _linked(markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Notebooks without diagrams need no script from another host."""
    return NOT_NEEDED.sub("", output) if page.file.src_uri.startswith("notebooks/") else output


def on_post_build(config: Any) -> None:
    """Refuse pages that load a script, a style, a font or a picture from another host."""
    loads = re.compile(
        r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//(?![^>]*canonical)|\bimport\(["']https?:"""
    )
    for path in Path(config["site_dir"]).rglob("*.html"):
        if found := loads.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.name} loads something from another host: {found.group(0)[:120]}")


def glossary_page() -> str:
    """Every term, metric and condition, alphabetically."""
    parts = [
        "# Glossary",
        "Terms and metrics of pages and tables, then conditions: what a number was measured under.",
        "## Terms and metrics",
    ]
    parts += [_entry(e) for e in sorted(load_glossary(), key=lambda e: (e.term.casefold(), e.studies))]
    parts += [
        "## Conditions",
        "| condition | role | meaning |\n|---|---|---|\n" + "\n".join(_condition(c) for c in [*CONDITIONS.values()]),
    ]
    parts += ["Conditions with a parameter: a pattern of their names.", "| condition | role | meaning |\n|---|---|---|\n"]
    parts[-1] += "\n".join(_condition(c) for c in PARAMETRISED.values())
    return "\n\n".join(parts)


def _entry(entry: GlossaryEntry) -> str:
    of = f" ({', '.join(s for s in entry.studies if s != 'bench')})" if entry.studies and entry.metrics else ""
    lines = [f"### {entry.term}{of}", entry.definition]
    if entry.formula:
        lines.append(f"    {entry.formula}")
    metric = f"Metric: {', '.join(f'`{m}`' for m in entry.metrics)}" if entry.metrics else ""
    if line := ". ".join(filter(None, (metric, f"Source: {entry.source}" if entry.source else ""))):
        lines.append(f"*{line}.*")
    return "\n\n".join(lines)


def _condition(held: Condition) -> str:
    return f"| `{held.name}` | {held.role} | {held.meaning} |".replace(r"\d+", "*").replace(r"[\d.e+-]+", "*").replace(".+`", "*`")


def api_page() -> str:
    """The public names with their docstrings: those of `repscope`, then those of its packages of methods."""
    parts = ["# Python names", "What `import repscope as rs` offers, then the packages of methods, such as `rs.steer`."]
    parts += ["## repscope", *(_reference(repscope, name) for name in repscope.__all__)]
    for room in ROOMS:
        module = import_module(f"repscope.{room}")
        names = [n for n in getattr(module, "__all__", ()) if hasattr(getattr(module, n), "__qualname__")]
        parts += [f"## repscope.{room}", str(module.__doc__).splitlines()[0], *(_reference(module, name) for name in names)]
    return "\n\n".join(parts)


def _reference(module: Any, name: str) -> str:
    found = getattr(module, name)
    return f"::: {found.__module__}.{found.__qualname__}"


def _linked(markdown: str) -> str:
    for pattern, by in LINKS:
        markdown = re.sub(pattern, by, markdown)
    return markdown
