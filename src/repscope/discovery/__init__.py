"""Unsupervised directions: `discover`, and the subjects, objectives and solvers that it combines."""

from repscope.discovery.calibration import Calibration, Fluency, calibrate
from repscope.discovery.objectives import OBJECTIVES, Objective, contrastive, l2, magnitude, objective, soft_orthogonal
from repscope.discovery.search import DiscoveryResult, discover
from repscope.discovery.solvers import SOLVERS, SolverOptions
from repscope.discovery.subject import Context, FunctionSubject, LanguageSubject, Subject

__all__ = [
    "OBJECTIVES",
    "SOLVERS",
    "Calibration",
    "Context",
    "DiscoveryResult",
    "Fluency",
    "FunctionSubject",
    "LanguageSubject",
    "Objective",
    "SolverOptions",
    "Subject",
    "calibrate",
    "contrastive",
    "discover",
    "l2",
    "magnitude",
    "objective",
    "soft_orthogonal",
]
