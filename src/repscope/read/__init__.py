"""Reading representations: linear probes, the logit lens, relations as linear maps and the concepts in them.

`rs.read.lre`, `rs.read.concepts`, `rs.read.select_known` and `rs.read.attribute_lens` are the functions of the modules of those names.
"""

from repscope.read.concepts import concepts
from repscope.read.known_facts import select_known
from repscope.read.lre import attribute_lens, lre

__all__ = ["attribute_lens", "concepts", "lre", "select_known"]
