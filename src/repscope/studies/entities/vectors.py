"""What the steps on how names are built share: prompts, the block that is read, columns of rows, paired differences."""

from typing import Any

from repscope import stats
from repscope.models.prompts import Encoded, encode
from repscope.models.sites import Tokens
from repscope.read.probes import ProbeScores, ProbeTask
from repscope.studies.entities.names import first_block
from repscope.studies.entities.task import EntityTask
from repscope.studies.run.study import Context

COMPLETE = 0.9  #: share of the largest score over blocks from which on the vector counts as complete
_LEAST_DEPTH = 0.2  #: share of the blocks below which there is too little to ablate


def encoded_names(subject: EntityTask) -> Encoded:
    """The names in the first prompt, each with its span."""
    lm = subject.lm
    return encode(lm.tokenizer, subject.prompts(subject.templates[0]), Tokens("all", "name"), lm.context, causal=lm.causal)


def target_block(subject: EntityTask, context: Context) -> int:
    """The block by which the first attribute reads out, and at least a fifth of the depth."""
    item = f"{subject.items.name}.{subject.panels[0].tasks[0].name}"
    table = context.inputs[subject.items.name].table
    found = first_block(table[table["item"] == item], COMPLETE)
    blocks = subject.lm.blocks
    return min(max(found[0] if found else 0, round(_LEAST_DEPTH * blocks), 1), blocks - 1)


def where_of(subject: EntityTask, task: ProbeTask, **more: Any) -> dict[str, Any]:
    """Columns of the rows of one attribute."""
    item = f"{subject.items.name}.{task.name}"
    return {"item": item, "token": "last", "split": subject.split, "seed": subject.options.seed} | more


def paired_difference(a: ProbeScores, b: ProbeScores, seed: int) -> stats.Estimate:
    """Score of a minus that of b, paired over entities."""
    rows = a.tested
    top = a.top[0, rows] - b.top[0, rows]
    if a.task.kind == "class":
        return stats.change_of_proportion(b.top[0, rows], a.top[0, rows], unit="entity", seed=seed)
    return stats.ratio(top, a.bottom[0, rows], unit="entity", seed=seed)
