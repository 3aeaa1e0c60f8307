"""The control: as many phenomena as the English grammar, all of one frequency and one distance.

A sentence is a trigger, a filler and a target; trigger and target belong to one of two classes of the sentence's phenomenon, and
agree. Phenomena differ in their words alone, which carry no meaning, so that nothing makes one easier than another: what order
networks share here is due to the statistics of the training and not to the grammar.
"""

import numpy as np

from repscope.worlds.grammar.english import ENGLISH
from repscope.worlds.grammar.sentences import END, Grammar, Phenomenon, Words

_WORDS_PER_CLASS, _FILLERS = 2, 16
NAMES = tuple(f"agreement {k + 1}" for k in range(len(ENGLISH.phenomena)))


def _word(kind: str, k: int, side: int, i: int) -> str:
    return f"{kind}{k + 1}{'ab'[side]}{i + 1}"


def _drawn(k: int, rng: np.random.Generator) -> tuple[Words, int, int]:
    side, i, filler, j = (int(rng.integers(n)) for n in (2, _WORDS_PER_CLASS, _FILLERS, _WORDS_PER_CLASS))
    return [_word("t", k, side, i), f"f{filler + 1}"], side, j


def _sentence(rng: np.random.Generator) -> tuple[Words, frozenset[str]]:
    k = int(rng.integers(len(NAMES)))
    start, side, j = _drawn(k, rng)
    return [*start, _word("r", k, side, j)], frozenset({NAMES[k]})


def _phenomenon(k: int) -> Phenomenon:
    def pair(rng: np.random.Generator) -> tuple[Words, Words]:
        start, side, j = _drawn(k, rng)
        return [*start, _word("r", k, side, j)], [*start, _word("r", k, 1 - side, j)]

    return Phenomenon(pair, 1, "trigger, filler, target of the trigger's class / of the other class")


_WORDS = [END, *(f"f{i + 1}" for i in range(_FILLERS))]
_WORDS += [_word(kind, k, s, i) for kind in "tr" for k in range(len(NAMES)) for s in (0, 1) for i in range(_WORDS_PER_CLASS)]
MATCHED = Grammar("matched", tuple(_WORDS), _sentence, {name: _phenomenon(k) for k, name in enumerate(NAMES)})
