"""Names of rows that steps write, and that page and verdict read."""

from repscope.trace.drift.seed_floor import SHARED
from repscope.trace.drift.weights import ALL, COSINE, ENERGY, HIDDEN, NORM, RANK, RANK_SHARE, UNCHANGED16, UNCHANGED32

#: metrics of the weights, in the order of tables
OF_WEIGHTS = (NORM, COSINE, UNCHANGED32, UNCHANGED16, HIDDEN, RANK, RANK_SHARE, ENERGY)
#: metrics of representations, in the order of tables
OF_SITES = ("CKA", "Procrustes distance", "RSA", "relative change", "mean shift")
#: metrics of next tokens, in the order of tables
OF_TOKENS = ("unshifted", "marginal", "shifted", "KL", "JS")
#: number of settings that differ; their keys are the definition of its row
SETTINGS = "differing settings"

__all__ = [
    "ALL",
    "COSINE",
    "ENERGY",
    "HIDDEN",
    "NORM",
    "OF_SITES",
    "OF_TOKENS",
    "OF_WEIGHTS",
    "RANK",
    "RANK_SHARE",
    "SETTINGS",
    "SHARED",
    "UNCHANGED16",
    "UNCHANGED32",
]
