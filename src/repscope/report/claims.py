"""Claims of the literature as data, and the verdict of a table of results on each.

A claim (`claims.toml`) names its source, the rows that test it, and a rule on the interval [lo, hi] of one row:
1. Rows of its study are selected by metric, condition, items (globs) and, if given, token, site and split.
2. Each selected row is evaluated separately: supported or refuted if its whole interval lies on one side of the threshold,
   otherwise undecided. Nothing is pooled: pooled intervals would need the entities, which a table does not contain.
3. A row decides only if the score that it supports is above its own null (`nulls`): for an attribute that no method can read,
   no comparison is evidence.
4. `over` joins the rows. "every item": one refuted row refutes, all must support. "some item": the reverse.
5. Without such a row the claim is not tested. A claim of a study that is not in the table gives no verdict.
Intervals are not corrected for the number of items; the sentence states their number.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from repscope.report.nulls import below_null
from repscope.results import select

Rule = Literal["lo > threshold", "hi < threshold"]
Decision = Literal["supported", "refuted", "undecided", "not tested"]

_FILE = Path(__file__).with_name("claims.toml")
_MOST_NAMED = 6  # most rows with numbers in a sentence


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Citation(_Strict):
    """The source of a claim. year: of publication."""

    authors: str
    year: int = Field(ge=1900, le=2100)
    url: str = Field(pattern=r"^https://\S+$")


class Test(_Strict):
    """The rows that test a claim. items: globs over `item`. token, site, split: None for any. searched: the item, of the same
    metric and condition, whose interval must be above 0; if it is not, the search of this run was too short to find anything.
    """

    __test__ = False  # not one of pytest's

    metric: str
    condition: str
    items: tuple[str, ...] = Field(min_length=1)
    token: str | None = None
    site: str | None = None
    split: str | None = None
    searched: str = ""


class Claim(_Strict):
    """A claim, its test, and what would refute it."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    claim: str
    source: Citation
    study: str
    test: Test
    over: Literal["every item", "some item"]
    supported_when: Rule
    refuted_when: Rule
    threshold: float = 0.0
    refutation: str

    @model_validator(mode="after")
    def _sides(self) -> "Claim":
        if self.supported_when == self.refuted_when:
            raise ValueError("supported_when and refuted_when must be the two different rules")
        return self


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict of a table on a claim. sentence: the numbers behind it. row_ids: of the evaluated rows."""

    claim: Claim
    verdict: Decision
    sentence: str
    row_ids: tuple[str, ...] = ()


def load_claims(path: Path = _FILE) -> tuple[Claim, ...]:
    """The claims of a file. An invalid file is a bug of the package, not a user's mistake: RuntimeError says where."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        claims = tuple(Claim.model_validate(entry) for entry in content["claims"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise RuntimeError(f"{path} is not a list of claims: {error!r}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = " → ".join(str(part) for part in first["loc"])
        which = first["input"].get("id") if isinstance(first["input"], dict) else first["input"]
        raise RuntimeError(
            f"{path} contains a claim that is wrong at {where or 'its rules'} ({which!r}): {first['msg']}"
        ) from error
    ids = [claim.id for claim in claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise RuntimeError(f"{path} contains the claim {twice[0]!r} twice")
    return claims


def evaluate_claims(claims: Iterable[Claim], table: pd.DataFrame) -> tuple[ClaimVerdict, ...]:
    """The verdicts on the claims of the studies in a table, in the order of the claims."""
    studies = set(table["study"])
    return tuple(_verdict(claim, _selected(claim, table), table) for claim in claims if claim.study in studies)


def _selected(claim: Claim, table: pd.DataFrame) -> pd.DataFrame:
    test = claim.test
    exact = {"study": claim.study, "metric": test.metric, "condition": test.condition}
    exact |= {c: v for c in ("token", "site", "split") if (v := getattr(test, c)) is not None}
    keep = pd.Series(True, index=table.index)
    for column, value in exact.items():
        keep &= table[column].eq(value).fillna(False).astype(bool)
    items = table["item"].fillna("").map(lambda item: any(fnmatchcase(item, glob) for glob in test.items))
    return table[keep & items.astype(bool)]


def _verdict(claim: Claim, rows: pd.DataFrame, table: pd.DataFrame) -> ClaimVerdict:
    measured = f"{claim.test.metric} {claim.test.condition}" if claim.test.metric == "gain" else claim.test.metric
    if rows.empty:
        return ClaimVerdict(
            claim,
            "not tested",
            f"This run did not measure {measured} of {' or '.join('anything' if i == '*' else i for i in claim.test.items)}.",
        )
    decisions = [_decide(claim, row, table) for row in rows.to_dict("records")]
    each = [decision for decision, _ in decisions]
    by_one: Decision = "refuted" if claim.over == "every item" else "supported"
    by_all: Decision = "supported" if claim.over == "every item" else "refuted"
    verdict: Decision = by_one if by_one in each else by_all if set(each) == {by_all} else "undecided"
    return ClaimVerdict(claim, verdict, _sentence(claim, measured, rows, decisions), tuple(rows["row_id"]))


def _decide(claim: Claim, row: dict[Any, Any], table: pd.DataFrame) -> tuple[Decision, str]:
    """The decision of one row, and why it is undecided despite its interval. An interval of NaN decides nothing."""
    above, below = row["lo"] > claim.threshold, row["hi"] < claim.threshold
    if not (above or below):
        return "undecided", ""
    if reason := below_null(row, table, "estimate" if above else "control") or _too_short(claim, row, table):
        return "undecided", reason
    return ("supported" if above == (claim.supported_when == "lo > threshold") else "refuted"), ""


def _too_short(claim: Claim, row: dict[Any, Any], table: pd.DataFrame) -> str:
    """Why a run's search says nothing, in words; "" if it found what it should."""
    name = claim.test.searched
    equal = {"item": name, "study": row["study"], "metric": row["metric"], "condition": row["condition"], "site": row["site"]}
    if not name or (select(table, **equal)["lo"] > 0).any():
        return ""
    return f"{name} is not above {row['condition'].removeprefix('over ')}: the search was too short, or was not made"


def _sentence(claim: Claim, measured: str, rows: pd.DataFrame, decisions: list[tuple[Decision, str]]) -> str:
    """The numbers in words: of all rows if they are few, otherwise of the deciding ones, with counts."""
    each = [decision for decision, _ in decisions]
    varying = [c for c in ("model", "token", "site", "split") if rows[c].nunique() > 1]
    ranked = sorted(zip(rows.to_dict("records"), decisions, strict=True), key=lambda pair: _ORDER[pair[1][0]])
    named = [
        f"{', '.join([row['item'], *(_shown(row, c) for c in varying if row[c])])} {_number(row['value'])} "
        f"[{_number(row['lo'])}, {_number(row['hi'])}], n {row['n']}"
        + ("" if len(set(each)) == 1 else f", {decision}")
        + (f" ({reason})" if reason else "")
        for row, (decision, reason) in ranked[:_MOST_NAMED]
    ]
    rest = len(ranked) - len(named)
    levels = rows["level"].dropna().unique()
    level = f"{100 * levels[0]:.3g} % interval" if len(levels) == 1 else "interval"
    text = f"{measured.replace('r2', 'R²').capitalize()} against {claim.threshold:g} ({level}): {'; '.join(named)}"
    text += f"; and {rest} more. " if rest else ". "
    if len(each) == 1:
        return text + "Decided by this one item."
    counts = ", ".join(f"{each.count(d)} {d}" for d in _ORDER if d in each)
    need = "every one must support it" if claim.over == "every item" else "one supporting item is enough"
    return text + f"Each of {len(each)} items evaluated separately, not pooled ({counts}); {need}."


_ORDER: dict[Decision, int] = {"refuted": 0, "undecided": 1, "supported": 2}


def _shown(row: dict[Any, Any], column: str) -> str:
    return str(row[column])[:12] if column == "model" else str(row[column])  # of a model's long name the beginning


def _number(value: float) -> str:
    return "not known" if pd.isna(value) else f"{value:.2f}".replace("-", "−")
