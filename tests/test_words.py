"""User-facing text is plain international English: the worst offenders, each with what to say instead."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: pattern → what to say instead
OFFENDERS = {
    r"\bas long\b(?! as)": "of equal norm",
    r"\bequal length\b": "of equal norm",
    r"\bnobody labelled\b": "unsupervised",
    r"\bcommonest\b": "most common",
    r"\blikeliest\b": "most likely",
    r"\banew\b": "again",
    r"\bnudge": "early bias",
    r"\b(planted )?arms?\b": "groups",
    r"\bplain (runs|fine-tunings)\b": "unbiased runs",
    r"\bheaps?\b(?! by BIC)": "modes, unimodal",
    r"\bnats (?-i:an?) (token|example)\b": "nats per token",
    r"\b(rows?|numbers?|texts?|directions?|values?) (?-i:a) (row|run|line|token|block|pole|subject)\b": "per",
    r"\bever ?after\b|\bevermore\b|\bonce more\b": "again, afterwards",
    r"\btexts that tell\b": "disambiguating examples",
    r"\bbag of (tokens|words)\b": "bag of token embeddings, lexical overlap",
    r"\bpoints nowhere\b": "is zero",
    r"\bin the mean\b": "on average",
    r"\bmaybe\b": "possibly",
    r"\b(is|are|was|were|be) judged\b|^judged\b": "evaluated",
    r"\bknow no (label|arm)|\bknows? no arm": "unsupervised",
}
#: (file or folder, matched text): why it is right there
ALLOWED = {
    ("src/repscope/models/engine/anatomy.py", "equal length"): "of prompts, in tokens",
    ("src/repscope/models/variants/block_replay.py", "equal length"): "of prompts, in tokens",
    ("src/repscope/studies/paths/published.py", "heaps"): "a metric of the table",
    ("src/repscope/studies/paths/published_page.py", "heaps"): "a metric of the table",
}
#: pattern → folders that still have it
PENDING: dict[str, tuple[str, ...]] = {}
_NAME = re.compile(r"[\w.\-/]*")  # a literal without a space is a name, not text


def _literals(path: Path):
    """Line and text of every string literal; f-strings with their fields left out."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def _texts():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield path, 1, path.read_text()
    for path in sorted((ROOT / "src/repscope").rglob("*.py")):
        for line, text in _literals(path):
            if not _NAME.fullmatch(text):
                yield path, line, text


def offences(path: Path, line: int, text: str) -> list[str]:
    """Each offender in a text as `file:line: words around it (say …)`."""
    name = str(path.relative_to(ROOT))
    found = []
    for pattern, instead in OFFENDERS.items():
        if name.startswith(PENDING.get(pattern, ("*",))):
            continue
        for match in re.finditer(pattern.replace(" ", r"(?: +|\n *)"), text, re.IGNORECASE | re.MULTILINE):
            if any(name.startswith(place) and match.group().lower() == words for place, words in ALLOWED):
                continue
            around = " ".join(text[max(0, match.start() - 40) : match.end() + 30].split())
            found.append(f"{name}:{line + text.count(chr(10), 0, match.start())}: {around} (say: {instead})")
    return found


def test_the_worst_offenders_are_in_no_text():
    assert not (found := [o for path, line, text in _texts() for o in offences(path, line, text)]), "\n" + "\n".join(found)


def test_an_offender_is_found_with_its_line():
    (found,) = offences(ROOT / "README.md", 3, "A vector\nof the commonest kind, at least as long as the others.")
    assert found == "README.md:4: A vector of the commonest kind, at least as long as the (say: most common)"
