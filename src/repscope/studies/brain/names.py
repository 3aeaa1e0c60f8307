"""Names of metrics, items, regions and conditions of `brain`."""

from repscope.conditions import ESTIMATE, OTHER_FAMILY, RANDOM_RECORDING, UNTRAINED
from repscope.worlds.brain import FAMILIES

SIMILARITY, FOUND, GAIN = "similarity", "family found", "gain"
LAYER, DIGITS = "layer found", "digit accuracy"

RSA, ENCODING = "RSA", "encoding"
METHODS = (RSA, ENCODING)
EARLY, LATE = "early region", "late region"  #: of simulated recordings: channels that mix units of layer 1, and of layer 2
REGIONS = (EARLY, LATE)
GIVEN = "recording"  #: step of the user's recording

TRAINED = FAMILIES[:3]
CONTROL = FAMILIES[3]  #: the untrained networks
RANDOM = "random signals"  #: in place of a generating family
ALL = "all families"


def item(method: str, truth: str, candidate: str = "") -> str:
    """The item of a number: method, what generated the recording (or the user's region), and the family compared with it.

    >>> item("RSA", "supervised", "contrastive")
    'RSA, supervised: contrastive'
    """
    return f"{method}, {truth}: {candidate}" if candidate else f"{method}, {truth}"


def parts(name: str) -> tuple[str, str, str]:
    """Method, truth or region, and candidate of an item.

    >>> parts("RSA, supervised: contrastive"), parts("encoding, all families")
    (('RSA', 'supervised', 'contrastive'), ('encoding', 'all families', ''))
    """
    method, _, rest = name.partition(", ")
    truth, _, candidate = rest.partition(": ")
    return method, truth, candidate


def condition_of(truth: str, candidate: str) -> str:
    """Under which condition a family is compared with a simulated recording."""
    if truth == RANDOM:
        return RANDOM_RECORDING
    if truth == candidate:
        return ESTIMATE
    return UNTRAINED if candidate == CONTROL else OTHER_FAMILY
