"""Which sparse features make up a layer, and a name?"""

from repscope.studies.features.options import FeaturesOptions
from repscope.studies.features.page import answer, page
from repscope.studies.features.steps import steps
from repscope.studies.features.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Which sparse features make up a layer, and do a few of them tell of a name what a dense probe tells?"
STUDY = Study("features", QUESTION, FeaturesOptions, steps, page, answer, verdict, least_minutes=2.0)
