"""What is a direction between two kinds of text worth: does it move the model, at what cost, beyond chance and asking?"""

from repscope.studies.contrast.options import ContrastOptions
from repscope.studies.contrast.page import answer, page
from repscope.studies.contrast.steps import steps
from repscope.studies.contrast.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "What is a direction between two kinds of text worth: does it move the model, at what cost, beyond chance and asking?"
STUDY = Study("contrast", QUESTION, ContrastOptions, steps, page, answer, verdict)
