"""Names of rows that steps write and the page reads."""

from repscope.trace.barriers import GAP

OWN = "of the run itself"
RISE = "loss increase"
UNIT = "example"


def metric_of(loss: str, how: str) -> str:
    """The name of a height in the table: a barrier without its name is not a number."""
    return f"{how} of {loss}" if how in (GAP, RISE) else f"{how} barrier of {loss}"
