"""When does a skill appear, and how much compute is a trick worth?"""

from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.emergence.page import answer, page
from repscope.studies.emergence.steps import steps, subject
from repscope.studies.emergence.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "When does a skill appear, and how much compute is a trick worth?"
STUDY = Study("emergence", QUESTION, EmergenceOptions, steps, page, answer, verdict, subject)
