"""How a table is read where its text alone does not tell: three options, the same on the command line and in Python.

`Reading` is the one place that has them. A study that takes a table inherits from it, a command takes it as a parameter, and the
functions that read take its fields as keyword arguments (`How`).
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from repscope.errors import UserError


class How(TypedDict, total=False):
    """The fields of `Reading` as keyword arguments."""

    decimal: Literal[".", ","] | None
    na: Sequence[str] | None
    quote: bool | None


class Reading(BaseModel):
    """How the user's tables are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decimal: Literal[".", ","] | None = Field(
        None, description="Decimal mark of a table's numbers; the other mark then separates thousands."
    )
    na: tuple[str, ...] | None = Field(
        None,
        description="Words that count as missing in every column of a table; if not given, nan and null in every column, and NA, "
        "None, - and ? among numbers.",
    )
    quote: bool | None = Field(
        None,
        description='Whether "marks" around a field of a table only enclose it; if not given, yes for CSV, and for TSV only where '
        "the file shows it.",
    )

    @field_validator("na", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    def how(self) -> How:
        """The three options, as keyword arguments."""
        return How(decimal=self.decimal, na=self.na, quote=self.quote)


def reading(**how: Any) -> Reading:
    """A `Reading` of keyword arguments.

    Raises
    ------
    UserError
        For a value that an option does not take.

    >>> reading(na="NA").na
    ('NA',)
    """
    try:
        return Reading(**how)
    except ValidationError as error:
        wrong = error.errors()[0]
        option, given = wrong["loc"][0] if wrong["loc"] else "", wrong["input"]
        takes = {"decimal": "'.' or ','", "na": "a list of words", "quote": "True or False"}.get(str(option))
        if takes is None:
            raise TypeError(f"there is no option {option!r} of reading a table") from None
        raise UserError(f"{option}={given!r} is not how a table can be read; give {takes}.") from None
