"""Claims of the literature as data, and what a table of results says of each.

A claim (`claims.toml`) names its source, the rows that test it, and a rule on the interval [lo, hi] of one row:
1. The rows of its study are picked by metric, condition, items (globs) and, where given, token, site and split.
2. Each picked row is judged by itself: supported or refuted when its whole interval lies on one side of the threshold,
   otherwise undecided. Nothing is pooled: pooled intervals would need the entities, which a table does not hold.
3. A row decides only where the score that it speaks for is above its own null (`nulls`): of an attribute that nothing can read,
   no comparison is evidence.
4. `over` joins the rows. "every item": one refuted row refutes, all must support. "some item": the other way round.
5. Without such a row the claim is not tested. A claim of a study that the table does not hold gives no verdict.
Intervals are not widened for the number of items; the sentence says how many there were.
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

Rule = Literal["lo > threshold", "hi < threshold"]
Decision = Literal["supported", "refuted", "undecided", "not tested"]

_FILE = Path(__file__).with_name("claims.toml")
_MOST_NAMED = 6  # rows whose numbers stand in a sentence


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Citation(_Strict):
    """Who claims it. year: of publication."""

    authors: str
    year: int = Field(ge=1900, le=2100)
    url: str = Field(pattern=r"^https://\S+$")


class Test(_Strict):
    """Which rows test a claim. items: globs over `item`. token, site, split: None takes any."""

    __test__ = False  # not one of pytest's

    metric: str
    condition: str
    items: tuple[str, ...] = Field(min_length=1)
    token: str | None = None
    site: str | None = None
    split: str | None = None


class Claim(_Strict):
    """What somebody claims, how it is tested, and what would refute it."""

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
class Verdict:
    """What a table says of a claim. sentence: the numbers behind it. row_ids: the rows that were judged."""

    claim: Claim
    verdict: Decision
    sentence: str
    row_ids: tuple[str, ...] = ()


def load_claims(path: Path = _FILE) -> tuple[Claim, ...]:
    """The claims of a file. A file that is wrong is a fault of the package, not of its user: RuntimeError says where."""
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
        claims = tuple(Claim.model_validate(entry) for entry in held["claims"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise RuntimeError(f"{path} is no list of claims: {error!r}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = " → ".join(str(part) for part in first["loc"])
        which = first["input"].get("id") if isinstance(first["input"], dict) else first["input"]
        raise RuntimeError(f"{path} holds a claim that is wrong at {where or 'its rules'} ({which!r}): {first['msg']}") from error
    ids = [claim.id for claim in claims]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise RuntimeError(f"{path} holds the claim {twice[0]!r} twice")
    return claims


def evaluate_claims(claims: Iterable[Claim], table: pd.DataFrame) -> tuple[Verdict, ...]:
    """What the rows of a table say of each claim of their studies, in the order of the claims."""
    studies = set(table["study"])
    return tuple(_judge(claim, _picked(claim, table), table) for claim in claims if claim.study in studies)


def _picked(claim: Claim, table: pd.DataFrame) -> pd.DataFrame:
    test = claim.test
    exact = {"study": claim.study, "metric": test.metric, "condition": test.condition}
    exact |= {c: v for c in ("token", "site", "split") if (v := getattr(test, c)) is not None}
    keep = pd.Series(True, index=table.index)
    for column, value in exact.items():
        keep &= table[column].eq(value).fillna(False).astype(bool)
    items = table["item"].fillna("").map(lambda item: any(fnmatchcase(item, glob) for glob in test.items))
    return table[keep & items.astype(bool)]


def _judge(claim: Claim, rows: pd.DataFrame, table: pd.DataFrame) -> Verdict:
    measured = f"{claim.test.metric} {claim.test.condition}" if claim.test.metric == "gain" else claim.test.metric
    if rows.empty:
        return Verdict(
            claim,
            "not tested",
            f"This run did not measure {measured} of {' or '.join('anything' if i == '*' else i for i in claim.test.items)}.",
        )
    judged = [_decide(claim, row, table) for row in rows.to_dict("records")]
    each = [decision for decision, _ in judged]
    by_one: Decision = "refuted" if claim.over == "every item" else "supported"
    by_all: Decision = "supported" if claim.over == "every item" else "refuted"
    verdict: Decision = by_one if by_one in each else by_all if set(each) == {by_all} else "undecided"
    return Verdict(claim, verdict, _sentence(claim, measured, rows, judged), tuple(rows["row_id"]))


def _decide(claim: Claim, row: dict[Any, Any], table: pd.DataFrame) -> tuple[Decision, str]:
    """One row by itself, and why it decides nothing although its interval would. An interval of NaN decides nothing."""
    above, below = row["lo"] > claim.threshold, row["hi"] < claim.threshold
    if not (above or below):
        return "undecided", ""
    if unread := below_null(row, table, "estimate" if above else "control"):
        return "undecided", unread
    return ("supported" if above == (claim.supported_when == "lo > threshold") else "refuted"), ""


def _sentence(claim: Claim, measured: str, rows: pd.DataFrame, judged: list[tuple[Decision, str]]) -> str:
    """The numbers in words: of each row where they are few, else of those that decide, with the counts of all."""
    each = [decision for decision, _ in judged]
    varying = [c for c in ("model", "token", "site", "split") if rows[c].nunique() > 1]
    ranked = sorted(zip(rows.to_dict("records"), judged, strict=True), key=lambda pair: _ORDER[pair[1][0]])
    named = [
        f"{', '.join([row['item'], *(str(row[c])[:12] for c in varying if row[c])])} {_number(row['value'])} "
        f"[{_number(row['lo'])}, {_number(row['hi'])}], n {row['n']}"
        + ("" if len(set(each)) == 1 else f", {decision}")
        + (f" ({unread})" if unread else "")
        for row, (decision, unread) in ranked[:_MOST_NAMED]
    ]
    rest = len(ranked) - len(named)
    levels = rows["level"].dropna().unique()
    level = f"{100 * levels[0]:.3g} % interval" if len(levels) == 1 else "interval"
    text = f"{measured.replace('r2', 'R²').capitalize()} against {claim.threshold:g} ({level}): {'; '.join(named)}"
    text += f"; and {rest} more. " if rest else ". "
    if len(each) == 1:
        return text + "Judged on this one item."
    counts = ", ".join(f"{each.count(d)} {d}" for d in _ORDER if d in each)
    need = "every one must support it" if claim.over == "every item" else "one that supports it is enough"
    return text + f"Each of {len(each)} items judged by itself, not pooled ({counts}); {need}."


_ORDER: dict[Decision, int] = {"refuted": 0, "undecided": 1, "supported": 2}


def _number(value: float) -> str:
    return "not known" if pd.isna(value) else f"{value:.2f}".replace("-", "−")
