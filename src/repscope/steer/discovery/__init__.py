"""Directions that nobody labelled: `discover`, and the subjects, objectives and solvers that it puts together."""

from repscope.steer.discovery.calibration import Calibration, Fluency, calibrate
from repscope.steer.discovery.objectives import (
    OBJECTIVES,
    Objective,
    contrastive,
    l2,
    magnitude,
    objective,
    soft_orthogonal,
)
from repscope.steer.discovery.search import Discovered, Options, discover
from repscope.steer.discovery.solvers import SOLVERS
from repscope.steer.discovery.subject import Context, FunctionSubject, LanguageSubject, Subject

__all__ = [
    "OBJECTIVES",
    "SOLVERS",
    "Calibration",
    "Context",
    "Discovered",
    "Fluency",
    "FunctionSubject",
    "LanguageSubject",
    "Objective",
    "Options",
    "Subject",
    "calibrate",
    "contrastive",
    "discover",
    "l2",
    "magnitude",
    "objective",
    "soft_orthogonal",
]
