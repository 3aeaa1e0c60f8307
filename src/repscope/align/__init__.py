"""Similarity of two representations of the same rows: CKA, Procrustes distance, RSA. Arrays in, numbers out; no network."""

from repscope.align.cka import CKAAccumulator, unbiased_cka
from repscope.align.dissimilarities import as_pairs, crossvalidated_rdm, noise_precision, rdm
from repscope.align.procrustes import ProcrustesFit, Rotation, angle, distance, procrustes
from repscope.align.rdm_comparison import compare_rdms, noise_ceiling, rsa
from repscope.align.rsa_bootstrap import RDMEvaluation, evaluate_rdms

__all__ = [
    "CKAAccumulator",
    "ProcrustesFit",
    "RDMEvaluation",
    "Rotation",
    "angle",
    "as_pairs",
    "compare_rdms",
    "crossvalidated_rdm",
    "distance",
    "evaluate_rdms",
    "noise_ceiling",
    "noise_precision",
    "procrustes",
    "rdm",
    "rsa",
    "unbiased_cka",
]
