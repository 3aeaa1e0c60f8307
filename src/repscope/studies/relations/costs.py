"""Forecasts of the study's steps: operations of queries, of the maps' products, and of what is tried on both halves of a split."""

from collections.abc import Callable

from repscope.data.relations import Relation
from repscope.models.prompts import Prompt
from repscope.models.sites import Site
from repscope.studies.relations.edited_facts import CHOOSING, DOSES
from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.split import is_wide
from repscope.studies.run.study import Cost, Setup

_MERGED = 0.6  #: share of a block's operations that a vector takes where a whole Jacobian is made (`models.linear.merged_mlp`)
_SITES = 5  #: blocks of edits
_CONTROLS = 4  #: edits per fact besides ranks and doses
_ABOVE = 0.6  #: of the blocks that an edit runs through
_READ = 2.6  #: states per known fact and layer that are read through the head


def of_queries(setup: Setup[RelationsOptions], r: Relation) -> Callable[[], Cost]:
    """Forecast of the queries of all facts."""

    def cost() -> Cost:
        o = setup.options
        plan = setup.network.plan(_prompts(o, r), "resid_post", batch_tokens=o.batch_tokens)
        return Cost(plan.tokens * o.trials, plan.flops * o.trials, 0.0, 0.0, plan.blocks, plan.working)

    return cost


def of_split(setup: Setup[RelationsOptions], r: Relation, object_site: str) -> Callable[[], Cost]:
    """Forecast of a split: its maps, the faithfulness of all layers and the edits."""

    def cost() -> Cost:
        o, lm = setup.options, setup.network
        plan = lm.plan(_prompts(o, r), "resid_post", batch_tokens=o.batch_tokens)
        token = plan.flops / max(plan.tokens, 1)
        positions = 1 + len(lm.tokenizer(r.templates[0].split("{}")[1], add_special_tokens=False)["input_ids"])
        width = lm.anatomy.width if lm.anatomy else 1
        head = 2.0 * width * getattr(lm.text_config, "vocab_size", 0)
        maps = o.examples * token * _passes(setup, positions, Site.parse(object_site).layer or 0)
        variants = _SITES * len(o.ranks) + len(DOSES) + _CONTROLS
        edits = (o.edits + CHOOSING) * variants * (_ABOVE * positions * token + head) if o.edits else 0.0
        reading = _READ * len(r.subjects) * (lm.blocks + 1) * head
        return Cost(plan.tokens, plan.flops + maps + edits + reading, 2e9 * lm.blocks, 0.0, plan.blocks, plan.working)

    return cost


def _passes(setup: Setup[RelationsOptions], positions: int, layer: int) -> float:
    """Passes of one token through the whole network that the maps of one example take."""
    lm = setup.network
    width, below = lm.anatomy.width if lm.anatomy else 1, (layer + 1) / lm.blocks
    both = positions * (1 + below)
    if is_wide(lm):
        return width / 3 * both
    return width * _MERGED * (3 if positions == 2 else both)  # 3: products that both layers share (`relations_at_two_layers`)


def _prompts(o: RelationsOptions, r: Relation) -> list[Prompt]:
    return [r.prompt(s, r.samples[: o.examples]) for s in r.subjects]
