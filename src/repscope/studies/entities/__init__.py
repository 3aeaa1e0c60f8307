"""Do early blocks turn the tokens of a name into one vector from which its attributes read out linearly?"""

from repscope.studies.entities.options import EntitiesOptions
from repscope.studies.entities.page import answer, page
from repscope.studies.entities.steps import steps
from repscope.studies.entities.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="entities",
    question="Do early MLPs turn the last few tokens of a name into one vector from which its attributes read out linearly?",
    options=EntitiesOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
)
