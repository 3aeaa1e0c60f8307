"""The glossary: definition, formula and source of each term, metric and condition of a table.

Terms and metrics are data (`glossary.toml`). Conditions are defined in `repscope.conditions` and joined here, so that each sentence
exists once. A metric such as `gain` can mean different things in different studies; its entry names the studies.
"""

import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from repscope.conditions import compared, condition

_FILE = Path(__file__).with_name("glossary.toml")


class GlossaryEntry(BaseModel):
    """One term.

    term: as a page shows it. definition: one or two sentences. formula: plain text, or "". source: literature, or "". metrics:
    names of the column `metric` that it defines, with `*` for any text. studies: in whose tables; all if empty. also: other words
    that it defines, with `*` for any text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    term: str = Field(min_length=1)
    definition: str = Field(pattern=r"^[^a-z].*[.]$")
    formula: str = ""
    source: str = ""
    metrics: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def defines(self, metric: str, study: str = "") -> bool:
        """Whether it defines this metric in the tables of this study ("": of any study)."""
        here = not study or not self.studies or study in self.studies
        return here and any(fnmatchcase(metric, name) for name in self.metrics)

    def explains(self, word: str, study: str = "") -> bool:
        """Whether it defines this other word (an item, a site, a column) in the tables of this study."""
        here = not study or not self.studies or study in self.studies
        return here and any(fnmatchcase(word, name) for name in self.also)


@cache
def load_glossary(path: Path = _FILE) -> tuple[GlossaryEntry, ...]:
    """The entries of a file, in its order. An invalid file is a bug of the package, not a user's mistake.

    Raises
    ------
    RuntimeError
        For an invalid file; says where.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return tuple(GlossaryEntry.model_validate(entry) for entry in content["entries"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise RuntimeError(f"{path} is not a glossary: {error!r}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = " → ".join(str(part) for part in first["loc"])
        raise RuntimeError(f"{path} contains an entry that is wrong at {where} ({first['input']!r}): {first['msg']}") from error


def entries_for(
    metrics: Iterable[str], conditions: Iterable[str] = (), *, study: str = "", words: Iterable[str] = ()
) -> tuple[GlossaryEntry, ...]:
    """The entries of a table: metrics and words in the order of the glossary, then conditions in the given order, each entry once.

    Parameters
    ----------
    metrics, conditions
        Values of these columns. "over X" (of a gain) is explained as X.
    study
        The study of the table, as a metric's meaning can depend on it; "" for all meanings.
    words
        Other words of the page, such as values of the columns `item` and `site`. Words and metrics without an entry have none.

    Raises
    ------
    ValueError
        For an unknown condition.

    >>> [e.term for e in entries_for(["r2", "gain"], ["estimate", "over shuffled labels"], study="entities")]
    ['gain', 'R²', 'estimate', 'shuffled labels']
    """
    sought, others = set(metrics), set(words)
    found = [
        entry
        for entry in load_glossary()
        if any(entry.defines(m, study) for m in sought) or any(entry.explains(w, study) for w in others)
    ]
    explained: dict[str, GlossaryEntry] = {}
    for name in dict.fromkeys(compared(c) for c in conditions):
        meaning = condition(name).meaning
        explained.setdefault(meaning, GlossaryEntry(term=name, definition=meaning))
    return (*found, *explained.values())
