"""Do runs of one recipe end in one place, and does that predict how they generalise?"""

from repscope.studies.paths.options import PathsOptions
from repscope.studies.paths.page import answer, page
from repscope.studies.paths.steps import steps, subject
from repscope.studies.paths.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Do runs of one recipe end in one place, and does that predict how they generalise?"
STUDY = Study("paths", QUESTION, PathsOptions, steps, page, answer, verdict, subject)
