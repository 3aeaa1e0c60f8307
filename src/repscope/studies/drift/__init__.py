"""What do fine-tuning, preference optimisation and RL change?"""

from repscope.studies.drift.options import DriftOptions
from repscope.studies.drift.page import answer, page
from repscope.studies.drift.steps import steps, subject
from repscope.studies.drift.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "What do fine-tuning, preference optimisation and RL change?"
STUDY = Study("drift", QUESTION, DriftOptions, steps, page, answer, verdict, subject)
