"""Steering: directions from labelled texts, what they do and cost, and models steered with them.

`rs.steer.fit` makes directions of a contrast, `choose` takes the one that moves the model most at a bearable cost, `dose` measures
strength against effect and damage, `learn` does the first two in short, `steering` and `side_by_side` apply what was found.
"""

from repscope.steer.dose_response import dose
from repscope.steer.from_texts import fit
from repscope.steer.quick import learn
from repscope.steer.selection import choose
from repscope.steer.steered_model import side_by_side, steering

__all__ = ["choose", "dose", "fit", "learn", "side_by_side", "steering"]
