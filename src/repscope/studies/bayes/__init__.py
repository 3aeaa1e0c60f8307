"""Is in-context learning Bayesian inference?"""

from repscope.studies.bayes.options import BayesOptions
from repscope.studies.bayes.page import answer, page
from repscope.studies.bayes.steps import steps, subject
from repscope.studies.bayes.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Is in-context learning Bayesian inference?"
STUDY = Study("bayes", QUESTION, BayesOptions, steps, page, answer, verdict, subject)
