"""What do fine-tuning, preference optimisation and RL change?"""

from repscope.studies.drift.options import DriftOptions
from repscope.studies.drift.page import answer, page
from repscope.studies.drift.steps import steps, subject
from repscope.studies.drift.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="drift",
    question="What do fine-tuning, preference optimisation and RL change?",
    options=DriftOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
)
