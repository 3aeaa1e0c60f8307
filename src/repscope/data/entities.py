"""Sets of named entities with attributes: cities, countries, chemical elements, or a user's table.

An `EntitySet` is a frame with one row per name, attributes that are classes or numbers, and templates that end in the name ("The
place called {}"). `target` gives one attribute as the target of a probe, without missing values and small classes; notes count
both. For names of several tokens, the caller passes a function that counts tokens.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from repscope.data import facts
from repscope.data.facts import TokenCount
from repscope.data.reading import How
from repscope.data.table_files import missing
from repscope.data.tables import clean, read_table, table_path
from repscope.errors import UserError, unknown

LEAST_ROWS = 20
LONGEST_NAME = 200


@dataclass(frozen=True)
class Attribute:
    """An attribute of entities. kind: a class, or a number in `unit`."""

    name: str
    kind: Literal["class", "number"]
    unit: str = ""


@dataclass(frozen=True)
class Target:
    """One attribute as the target of a probe.

    rows: rows of the set's frame with a value, increasing. values: class codes (int64) or numbers (float64), one per row. classes:
    the name of each code; empty for numbers. notes: omitted rows with reasons.
    """

    attribute: Attribute
    rows: Int[np.ndarray, "row"]
    values: Int[np.ndarray, "row"] | Float[np.ndarray, "row"]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EntitySet:
    """Named entities with attributes.

    name: of the set. frame: column "name", unique, and one column per attribute, rows numbered from 0; a class is text or None, a
    number is float64 or NaN. templates: prompts with one "{}" for the name. notes: omitted entities with reasons.
    """

    name: str
    frame: pd.DataFrame
    attributes: tuple[Attribute, ...]
    templates: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate early, where the cause of an error is clear."""
        for template in self.templates:
            if template.count("{}") != 1 or template.replace("{}", "").count("{"):
                raise UserError(f"Template {template!r} must hold {{}} exactly once, where the name goes.")
        if not self.templates:
            raise UserError(f"The entity set {self.name!r} has no template; give one that holds {{}}, such as 'I saw {{}}'.")
        if list(self.frame.columns) != ["name", *(a.name for a in self.attributes)]:
            raise ValueError(f"columns {list(self.frame.columns)} are not name and the attributes")
        if not self.frame["name"].is_unique:
            raise ValueError("names are not unique")

    def __len__(self) -> int:
        return len(self.frame)

    def attribute(self, name: str) -> Attribute:
        """The attribute of that name. Raises `UserError` with the nearest names if there is none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise unknown(f"attribute of {self.name}", name, [a.name for a in self.attributes])

    def prompts(self, template: str) -> list[str]:
        """The template filled with each name, in the order of the frame."""
        return [template.replace("{}", name) for name in self.frame["name"]]

    def target(self, attribute_name: str, *, min_count: int = 8) -> Target:
        """One attribute as the target of a probe.

        Parameters
        ----------
        attribute_name
            One of `attributes`.
        min_count
            Classes with fewer members are left out.

        Raises
        ------
        UserError
            If there is no such attribute, or too little remains: one class, fewer than 20 rows, equal numbers.
        """
        attribute = self.attribute(attribute_name)
        column = self.frame[attribute.name]
        who = f"Attribute {attribute.name!r} of {self.name}"
        present = column.notna().to_numpy()
        notes = []
        if missing := int((~present).sum()):
            notes.append(f"{who}: {missing} of {len(column)} entities have no value and are left out.")
        rows = np.flatnonzero(present)
        if attribute.kind == "number":
            values = column.to_numpy(dtype=np.float64)[rows]
            _check_rows(who, rows)
            if np.ptp(values) == 0:
                raise UserError(f"{who} is {values[0]:g} for all {len(rows)} entities; choose an attribute that varies.")
            return Target(attribute, rows, values, (), tuple(notes))
        counts = column.iloc[rows].value_counts()
        classes = sorted(counts.index[counts >= min_count], key=_natural)
        if len(classes) < 2:
            held = f"the largest, {counts.index[0]!r}, has {counts.iloc[0]}" if len(counts) else "no entity has a value"
            raise UserError(
                f"{who} has {len(classes)} of the 2 classes that a probe needs: of its {len(counts)}, only those with "
                f"{min_count} or more members count ({held}); choose another attribute or add entities."
            )
        if small := list(counts.index[counts < min_count]):
            lost = int(counts[counts < min_count].sum())
            listed = ", ".join(small[:8]) + (" …" if len(small) > 8 else "")
            classes_of = "1 class" if len(small) == 1 else f"{len(small)} classes"
            notes.append(f"{who}: {lost} entities in {classes_of} of fewer than {min_count} are left out ({listed}).")
        codes = column.iloc[rows].map({c: i for i, c in enumerate(classes)})
        rows = rows[codes.notna().to_numpy()]
        _check_rows(who, rows)
        return Target(attribute, rows, codes.dropna().to_numpy(dtype=np.int64), tuple(classes), tuple(notes))

    def take(self, rows: Int[np.ndarray, "row"], note: str = "") -> "EntitySet":
        """The set with only these rows of its frame; `note` gives the reason."""
        frame = self.frame.iloc[rows].reset_index(drop=True)
        return replace(self, frame=frame, notes=(*self.notes, *([note] if note else [])))

    def sample(self, max_entities: int, seed: int = 0) -> "EntitySet":
        """A random sample of at most `max_entities`, in the order of the frame."""
        if max_entities < 1:
            raise UserError(f"A sample of {max_entities} entities is empty; ask for at least 1.")
        if len(self) <= max_entities:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), max_entities, replace=False))
        return self.take(rows, f"{max_entities} of {len(self)} entities were drawn at random (seed {seed}).")


def cities(per_class: int = 60, token_count: TokenCount | None = None) -> EntitySet:
    """The `per_class` most populous cities of each of five continents, largest first; see `facts.cities`."""
    return _built_in("cities", *facts.cities(per_class, token_count))


def countries(min_population: int = 500_000) -> EntitySet:
    """Countries and territories, most populous first; see `facts.countries`."""
    return _built_in("countries", *facts.countries(min_population))


def elements() -> EntitySet:
    """The 118 chemical elements; see `facts.elements`."""
    return _built_in("elements", *facts.elements())


def labelled_text(path: str | Path, text_column: str, label_columns: Sequence[str], **how: Unpack[How]) -> EntitySet:
    """A table with one text and one or more labels per row, as a set whose only template is "{}".

    Texts are unique, so that none is on both sides of a split. Copies with conflicting labels have no label. `how`:
    `decimal`, `na` and `quote`, see `Reading`.
    """
    return _of_table(path, text_column, label_columns, ("{}",), None, how)


def entity_set(
    name_or_path: str | Path,
    *,
    name_column: str | None = None,
    attributes: Sequence[str] = (),
    templates: Sequence[str] | None = None,
    per_class: int = 60,
    token_count: TokenCount | None = None,
    **how: Unpack[How],
) -> EntitySet:
    """A built-in set by its name, or a user's table by its path.

    Parameters
    ----------
    name_or_path
        One of `SETS`, or the path of a `.csv`, `.tsv`, `.parquet`, `.json` or `.jsonl` file.
    name_column
        The table's column of names; default "name". Tables only.
    attributes
        Attributes to use; empty: all, for a table every other column that is a class or a number.
    templates
        Prompts replacing the set's own.
    per_class, token_count
        See `cities`; other sets do not use them.
    how
        `decimal`, `na` and `quote` of a table, see `Reading`.

    Raises
    ------
    UserError
        If there is no such set, file, column or attribute, or no usable data.
    """
    asked = str(name_or_path)
    if asked in SETS:
        if name_column is not None:
            raise UserError(f"The built-in set {asked!r} has its own names; leave out the name column {name_column!r}.")
        found = SETS[asked](per_class, token_count)
        kept = tuple(found.attribute(name) for name in dict.fromkeys(attributes)) or found.attributes
        return replace(
            found,
            attributes=kept,
            frame=found.frame[["name", *(a.name for a in kept)]],
            templates=found.templates if templates is None else tuple(templates),
        )
    path = table_path(asked, "set of entities", SETS)
    own = ("I am thinking of {}", "This is about {}", "{}") if templates is None else tuple(templates)
    return _of_table(path, name_column, attributes, own, LONGEST_NAME, how)


SETS: dict[str, Callable[[int, TokenCount | None], EntitySet]] = {
    "cities": cities,
    "countries": lambda per_class, token_count: countries(),
    "elements": lambda per_class, token_count: elements(),
}

_TEMPLATES = {
    "cities": ("The place called {}", "I have just come back from {}", "A map that shows {}"),
    "countries": ("The country called {}", "I have just come back from {}", "A map that shows {}"),
    "elements": ("The chemical element {}", "A sample of pure {}", "The lecture was about {}"),
}


def _built_in(name: str, frame: pd.DataFrame, notes: Sequence[str]) -> EntitySet:
    attributes = tuple(
        Attribute(c, "number" if frame[c].dtype == np.float64 else "class", facts.UNITS.get(c, ""))
        for c in frame.columns.drop("name")
    )
    return EntitySet(name, frame, attributes, _TEMPLATES[name], tuple(notes))


def _of_table(
    path: str | Path, name_column: str | None, attributes: Sequence[str], templates: tuple[str, ...], longest: int | None, how: How
) -> EntitySet:
    path = Path(path).expanduser()
    name = name_column or "name"
    if name in attributes:
        raise UserError(f"Column {name!r} holds the names; an attribute must be another column.")
    wanted = list(dict.fromkeys(attributes))
    table = read_table(path, [name, *wanted] if wanted else None, **how)
    if name not in table.frame:
        hint = "" if name_column else "Say which column holds the names."
        raise missing(path, name, table.header, hint)
    if not wanted and len(table.frame.columns) == 1:
        raise UserError(f"{path} has only the column {name!r}; add a column for each attribute.")
    cleaned, notes = clean(table.frame, name, longest=longest)
    columns: dict[str, pd.Series] = {}
    kinds: list[Attribute] = []
    told: list[str] = [*table.notes, *notes]
    for column in cleaned.columns.drop(name):
        try:
            found = table.typed(column, cleaned[column])
        except UserError as error:
            if wanted:
                raise
            told.append(f"{error} It is left out.")
            continue
        columns[column] = found.values
        kinds.append(Attribute(column, found.kind))
        told += found.notes
    if not kinds:
        raise UserError(f"{path} has no usable attribute: {' '.join(told)}")
    if "name" in columns:
        raise UserError(f"{path} has an attribute called 'name' beside the names in {name!r}; rename that column.")
    frame = pd.DataFrame({"name": cleaned[name], **columns}).reset_index(drop=True)
    return EntitySet(path.stem, frame, tuple(kinds), templates, tuple(told))


def _natural(text: str) -> tuple[float, float, str]:
    """Sort key: bands by their bounds, numbers by size, words after them."""
    number = re.match(r"(under )?(\d+(?:\.\d+)?)", text)
    return (0.0, float(number[2]) - 0.5 * bool(number[1]), text) if number else (1.0, 0.0, text)


def _check_rows(who: str, rows: Int[np.ndarray, "row"]) -> None:
    if len(rows) < LEAST_ROWS:
        raise UserError(
            f"{who} is known of {len(rows)} usable entities and a probe needs {LEAST_ROWS}; "
            "add entities or choose another attribute."
        )
