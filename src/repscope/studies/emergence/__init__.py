"""When does a skill appear, and how much compute is a trick worth?"""

from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.emergence.page import answer, page
from repscope.studies.emergence.steps import steps, subject
from repscope.studies.emergence.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="emergence",
    question="When does a skill appear, and how much compute is a trick worth?",
    options=EmergenceOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
)
