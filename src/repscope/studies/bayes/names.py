"""Names of metrics, items and conditions of `bayes`, and how an item is read back."""

import re

ACCURACY, CLEAR = "oracle accuracy", "oracle accuracy, clear labels"
KL, TV, TRUTH = "KL to Bayes", "total variation to Bayes", "posterior of the truth"
TOKEN_KL, RISE, CHANGE, ORDER = "KL to Bayes per token", "rise", "change of KL to Bayes", "order sensitivity"

MIXTURE, AWARE, ORACLE = "pretraining Bayes", "format-aware Bayes", "oracle"
RECURRENT, UNTRAINED, ONE = "LSTM", "untrained network", "trained on one concept"

UNIFORM, PUBLISHED, UNSEEN = "uniform delimiter", "published delimiter", "unseen concepts"
OWN, ALL = "own concept", "all concepts"
TIES, NEAR_TIE = "share of near-ties", 0.1
CLEAR_MARGIN = 0.2  #: least margin of the oracle at which a label counts as clear
FLOOR = 1e-2  #: the floor under transitions to which trained networks are nearest; others are in the sweep

_ITEM = re.compile(r"(?P<prompts>.*), L = (?P<length>\d+), k = (?P<examples>\d+)")


def item(prompts: str, length: int, examples: int) -> str:
    """Prompts of a kind, with examples of `length` symbols, after so many examples."""
    return f"{prompts}, L = {length}, k = {examples}"


def parts(name: str) -> tuple[str, int, int]:
    """Kind of prompts, length and number of examples of an item; ("", 0, 0) for another item."""
    found = _ITEM.fullmatch(name)
    return (found["prompts"], int(found["length"]), int(found["examples"])) if found else ("", 0, 0)


def series(prompts: str, length: int) -> str:
    """All numbers of examples of one kind of prompts."""
    return f"{prompts}, L = {length}"
