"""Which methods recover planted directions, and what do the others find?"""

from repscope.studies.bench_discovery.options import BenchOptions
from repscope.studies.bench_discovery.page import answer, page
from repscope.studies.bench_discovery.steps import steps, subject
from repscope.studies.run.study import Study

STUDY = Study(
    name="bench-discovery",
    question="Which methods recover planted directions, and what do the others find?",
    options=BenchOptions,
    steps=steps,
    page=page,
    answer=answer,
    subject=subject,
    unused=("short",),
)
