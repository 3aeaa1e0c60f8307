"""A relation's maps to two layers, an earlier one and the last block, from products that both share.

Where one token follows the subject's last one (positions s and t, as in "The capital city of Peru is"), a state of the subject
reaches the last block L through the earlier layer E at two places, so that for each layer below E

    ∂(L, t)/∂s = ∂(L, t)/∂(E, t) ∂(E, t)/∂s + ∂(L, t)/∂(E, s) ∂(E, s)/∂s

1. ∂(E, t)/∂s are the maps to the earlier layer, of each example.
2. ∂(E, s)/∂s takes a pass over the subject's last token alone, in place of one over both.
3. The two others go through the blocks above E only.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from repscope.data.relations import Pair
from repscope.models.linear.jacobian_passes import Prefixes
from repscope.models.prompts import encode
from repscope.models.sites import Tokens
from repscope.read.known_facts import EncodedFacts
from repscope.read.linear_relations import LRE, LREs, lre

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

KEPT_BYTES = 1 << 29  #: of the Jacobians of each example that are in memory at once


def lre_at_both(lm: "LanguageModel", facts: EncodedFacts, examples: Sequence[Pair], earlier: str) -> tuple[LREs, LREs]:
    """The maps to the last block and those to an earlier layer, of all subject layers; the latter with each example's own.

    Where more tokens follow the subject, or memory does not hold the maps of each example, as two calls of `lre`.

    Raises
    ------
    UserError
        As `lre`.
    """
    prompts = [facts.prompt(s, [p for p in examples if p[0] != s]) for s, _ in examples]
    subjects = encode(lm.tokenizer, prompts, Tokens("last", "subject"), lm.context, causal=lm.causal)
    (end,) = lm.resolve(earlier)
    last, layer, width = lm.blocks - 1, end.layer or 0, lm.anatomy.width if lm.anatomy else 0
    kept = 4 * len(examples) * width**2 * (1 + layer)
    one_follows = bool((subjects.ids.lengths - subjects.start == 2).all())
    shared = Prefixes()
    if not (lm.causal and one_follows and end.kind == "resid_post" and layer < last and 2 * kept <= KEPT_BYTES):
        fits = lre(lm, facts, examples=examples, prefixes=shared)
        return fits, lre(lm, facts, examples=examples, target=earlier, each=kept <= KEPT_BYTES, prefixes=shared)

    early = lre(lm, facts, examples=examples, target=earlier, each=True, prefixes=shared)
    assert early.each is not None
    at_subject = partial(lm.jacobian, prompts, source_tokens="subject.last", prefixes=shared)
    own = at_subject(list(early), earlier, target_tokens="subject.last")
    final = f"resid_post.{last}"
    upper = at_subject([f"resid_post.{block}" for block in range(layer, last)], final)
    maps, alone = upper.mean().affine_of_each()
    of_end = lm.jacobian(prompts, earlier, final, source_tokens="last", prefixes=shared).matrix()
    of_subject, count = alone[end], len(prompts)
    value, above = upper.value.mean(0, dtype=np.float64), [_side_by_side(part) for part in (of_end, of_subject)]
    held = {}
    for site, within in own.matrix().items():
        point = own[site].point[..., None]
        weight = (above[0] @ early.each[str(site)].reshape(-1, width) + above[1] @ within.reshape(-1, width)) / count
        moved = (above[0] @ (early.each[str(site)] @ point).reshape(-1) + above[1] @ (within @ point).reshape(-1)) / count
        held[str(site)] = LRE(str(site), final, weight.astype(np.float32), (value - moved).astype(np.float32))
    for found, (w, b) in maps.items():
        held[str(found)] = LRE(str(found), final, w.astype(np.float32), b.astype(np.float32))
    return LREs(facts, tuple(examples), held), early


def _side_by_side(matrices: Float[np.ndarray, "example row column"]) -> Float[np.ndarray, "row columns"]:
    """[M₁ M₂ …], whose product with others one below the other sums over the examples."""
    return np.ascontiguousarray(matrices.transpose(1, 0, 2)).reshape(matrices.shape[1], -1)
