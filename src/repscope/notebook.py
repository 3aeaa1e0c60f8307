"""Notebooks: how objects show themselves there, and whether Python runs in one.

Classes of lower floors (results, activations, directions …) have `figure()` and `_repr_html_()`. Both are made in
`repscope.report.displays`, which knows charts and their style. It is named here, and loaded when something is first shown: so no
class depends on the report, and importing repscope stays quick.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

_DISPLAYS = "repscope.report.displays"


def figure(shown: Any) -> "alt.TopLevelMixin":
    """The figure of an object, as an Altair chart.

    Raises
    ------
    UserError
        If the object has nothing that a figure could show; says what to do.
    """
    made: alt.TopLevelMixin = import_module(_DISPLAYS).figure(shown)
    return made


def html(shown: Any) -> str:
    """What an object is, where it is from, a small table, and a figure if it takes no computing."""
    return str(import_module(_DISPLAYS).html(shown))


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can replace what it has displayed."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None
