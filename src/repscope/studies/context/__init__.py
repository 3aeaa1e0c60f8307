"""Does a prompt full of examples do what fine-tuning on them does, and how much of it is one vector?"""

from repscope.studies.context.options import ContextOptions
from repscope.studies.context.page import answer, page
from repscope.studies.context.steps import steps
from repscope.studies.context.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Does a prompt full of examples do what fine-tuning on them does, and how much of it is one vector?"
STUDY = Study("context", QUESTION, ContextOptions, steps, page, answer, verdict)
