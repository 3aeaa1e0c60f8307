"""The studies there are: what the command line, the README's table and the tests read."""

from typing import Any

from repscope.errors import unknown
from repscope.studies.entities import ENTITIES
from repscope.studies.relations import RELATIONS
from repscope.studies.study import Study

STUDIES: dict[str, Study[Any]] = {study.name: study for study in (ENTITIES, RELATIONS)}


def study(name: str) -> Study[Any]:
    """The study of that name.

    Raises
    ------
    UserError
        When there is none; offers the nearest names.
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES)
    return STUDIES[name]
