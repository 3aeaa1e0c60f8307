"""Reading representations: linear probes, the logit lens, relations as linear maps and the concepts in them.

`lre` estimates a relation as a linear map, `concepts` gives one direction per object, `select_known` keeps the facts that a model
knows, `attribute_lens` reads every token of a prompt through a map.
"""

from repscope.read.concept_directions import concepts
from repscope.read.known_facts import select_known
from repscope.read.linear_relations import attribute_lens, lre

__all__ = ["attribute_lens", "concepts", "lre", "select_known"]
