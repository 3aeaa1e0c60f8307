"""The verdict of a run: one sentence that answers the study's question, from rules on its table.

Each study has its rules (`studies/<name>/verdict.py`); their thresholds stand in `verdicts.toml`. A rule decides by whole
intervals: where an interval contains the threshold, the verdict is "cannot tell".
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

Reply = Literal["Yes", "Partly", "No", "Cannot tell"]
Side = Literal["above", "below", "unclear"]

_FILE = Path(__file__).with_name("verdicts.toml")
MOST_WORDS = 30


@dataclass(frozen=True)
class Verdict:
    """An answer in words. why: one sentence. parts: the verdict on each thing that was asked about, such as an attribute."""

    reply: Reply
    why: str
    parts: Mapping[str, "Verdict"] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The reply and its reason, at most 30 words."""
        return f"{self.reply}. {self.why}"

    def lines(self) -> list[str]:
        """The verdict on each part, then the verdict."""
        return [*(f"{name}: {part.sentence}" for name, part in self.parts.items()), self.sentence]

    def as_json(self) -> dict[str, Any]:
        """Reply, sentence and parts, for `--json` and `run.json`."""
        return {"reply": self.reply, "sentence": self.sentence} | (
            {"parts": {name: part.as_json() for name, part in self.parts.items()}} if self.parts else {}
        )


@cache
def thresholds(study: str) -> Mapping[str, float]:
    """The thresholds of a study's rules, by name."""
    return {name: float(value) for name, value in tomllib.loads(_FILE.read_text(encoding="utf-8"))[study].items()}


def side(row: Mapping[Any, Any] | None, threshold: float = 0.0) -> Side:
    """On which side of a threshold the whole interval of a row lies; unclear without a row or an interval."""
    if row is None or pd.isna(row["lo"]) or pd.isna(row["hi"]):
        return "unclear"
    return "above" if row["lo"] > threshold else "below" if row["hi"] < threshold else "unclear"


def joined(parts: Iterable[Verdict]) -> Reply:
    """The reply that several verdicts give together: theirs if all agree, otherwise "Partly" if any says yes or partly."""
    replies = [part.reply for part in parts]
    if len(set(replies)) == 1:
        return replies[0]
    return "Partly" if {"Yes", "Partly"} & set(replies) else "Cannot tell"


def count(parts: Iterable[Verdict], reply: Reply = "Yes") -> str:
    """How many of the verdicts give a reply, such as "3 of 5"."""
    replies = [part.reply for part in parts]
    return f"{replies.count(reply)} of {len(replies)}"
