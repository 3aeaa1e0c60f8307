"""A relation by its name, or from a file of the user's.

Files: JSON as in that paper's dataset ({"name", "prompt_templates", "samples": [{"subject", "object"}]}), or a table with the
columns subject and object. Text that was escaped twice (a literal \\u00ed) is repaired and counted; a subject with
two different objects is left out and counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from repscope.data.reading import How
from repscope.data.relations.built_in import RELATIONS
from repscope.data.relations.definition import Relation, of_pairs
from repscope.data.separated import json_of
from repscope.data.tables import read_table, table_path
from repscope.errors import UserError

OWN_TEMPLATE = "{}:"  #: of a table that brings none


def relation(name_or_path: str | Path, *, templates: Sequence[str] = (), **how: Unpack[How]) -> Relation:
    """A built-in relation by its name, or a file of the user's (JSON of the LRE dataset, or a table).

    Parameters
    ----------
    name_or_path
        One of `relation_names()`, or a path.
    templates
        In place of the relation's own. A table has none; without this it is asked as "subject: object".
    how
        `decimal`, `na` and `quote` of a table, see `Reading`.

    Raises
    ------
    UserError
        For a relation, file or column that is not there, and a file that is not what it should be.
    """
    asked = str(name_or_path)
    own = tuple(templates)
    if asked in RELATIONS:
        found = RELATIONS[asked]()
        return replace(found, templates=own) if own else found
    path = table_path(asked, "relation", RELATIONS)
    return _of_json(path, own, how) if path.suffix.lower() == ".json" else _of_table(path, own, how)


def relation_names() -> tuple[str, ...]:
    """The relations that are built in."""
    return tuple(RELATIONS)


def _of_json(path: Path, templates: tuple[str, ...], how: How) -> Relation:
    found = json_of(path, "relation")
    if isinstance(found, list):
        return _of_table(path, templates, how)
    if not isinstance(found, dict) or not isinstance(found.get("samples"), list):
        raise UserError(f'{path} must be an object with "samples": [{{"subject": …, "object": …}}], as in the LRE dataset.')
    own = templates or _texts(found.get("prompt_templates"), f"{path}: prompt_templates")
    pairs = []
    for i, sample in enumerate(found["samples"]):
        if not isinstance(sample, dict) or not all(isinstance(sample.get(k), str) for k in ("subject", "object")):
            raise UserError(f'{path}: sample {i} must have the texts "subject" and "object", not {str(sample)[:80]!r}.')
        pairs.append((sample["subject"], sample["object"]))
    name = found.get("name")
    return of_pairs(name if isinstance(name, str) and name.strip() else path.stem, [t.strip() for t in own], pairs)


def _of_table(path: Path, templates: tuple[str, ...], how: How) -> Relation:
    table = read_table(path, ["subject", "object"], **how)
    notes = [] if templates else [f"{path.stem}: a table has no template; it was asked as {OWN_TEMPLATE!r}."]
    pairs = zip(table.frame["subject"], table.frame["object"])
    return of_pairs(path.stem, templates or (OWN_TEMPLATE,), pairs, [*table.notes, *notes])


def _texts(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(t, str) for t in given):
        raise UserError(f"{where} must be a list of texts, each with {{}} for the subject.")
    return tuple(given)
