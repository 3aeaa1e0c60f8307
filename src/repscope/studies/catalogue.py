"""The studies there are: what the command line, the README's table and the tests read."""

from typing import Any

from repscope.errors import unknown
from repscope.studies.contrast.steps import CONTRAST
from repscope.studies.discover.steps import DISCOVER
from repscope.studies.entities.steps import ENTITIES
from repscope.studies.paths.steps import PATHS
from repscope.studies.relations.steps import RELATIONS
from repscope.studies.run.study import Study

#: the ten questions, as far as they are answered
STUDIES: dict[str, Study[Any]] = {study.name: study for study in (ENTITIES, RELATIONS, DISCOVER, PATHS)}
#: what else ends in a page, and what `repscope study` takes in all
BESIDE: dict[str, Study[Any]] = {study.name: study for study in (CONTRAST,)}
ALL = STUDIES | BESIDE


def study(name: str) -> Study[Any]:
    """The study of that name.

    Raises
    ------
    UserError
        When there is none; offers the nearest names.
    """
    if name not in ALL:
        raise unknown("study", name, ALL)
    return ALL[name]
