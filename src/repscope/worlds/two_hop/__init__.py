"""Two-hop facts: graphs whose facts compose, small transformers that learn them, probes and patches of the bridge entity."""

from repscope.worlds.two_hop.evaluation import Evaluated, evaluate
from repscope.worlds.two_hop.facts import KINDS, Batch, FactWorlds, Queries
from repscope.worlds.two_hop.forward import fact_logits, loss

__all__ = ["KINDS", "Batch", "Evaluated", "FactWorlds", "Queries", "evaluate", "fact_logits", "loss"]
