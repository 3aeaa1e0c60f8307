"""Everyday requests to a model: default prompts for the discovery of directions and its evaluation.

A user's file has one prompt per line (.txt), or is a table with the column text.
"""

from pathlib import Path
from typing import Unpack

from repscope.data.reading import How
from repscope.data.separated import lines_of
from repscope.data.table_files import SUFFIXES
from repscope.data.tables import WORKBOOKS, read_table
from repscope.errors import UserError, unknown

SEEN = (
    "What should I do this weekend?",
    "Tell me something about the sea.",
    "How do I bake bread?",
    "Who was the first person on the moon?",
)
HELD = (
    "What is a good present for a friend?",
    "Tell me a story about a dog.",
    "Why is the sky blue?",
    "Give me advice on sleeping well.",
    "How do computers work?",
    "Describe a walk in the forest.",
)
LEAST = 4  #: prompts of a file: two for discovery, two held out


Requests = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]  #: discovery prompts, held-out prompts, notes


def requests(path: str | Path | None = None, **how: Unpack[How]) -> Requests:
    """Discovery prompts, held-out prompts and notes: built in, or from a file, every second prompt held out.

    Raises
    ------
    UserError
        For a file that is missing, of another kind, or with fewer than four different prompts.
    """
    if path is None:
        return SEEN, HELD, ()
    file = Path(path).expanduser()
    if file.suffix.lower() not in (".txt", *SUFFIXES, *WORKBOOKS):
        raise unknown("kind of prompts file", file.suffix or file.name, (".txt", *SUFFIXES))
    notes: list[str] = []
    if file.suffix.lower() == ".txt":
        full = list(lines_of(file))
    else:
        table = read_table(file, ["text"], **how)
        given = [str(text).strip() for text in table.frame["text"]]
        full = [text for text in given if text]
        notes += table.notes
        if len(full) < len(given):
            notes.append(f"{len(given) - len(full)} of {len(given)} prompts of {file.name} are empty and left out.")
    held = tuple(dict.fromkeys(full))
    if len(held) < LEAST:
        raise UserError(f"{file} holds {len(held)} different prompts; give {LEAST} at least, half of them to judge on.")
    if len(held) < len(full):
        notes.append(f"{len(full) - len(held)} of {len(full)} prompts of {file.name} are copies and left out.")
    return held[::2], held[1::2], tuple(notes)
