"""Training many small networks at once: all runs in one batch, each as if it were alone.

1. Weights carry a leading run axis. The loss is the sum over runs of each run's own mean, Adam works on each weight by itself: no
   run touches another, and one that is trained alone ends where it ends among others (to rounding).
2. The rate warms up and falls linearly; all runs share it. What a run sees at a step follows from its data seed and the step alone,
   so that training goes on anywhere.
3. A descent can be kept (weights, moments, step) as safetensors and taken up again.

Knows no task: losses come from the caller.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept
from repscope.models.loading.stacked_weights import State, runs_of

LossOf = Callable[[State, int], Float[Tensor, "run"]]  #: weights and step → mean loss of each run


@dataclass(frozen=True)
class Schedule:
    """How to descend.

    steps: in all. rate: the largest of Adam. warmup: steps until it is reached. last: what is left of it at the end. decay: of
    weights.
    """

    steps: int
    rate: float
    warmup: int = 20
    last: float = 0.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no descent can take: no step, or a rate that is not a positive number."""
        if self.steps < 1:
            raise UserError(f"A descent of {self.steps} steps is none; take at least 1.")
        if not 0 < self.rate < math.inf:
            raise UserError(f"A rate of {self.rate:g} does not descend; give a positive number, such as 0.004.")

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * (1 - (1 - self.last) * step / self.steps)


class TrainingRun:
    """A descent under way: `step` steps are done, `state` is where it is, `losses` (step, run) are those of steps done here."""

    def __init__(self, state: State, loss: LossOf, schedule: Schedule) -> None:
        self.state = {name: value.detach().clone().requires_grad_() for name, value in state.items()}
        self.loss, self.schedule, self.step = loss, schedule, 0
        self.losses: list[np.ndarray] = []  #: (run) a step
        self._adam = torch.optim.AdamW(
            list(self.state.values()), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.decay, fused=True
        )

    def until(self, steps: Sequence[int], tick: Callable[[float], None] = lambda amount: None) -> Iterator[tuple[int, State]]:
        """Go on, and give the weights after each of these steps, detached. A step that is past is not given again."""
        with memory_kept():
            for stop in sorted(s for s in set(steps) if s >= self.step):
                while self.step < stop:
                    self._descend()
                    tick(1)
                yield stop, {name: value.detach().clone() for name, value in self.state.items()}

    def save(self, path: Path) -> Path:
        """Keep where the descent is."""
        held = {f"state.{name}": value.detach() for name, value in self.state.items()}
        for name, value in self.state.items():
            moments = self._adam.state[value]
            held |= {f"{m}.{name}": moments[m] for m in ("exp_avg", "exp_avg_sq") if m in moments}
        with whole_file(path) as partial:
            save_file({k: v.contiguous() for k, v in held.items()}, partial, {"step": str(self.step)})
        return path

    def load(self, path: Path) -> None:
        """Take up where `save` left it.

        Raises
        ------
        UserError
            When the file is of other weights, or damaged.
        """
        from safetensors import safe_open

        try:
            with safe_open(path, "pt") as opened:
                step = int((opened.metadata() or {})["step"])
            held = load_file(path)
            kept = {name: held[f"state.{name}"] for name in self.state}
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(f"{path} does not hold a descent of these networks ({error}); delete it to start anew.") from error
        if any(kept[name].shape != value.shape for name, value in self.state.items()):
            raise UserError(f"{path} holds {runs_of(kept)} networks of other sizes; delete it to start anew.")
        with torch.no_grad():
            for name, value in self.state.items():
                value.copy_(kept[name])
                if step:
                    moments = {m: held[f"{m}.{name}"].clone() for m in ("exp_avg", "exp_avg_sq")}
                    self._adam.state[value] = {"step": torch.tensor(float(step)), **moments}
        self.step = step

    def _descend(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self.schedule.at(self.step)
        with torch.enable_grad():
            each = self.loss(self.state, self.step)
            self._adam.zero_grad()
            each.sum().backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        self.losses.append(each.detach().double().numpy())
        self.step += 1
