"""Names of metrics, items and conditions of `bayes`, and how an item is read back."""

import re

ACCURACY, CLEAR = "oracle accuracy", "oracle accuracy, clear labels"
KL, TV, TRUTH = "KL to Bayes", "total variation to Bayes", "posterior of the truth"
TOKEN_KL, RISE, CHANGE, ORDER = "KL to Bayes per token", "rise", "change of KL to Bayes", "order sensitivity"

MIXTURE, AWARE = "pretraining Bayes", "format-aware Bayes"
RECURRENT, UNTRAINED, ONE = "LSTM", "untrained network", "trained on one concept"
RANDOM, COUNTS = "random weights", "symbol pair counts"  #: beside a model that was not trained in the study

NETWORKS, MODEL = "transformers", "model"  #: items of distances per token
GIVEN = "given models"  #: documents of the user's hidden Markov models
ASKED = "GINC prompts"  #: put to a model that was not trained in that world
MASS = "mass on the symbols"

UNIFORM, PUBLISHED, UNSEEN = "uniform delimiter", "published delimiter", "unseen concepts"
OWN, ALL = "own concept", "all concepts"
TIES, NEAR_TIE = "share of near-ties", 0.1
CLEAR_MARGIN = 0.2  #: least margin of the oracle at which a label counts as clear
FLOOR = 1e-2  #: the floor under transitions to which trained networks are nearest; others are in the sweep

_ITEM = re.compile(r"(?P<prompts>.*), (L = (?P<length>\d+), k|n) = (?P<dose>\d+)")
_FLOOR = re.compile(r"(?P<prompts>.*), floor (?P<floor>[\d.e+-]+)")


def item(prompts: str, length: int, dose: int) -> str:
    """Prompts of a kind, with examples of `length` symbols, after so many examples; length 0: documents after so many symbols."""
    return f"{series(prompts, length)}, {dose_name(length)} = {dose}"


def parts(name: str) -> tuple[str, int, int]:
    """Kind of prompts, length and number of examples of an item; ("", 0, 0) for another item. Of texts the number of symbols."""
    found = _ITEM.fullmatch(name)
    return (found["prompts"], int(found["length"] or 0), int(found["dose"])) if found else ("", 0, 0)


def series(prompts: str, length: int) -> str:
    """All numbers of examples of one kind of prompts, or of symbols of texts."""
    return f"{prompts}, L = {length}" if length else prompts


def dose_name(length: int) -> str:
    """k, the number of examples of a prompt, or n, the number of symbols of a text (length 0)."""
    return "k" if length else "n"


def floored(prompts: str, floor: float) -> str:
    """Prompts of a kind beside a predictor with this floor."""
    return f"{prompts}, floor {floor:g}"


def floor_of(prompts: str) -> float:
    """The floor in the name of prompts; NaN without one."""
    found = _FLOOR.fullmatch(prompts)
    return float(found["floor"]) if found else float("nan")
