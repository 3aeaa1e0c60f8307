"""Chats formatted by the tokenizer's chat template as one prompt with a span per turn.

1. The template is rendered with a placeholder for each content. If it omits or reorders turns, it is refused (the system prompt may
   have any position).
2. The template is rendered with the contents. The result must be the first rendering with the contents inserted, except for white
   space around a content, which many templates strip. This gives the spans.
3. A template that fails, or loses a content, is tried again with contents as lists of parts, as in vision-language models.
4. A chat that ends with an assistant's turn is continued from its content; any other is followed by the template's opening of an
   answer.

The template writes the special tokens itself, so the tokenizer adds none.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repscope.errors import UserError
from repscope.models.inputs.notices import warn_once
from repscope.models.inputs.text_spans import Prompt, described

_PART_MARK = "repscopepart"
_INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True)
class _Turn:
    role: str
    content: Prompt

    def __str__(self) -> str:
        return f"{self.role} turn ({described(self.content.text)})"


class _Refused(Exception):
    """Why a rendering cannot be used; a whole sentence."""


def chat_prompt(tokenizer: Any, chat: Sequence[Mapping[str, Any]]) -> Prompt:
    """A chat as a prompt; see `LanguageModel.chat`.

    Raises a `UserError` for turns that are none, a tokenizer without a template, and a template that raises, or changes or
    loses a content.
    """
    turns = [_turn(given) for given in chat]
    if not turns or turns[-1].role in _INSTRUCTIONS:
        raise UserError("A chat ends with a user's turn, which is answered, or an assistant's, which is continued.")
    if not turns[-1].content.text.strip():
        raise UserError(f"The last turn of the chat, the {turns[-1].role}'s, is empty.")
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("The tokenizer has no chat template; use plain prompts.")
    try:
        return _rendered(tokenizer, turns, parts=False)
    except _Refused as refused:
        try:
            return _rendered(tokenizer, turns, parts=True)
        except _Refused:
            raise UserError(str(refused)) from (refused.__cause__ or refused)


def _turn(given: Any) -> _Turn:
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        held = f"the keys {', '.join(map(str, given))}" if isinstance(given, Mapping) else described(given)
        raise UserError(f"A turn of a chat is {{'role': …, 'content': …}} and nothing else, and {held} was given.")
    role, content = given["role"], given["content"]
    if not isinstance(role, str) or not role:
        raise UserError(f"The role of a turn is a name such as 'user', and {described(role)} was given.")
    if isinstance(content, Sequence) and not isinstance(content, str) and len(content) == 1:
        part = content[0]
        if isinstance(part, Mapping) and part.get("type") == "text":
            content = part.get("text")
    if isinstance(content, str):
        content = Prompt(content)
    if not isinstance(content, Prompt):
        raise UserError(f"The content of the {role}'s turn is a text or a Prompt, and {described(content)} was given.")
    return _Turn(role, content)


def _rendered(tokenizer: Any, turns: Sequence[_Turn], *, parts: bool) -> Prompt:
    contents = [turn.content.text for turn in turns]
    held = [i for i, content in enumerate(contents) if content.strip()]
    marks = {i: f"repscope{i}content" for i in held}
    skeleton = _applied(tokenizer, turns, [marks.get(i, content) for i, content in enumerate(contents)], parts)
    places = [(skeleton.find(marks[i]), i) for i in held]
    if lost := [i for place, i in places if place < 0]:
        hint = "; put the instruction into the user's turn" if turns[lost[0]].role in _INSTRUCTIONS else ""
        raise _Refused(f"The chat template leaves out or rewrites the {turns[lost[0]]}{hint or '; use a plain prompt'}.")
    spoken = [place for place, i in places if turns[i].role not in _INSTRUCTIONS]
    if spoken != sorted(spoken):
        raise _Refused("The chat template puts the turns in another order than they were given in.")

    text = _applied(tokenizer, turns, contents, parts)
    pieces = re.split("|".join(marks[i] for i in held), skeleton)
    order = [int(mark[len("repscope") : -len("content")]) for mark in re.findall(r"repscope\d+content", skeleton)]
    pattern, seen = re.escape(pieces[0]), set()
    for i, after in zip(order, pieces[1:]):
        forms = dict.fromkeys((contents[i], contents[i].rstrip(), contents[i].lstrip(), contents[i].strip()))
        pattern += f"(?P=c{i})" if i in seen else f"(?P<c{i}>{'|'.join(map(re.escape, forms))})"
        pattern += re.escape(after)
        seen.add(i)
    match = re.fullmatch(pattern, text)
    if match is None:
        absent = [turns[i] for i in held if contents[i].strip() not in text]
        which = absent[0] if absent else turns[held[-1]]
        raise _Refused(f"The chat template changes the content of the {which}; use a plain prompt, or another content.")
    return _with_spans(tokenizer, turns, text, {i: match.span(f"c{i}") for i in held})


def _with_spans(tokenizer: Any, turns: Sequence[_Turn], text: str, found: Mapping[int, tuple[int, int]]) -> Prompt:
    """The prompt with a span `turnI` for each turn, `content` for the last of a user, and the contents' own."""
    spans: dict[str, tuple[int, int]] = {f"turn{i}": place for i, place in found.items()}
    asked = [i for i in found if turns[i].role == "user"]
    spans["content"] = found[(asked or list(found))[-1]]
    for i, (start, end) in found.items():
        content = turns[i].content
        cut = content.text.find(text[start:end])  # white space before it that the template has stripped
        if end - start < len(content.text):
            warn_once(tokenizer, "The chat template strips white space around what a turn says; spans are moved with it.")
        for name, (a, b) in content.spans.items():
            if name in spans:
                raise UserError(f"The name {name!r} of a span in the {turns[i]} is taken; give it another name.")
            a, b = start + max(a - cut, 0), start + min(b - cut, end - start)
            if a >= b:
                raise UserError(f"The chat template strips the span {name!r} of the {turns[i]}, which is white space.")
            spans[name] = (a, b)
    if turns[-1].role == "assistant":  # continued: what would end the turn is left out
        end = found[len(turns) - 1][1]
        text, spans = text[:end], {name: span for name, span in spans.items() if span[1] <= end}
    return Prompt(text, spans, special=False)


def _applied(tokenizer: Any, turns: Sequence[_Turn], contents: Sequence[str], parts: bool) -> str:
    """What the template makes of the turns with these contents."""

    def apply(which: Sequence[int]) -> str:
        given = [{"role": turns[i].role, "content": _parts(contents[i]) if parts else contents[i]} for i in which]
        answers = turns[-1].role != "assistant"
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=answers))

    everything = range(len(turns))
    try:
        text = apply(everything)
    except Exception as error:  # a template is a program and raises what it likes
        spoken = [i for i in everything if turns[i].role not in _INSTRUCTIONS]
        if len(spoken) < len(turns):
            try:
                apply(spoken)
            except Exception:  # not for the sake of the system turn
                pass
            else:
                said = _said(error)
                raise _Refused(
                    f"The chat template takes no {turns[0].role} turn{said}; put the instruction into the user's turn."
                ) from error
        raise _Refused(f"The chat template does not take these turns{_said(error)}; use others, or a plain prompt.") from error
    if parts and _PART_MARK in text:
        raise _Refused("The chat template writes a list of parts as it stands.")
    return text


def _parts(content: str) -> list[dict[str, str]]:
    """A content as a list of parts, with a mark that comes out where a template prints the list itself."""
    return [{"type": "text", "text": content, _PART_MARK: _PART_MARK}]


def _said(error: Exception) -> str:
    said = " ".join(str(error).split()).split(". ")[0]
    return f" ({said[:120].rstrip('.')})" if said else ""
