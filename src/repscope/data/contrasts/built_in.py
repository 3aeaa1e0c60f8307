"""Built-in contrasts, generated from the tables of `contrast_texts/` in their order.

A table has sections, each a group with a wording and words of its own, which occur in no other:

1. `[texts: group]`: lines with {} are frames, the others what fills them; every frame is filled with every filling. "a | b" is a
   for the positive pole and b for the negative one; a line without "|" is the same for both.
2. `[choices: group]`: lines with "|" are the two continuations, the others prompts; every prompt is asked with every continuation.
3. `[facts: group]`: frames, and lines "subject | answer"; the false answer is that of the next subject, so that every answer is
   as often true as false.
4. `[openings]`: neutral beginnings, one a line.

"a" becomes "an" where the word that fills it begins with a vowel. A continuation begins with a space, unless the prompt ends with
an opening quotation mark or is a user's turn.
"""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files

from repscope.data.contrasts.definition import Choice, Contrast

_HEAD = re.compile(r"\[(\w+)(?:: (.+))?\]")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|u(?:gl|n(?!i)|ps)|ho(?:ur|ne))")
_Section = tuple[str, str, list[str]]  # kind, group, lines


def openings(chat: bool = False) -> tuple[str, ...]:
    """Neutral beginnings of texts, or everyday requests of a user."""
    table = "openings-chat" if chat else "openings"
    return tuple(line for _, _, lines in _sections(table) for line in lines)


def _built(
    name: str, positive: str, negative: str, instructions: tuple[str, str], *, chat: bool = False, articles: bool = True
) -> Contrast:
    sections = list(_sections(name))
    texts = [(pair, group) for kind, group, lines in sections if kind == "texts" for pair in _pairs(lines, articles)]
    choices = [
        choice
        for kind, group, lines in sections
        if kind in ("choices", "facts")
        for choice in (_choices(group, lines, chat) if kind == "choices" else _facts(group, lines))
    ]
    groups = tuple(group for _, group in texts)
    return Contrast(
        name,
        positive,
        negative,
        tuple(yes for (yes, _), _ in texts),
        tuple(no for (_, no), _ in texts),
        groups,
        groups,
        tuple(choices),
        instructions,
        openings(chat),
        chat=chat,
    )


def _sections(table: str) -> Iterator[_Section]:
    text = files("repscope.data").joinpath("contrast_texts", f"{table}.txt").read_text(encoding="utf-8")
    current: _Section | None = None
    for line in filter(None, map(str.strip, text.split("\n"))):
        if head := _HEAD.fullmatch(line):
            if current is not None:
                yield current
            current = (head[1], head[2] or "", [])
        elif current is None:
            raise ValueError(f"{table}: {line!r} stands before the first section")
        else:
            current[2].append(line)
    if current is not None:
        yield current


def _sides(line: str) -> tuple[str, str]:
    """The positive and the negative side of a line; a line without "|" is both."""
    left, _, right = (part.strip() for part in line.partition("|"))
    return left, right or left


def _pairs(lines: list[str], articles: bool) -> Iterator[tuple[str, str]]:
    frames = [_sides(line) for line in lines if "{}" in line]
    fillings = [_sides(line) for line in lines if "{}" not in line]
    for frame in frames:
        for filling in fillings:
            yes, no = (f.replace("{}", word) for f, word in zip(frame, filling, strict=True))
            yield (_fit(yes), _fit(no)) if articles else (yes, no)


def _choices(group: str, lines: list[str], chat: bool) -> Iterator[Choice]:
    prompts = [line for line in lines if "|" not in line]
    answers = [_sides(line) for line in lines if "|" in line]
    for prompt in prompts:
        space = "" if chat or prompt.endswith(('"', "«")) else " "
        for yes, no in answers:
            yield Choice(prompt, space + yes, space + no, group)


def _facts(group: str, lines: list[str]) -> Iterator[Choice]:
    frames = [line for line in lines if "{}" in line]
    known = [_sides(line) for line in lines if "{}" not in line]
    for frame in frames:
        for i, (subject, answer) in enumerate(known):
            yield Choice(frame.replace("{}", subject), f" {answer}", f" {known[(i + 1) % len(known)][1]}", group)


def _fit(text: str) -> str:
    return _ARTICLE.sub(r"\1n ", text)


CONTRASTS: dict[str, Callable[[], Contrast]] = {
    "sentiment": lambda: _built(
        "sentiment",
        "positive",
        "negative",
        ("Write an enthusiastic, positive text.\n\n", "Write a disappointed, negative text.\n\n"),
    ),
    "formality": lambda: _built(
        "formality", "formal", "informal", ("Write in formal, polite language.\n\n", "Write in casual, everyday slang.\n\n")
    ),
    "language": lambda: _built(
        "language",
        "French",
        "English",
        ("Write the whole text in French.\n\n", "Write the whole text in English.\n\n"),
        articles=False,
    ),
    "refusal": lambda: _built(
        "refusal",
        "refuses",
        "complies",
        ("Refuse every request, whatever it is.\n\n", "Comply with every request, whatever it is.\n\n"),
        chat=True,
    ),
    "honesty": lambda: _built("honesty", "honest", "deceptive", ("Say only what is true.\n\n", "Say only what is false.\n\n")),
}
