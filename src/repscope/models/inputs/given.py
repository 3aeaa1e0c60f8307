"""Conversion of user inputs (texts, chats, token ids) to `Prompt`s and arrays of ids.

Ambiguous inputs are refused: a single text (its letters would be prompts), a flat list of ids (each would be a prompt), a mapping
or data frame (its keys would be prompts). Ids are copied, so later changes of the list have no effect.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from repscope.errors import UserError
from repscope.models.inputs.chats import chat_prompt
from repscope.models.inputs.notices import warn_once
from repscope.models.inputs.text_spans import Prompt, described

Ids = Int[np.ndarray, "token"]
Chat = Sequence[Mapping[str, Any]]
PromptLike = str | Prompt | Sequence[int] | Ids | Chat


def as_prompts(tokenizer: Any, given: Iterable[PromptLike]) -> Iterator[Prompt | Ids]:
    """The prompts as `Prompt`s and rows of token ids, one by one.

    Raises a `UserError` for what is no list of prompts, and for a prompt that is none; names it.
    """
    prompts: Any = given
    if isinstance(prompts, Mapping) or hasattr(prompts, "input_ids"):
        raise UserError(
            "Prompts are texts or rows of token ids, and a mapping was given: pass the texts themselves, or a list of rows of "
            "its input_ids without padding, or put a chat's turns in [[ ]]."
        )
    if isinstance(prompts, (str, Prompt)):
        raise UserError(
            f"{described(getattr(prompts, 'text', prompts))} is one prompt, and a list of them is needed: put it in [ ]."
        )
    if isinstance(prompts, (bytes, bytearray)):
        raise UserError("Prompts are texts, and bytes were given: decode them, and put the text in [ ].")
    if hasattr(prompts, "columns"):
        raise UserError(f"Prompts are a list of texts, and a {type(prompts).__name__} was given: name its column.")
    if isinstance(prompts, (set, frozenset)):
        raise UserError("Prompts are a list of texts, and a set was given, which has no order: sort it.")
    if getattr(prompts, "ndim", 1) == 0 or not isinstance(prompts, Iterable):
        raise UserError(f"Prompts are a list of texts or of rows of token ids, and {described(prompts)} was given.")
    if getattr(prompts, "ndim", 1) == 2:
        rows = [_ids(row, i) for i, row in enumerate(prompts)]
        see_unpadded(tokenizer, rows, range(len(rows)), array=True)
    return (_one(tokenizer, one, i) for i, one in enumerate(prompts))


def see_unpadded(tokenizer: Any, rows: Sequence[Ids], numbers: Sequence[int], *, array: bool = False) -> None:
    """See that rows of ids, which are taken as they are, do not end or begin with padding.

    Rows are padded where all have one length. A token that ends or begins texts as well counts as padding where it stands twice,
    or where not every row has it; rows of an `array` are refused for it then, and a warning is given for lists.

    Raises a `UserError` for a row with padding; names it.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or not rows or not len(rows[0]) or any(len(row) != len(rows[0]) for row in rows):
        return
    shared = pad in (getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "bos_token_id", None))
    for step, where in ((-1, "ends"), (1, "begins")):
        runs = [_run(row[::step], pad) for row in rows]
        allowed = (1 if min(runs) else 0) if shared and len(rows) > 1 else int(shared)
        padded = [i for i, run in zip(numbers, runs) if run > allowed]
        if not padded:
            continue
        said = f"Prompt {padded[0]} {where} with the padding token {pad}"
        if array or not shared:
            raise UserError(f"{said}, which would be read as text: give rows of their own lengths, without padding.")
        warn_once(tokenizer, f"{said}, which is read as text; if it is padding, give rows of their own lengths.")


def _run(row: Ids, pad: int) -> int:
    other = np.flatnonzero(row != pad)
    return int(other[0]) if other.size else len(row)


def _one(tokenizer: Any, given: Any, i: int) -> Prompt | Ids:
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(str(given))
    if isinstance(given, Mapping):
        raise UserError(f"Prompt {i} is a mapping: a chat is a list of its turns, so put them in [[ ]].")
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], Mapping):
        try:
            return chat_prompt(tokenizer, given)
        except UserError as error:
            raise UserError(f"Prompt {i}: {error}") from error
    if isinstance(given, (bool, int, np.integer)) or getattr(given, "ndim", 1) == 0:
        raise UserError(f"Prompt {i} is {_number(given)}, and a prompt of token ids is a row of them: write [[…]].")
    if isinstance(given, (list, tuple, range, np.ndarray)) or hasattr(given, "detach") or hasattr(given, "__array__"):
        return _ids(given, i)
    said = (
        "bytes: decode them" if isinstance(given, (bytes, bytearray)) else f"{described(given)}: give a text or a row of token ids"
    )
    raise UserError(f"Prompt {i} is {said}.")


def _number(given: Any) -> str:
    return str(given.item()) if hasattr(given, "item") else repr(given)


def _ids(given: Any, i: int) -> Ids:
    try:
        row = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"Prompt {i} is no row of token ids: give whole numbers, one a token.") from error
    if row.ndim == 2 and len(row) == 1:  # as a tokenizer returns one text
        row = row[0]
    if row.ndim != 1:
        raise UserError(f"Prompt {i} has the shape {row.shape}, and a prompt of token ids is one row: list the rows.")
    if not row.size:
        return np.empty(0, dtype=np.int64)
    if row.dtype.kind in "US" or (row.dtype.kind == "O" and isinstance(row[0], str)):
        raise UserError(f"Prompt {i} is a list of texts; a prompt is one text, or a row of token ids.")
    if row.dtype.kind not in "iu" or (isinstance(given, (list, tuple)) and bool in map(type, given)):
        kind = "bool" if row.dtype.kind in "iub" else row.dtype
        raise UserError(f"Prompt {i} holds values of the type {kind}, and token ids are whole numbers.")
    if row.min() < 0:
        raise UserError(f"Prompt {i} holds the token id {row.min()}, and token ids are 0 or more.")
    return row.astype(np.int64, copy=True)
