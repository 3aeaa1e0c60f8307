"""Is in-context learning Bayesian inference?"""

from repscope.studies.bayes.options import BayesOptions
from repscope.studies.bayes.page import answer, page
from repscope.studies.bayes.steps import steps, subject
from repscope.studies.bayes.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="bayes",
    question="Is in-context learning Bayesian inference?",
    options=BayesOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
)
