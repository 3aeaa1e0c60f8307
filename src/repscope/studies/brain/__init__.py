"""Does the network represent things as a brain does, and would the comparison have found the right family of networks?"""

from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.page import answer, page
from repscope.studies.brain.steps import steps, subject
from repscope.studies.brain.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Does the network represent things as a brain does?"
STUDY = Study("brain", QUESTION, BrainOptions, steps, page, answer, verdict, subject)
