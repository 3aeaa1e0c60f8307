"""Mutated inputs: every format, each mutation read as a user would read it."""

import random
import tempfile
from pathlib import Path

from chaos.formats import Format, all_formats
from chaos.isolated import each
from chaos.mutations import mutated
from chaos.outcomes import Tally
from processes import Processes

SEED = 20_261


def trial(number: int, name: str, folder: str) -> tuple[str, str]:
    """The outcome of one mutation of one format, in a folder that holds the valid input."""
    import warnings

    from repscope.errors import UserError

    warnings.simplefilter("ignore")
    form = next(f for f in all_formats() if f.name == name)
    rng = random.Random(f"{name} {number} {SEED}")
    file = Path(folder) / rng.choice(form.files)
    whole = file.read_bytes()
    kind, data = mutated(file.name, whole, rng)
    try:
        file.write_bytes(data)
        form.read(Path(folder))
    except UserError as error:
        text = str(error)
        return ("refused", "") if text.strip() and "Traceback" not in text else ("raw", f"{kind}: {text[:200]}")
    finally:
        file.write_bytes(whole)
    return "read", ""


def run(processes: Processes, count: int, formats: list[Format] | None = None) -> Tally:
    """So many mutations of each format."""
    tally = Tally()
    for form in formats if formats is not None else all_formats():
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            form.make(Path(folder))
            form.read(Path(folder))  # the valid input is read
            for number, outcome, said in each(processes, trial, range(count), form.name, folder):
                tally.add(form.name, f"mutation {number}", outcome, said)
    return tally
