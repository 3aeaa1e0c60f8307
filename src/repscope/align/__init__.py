"""Similarity of representations (CKA, Procrustes, RSA, encoding models), wiring and function, self and other, digital twins.

Arrays in, numbers out. Twins, which need torch, are loaded when first touched.
"""

from importlib import import_module
from typing import Any

from repscope.align.ceilings import cc_max, over_ceiling, split_half
from repscope.align.cka import CKAAccumulator, unbiased_cka
from repscope.align.comparison import Comparison, compare, region_rdms
from repscope.align.dissimilarities import as_pairs, crossvalidated_rdm, noise_precision, rdm
from repscope.align.encoding import Encoding, encode, encode_banded
from repscope.align.families import FamilyComparison, compare_families
from repscope.align.network_scores import NetworkScores, encoding_scores, rsa_scores
from repscope.align.procrustes import ProcrustesFit, Rotation, angle, distance, procrustes
from repscope.align.rdm_comparison import compare_rdms, noise_ceiling, rsa
from repscope.align.ridge import RidgeSettings
from repscope.align.rsa_bootstrap import RDMEvaluation, evaluate_rdms
from repscope.align.self_other import SelfOther, SharedUnits, Trials, cross_decode, shared_units, trials
from repscope.align.structure_function import (
    Dyads,
    common_input,
    compare_wiring,
    dyads,
    like_to_like,
    matched_pairs,
    permute_nodes,
    rewired,
    shared_inputs,
    signal_given_synapse,
)
from repscope.align.variance_partition import VariancePartition, variance_partition

_TWIN = ("Recording", "TwinNetwork", "fit_twin", "open_sensorium", "score_twin", "transfer")  #: of `align.twin`
__all__ = [
    "CKAAccumulator",
    "Comparison",
    "Dyads",
    "Encoding",
    "FamilyComparison",
    "NetworkScores",
    "ProcrustesFit",
    "RDMEvaluation",
    "RidgeSettings",
    "Rotation",
    "SelfOther",
    "SharedUnits",
    "Trials",
    "VariancePartition",
    "angle",
    "as_pairs",
    "cc_max",
    "common_input",
    "compare",
    "compare_families",
    "compare_rdms",
    "compare_wiring",
    "cross_decode",
    "crossvalidated_rdm",
    "distance",
    "dyads",
    "encode",
    "encode_banded",
    "encoding_scores",
    "evaluate_rdms",
    "like_to_like",
    "matched_pairs",
    "noise_ceiling",
    "noise_precision",
    "over_ceiling",
    "permute_nodes",
    "procrustes",
    "rdm",
    "region_rdms",
    "rewired",
    "rsa",
    "rsa_scores",
    "shared_inputs",
    "shared_units",
    "signal_given_synapse",
    "split_half",
    "trials",
    "unbiased_cka",
    "variance_partition",
]


def __getattr__(name: str) -> Any:
    if name == "twin":
        return import_module("repscope.align.twin")
    if name in _TWIN:
        return getattr(import_module("repscope.align.twin"), name)
    raise AttributeError(f"module 'repscope.align' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_TWIN, "twin"])
