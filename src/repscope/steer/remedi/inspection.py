"""Inspection: how far does a subject's vector already hold an attribute?

    score(s, a) = ⟨ z(h_s), z(d_a) ⟩,   d_a = editor(a),   z: centred and scaled per feature over all subjects (all changes)

of the true object minus the mean of the same score of other objects. A low score should tell that the model will answer wrongly.
"""

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError


def held_already(
    subjects: Float[np.ndarray, "subject d_model"],
    true: Float[np.ndarray, "subject d_model"],
    others: Float[np.ndarray, "subject other d_model"],
) -> Float[np.ndarray, "subject"]:
    """Score of each subject's own attribute minus the mean score of others.

    Parameters
    ----------
    subjects
        Vectors of the subjects.
    true, others
        The editor's changes for the true object of each, and for other objects.

    Raises
    ------
    UserError
        For fewer than 3 subjects, over which nothing can be standardised.
    """
    if len(subjects) < 3:
        raise UserError(f"Scores are standardised over subjects, and {len(subjects)} are too few; give 3 or more.")
    h = _standardised(subjects, subjects)
    pool = np.concatenate([true, others.reshape(-1, others.shape[-1])])
    own = (h * _standardised(true, pool)).sum(1)
    rest = (h[:, None] * _standardised(others, pool)).sum(-1).mean(1)
    found: np.ndarray = own - rest
    return found


def _standardised(x: np.ndarray, over: np.ndarray) -> np.ndarray:
    spread = over.std(0)
    made: np.ndarray = (x - over.mean(0)) / np.where(spread > 1e-8 * max(float(spread.max()), 1e-30), spread, 1.0)
    return made
