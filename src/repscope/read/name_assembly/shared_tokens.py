"""Names that share a token and differ in a class ("San Diego", "San José"): is the class looked up, or summed over tokens?

A sum over tokens gives both names what their common token says, and takes one for the other; a look-up of the whole name does not.

1. A name has a conflict if another name of a different class shares a token with it (decoded, without case and space).
2. Held-out probes score these names: the share that is right, and the share whose predicted class is that of such another name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Conflicts:
    """names: (entity), whether it has a conflict. classes: (entity, class), the classes of names that share a token, without its
    own. pairs: number of pairs of names in conflict.
    """

    names: Bool[np.ndarray, "entity"]
    classes: Bool[np.ndarray, "entity class"]
    pairs: int

    def right(self, predicted: Float[np.ndarray, "entity"], values: Int[np.ndarray, "entity"]) -> Float[np.ndarray, "conflict"]:
        """Whether the class of each name with a conflict is predicted."""
        return np.asarray((predicted == values)[self.names].astype(float))

    def taken_for_other(self, predicted: Float[np.ndarray, "entity"]) -> Float[np.ndarray, "conflict"]:
        """Whether the prediction for each name with a conflict is the class of a name that shares a token with it."""
        rows = np.flatnonzero(self.names)
        return np.asarray(self.classes[rows, predicted[rows].astype(np.int64)].astype(float))


def conflicts(tokens: Sequence[Sequence[str]], values: Int[np.ndarray, "entity"], classes: int) -> Conflicts:
    """The conflicts among names, from their tokens as text and their class codes."""
    holders: dict[str, list[int]] = {}
    for i, name in enumerate(tokens):
        for token in {t.strip().casefold() for t in name} - {""}:
            holders.setdefault(token, []).append(i)
    other = np.zeros((len(tokens), classes), dtype=bool)
    pairs = set()
    for names in holders.values():
        for i in names:
            for j in names:
                if values[i] != values[j]:
                    other[i, values[j]] = True
                    pairs.add((min(i, j), max(i, j)))
    return Conflicts(np.asarray(other.any(1)), other, len(pairs))
