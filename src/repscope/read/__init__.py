"""Reading representations: linear probes, logit lens, linear relations and concept directions.

`lre` estimates a relation as a linear map, `concepts` gives one direction per object, `select_known` selects the facts that a model
knows, `attribute_lens` applies a map to every token of a prompt. `minimal_pairs` and `score_pairs` compare sentences of pairs.
"""

from repscope.read.concept_directions import concepts
from repscope.read.known_facts import select_known
from repscope.read.linear_relations import attribute_lens, lre
from repscope.read.pair_scores import minimal_pairs, score_pairs

__all__ = ["attribute_lens", "concepts", "lre", "minimal_pairs", "score_pairs", "select_known"]
