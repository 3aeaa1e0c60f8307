"""The least that a text teaches about its next symbol: which symbols followed the current one so far."""

import numpy as np
from jaxtyping import Float, Int


def pair_counts(
    texts: Int[np.ndarray, "text token"], symbols: int, places: Int[np.ndarray, "place"]
) -> Float[np.ndarray, "text place symbol"]:
    """p(next | text so far) ∝ how often each symbol followed the current one, plus 1 / symbols: uniform where it is new.

    >>> pair_counts(np.array([[0, 1, 0, 1, 0]]), 2, np.array([0, 4]))
    array([[[0.5       , 0.5       ],
            [0.16666667, 0.83333333]]])
    """
    found = np.full((len(texts), len(places), symbols), 1 / symbols)
    for i, place in enumerate(places):
        rows, before = np.nonzero(texts[:, :place] == texts[:, place, None])
        np.add.at(found[:, i], (rows, texts[rows, before + 1]), 1.0)
    found /= found.sum(-1, keepdims=True)
    return found
