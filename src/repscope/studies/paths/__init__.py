"""Do runs of one recipe end in one place, and does that predict how they generalise?"""

from repscope.studies.paths.options import PathsOptions
from repscope.studies.paths.page import answer, page
from repscope.studies.paths.steps import steps, subject
from repscope.studies.paths.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="paths",
    question="Do runs of one recipe end in one place, and does that predict how they generalise?",
    options=PathsOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
)
