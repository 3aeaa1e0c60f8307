"""Which unsupervised directions move the model, and does a contrastive objective find others than L2 does?"""

from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.discover.page import answer, page
from repscope.studies.discover.steps import steps, subject
from repscope.studies.discover.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Which unsupervised directions move the model, and does a contrastive objective find others than L2 does?"
STUDY = Study("discover", QUESTION, DiscoverOptions, steps, page, answer, verdict, subject)
