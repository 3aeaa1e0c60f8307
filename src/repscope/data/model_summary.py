"""Published accuracies of several models on the paradigms of a benchmark: JSON lines as BLiMP's `models_summary.jsonl`.

Each line: UID (the paradigm), linguistics_term, and one accuracy per model. Lines with the UID "overall" are means of others and
are left out. The file is `raw_results/summary/models_summary.jsonl` of alexwarstadt/blimp (CC-BY), which is not shipped. Knows no
statistics.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError
from repscope.untrusted import parse_json

_UID, _TERM, _OVERALL = "UID", "linguistics_term", "overall"
LEAST = 4  #: paradigms


@dataclass(frozen=True, eq=False)
class ModelSummary:
    """accuracies: (model, paradigm), from 0 to 1. terms: (paradigm), the wider phenomenon."""

    name: str
    models: tuple[str, ...]
    paradigms: tuple[str, ...]
    terms: tuple[str, ...]
    accuracies: Float[np.ndarray, "model paradigm"]


def is_model_summary(path: Path) -> bool:
    """Whether a file is such a summary: JSON lines whose first line has a paradigm and no sentences."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    return b'"UID"' in first and b'"sentence_good"' not in first


def model_summary(path: str | Path) -> ModelSummary:
    """Read a summary.

    Raises
    ------
    UserError
        For lines that are no such objects, a paradigm twice, other models in another line, accuracies that are not from 0 to 1,
        fewer than two models or four paradigms.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as JSON lines ({error}); check the path.") from error
    rows: dict[str, tuple[str, dict[str, float]]] = {}
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            held = parse_json(line)
        except ValueError as error:
            raise UserError(f"Line {i} of {file.name} is no JSON ({error}); mend it.") from error
        if not isinstance(held, dict) or not isinstance(held.get(_UID), str):
            raise UserError(f"Line {i} of {file.name} is no object with a {_UID}; give a file like BLiMP's models_summary.jsonl.")
        if held[_UID] == _OVERALL:
            continue
        if held[_UID] in rows:
            raise UserError(f"{file.name} has the paradigm {held[_UID]!r} twice; keep one of the lines.")
        scores = {k: v for k, v in held.items() if k not in (_UID, _TERM)}
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1 for v in scores.values()):
            raise UserError(f"Line {i} of {file.name} has an accuracy that is not a number from 0 to 1; mend it.")
        rows[held[_UID]] = str(held.get(_TERM, "")), {k: float(v) for k, v in scores.items()}
    models = tuple(next(iter(rows.values()))[1]) if rows else ()
    if len(models) < 2 or len(rows) < LEAST:
        raise UserError(f"{file.name} has {len(models)} models and {len(rows)} paradigms; an order needs 2 and {LEAST} at least.")
    for name, (_, scores) in rows.items():
        if set(scores) != set(models):
            raise UserError(f"The paradigm {name!r} of {file.name} has other models than the first line; give all everywhere.")
    table = np.array([[rows[name][1][model] for name in rows] for model in models])
    return ModelSummary(file.name, models, tuple(rows), tuple(term for term, _ in rows.values()), table)
