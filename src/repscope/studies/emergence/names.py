"""Names of metrics, items and conditions of `emergence`, and how items and splits are read back."""

import re

from repscope.worlds.two_hop.facts import FIRST_OOD, HELD_OUT, SECOND_OOD, TRAINED
from repscope.worlds.two_hop.facts import OOD as OOD

ACCURACY, LOG_PROBABILITY = "accuracy", "log-probability"
STEP, STEEPEST, SHARPNESS, LAG = "step of 50 %", "steepest rise", "sharpness", "lag"
REACHED = "share of runs that reach 50 %"
BRIDGE, PATCHED = "bridge accuracy", "patch success"
GAIN, LOSS, REWARD = "compute-equivalent gain", "loss", "reward"
FLOOR, EXPONENT = "floor of the law", "exponent of the law"
KL, NEARER, MASS = "KL to the network", "nearer than the control", "mass on the true tails"
BEST = "best path sum"
UNIGRAM, NEIGHBOURS, SHUFFLED_GRAPH = "unigram", "nearest neighbours", "shuffled graph"
WEIGHTED = {"unweighted": "unweighted paths", "precision": "paths weighted by precision", "fitted": "paths with fitted weights"}

FACTS, FACTS_OOD = "facts", "facts OOD"
UNTRAINED, EVEN, UNPATCHED, PERMUTED = "untrained network", "learned evenly", "without the patch", "shuffled labels"
QUERIES = {TRAINED: TRAINED, HELD_OUT: "estimate", FIRST_OOD: FIRST_OOD, SECOND_OOD: SECOND_OOD, OOD: OOD}
KNOWN, IDENTITY = "known gain", "calibration"

COEFFICIENT = "local learning coefficient"
INDUCTION, EFFECT = "induction score", "average indirect effect"
REPEATED, STRONGEST = "repeated random tokens", "strongest head"
OTHER_ANSWER, FIRST_COPY, OTHER_TOKENS, OTHER_HEADS = "another answer", "first copy", "other tokens", "other heads"

_PHI, _STEP = re.compile(r"phi = ([\d.]+)(?:: .*)?"), re.compile(r"step (\d+)")


def item(phi: float, kind: str = "") -> str:
    """Networks of one phi, possibly on one kind of queries."""
    return f"phi = {phi:g}" + (f": {kind}" if kind else "")


def phi_of(name: str) -> float:
    """phi in the name of an item; NaN in another one."""
    found = _PHI.fullmatch(name)
    return float(found[1]) if found else float("nan")


def vector_heads(task: str) -> str:
    """The function-vector heads of a task."""
    return f"function-vector heads of {task}"


def walks(hops: int) -> str:
    """The split of networks trained on walks of so many steps."""
    return f"walks of {hops} step{'s' * (hops != 1)}"


def at(step: int) -> str:
    """The split of a number at a step."""
    return f"step {step}"


def step_of(split: str) -> float:
    """The step in a split; NaN in another one."""
    found = _STEP.fullmatch(split)
    return float(found[1]) if found else float("nan")
