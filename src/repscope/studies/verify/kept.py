"""The engine's checks of a model, kept between runs, and as a folder of their own beside the runs.

A verification belongs to weights, precision, device, the libraries and the engine's own sources; under a digest of these it is kept
in the cache, so that a study pays for it once. Never kept: one that failed, and one of a model with hooks or a forward of its own,
which its weights do not tell.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from repscope import __version__
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.models.verify import checks as engine
from repscope.models.verify.report import STEP, Verification
from repscope.report.page import Page, Section, Table, write
from repscope.results import Result

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_LIBRARIES = ("torch", "transformers", "numpy")


def verified(lm: "LanguageModel") -> Verification:
    """The checks of this model: those kept from an earlier run where nothing that they depend on has changed, else made now."""
    kept = cache_home() / "verified" / _key(lm)
    plain = not any(_touched(lm))
    if plain:
        with suppress(UserError, OSError, KeyError, TypeError, ValueError):  # absent or damaged: made again
            return replace(Verification.of(Result.load(kept)), model=lm.name)
    found = engine.verify(lm)
    if plain and found.passed:
        with suppress(UserError, OSError):  # a cache that cannot be written costs time, not the answer
            found.result().save(kept)
    return found


def write_verification(found: Verification, out: Path) -> Path:
    """Write a verification as a folder among the runs, listed and shown as they are: its result, its table, a page."""
    name = "".join(c if c.isalnum() or c in ".-_" else "-" for c in Path(found.model).name.removesuffix(".gguf"))[:60]
    folder = out / f"{STEP}-{name}-{found.fingerprint.removeprefix('sampled:')[:10]}"
    result = found.result()
    result.save(folder / "result")
    with whole_file(folder / "results" / f"{STEP}.parquet") as partial:
        result.table.to_parquet(partial, index=False)
    facts = {
        "study": STEP,
        "model": found.model,
        "fingerprint": found.fingerprint,
        "precision": found.precision,
        "device": found.device,
        "passed": found.passed,
        "said": found.sentence,
        "versions": _versions(),
        "seconds": round(found.seconds, 1),
    }
    with whole_file(folder / "study.json") as partial:
        partial.write_text(json.dumps(facts, indent=2))
    write(_page(found), folder / "report.html")
    (folder / ".lock").touch()  # what makes a folder a run
    return folder


def _page(found: Verification) -> Page:
    return Page(
        title="The engine, checked",
        question="Does the engine read and change this model as it says?",
        answer=f"{'Yes' if found.passed else 'No'}: {found.sentence}.",
        sections=(
            Section(
                "Checks",
                "Error: root mean square over tokens of ‖a - b‖ / ‖b‖, the largest over sites. Control: the same where there must "
                "be a difference; a check whose control is within the tolerance fails.",
                (Table(pd.DataFrame(found.rows), "What was compared"),),
            ),
        ),
        notes=found.warnings,
        facts={
            "Model": f"{found.model} ({found.precision} on {found.device})",
            "Fingerprint of the weights": found.fingerprint,
            "Versions": ", ".join(f"{k} {v}" for k, v in _versions().items()),
        },
    )


def _versions() -> dict[str, str]:
    return {"repscope": __version__} | {name: version(name) for name in _LIBRARIES}


def _key(lm: "LanguageModel") -> str:
    sources = hashlib.sha256()
    for path in sorted(Path(engine.__file__).parent.glob("*.py")):
        sources.update(path.name.encode() + path.read_bytes())
    device = str(lm.device)
    made_for = [lm.fingerprint, str(lm.model.dtype), device, str(lm.model), _versions(), sources.hexdigest()]
    return hashlib.sha256(json.dumps(made_for).encode()).hexdigest()[:24]


def _touched(lm: "LanguageModel") -> list[bool]:
    """For each module whether it carries what its weights and its class do not tell."""
    return [bool(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ or m.training) for m in lm.model.modules()]
