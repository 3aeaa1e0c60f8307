"""Step of `emergence` on repeated tokens: when do induction heads appear, and does copying appear with them?

1. Networks of two blocks and, as control, of one block are trained on documents that repeat with unknown periods
   (`worlds.repeated_tokens`). One block cannot look up what came after an earlier copy.
2. At checkpoints on a log axis: the induction score of every head, and accuracy and log-probability of the second copy. The
   strongest head is chosen at the last step on one half of the documents, and its curve is of the other half. Controls: its
   attention to other tokens, the first copy, the network before training.
3. The step of 50 % of the score and of accuracy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from repscope.conditions import ESTIMATE
from repscope.disk import whole_file
from repscope.models.loading.stacked_weights import State
from repscope.results import CHOSEN, Result, Row
from repscope.studies.emergence import names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context, Cost
from repscope.trace.emergence.heads import chosen_heads
from repscope.trace.emergence.transitions import Curve, transition
from repscope.worlds.repeated_tokens import RepeatedTokens, evaluate_copies
from repscope.worlds.small_lm import Training, next_token_loss, train_by, transformer
from repscope.worlds.small_lm.transformer import Shape

BATCH, HEADS = 32, 4
BLOCKS = {2: names.TWO_BLOCKS, 1: names.ONE_BLOCK}  #: by number of blocks, the item
_CHECKPOINTS, _TESTS, _RATE = 14, 64, 3e-3


@dataclass(frozen=True)
class Copying:
    """Documents, networks and checkpoints of a run."""

    options: EmergenceOptions

    @property
    def world(self) -> RepeatedTokens:
        """Documents and tests."""
        return RepeatedTokens()

    @property
    def seeds(self) -> list[int]:
        """Of the networks."""
        return [1009 * self.options.seed + i for i in range(self.options.seeds)]

    def shape(self, blocks: int) -> Shape:
        """Sizes of the networks."""
        return Shape(self.world.vocabulary, self.world.length, 16 if self.options.tiny else 48, blocks, HEADS)

    @property
    def checkpoints(self) -> list[int]:
        """Steps on a log axis, with the first and the last."""
        last = self.options.copy_steps
        return sorted({0, *np.geomspace(max(4, last // 40), last, _CHECKPOINTS - 1).round().astype(int).tolist()})

    def documents(self, step: int) -> torch.Tensor:
        """Documents of an update."""
        generator = torch.Generator().manual_seed(1_000_003 * self.options.seed + step)
        return self.world.documents(len(self.seeds), BATCH, generator)


def copied(task: Copying, context: Context) -> Result:
    """Train networks of either depth, and measure them at every checkpoint."""
    o, rows = task.options, list[Row]()
    tests = task.world.tests(len(task.seeds), _TESTS, torch.Generator().manual_seed(1_000_003 * o.seed + 999_999))
    for blocks, item in BLOCKS.items():
        shape = task.shape(blocks)

        def visit(step: int, state: State, shape: Shape = shape, blocks: int = blocks) -> None:
            _save(context.partial / f"{blocks}-{step:06d}.npz", evaluate_copies(shape, state, tests))

        train_by(
            next_token_loss(partial(transformer.logits, shape), task.documents),
            transformer.initial(shape, task.seeds),
            Training(o.copy_steps, _RATE, warm_up=min(50, o.copy_steps), final=1.0),
            saved=context.partial / f"training-{blocks}.safetensors",
            title=f"repeated tokens, {item}",
            visit=visit,
            at=frozenset(task.checkpoints),
        )
        rows += _rows(task, item, _gathered(context.partial, blocks, task.checkpoints))
    return Result.of(rows)


def cost(task: Copying) -> Cost:
    """Forecast."""
    o = task.options
    tokens = BATCH * task.world.length * o.copy_steps * len(task.seeds) * len(BLOCKS)
    return Cost(tokens, 6.0 * tokens * task.shape(2).parameters, memory_bytes=3e8)


def _rows(task: Copying, item: str, arrays: Mapping[str, Float[np.ndarray, "checkpoint network document ..."]]) -> Iterator[Row]:
    o, steps = task.options, np.array(task.checkpoints)
    scores, beside = (arrays[name].swapaxes(0, 1) for name in ("induction", "other tokens"))
    heads = [f"z.{i // HEADS}.{i % HEADS}" for i in range(scores.shape[-1])]
    best = chosen_heads(scores, heads, 1, beside)
    said = "; ".join(", ".join(own) for own in best.heads)
    where: dict[str, Any] = {"item": item, "seed": o.seed}
    series = {
        (names.INDUCTION, ESTIMATE): best.values.mean(-1),
        (names.INDUCTION, names.OTHER_TOKENS): best.control.mean(-1),
        (names.COPYING, ESTIMATE): arrays["hits"].mean(-1).T,
        (names.COPYING, names.FIRST_COPY): arrays["other hits"].mean(-1).T,
        (names.COPYING_NATS, ESTIMATE): arrays["scores"].mean(-1).T,
        (names.COPYING_NATS, names.FIRST_COPY): arrays["other scores"].mean(-1).T,
    }
    for (metric, condition), values in series.items():  # (network, checkpoint)
        more: dict[str, Any] = {"site": CHOSEN, "definition": said} if metric == names.INDUCTION else {}
        for i, step in enumerate(steps.tolist()):
            at: dict[str, Any] = {"metric": metric, "condition": condition, "split": names.at(step)}
            yield Row.over(values[:, i], "run", **at, **more, **where)
    for name, hits in ((names.SCORE_STEP, best.values), (names.COPYING_STEP, arrays["hits"].swapaxes(0, 1))):
        found = transition(Curve(steps, hits), draws=o.draws, seed=o.seed)
        yield Row.of(found.step, metric=name, **where)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path) as partial_file, partial_file.open("wb") as file:
        kept: dict[str, Any] = dict(arrays)
        np.savez(file, **kept)


def _gathered(folder: Path, blocks: int, steps: list[int]) -> dict[str, Float[np.ndarray, "checkpoint ..."]]:
    held = []
    for step in steps:
        with np.load(folder / f"{blocks}-{step:06d}.npz", allow_pickle=False) as file:
            held.append({name: file[name] for name in file.files})
    return {name: np.stack([one[name] for one in held]) for name in held[0]}
