"""Prompts as texts with named character spans."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repscope.errors import UserError

_PLACE = re.compile(r"\{\s*(?:[^\W\d]\w*|\d*)\s*\}")  #: what reads as a place for a value: {}, {0}, {name}


@dataclass(frozen=True)
class Prompt:
    """A text and named spans of its characters, each (start, end) with the end not included.

    text: what the network reads. spans: name → (start, end). special: whether the tokenizer adds its special tokens, which a
    rendered chat template already holds.

    Raises
    ------
    UserError
        For a text that is no text, and a span that is empty, reversed or outside the text.
    """

    text: str
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    special: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UserError(f"The text of a prompt is a string, and {described(self.text)} was given.")
        if not isinstance(self.spans, Mapping):
            raise UserError(f"The spans of {described(self.text)} are {described(self.spans)}; give {{name: (start, end)}}.")
        for name, span in self.spans.items():
            _see(self.text, name, span)

    @classmethod
    def fill(cls, template: str, **values: str) -> "Prompt":
        """A prompt from a template; each value is a span under its name. A lone `{}` takes the only value.

        >>> Prompt.fill("The place called {}", subject="Paris")
        Prompt(text='The place called Paris', spans={'subject': (17, 22)}, special=True)

        Raises
        ------
        UserError
            When a value is empty or no text, or the template's places and the values differ.
        """
        if not isinstance(template, str):
            raise UserError(f"A template is a text such as 'The capital of {{}}', and {described(template)} was given.")
        written = template
        if len(values) == 1 and template.count("{}") == 1:
            template = template.replace("{}", "{" + next(iter(values)) + "}")
        found = sorted((template.find("{" + name + "}"), name) for name in values)
        if found and found[0][0] < 0:
            raise UserError(f"The template {written!r} has no place {{{found[0][1]}}}.")
        if twice := [name for name in values if template.count("{" + name + "}") > 1]:
            raise UserError(f"The template {written!r} has the place {{{twice[0]}}} twice; a span is one place.")
        if left := [place for place in _PLACE.findall(template) if place[1:-1] not in values]:
            raise UserError(
                f"The template {written!r} has the place {left[0]} and no value for it; give one, or write the text "
                "with its braces and its spans yourself: Prompt(text, spans)."
            )
        text, spans, done = "", {}, 0
        for at, name in found:
            if not isinstance(values[name], str):
                raise UserError(f"The value for {{{name}}} is {described(values[name])}; give it as a text.")
            if not values[name].strip():
                raise UserError(f"The value for {{{name}}} in the template {written!r} is empty.")
            text += template[done:at]
            spans[name] = (len(text), len(text) + len(values[name]))
            text += values[name]
            done = at + len(name) + 2
        return cls(text + template[done:], spans)


def with_continuation(prompt: str | Prompt, tail: str) -> Prompt:
    """A prompt and its continuation as one text, the continuation a span."""
    prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(tail, str):
        raise UserError(f"A continuation is a text, and {described(tail)} was given.")
    if not tail:
        raise UserError(f"The continuation of {described(prompt.text)} covers no token, as it is empty.")
    if "continuation" in prompt.spans:
        raise UserError("A span of a prompt is named 'continuation', as what follows it is; give it another name.")
    span = (len(prompt.text), len(prompt.text) + len(tail))
    return Prompt(prompt.text + tail, {**prompt.spans, "continuation": span}, prompt.special)


def described(given: Any) -> str:
    """What was given, short enough for an error: a text or number itself, of anything else the type."""
    if given is None or isinstance(given, (str, bytes, bool, int, float)):
        said = repr(given)
        return said if len(said) <= 44 else f"{said[:40]} …{said[0] if said[0] in chr(39) + chr(34) else ''}"
    return f"a {type(given).__name__}"


def _see(text: str, name: Any, span: Any) -> None:
    """See that a span is one of characters of the text."""
    try:
        start, end = span
    except (TypeError, ValueError):
        start = end = None
    if not all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in (start, end)):
        raise UserError(f"The span {name!r} of {described(text)} is {span!r}; a span is (start, end) in characters.")
    assert start is not None
    assert end is not None
    if not 0 <= start < end <= len(text):
        why = "holds no character" if start >= end else f"is not inside the text, which has {len(text)} characters"
        raise UserError(f"The span {name!r} of {described(text)} is {(int(start), int(end))}, which {why}.")
