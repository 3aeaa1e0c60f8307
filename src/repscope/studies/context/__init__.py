"""Does a prompt full of examples do what fine-tuning on them does, and how much of it is one vector?"""

from repscope.studies.context.options import ContextOptions
from repscope.studies.context.page import answer, page
from repscope.studies.context.steps import steps
from repscope.studies.context.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="context",
    question="Does a prompt full of examples do what fine-tuning on them does, and how much of it is one vector?",
    options=ContextOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
)
