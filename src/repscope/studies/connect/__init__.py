"""Does the loss rise on the straight line between these networks?"""

from repscope.studies.connect.options import ConnectOptions
from repscope.studies.connect.page import answer, page
from repscope.studies.connect.steps import steps, subject
from repscope.studies.connect.verdict import verdict
from repscope.studies.run.study import Study

STUDY = Study(
    name="connect",
    question="Does the loss rise on the straight line between these networks?",
    options=ConnectOptions,
    steps=steps,
    page=page,
    answer=answer,
    verdict=verdict,
    subject=subject,
    positional=("models",),
    usage="NETWORKS...",
    unused=("short", "tiny"),
)
