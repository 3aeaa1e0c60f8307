"""Binary features of text that ordinary token embeddings have, read beside the attributes of names.

Of the last token of a name: whether it begins with a space, has an upper-case letter, or ends in a vowel. Of single words: whether
their sentiment is positive. A look-up of the whole name should add the attributes and leave these alone or lose them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from repscope.read.probes import ProbeTask

LEAST = 12  #: entities on the rarer side for a probe
_FEATURES: dict[str, Callable[[str], bool]] = {
    "last token begins with a space": lambda t: t[:1].isspace(),
    "last token has an upper-case letter": lambda t: any(c.isupper() for c in t),
    "last token ends in a vowel": lambda t: t.strip()[-1:].casefold() in set("aeiouy"),
    "last token has three letters or fewer": lambda t: len(t.strip()) <= 3,
}
POSITIVE = """
good great happy nice kind brave wise calm clean bright rich strong fresh sweet warm safe fair smart proud glad free lovely healthy
perfect excellent wonderful beautiful friendly honest peaceful joyful pleasant charming gentle generous brilliant superb delightful
"""
NEGATIVE = """
bad awful sad nasty cruel weak stupid dirty dark poor sick ugly wrong dead angry rude cold unfair lazy guilty broken horrible 
painful terrible evil dangerous hostile corrupt violent bitter lonely boring harsh greedy dreadful miserable toxic vicious
"""


@dataclass(frozen=True)
class TextFeature:
    """name: of the feature. task: the feature as a target. rows: entities that have it or not."""

    name: str
    task: ProbeTask
    rows: Int[np.ndarray, "entity"]


def text_features(last_tokens: Sequence[str]) -> list[TextFeature]:
    """The features of the last tokens of names that are balanced enough to be probed."""
    found = []
    for name, of in _FEATURES.items():
        values = np.array([int(of(token)) for token in last_tokens])
        if min(values.sum(), len(values) - values.sum()) >= LEAST:
            found.append(TextFeature(name, ProbeTask(name, "class", values, ("no", "yes")), np.arange(len(values))))
    return found


def word_features() -> tuple[list[str], TextFeature]:
    """Words of positive and of negative sentiment, and that as a target."""
    words = [*POSITIVE.split(), *NEGATIVE.split()]
    values = np.array([1] * len(POSITIVE.split()) + [0] * len(NEGATIVE.split()))
    name = "positive sentiment"
    return words, TextFeature(name, ProbeTask(name, "class", values, ("no", "yes")), np.arange(len(words)))
