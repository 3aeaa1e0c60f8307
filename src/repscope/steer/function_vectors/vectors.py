"""Function vectors and task vectors as directions, the block chosen on the dev items.

Function vector (Todd et al. 2024, arXiv 2310.15213): v = Σ W_O^(l)[h] ā_lh over the heads with the largest average indirect effect,
added to the residual stream after block ℓ at the last token. W_O^(l)[h] are the rows of the output projection of block l that
belong to head h.

Task vector (Hendel et al. 2023, arXiv 2310.15916): the residual stream after block ℓ at the last token of few-shot prompts with a
dummy query, averaged over prompts; it replaces the residual stream of a query without examples.

ℓ is the block with the best first-token accuracy on zero-shot prompts of the dev items, then the higher log-probability. All blocks
of a prompt are rows of shared passes over the last token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repscope.data.tasks import EncodedTask, Task, encode_task
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.engine.hooks import linear_map
from repscope.models.sites import Site, Tokens
from repscope.models.variants.last_token import LastTokenVariant, last_token_variants
from repscope.progress import progress
from repscope.steer.function_vectors.answers import target_scores
from repscope.steer.function_vectors.indirect_effects import (
    MEANS,
    Heads,
    IndirectEffects,
    check_count,
    indirect_effects,
    mean_head_activations,
    top_heads,
)

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

QUESTION_END = "question.last"  #: where vectors act: the last token before the answer
DUMMY = 3  #: random stream of prompts with a dummy query
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Sweep:
    """First tokens of the answers to zero-shot dev queries under an intervention at each block.

    sites: `resid_post` of every block. accuracy, logprob: (site), means over dev items, logprob in nats. items: their number.
    """

    sites: tuple[Site, ...]
    accuracy: Float[np.ndarray, "site"]
    logprob: Float[np.ndarray, "site"]
    items: int

    @property
    def best(self) -> Site:
        """The site with the best accuracy, among equals the one with the highest log-probability."""
        order = sorted(range(len(self.sites)), key=lambda i: (self.accuracy[i], self.logprob[i]))
        return self.sites[order[-1]]


@dataclass(frozen=True, eq=False)
class FunctionVector:
    """A task's function vector.

    task: as encoded. direction: at the chosen block; its scale is the vector's norm. heads: summed, largest effect first. means: of
    all heads. effects: all indirect effects; None if the heads were given. sweep: of the block.
    """

    task: EncodedTask
    direction: Direction
    heads: tuple[Site, ...]
    means: Heads
    effects: IndirectEffects | None
    sweep: Sweep

    def edit(self, vector: "Direction | None" = None) -> Edit:
        """The intervention: add the vector (or another one, at this site) at the question's last token."""
        added = self.direction if vector is None else vector
        return Edit.add(self.direction.site, added.weights, scale=1.0, tokens=QUESTION_END)


@dataclass(frozen=True, eq=False)
class TaskVector:
    """A task's task vector.

    task: as encoded. direction: at the chosen block; weights are the residual stream to put there. sweep: of the block.
    """

    task: EncodedTask
    direction: Direction
    sweep: Sweep

    def edit(self) -> Edit:
        """The intervention: replace the residual stream at the question's last token."""
        return Edit.replace(self.direction.site, self.direction.weights, tokens=QUESTION_END)


def function_vector(
    lm: "LanguageModel",
    task: EncodedTask | Task,
    *,
    heads: int | Sequence[str | Site] = 10,
    mean_prompts: int = 100,
    effect_prompts: int = 25,
    dev_items: int = 50,
) -> FunctionVector:
    """A task's function vector, with its heads and its block.

    Parameters
    ----------
    task
        As `encode_task` gives it; a bare task is encoded with ten examples per prompt.
    heads
        How many heads with the largest average indirect effect on this task; or the heads themselves (`z.L.H`), such as
        `top_heads` of several tasks; no effects are measured then.
    mean_prompts, effect_prompts
        Prompts for the mean activations (train queries) and the indirect effects (dev queries, shuffled outputs).
    dev_items
        Zero-shot dev queries that choose the block; at most as many as there are.

    Raises
    ------
    UserError
        If a head's output does not add to the residual stream (a norm in between), or an intervention changes no logit.
    """
    task = _encoded(lm, task)
    lm.resolve("head_out")  # refused where no head adds by itself
    if isinstance(heads, int):
        check_count(heads, sum(lm.tap(site).heads for site in lm.resolve("z")))
    queries = _repeated(task, mean_prompts)
    means = mean_head_activations(lm, [shots.prompt() for shots in task.few_shot(queries, stream=MEANS)])
    effects = None
    if isinstance(heads, int):
        effects = indirect_effects(lm, task, means, prompts=effect_prompts)
        chosen = top_heads([effects], heads)
    else:
        chosen = tuple(site for head in heads for site in lm.resolve(head))
        if unusable := [str(site) for site in chosen if site not in means]:
            raise UserError(f"{unusable[0]} is not one head; write heads as z.BLOCK.HEAD.")
    vector = summed_heads(lm, means, chosen)
    sweep = swept(lm, task, {site: _adding(vector) for site in lm.resolve("resid_post")}, dev_items)
    direction = _direction(lm, task, vector, sweep.best, f"function vector of {len(chosen)} heads")
    return FunctionVector(task, direction, chosen, means, effects, sweep)


def task_vector(lm: "LanguageModel", task: EncodedTask | Task, *, prompts: int = 25, dev_items: int = 50) -> TaskVector:
    """A task's task vector, averaged over so many few-shot prompts with dummy queries from the train items.

    Raises
    ------
    UserError
        If an intervention changes no logit.
    """
    task = _encoded(lm, task)
    sites = lm.resolve("resid_post")
    shown = [shots.prompt() for shots in task.few_shot(_repeated(task, prompts), stream=DUMMY)]
    totals: dict[Site, Float[np.ndarray, d_model]] = {site: np.zeros(()) for site in sites}
    for i in range(0, len(shown), _CHUNK):
        acts = lm.capture(shown[i : i + _CHUNK], sites, "last")
        totals = {site: total + acts[site].sum(0, dtype=np.float64) for site, total in totals.items()}
    means = {site: total / len(shown) for site, total in totals.items()}
    changes: dict[Site, Tensor] = {site: torch.from_numpy(mean).to(lm.device) for site, mean in means.items()}
    sweep = swept(lm, task, changes, dev_items)
    return TaskVector(task, _direction(lm, task, means[sweep.best], sweep.best, "task vector (replaces)"), sweep)


def summed_heads(lm: "LanguageModel", means: Heads, heads: Sequence[Site]) -> Float[np.ndarray, "d_model"]:
    """Sum over heads of their mean output through their rows of the output projection, in float64."""
    total: np.ndarray = np.zeros(lm.anatomy.width if lm.anatomy else 0)
    for layer in sorted({head.layer for head in heads if head.layer is not None}):
        tap = lm.tap(Site("z", layer))
        z = np.stack([means[Site("z", layer, h)] * (Site("z", layer, h) in heads) for h in range(tap.heads)])
        weight = linear_map(lm.module.get_submodule(tap.path))
        assert weight is not None
        total = total + z.ravel() @ weight.detach().double().cpu().numpy()
    return total


def swept(lm: "LanguageModel", task: EncodedTask, changes: Mapping[Site, Tensor | Callable[[Tensor], Tensor]], items: int) -> Sweep:
    """First-token accuracy and log-probability on zero-shot dev queries for an intervention at each site alone."""
    queries = task.queries("dev", items)
    rows = lm.encoded([shots.prompt() for shots in task.zero_shot(queries)], Tokens("last")).ids
    variants = [LastTokenVariant(site, change) for site, change in changes.items()]
    hits, logps = (np.zeros(len(variants)) for _ in range(2))
    with progress("Choosing the block", len(queries)) as advance:
        for row, (_, output) in zip(rows, queries):
            logp, hit = target_scores(lm, last_token_variants(lm, row, variants)[1:], task.first(output))
            hits, logps = hits + hit, logps + logp
            advance(1)
    return Sweep(tuple(changes), hits / len(queries), logps / len(queries), len(queries))


def direction_set(lm: "LanguageModel", vectors: Sequence[FunctionVector | TaskVector], note: str = "") -> DirectionSet:
    """The vectors of several tasks as a set of directions of this network, to be saved or added."""
    kind = str(getattr(lm.model.config, "model_type", ""))
    return DirectionSet.of(*(v.direction for v in vectors), model=lm.fingerprint, note=note, architecture=kind, blocks=lm.blocks)


def _encoded(lm: "LanguageModel", task: EncodedTask | Task) -> EncodedTask:
    return task if isinstance(task, EncodedTask) else encode_task(lm.tokenizer, task)


def _adding(vector: Float[np.ndarray, "d_model"]) -> Callable[[Tensor], Tensor]:
    wide = torch.from_numpy(vector)
    return lambda there: there + wide.to(there.device, torch.promote_types(there.dtype, torch.float32))


def _repeated(task: EncodedTask, count: int) -> list[tuple[str, str]]:
    """So many train queries, each item again once all have been drawn."""
    if count < 1:
        raise UserError(f"{count} prompts are asked for; ask for one at least.")
    drawn = task.queries("train", len(task.split.train))
    return [drawn[i % len(drawn)] for i in range(count)]


def _direction(lm: "LanguageModel", task: EncodedTask, vector: Float[np.ndarray, "d_model"], site: Site, method: str) -> Direction:
    return Direction.of(
        vector,
        str(site),
        task.name,
        tokens="last",
        found_by=f"{method}, {task.shots} examples per prompt, seed {task.seed}",
        trained_on=task.task.source,
        model=lm.fingerprint,
    )
