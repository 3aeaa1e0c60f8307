"""Does the model give the acceptable sentence of each minimal pair the higher probability?"""

from repscope.studies.minimal_pairs.options import MinimalPairsOptions
from repscope.studies.minimal_pairs.page import answer, page
from repscope.studies.minimal_pairs.steps import steps, subject
from repscope.studies.minimal_pairs.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="minimal-pairs",
    question="Does the model give the acceptable sentence of each minimal pair the higher probability?",
    options=MinimalPairsOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
    positional=("model", "file"),
)
