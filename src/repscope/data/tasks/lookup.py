"""A task by its name, or from a file of the user's.

Files: JSON as in the function-vectors repository of Todd et al. (a list of {"input", "output"}), JSON of a relation of the LRE
dataset, or a table (CSV, TSV, Parquet, JSON lines) with the columns input and output, with two columns, or with two that are named.
"""

from pathlib import Path
from typing import Any, Unpack

from repscope.data.reading import How
from repscope.data.relations import relation, relation_names
from repscope.data.separated import json_of
from repscope.data.tables import read_table, table_path
from repscope.data.tasks.built_in import TASKS
from repscope.data.tasks.definition import Task, of_pairs
from repscope.errors import UserError

_COLUMNS = ("input", "output")


def task(name_or_path: str | Path, *, columns: tuple[str, str] | None = None, **how: Unpack[How]) -> Task:
    """A built-in task by its name, or a file of the user's.

    Parameters
    ----------
    name_or_path
        One of `task_names()`, or a path.
    columns
        The columns of a table that hold input and output; by default those of these names, or the only two.
    how
        `decimal`, `na` and `quote` of a table, see `Reading`.

    Raises
    ------
    UserError
        For a task, file or column that is not there, a file that is not what it should be, and a task with one label.

    >>> dict(task("present-past").pairs)["go"]
    'went'
    """
    asked = str(name_or_path)
    if asked in TASKS:
        return TASKS[asked]()
    if asked in relation_names():
        found = relation(asked)
        return of_pairs(asked, found.samples, f"relation {asked}", found.notes)
    path = table_path(asked, "task", task_names())
    return _of_json(path) if path.suffix.lower() == ".json" and columns is None else _of_table(path, columns, how)


def task_names() -> tuple[str, ...]:
    """The tasks that are built in: generated ones, and the relations."""
    return (*TASKS, *relation_names())


def _of_json(path: Path) -> Task:
    found = json_of(path, "task")
    if isinstance(found, dict) and "samples" in found:
        held = relation(path)
        return of_pairs(held.name, held.samples, str(path), held.notes)
    if not isinstance(found, list):
        raise UserError(f'{path} must be a list of {{"input": …, "output": …}}, as in the function-vectors repository.')
    return of_pairs(path.stem, [_pair(path, i, item) for i, item in enumerate(found)], str(path))


def _pair(path: Path, i: int, item: Any) -> tuple[str, str]:
    texts = [item.get(name) for name in _COLUMNS] if isinstance(item, dict) else []
    if len(texts) != 2 or not all(isinstance(t, (str, int, float)) and not isinstance(t, bool) for t in texts):
        raise UserError(f'{path}: item {i} must have one text "input" and one "output", not {str(item)[:80]!r}.')
    return str(texts[0]), str(texts[1])


def _of_table(path: Path, columns: tuple[str, str] | None, how: How) -> Task:
    if columns is not None and len(columns) != 2:
        raise UserError(f"A task has two columns, input and output, and {len(columns)} are named.")
    if columns is None:
        table = read_table(path, **how)
        names = list(table.frame.columns)
        if not set(_COLUMNS) <= set(names) and len(names) != 2:
            raise UserError(
                f"{path} has the columns {', '.join(map(str, names[:8]))}; name those of input and output with "
                "columns=(INPUT, OUTPUT)."
            )
        columns = _COLUMNS if set(_COLUMNS) <= set(names) else (names[0], names[1])
    table = read_table(path, list(columns), **how)
    return of_pairs(path.stem, zip(table.frame[columns[0]], table.frame[columns[1]]), str(path), table.notes)
