"""Published tables of runs: loaders of accuracies and clusters, and sources of the files.

1. `accuracies`: a table with one row per run, as published for "BERTs of a feather do not generalize together" (McCoy, Min &
   Linzen, 2020): a column of runs (`Run 12` or `12`) and columns of scores. Blank rows and rows of `SUMMARIES` (minimum, mean …)
   are skipped.
2. `clusters`: a table with the columns run and cluster, or a list of the runs of one cluster, one per line or separated by commas;
   all other runs are then in the other cluster. `feather_clusters` is such a list, cited as a fact from a README.
3. `Clusters.of` joins the two: one label per run of the table. Runs missing from the table or from all clusters are errors.

Invalid cells, repeated runs and missing columns are errors, never guessed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import pandas as pd

from repscope.data.numerals import is_numeral, numbers
from repscope.data.reading import How, shortened
from repscope.data.separated import text_of
from repscope.data.table_files import SUFFIXES
from repscope.data.tables import DataTable, read_table
from repscope.errors import UserError, unknown

RUN, CLUSTER = "run", "cluster"
SMALLER, LARGER = "smaller", "larger"
LISTED, OTHERS = "listed", "others"
SUMMARIES = ("minimum", "min", "maximum", "max", "mean", "average", "median", "standard deviation", "std", "sd")
FEATHER_ID = "MNLI dev acc."  #: the column of in-domain accuracy in that table
FEATHER_OOD = "Lexical (nonent)"  #: the column that its paper and Juneja et al. turn on

_FEATHER = (15, 25, 26, 42, 44, 46, 56, 61, 63, 70, 73, 89)
_RUN = re.compile(r"(?:run\s*)?([0-9]{1,9})(?:\.0+)?", re.IGNORECASE)


@dataclass(frozen=True)
class PublishedTable:
    """Source of a published file. holds: its contents. at: repository and path. licence: of the file."""

    holds: str
    at: str
    licence: str
    paper: str

    def __str__(self) -> str:
        return f"{self.holds}: {self.at} ({self.licence}); {self.paper}."


SOURCES: Mapping[str, PublishedTable] = {
    "feather": PublishedTable(
        "Accuracies on MNLI and HANS of 100 BERTs fine-tuned with different seeds",
        "https://github.com/tommccoy1/hans, berts_of_a_feather/berts_of_a_feather_accuracies_by_run.csv",
        "MIT",
        "McCoy, Min & Linzen 2020, arXiv 1911.02969",
    ),
    "feather clusters": PublishedTable(
        "Which of those 100 runs are in the smaller cluster of their barriers",
        "https://github.com/aNOnWhyMooS/connectivity, README.md, the row of MNLI (built in)",
        "twelve numbers, cited as a fact",
        "Juneja et al., ICLR 2023, arXiv 2205.12411",
    ),
}


@dataclass(frozen=True)
class Clusters:
    """Clusters of runs. named: cluster by run. rest: cluster of all other runs, or "". source: where they are from."""

    named: Mapping[int, str]
    rest: str
    source: str

    def of(self, runs: Iterable[int]) -> list[str]:
        """The cluster of each run, in their order.

        Raises
        ------
        UserError
            If a run of the clusters is not among these, or one of these is in no cluster.
        """
        asked = [int(run) for run in runs]
        if lost := sorted(set(self.named) - set(asked)):
            raise UserError(
                f"{self.source} names {_runs(lost)}, which the table of {len(asked)} runs lacks; "
                "give the clusters of this table's runs."
            )
        if not self.rest and (left := sorted(set(asked) - set(self.named))):
            raise UserError(f"{self.source} has no cluster for {_runs(left)} of the table; add {_them(left)} to it.")
        return [self.named.get(run, self.rest) for run in asked]


def accuracies(path: str | Path, **how: Unpack[How]) -> pd.DataFrame:
    """Scores by run.

    Parameters
    ----------
    path
        A table (`tables`) with a column `Run` and at least one column of numbers.
    how
        `decimal`, `na` and `quote`, see `Reading`.

    Returns
    -------
    frame
        `run` (int64), then one float64 column per score under its given name, in the file's order; notes on reading are in
        `frame.attrs["notes"]`.

    Raises
    ------
    UserError
        If the file cannot be read as such a table.
    """
    path = Path(path).expanduser()
    table = read_table(path, **how)
    text = table.frame.map(str.strip)
    column = _column(text, RUN, path)
    text = text[(text != "").any(axis=1) & ~text[column].str.casefold().isin(SUMMARIES)]
    if text.empty:
        raise UserError(f"{path} has no row of a run; give one row per run, such as 'Run 12'.")
    frame = pd.DataFrame({RUN: _numbered(text[column], path)})
    notes = list(table.notes)
    for name in text.columns.drop(column):
        frame[name], told = _numbers(text[name], name, frame[RUN], table)
        notes += told
    if frame.shape[1] == 1:
        raise UserError(f"{path} has runs and no column of scores beside {column!r}; give a column of numbers.")
    frame = frame.reset_index(drop=True)
    frame.attrs["notes"] = tuple(notes)
    return frame


def feather_clusters() -> Clusters:
    """The smaller cluster of the 100 MNLI runs: twelve run numbers, a fact from the README of aNOnWhyMooS/connectivity.

    >>> len(feather_clusters().named), feather_clusters().of(range(100)).count("larger")
    (12, 88)
    """
    return Clusters(dict.fromkeys(_FEATHER, SMALLER), LARGER, "The README of aNOnWhyMooS/connectivity (MNLI)")


def clusters(path: str | Path) -> Clusters:
    """A user's own clusters: a table with the columns `run` and `cluster`, or a list of the runs of one cluster.

    Raises
    ------
    UserError
        If the file is neither.
    """
    path = Path(path).expanduser()
    table = path.suffix.lower() in SUFFIXES and path.is_file()
    if table and not (path.suffix.lower() != ".parquet" and _is_list(path)):
        frame = read_table(path).frame.map(str.strip)
        frame = frame[(frame != "").any(axis=1)]
        label = frame[_column(frame, CLUSTER, path)]
        runs = _numbered(frame[_column(frame, RUN, path)], path)
        if (label == "").any():
            raise UserError(f"{path} leaves the cluster of {_runs(runs[label == ''])} empty; name it or leave the row out.")
        return Clusters(dict(zip(runs.tolist(), label.tolist())), "", path.name)
    words = _words(path)
    if not words:
        raise UserError(f"{path} names no run; write the runs of one cluster, one a line or with commas between.")
    runs = _numbered(pd.Series(words, dtype=object), path)
    return Clusters(dict.fromkeys(runs.tolist(), LISTED), OTHERS, path.name)


def where() -> tuple[str, ...]:
    """One sentence per published file: contents, location, licence, paper.

    >>> "tommccoy1/hans" in where()[0]
    True
    """
    return tuple(map(str, SOURCES.values()))


def _column(frame: pd.DataFrame, name: str, path: Path) -> str:
    found = [str(c) for c in frame.columns if str(c).casefold() == name]
    if not found:
        raise unknown(f"column of {path.name}", name, frame.columns)
    if len(found) > 1:
        raise UserError(f"{path} has the columns {' and '.join(map(repr, found))}; keep one of them.")
    return found[0]


def _numbered(cells: pd.Series, path: Path) -> pd.Series:
    """Run numbers of cells such as "Run 12" and "12", each once."""
    found = cells.map(_RUN.fullmatch)
    if (bad := cells[found.isna()]).size:
        raise UserError(f"{path} has {shortened(bad.iloc[0])!r} where a run should be; write 'Run 12' or 12.")
    runs = found.map(lambda match: int(match[1])).astype("int64")
    if (twice := runs[runs.duplicated()]).size:
        raise UserError(f"{path} names {_runs(twice.unique())} more than once; keep one of each.")
    return runs


def _numbers(cells: pd.Series, name: str, runs: pd.Series, table: DataTable) -> tuple[pd.Series, list[str]]:
    if (bad := ~cells.map(is_numeral).astype(bool)).any():
        cell = shortened(str(cells[bad].iloc[0]))
        raise UserError(
            f"Column {name!r} of {table.path.name} has {repr(cell) if cell else 'nothing'} for run {runs[bad].iloc[0]}, "
            "not a number; fill it in or leave out that run or that column."
        )
    decimal = "." if name in table.native else table.how.decimal
    found, notes = numbers(cells, name, table.where, decimal)
    return pd.Series(found, index=cells.index), notes


def _words(path: Path) -> list[str]:
    """Words separated by commas, semicolons or white space, without quotation marks; "Run 12" stays one word."""
    if not path.is_file():
        raise UserError(f"There is no file {path}; give a table of run and cluster, or a list of the runs of one cluster.")
    try:
        text = text_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the file and its permissions.") from error
    text = re.sub(r"\b(run)\s+(?=[0-9])", r"\1", text, flags=re.IGNORECASE)
    return [word for word in (w.strip("'\"") for w in re.split(r"[\s,;]+", text)) if word]


def _is_list(path: Path) -> bool:
    words = _words(path)
    return bool(words) and all(_RUN.fullmatch(word) for word in words)


def _runs(runs: Iterable[int]) -> str:
    held = [str(int(run)) for run in runs]
    more = f" and {len(held) - 5} more" if len(held) > 5 else ""
    return f"run{'s' if len(held) > 1 else ''} {', '.join(held[:5])}{more}"


def _them(runs: list[int]) -> str:
    return "it" if len(runs) == 1 else "them"
