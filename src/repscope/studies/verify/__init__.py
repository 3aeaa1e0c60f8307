"""Does the engine read and edit this model correctly? Checked against plain transformers, padded, cached, edited, restored.

One step, whose key covers the sources of the engine.
"""

import pandas as pd

from repscope.models.verify.checks import verify
from repscope.models.verify.report import Verification
from repscope.report.page import Page, Section, Table
from repscope.results import Result
from repscope.studies.run.options import ModelOptions
from repscope.studies.run.proof_cache import engine_digest
from repscope.studies.run.study import Answer, Context, Cost, Record, Setup, Step, Study

_PROMPT_TOKENS = 10_000  #: about what all checks run


def steps(setup: Setup[ModelOptions]) -> list[Step]:
    """The checks."""

    def compute(context: Context) -> Result:
        return verify(setup.network).result()

    def cost() -> Cost:
        parameters = sum(p.numel() for p in setup.network.model.parameters())
        return Cost(tokens=_PROMPT_TOKENS, network_flops=2.0 * parameters * _PROMPT_TOKENS, blocks=setup.network.blocks)

    return [Step("verify", compute, cost, version=engine_digest())]


def page(record: Record[ModelOptions]) -> Page:
    """The checks as a table."""
    found = _verification(record)
    return Page(
        title="The engine, checked",
        answer=_sentence(found),
        sections=(
            Section(
                "Checks",
                "Error: root mean square over tokens of ‖a − b‖ / ‖b‖, the largest over sites. Control: the same error "
                "for inputs that must differ; a check fails if its control is within the tolerance.",
                (Table(pd.DataFrame(found.rows), "Comparisons"),),
            ),
        ),
        notes=found.warnings,
        facts={"Device": found.device},
    )


def answer(record: Record[ModelOptions]) -> Answer:
    """The verdict, and one row per check."""
    found = _verification(record)
    marks = {"passed": "✓", "failed": "✗"}
    rows = [{"": marks.get(r["state"], "–"), **{k: v for k, v in r.items() if k not in ("compared", "rows")}} for r in found.rows]
    more = {"passed": found.passed, "checks": found.rows}
    return Answer([_sentence(found)], rows, repr(found), more, found.passed)


def _verification(record: Record[ModelOptions]) -> Verification:
    return Verification.of(record.results["verify"])


def _sentence(found: Verification) -> str:
    return f"{'Yes' if found.passed else 'No'}: {found.sentence}."


STUDY = Study(
    name="verify",
    question="Does the engine read and edit this model correctly?",
    options=ModelOptions,
    steps=steps,
    page=page,
    answer=answer,
    verified=False,
    positional=("model",),
    usage="[MODEL]",
    unused=("seed", "short", "batch_tokens"),
)
