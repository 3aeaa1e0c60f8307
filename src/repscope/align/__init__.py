"""Similarity of two representations of the same rows: CKA, Procrustes distance, RSA, encoding models. Arrays in, numbers out."""

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
from repscope.align.variance_partition import VariancePartition, variance_partition

__all__ = [
    "CKAAccumulator",
    "Comparison",
    "Encoding",
    "FamilyComparison",
    "NetworkScores",
    "ProcrustesFit",
    "RDMEvaluation",
    "RidgeSettings",
    "Rotation",
    "VariancePartition",
    "angle",
    "as_pairs",
    "cc_max",
    "compare",
    "compare_families",
    "compare_rdms",
    "crossvalidated_rdm",
    "distance",
    "encode",
    "encode_banded",
    "encoding_scores",
    "evaluate_rdms",
    "noise_ceiling",
    "noise_precision",
    "over_ceiling",
    "procrustes",
    "rdm",
    "region_rdms",
    "rsa",
    "rsa_scores",
    "split_half",
    "unbiased_cka",
    "variance_partition",
]
