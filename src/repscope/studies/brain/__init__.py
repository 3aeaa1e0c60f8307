"""Does the network represent things as a brain does, and would the comparison have found the right family of networks?"""

from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.page import answer, page
from repscope.studies.brain.steps import steps, subject
from repscope.studies.brain.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="brain",
    question="Does the network represent things as a brain does?",
    options=BrainOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
)
