"""Similarity of two representations of the same rows: CKA, Procrustes distance, RSA. Arrays in, numbers out; no network."""

from repscope.align.cka import CKAAccumulator, unbiased_cka
from repscope.align.procrustes import ProcrustesFit, Rotation, angle, distance, procrustes
from repscope.align.rsa import rdm, rsa

__all__ = ["CKAAccumulator", "ProcrustesFit", "Rotation", "angle", "distance", "procrustes", "rdm", "rsa", "unbiased_cka"]
