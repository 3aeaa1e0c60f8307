"""Average indirect effect of each attention head on the answer, after Todd et al. (2024, arXiv 2310.15213).

1. ā_lh: the mean output of head h of block l (site `z.l.h`) at the last token of few-shot prompts of the task.
2. In few-shot prompts whose outputs are shuffled, the head's output at the last token is replaced by ā_lh. The indirect effect is
   the change of the probability of the correct answer's first token; the average is over prompts.

Only the last token differs, so all heads of a prompt are rows of shared passes over that one token (`models.variants.last_token`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from repscope.data.tasks import EncodedTask
from repscope.errors import UserError
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site, Tokens
from repscope.models.variants.last_token import LastTokenVariant, last_token_variants
from repscope.progress import progress
from repscope.results import Result, Row
from repscope.steer.function_vectors.answers import target_scores

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_CHUNK = 16  #: prompts of one capture, so that memory does not grow with their number
MEANS, EFFECTS = 1, 2  #: random streams of examples
Heads = dict[Site, Float[np.ndarray, "d_head"]]


@dataclass(frozen=True, eq=False)
class IndirectEffects:
    """Indirect effects of all heads on one task.

    task: its name. heads: sites `z.L.H`. effects: (prompt, head), change of the probability of the correct first token. base:
    (prompt), that probability in the prompt with shuffled outputs. model: fingerprint. seed: of the draws.
    """

    task: str
    heads: tuple[Site, ...]
    effects: Float[np.ndarray, "prompt head"]
    base: Float[np.ndarray, "prompt"]
    model: str
    seed: int

    @property
    def average(self) -> Float[np.ndarray, "head"]:
        """The average indirect effect (AIE) of each head."""
        mean: np.ndarray = self.effects.mean(0)
        return mean

    def result(self) -> Result:
        """The AIE of each head with its interval over prompts."""
        rows = [
            Row.over(
                self.effects[:, i],
                "prompt",
                metric="average indirect effect",
                definition="change of the probability of the correct first token when the head's output is its few-shot mean",
                model=self.model,
                site=str(head),
                layer=head.layer,
                token="last",
                item=self.task,
                seed=self.seed,
            )
            for i, head in enumerate(self.heads)
        ]
        return Result.of(rows, arrays={"effects": self.effects, "base": self.base})


def mean_head_activations(lm: "LanguageModel", prompts: Sequence[PromptLike]) -> Heads:
    """The mean output of every head at the last token of the prompts, before the output projection; prompts of any lengths.

    Heads and their sizes are read from the network's attention, in every block that has it.

    Raises
    ------
    UserError
        If there is no prompt, or the network's attention has no heads that can be read.
    """
    sites = lm.resolve("z")
    held = list(prompts)
    if not held:
        raise UserError("There is no prompt to average head activations over; give at least one.")
    totals: dict[Site, Float[np.ndarray, "head d_head"]] = {site: np.zeros(()) for site in sites}
    with progress("Averaging heads", len(held)) as advance:
        for i in range(0, len(held), _CHUNK):
            acts = lm.capture(held[i : i + _CHUNK], sites, "last")
            totals = {site: total + acts[site].sum(0, dtype=np.float64) for site, total in totals.items()}
            advance(len(held[i : i + _CHUNK]))
    return {Site("z", s.layer, h): row / len(held) for s, total in totals.items() for h, row in enumerate(total)}


def indirect_effects(lm: "LanguageModel", task: EncodedTask, means: Heads, *, prompts: int = 25) -> IndirectEffects:
    """The indirect effect of every head of `means` in at most so many prompts with shuffled outputs; queries are dev items.

    Raises
    ------
    UserError
        If the interventions change no logit, or a head of `means` is not in the network.
    """
    for site in means:
        lm.write_tap(site)
    queries = task.queries("dev", prompts)
    shown = [shots.prompt() for shots in task.few_shot(queries, shuffled=True, stream=EFFECTS)]
    rows = lm.encoded(shown, Tokens("last")).ids
    variants = [LastTokenVariant(site, torch.from_numpy(mean).to(lm.device)) for site, mean in means.items()]
    effects, base = np.empty((len(queries), len(variants))), np.empty(len(queries))
    with progress("Indirect effects", len(queries)) as advance:
        for i, (row, (_, output)) in enumerate(zip(rows, queries)):
            logp, _ = target_scores(lm, last_token_variants(lm, row, variants), task.first(output))
            p = np.exp(logp)
            effects[i], base[i] = p[1:] - p[0], p[0]
            advance(1)
    return IndirectEffects(task.name, tuple(means), effects, base, lm.fingerprint, task.seed)


def top_heads(effects: Sequence[IndirectEffects], count: int) -> tuple[Site, ...]:
    """The heads with the largest AIE, averaged over tasks, largest first.

    Raises
    ------
    UserError
        If the tasks have other heads, or there are fewer heads.
    """
    if not effects or any(one.heads != effects[0].heads for one in effects):
        raise UserError("The tasks' effects are of different heads; measure them on one network.")
    heads = effects[0].heads
    check_count(count, len(heads))
    order = np.argsort(-np.mean([one.average for one in effects], axis=0), kind="stable")
    return tuple(heads[int(i)] for i in order[:count])


def check_count(count: int, most: int) -> None:
    """Raise a `UserError` unless so many heads can be chosen from `most`."""
    if not 1 <= count <= most:
        raise UserError(f"{count} heads are asked for, and there are {most}; ask for 1 to {most}.")
