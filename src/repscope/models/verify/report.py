"""Records and summary of the verification checks of one model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from typing import Any

import pandas as pd

from repscope.results import Result, Row

STEP = "verify"  #: the step under which the rows stand in a table of results


@dataclass(frozen=True)
class Check:
    """One check.

    compared: what was compared with what. error: maximum relative error over sites; NaN if nothing was measured. tolerance: largest
    error that passes. control: minimum relative error over sites of a comparison that must differ. against: that comparison.
    n: rows compared. state: passed, failed or not applicable. detail: further information.
    """

    name: str
    compared: str
    error: float
    tolerance: float
    control: float
    against: str
    n: int
    state: str
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the check ran and passed."""
        return self.state == "passed"


@dataclass(frozen=True)
class Verification:
    """The checks of one model.

    checks: in the order in which they ran. seconds: their total run time.
    """

    model: str
    fingerprint: str
    precision: str
    device: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def applied(self) -> Sequence[Check]:
        """The checks that apply to this model."""
        return [check for check in self.checks if check.state != "not applicable"]

    @property
    def failed(self) -> Sequence[Check]:
        """The checks that failed."""
        return [check for check in self.applied if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether all checks that apply passed, and at least one applies."""
        return bool(self.applied) and not self.failed

    @property
    def error(self) -> float:
        """The largest measured error; NaN if there is none."""
        return max((c.error for c in self.applied if not isnan(c.error)), default=float("nan"))

    @property
    def sentence(self) -> str:
        """Such as "9 of 9, largest error 8e-7"; names what failed and what does not apply."""
        said = f"{len(self.applied) - len(self.failed)} of {len(self.applied)}, largest error {brief(self.error)}"
        if self.failed:
            said += f"; failed: {', '.join(check.name for check in self.failed)}"
        left = [check.name for check in self.checks if check.state == "not applicable"]
        return said + (f"; not applicable: {', '.join(left)}" if left else "")

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each failed check, for the top of a page."""
        return tuple(
            f"The engine failed its check “{check.name}” on this model ({check.detail}): do not trust the numbers here."
            for check in self.failed
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per check, for a table."""
        return [
            {
                "check": check.name,
                "state": check.state,
                "error": brief(check.error),
                "tolerance": brief(check.tolerance),
                "control": brief(check.control),
                "compared": check.compared,
                "control is": check.against,
                "rows": check.n,
                "detail": check.detail,
            }
            for check in self.checks
        ]

    def result(self, study: str = STEP) -> Result:
        """As a result: error, control and tolerance of each check as rows, and all records as a side table."""
        rows = list[Row]()
        for check in self.checks:
            one = Row(
                study=study,
                step=STEP,
                metric="relative error",
                definition=check.compared,
                model=self.fingerprint,
                item=check.name,
                value=check.error,
                unit="token",
                n=check.n,
            )
            if check.state == "not applicable":
                rows.append(replace(one, condition=check.state))
                continue
            rows += [
                one,
                replace(one, condition=check.against, value=check.control),
                replace(one, condition="tolerance", value=check.tolerance, n=0),
            ]
        facts = {name: value for name, value in asdict(self).items() if name != "checks"}
        side = {"checks": pd.DataFrame([asdict(c) for c in self.checks]), "facts": pd.DataFrame([facts])}
        return Result.of(rows, side=side, notes=self.warnings)

    @classmethod
    def of(cls, result: Result) -> "Verification":
        """The verification from which a result was made."""
        facts = result.side["facts"].to_dict("records")[0]
        checks = tuple(Check(**{str(k): v for k, v in row.items()}) for row in result.side["checks"].to_dict("records"))
        return cls(checks=checks, **{str(name): value for name, value in facts.items()})

    def __repr__(self) -> str:
        return f"Verification({self.model}, {self.precision} on {self.device}: {self.sentence})"

    def _repr_html_(self) -> str:
        table: str = pd.DataFrame(self.rows).to_html(index=False)
        return f"<p>{'Passed' if self.passed else 'Failed'}: {self.sentence}</p>{table}"


def brief(value: float) -> str:
    """A relative error in one digit, 8e-7.

    >>> brief(8.1e-07), brief(0.0), brief(0.31), brief(float("nan"))
    ('8e-7', '0', '0.3', '–')
    """
    if isnan(value):
        return "–"
    return f"{value:.1g}".replace("e-0", "e-").replace("e+0", "e")
