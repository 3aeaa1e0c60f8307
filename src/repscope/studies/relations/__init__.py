"""Is a relation a linear map on the vector of its subject, and which directions are its objects?"""

from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.page import answer, page
from repscope.studies.relations.steps import steps
from repscope.studies.relations.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="relations",
    question="Is a relation a linear map on the vector of its subject, and which directions are its objects?",
    options=RelationsOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
)
