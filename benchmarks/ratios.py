"""Ratios in the tables of RESULTS*.md, and which of them fell between two versions of a page.

Times of two runs are of two hours, and the machine may be several times slower in one of them. Ratios within a run compare what
ran in turn, so they are what can fall. Only tables are read, not ratios in sentences.

1. A page is read as tables; a cell goes by its section, the table's place in it, its row and its column.
2. `RULES` names the columns that are ratios, and whether a larger or a smaller one is better. In tables of two columns, where the
   row may say what the number is, the row's label is matched as well.
3. A cell's value is its first number: the median, where a range follows in brackets.
4. A ratio fell if it is worse by more than `FALL`; one that is no longer there is reported as well.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

FALL = 0.15  #: of the ratio before


class Rule(NamedTuple):
    """Columns that match `name` are ratios; `larger`: whether a larger one is better; `rows`: only rows that match."""

    name: str
    larger: bool
    rows: str = ""


OURS = r"repscope|lm\.|activation_patching|attribution_patching"
#: The first rule that matches decides.
RULES = (
    Rule(r"^CPU × the patched peer$", False, OURS),
    Rule(r"^of a bare hook", False, OURS),
    Rule(r"^now over before", False),
    Rule(r"^÷ repscope|^times slower", False, r"^repscope"),
    Rule(r"^ratio$", False, r"^ratio$"),  # all source blocks over one pair
    Rule(r"^repscope is (faster|quicker) by|^faster by|^ratio$", True),
    Rule(r"^times slower than the first|^times repscope's|^time over repscope's|^times the rows|^times ", True),
    Rule(r"÷ (repscope|transformers|one|products)", True),
    Rule(r"^× |^speed of|^of (the|its) floor|^share of", True, OURS + r"|^of its floor|^store"),
)


class Cell(NamedTuple):
    """Where a ratio stands: page or section, table (1, 2, …), row label, column."""

    section: str
    table: int
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.section}, table {self.table}: {self.row} | {self.column}"


class Fall(NamedTuple):
    """A ratio that is worse than before; `now` is None where it is no longer in the table."""

    cell: Cell
    before: float
    now: float | None

    def __str__(self) -> str:
        return f"{self.cell}: {self.before:g} → {'gone' if self.now is None else f'{self.now:g}'}"


def number(cell: str) -> float | None:
    """The first number of a cell: `1.04 (1.00–1.14)`, `6.78× (…)`, `**12 %**`, `1,204`; None if it begins with none."""
    found = re.match(r"[\s*+]*(-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)", cell)
    return float(found[1].replace(",", "")) if found else None


def ratios(page: str) -> dict[Cell, tuple[float, bool]]:
    """All ratios of a page, each with whether a larger one is better."""
    found: dict[Cell, tuple[float, bool]] = {}
    for section, table, header, row in _rows(page):
        label = row[0].replace("*", "") or "–"
        for column, text in zip(header[1:], row[1:]):
            names = (column, label) if len(header) == 2 else (column,)
            rule = next((r for r in RULES if any(re.search(r.name, n) for n in names) and re.search(r.rows, label)), None)
            value = number(text)
            if rule is None or value is None:
                continue
            cell, copy = Cell(section, table, label, column), 2
            while cell in found:  # rows of one label, such as several pairs of one network
                cell, copy = Cell(section, table, f"{label} ({copy})", column), copy + 1
            found[cell] = value, rule.larger
    return found


def _rows(page: str) -> Iterator[tuple[str, int, list[str], list[str]]]:
    """Section, table in it, header and cells of each row of a page's tables."""
    whole, part, table, header = "", "", 0, list[str]()
    for line in page.splitlines():
        if mark := re.match(r"<!-- (.+):begin -->|## (.+)", line):
            whole, part, table = mark[1] or whole or mark[2], "", 0
        elif re.match(r"<!-- .+:end -->", line):
            whole, part, table = "", "", 0
        elif mark := re.match(r"### (.+)", line):
            part, table = mark[1], 0
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip()[1:].removesuffix("|").split("|")]
        if not header:
            header, table = cells, table + 1
        elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            yield " / ".join(name for name in (whole, part) if name), table, header, cells


def falls(before: str, now: str) -> list[Fall]:
    """The ratios of a page that are worse by more than `FALL` than in its earlier version, or gone."""
    held, made = ratios(now), []
    for cell, (old, larger) in ratios(before).items():
        new = held[cell][0] if cell in held else None
        if new is None or (new < old * (1 - FALL) if larger else new > old / (1 - FALL)):
            made.append(Fall(cell, old, new))
    return made
