"""Everyday requests to a model, plain texts: what directions are discovered on and judged on where a user brings no prompts.

A file of the user's holds one prompt a line (.txt), or is a table with the column text.
"""

from pathlib import Path

from repscope.data.tables import SUFFIXES, read_table
from repscope.errors import UserError, unknown

SEEN = (
    "What should I do this weekend?", "Tell me something about the sea.", "How do I bake bread?",
    "Who was the first person on the moon?",
)  # fmt: skip
HELD = (
    "What is a good present for a friend?", "Tell me a story about a dog.", "Why is the sky blue?",
    "Give me advice on sleeping well.", "How do computers work?", "Describe a walk in the forest.",
)  # fmt: skip
LEAST = 4  #: prompts of a file: two to discover on, two to judge on


def requests(path: str | Path | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts to discover on, and others to judge on: the built-in ones, or those of a file, every second one held out.

    Raises
    ------
    UserError
        For a file that is not there, of another kind, or with fewer than four different prompts.
    """
    if path is None:
        return SEEN, HELD
    file = Path(path).expanduser()
    if file.suffix.lower() not in (".txt", *SUFFIXES):
        raise unknown("kind of prompts file", file.suffix or file.name, (".txt", *SUFFIXES))
    if file.suffix.lower() == ".txt":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read as text ({error}); check the path.") from error
    else:
        lines = [str(text) for text in read_table(file, ["text"])["text"]]
    held = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(held) < LEAST:
        raise UserError(f"{file} holds {len(held)} different prompts; give {LEAST} at least, half of them to judge on.")
    return held[::2], held[1::2]
