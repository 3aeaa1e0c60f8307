"""A direction of a contrast in half a minute: the short way from two kinds of text to something to steer with.

1. Difference of means at five blocks in the middle of the model, from all texts of the contrast.
2. Block and strength are those that move the choices most at a bearable cost (`choose`), on a few of the choices.
3. Kept in the cache under the weights and the texts, so that the second time it is there at once.

Nothing is reported, so nothing is held out. `repscope study contrast` measures what such a direction is worth.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from repscope.data.contrasts import Contrast
from repscope.directions import DirectionSet
from repscope.disk import cache_home
from repscope.models.language import LanguageModel
from repscope.steer.from_texts import fit
from repscope.steer.selection import choose

_VERSION = 1  #: raise it when the same texts would give another direction
_DEPTHS = (0.4, 0.48, 0.56, 0.64, 0.72)
_CHOICES, _OPENINGS = 16, 6


def learn(lm: LanguageModel, texts: Contrast, *, seed: int = 0, fresh: bool = False) -> DirectionSet:
    """The direction of a contrast, alone in its set, with a scale that works.

    Parameters
    ----------
    lm
        The model.
    texts
        The contrast, such as `rs.contrast("pairs.csv")`; its choices tell the strength, or questions made of its pairs.
    seed
        Of which choices are taken.
    fresh
        Make it anew although the cache has it.

    Raises
    ------
    UserError
        When the contrast has neither choices nor pairs that begin alike, or the model is none that can be steered by them.
    """
    texts = texts.with_choices()
    kept = cached_path(lm, texts, seed)
    if kept.is_file() and not fresh:
        return DirectionSet.load(kept)
    blocks = sorted({min(lm.blocks - 1, max(1, round(lm.blocks * depth))) for depth in _DEPTHS})
    found = fit(lm, texts, at=[f"resid_post.{b}" for b in blocks], methods=["difference of means"])
    rows = np.random.default_rng(seed).permutation(len(texts.choices))[:_CHOICES]
    chosen = choose(
        lm, found.directions, [texts.choices[i] for i in rows], texts.openings[:_OPENINGS], random=0, chat=texts.chat, seed=seed
    )
    made = replace(found.directions, directions=(replace(chosen.direction, name=texts.name),))
    made.save(kept)
    return made


def cached_path(lm: LanguageModel, texts: Contrast, seed: int = 0) -> Path:
    """The file in the cache that holds, or will hold, the direction of this contrast in this model."""
    key = json.dumps([_VERSION, lm.fingerprint, str(lm.model.dtype), seed, texts.yes, texts.no, str(texts.choices)])
    return cache_home() / "directions" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
