"""Similarity of representations (CKA, Procrustes distance, RSA), wiring and function, self and other, digital twins.

Arrays in, numbers out. Twins, which need torch, are loaded when first touched.
"""

from importlib import import_module
from typing import Any

from repscope.align.cka import CKAAccumulator, unbiased_cka
from repscope.align.dissimilarities import as_pairs, crossvalidated_rdm, noise_precision, rdm
from repscope.align.procrustes import ProcrustesFit, Rotation, angle, distance, procrustes
from repscope.align.rdm_comparison import compare_rdms, noise_ceiling, rsa
from repscope.align.rsa_bootstrap import RDMEvaluation, evaluate_rdms
from repscope.align.self_other import SelfOther, SharedUnits, Trials, cross_decode, shared_units, trials
from repscope.align.structure_function import (
    Dyads,
    compare_wiring,
    dyads,
    like_to_like,
    matched_pairs,
    permute_nodes,
    rewired,
    signal_given_synapse,
)

_TWIN = ("Recording", "TwinNetwork", "fit_twin", "open_sensorium", "score_twin", "transfer")  #: of `align.twin`
__all__ = [
    "CKAAccumulator",
    "Dyads",
    "ProcrustesFit",
    "RDMEvaluation",
    "Rotation",
    "SelfOther",
    "SharedUnits",
    "Trials",
    "angle",
    "as_pairs",
    "compare_rdms",
    "compare_wiring",
    "cross_decode",
    "crossvalidated_rdm",
    "distance",
    "dyads",
    "evaluate_rdms",
    "like_to_like",
    "matched_pairs",
    "noise_ceiling",
    "noise_precision",
    "permute_nodes",
    "procrustes",
    "rdm",
    "rewired",
    "rsa",
    "shared_units",
    "signal_given_synapse",
    "trials",
    "unbiased_cka",
]


def __getattr__(name: str) -> Any:
    if name == "twin":
        return import_module("repscope.align.twin")
    if name in _TWIN:
        return getattr(import_module("repscope.align.twin"), name)
    raise AttributeError(f"module 'repscope.align' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_TWIN, "twin"])
