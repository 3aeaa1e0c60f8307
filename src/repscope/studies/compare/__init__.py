"""What did tuning change between these two checkpoints?"""

from repscope.studies.compare.options import CompareOptions
from repscope.studies.compare.page import answer, page
from repscope.studies.compare.steps import steps, subject
from repscope.studies.compare.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="compare",
    question="Did tuning change this model: its weights, its representations, its next tokens?",
    options=CompareOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
    positional=("checkpoints",),
    usage="BASE TUNED",
    unused=("short", "tiny"),
)
