"""Quick fit of one steering direction from a contrast, in about half a minute.

1. Difference of means at five middle blocks, from all texts of the contrast.
2. Block and strength with the largest effect at an acceptable cost (`choose`), on a subset of the choices.
3. The result is cached by weights and texts.

No texts are held out, as nothing is reported. `repscope study contrast` evaluates such a direction.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from repscope.data.contrasts import Contrast
from repscope.directions import DirectionSet
from repscope.disk import cache_home
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.steer.from_texts import fit
from repscope.steer.selection import choose

_VERSION = 1  #: increment when the same texts would give another direction
_DEPTHS = (0.4, 0.48, 0.56, 0.64, 0.72)
_CHOICES, _OPENINGS = 16, 6


def learn(lm: LanguageModel, texts: Contrast, *, seed: int = 0, fresh: bool = False) -> DirectionSet:
    """The direction of a contrast, as a set of one, with a working scale.

    Parameters
    ----------
    lm
        The model.
    texts
        The contrast, such as `rs.contrast("pairs.csv")`; its choices, or questions made of its pairs, set the strength.
    seed
        Of the subset of choices.
    fresh
        Ignore the cache.

    Raises
    ------
    UserError
        If the contrast has neither choices nor pairs with a common beginning, or does not suit the model.
    """
    texts = texts.with_choices()
    kept = cached_path(lm, texts, seed)
    if kept.is_file() and not fresh:
        with suppress(UserError):  # damaged: made again
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
    """Cache file of the direction of this contrast in this model; it need not exist."""
    key = json.dumps([_VERSION, lm.fingerprint, str(lm.model.dtype), seed, texts.yes, texts.no, str(texts.choices)])
    return cache_home() / "directions" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
