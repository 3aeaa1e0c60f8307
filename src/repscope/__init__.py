"""repscope: ten questions about what a trained network has learned, every number with its control and its interval.

What users type, and nothing else. Names are loaded when first touched, so that importing repscope stays quick and
brings in no torch; nor even typing, before which the command line must know what to do with signals.
"""

from __future__ import annotations

__version__ = "0.1.0"

_HOME = {
    "load": "repscope.models.loading.sources",
    "Site": "repscope.models.sites",
    "Edit": "repscope.models.edits",
    "Network": "repscope.models.network",
    "LanguageModel": "repscope.models.language",
    "Prompt": "repscope.models.prompts",
    "Activations": "repscope.models.activations",
    "CheckpointSet": "repscope.models.checkpoints",
    "Contrast": "repscope.data.contrasts",
    "contrast": "repscope.data.contrasts",
    "Direction": "repscope.directions",
    "DirectionSet": "repscope.directions",
    "Result": "repscope.results",
    "UserError": "repscope.errors",
    "ablation": "repscope.steer.patching.methods",
    "activation_patching": "repscope.steer.patching.methods",
    "attribution_patching": "repscope.steer.patching.methods",
    "logit_difference": "repscope.steer.patching.methods",
    "path_attribution": "repscope.read.path_attribution",
    "relation": "repscope.data.relations",
    "Relation": "repscope.data.relations",
    "task": "repscope.data.tasks",
    "Task": "repscope.data.tasks",
    "verify": "repscope.models.verify.checks",
}
_ROOMS = ("align", "data", "discovery", "read", "steer", "store", "trace", "worlds")  #: packages of methods
__all__ = [
    "Activations",
    "CheckpointSet",
    "Contrast",
    "Direction",
    "DirectionSet",
    "Edit",
    "LanguageModel",
    "Network",
    "Prompt",
    "Relation",
    "Result",
    "Site",
    "Task",
    "UserError",
    "ablation",
    "activation_patching",
    "attribution_patching",
    "contrast",
    "load",
    "logit_difference",
    "path_attribution",
    "relation",
    "task",
    "verify",
]

TYPE_CHECKING = False  #: as typing's
if TYPE_CHECKING:
    from typing import Any

    from repscope.data.contrasts import Contrast, contrast
    from repscope.data.relations import Relation, relation
    from repscope.data.tasks import Task, task
    from repscope.directions import Direction, DirectionSet
    from repscope.errors import UserError
    from repscope.models.activations import Activations
    from repscope.models.checkpoints import CheckpointSet
    from repscope.models.edits import Edit
    from repscope.models.language import LanguageModel
    from repscope.models.loading.sources import load
    from repscope.models.network import Network
    from repscope.models.prompts import Prompt
    from repscope.models.sites import Site
    from repscope.models.verify.checks import verify
    from repscope.read.path_attribution import path_attribution
    from repscope.results import Result
    from repscope.steer.patching.methods import ablation, activation_patching, attribution_patching, logit_difference


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"repscope.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'repscope' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
