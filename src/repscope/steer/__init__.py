"""Steering: directions from labelled texts, what they do and cost, and models steered with them.

`rs.steer.fit` makes directions of a contrast, `choose` takes the one that moves the model most at a bearable cost, `dose` measures
strength against effect and damage, `learned` does the first two in short, `steering` and `side_by_side` apply what was found.
`discover` finds directions that nobody labelled, between the blocks of a `LanguageSubject`.
"""

from repscope.steer.applied import side_by_side, steering
from repscope.steer.choose import choose
from repscope.steer.contrast import fit
from repscope.steer.discovery import LanguageSubject, discover
from repscope.steer.dose import dose
from repscope.steer.learned import learned

__all__ = ["LanguageSubject", "choose", "discover", "dose", "fit", "learned", "side_by_side", "steering"]
