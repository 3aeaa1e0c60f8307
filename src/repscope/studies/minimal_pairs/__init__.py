"""Does the model give the acceptable sentence of each minimal pair the higher probability?"""

from repscope.studies.minimal_pairs.options import MinimalPairsOptions
from repscope.studies.minimal_pairs.page import answer, page
from repscope.studies.minimal_pairs.steps import steps, subject
from repscope.studies.minimal_pairs.verdict import verdict
from repscope.studies.run.study import Study

QUESTION = "Does the model give the acceptable sentence of each minimal pair the higher probability?"
STUDY = Study("minimal-pairs", QUESTION, MinimalPairsOptions, steps, page, answer, verdict, subject, positional=("model", "file"))
