"""Which methods recover planted directions, and what do the others find?"""

from repscope.studies.bench_discovery.options import BenchOptions
from repscope.studies.bench_discovery.page import answer, page
from repscope.studies.bench_discovery.steps import steps, subject
from repscope.studies.run.study import Study

QUESTION = "Which methods recover planted directions, and what do the others find?"
STUDY = Study("bench-discovery", QUESTION, BenchOptions, steps, page, answer, subject=subject, unused=("short",))
