"""Batched training of many small networks, each independent of the others.

1. Weights carry a leading run axis. The total loss is the sum over runs of each run's mean loss, and Adam treats each weight
   separately: runs do not interact, and a run trained alone gives the same weights (up to rounding).
2. The learning rate warms up and then falls linearly; all runs share it. The data of a step follow from the data seed and the step
   number, so that training can resume anywhere.
3. A training run can be saved (weights, moments, step) as safetensors and resumed.
4. Steps run on one thread: faster for products this small, and the weights do not depend on the number of threads.

Independent of the task: the caller provides the losses.
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

from repscope import manifest
from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept
from repscope.models.loading.stacked_weights import State, runs_of
from repscope.worlds.hans.stacked import one_thread

LossOf = Callable[[State, int], Float[Tensor, "run"]]  #: weights and step → mean loss of each run


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule.

    steps: total. rate: peak learning rate of Adam. warmup: steps to the peak. last: final rate as a fraction of the peak. decay:
    weight decay.
    """

    steps: int
    rate: float
    warmup: int = 20
    last: float = 0.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the number of steps and the rate."""
        if self.steps < 1:
            raise UserError(f"Training for {self.steps} steps is not possible; use at least 1.")
        if not 0 < self.rate < math.inf:
            raise UserError(f"A learning rate of {self.rate:g} is not possible; use a positive number, such as 0.004.")

    def at(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        return self.rate * min(1.0, (step + 1) / self.warmup) * (1 - (1 - self.last) * step / self.steps)


class TrainingRun:
    """A training run after `step` steps, with weights `state`; `losses` (step, run) are those of the steps done in this process."""

    def __init__(self, state: State, loss: LossOf, schedule: Schedule) -> None:
        self.state = {name: value.detach().clone().requires_grad_() for name, value in state.items()}
        self.loss, self.schedule, self.step = loss, schedule, 0
        self.losses: list[np.ndarray] = []  #: (run) per step
        self._adam = torch.optim.AdamW(
            list(self.state.values()), lr=schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.decay, fused=True
        )

    def until(self, steps: Sequence[int], tick: Callable[[float], None] = lambda amount: None) -> Iterator[tuple[int, State]]:
        """Continue training and yield the detached weights after each of these steps; earlier steps are skipped."""
        with memory_kept():
            for stop in sorted(s for s in set(steps) if s >= self.step):
                while self.step < stop:
                    with one_thread():
                        self._train_step()
                    tick(1)
                yield stop, {name: value.detach().clone() for name, value in self.state.items()}

    def save(self, path: Path) -> Path:
        """Save weights, moments and step."""
        saved = {f"state.{name}": value.detach() for name, value in self.state.items()}
        for name, value in self.state.items():
            moments = self._adam.state[value]
            saved |= {f"{m}.{name}": moments[m] for m in ("exp_avg", "exp_avg_sq") if m in moments}
        with whole_file(path) as partial:
            save_file({k: v.contiguous() for k, v in saved.items()}, partial, {"step": str(self.step), "seal": manifest.UNSEALED})
            manifest.seal(partial)
        return path

    def load(self, path: Path) -> None:
        """Resume from a file written by `save`.

        Raises
        ------
        UserError
            When the file belongs to other networks or is damaged.
        """
        from safetensors import safe_open

        manifest.need_seal(path, "delete it to start again")
        try:
            with safe_open(path, "pt") as opened:
                step = int((opened.metadata() or {})["step"])
            saved = load_file(path)
            weights = {name: saved[f"state.{name}"] for name in self.state}
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(f"{path} contains no training state of these networks ({error}); delete it to start again.") from error
        if any(weights[name].shape != value.shape for name, value in self.state.items()):
            raise UserError(f"{path} contains {runs_of(weights)} networks of other sizes; delete it to start again.")
        with torch.no_grad():
            for name, value in self.state.items():
                value.copy_(weights[name])
                if step:
                    moments = {m: saved[f"{m}.{name}"].clone() for m in ("exp_avg", "exp_avg_sq")}
                    self._adam.state[value] = {"step": torch.tensor(float(step)), **moments}
        self.step = step

    def _train_step(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self.schedule.at(self.step)
        with torch.enable_grad():
            each = self.loss(self.state, self.step)
            self._adam.zero_grad()
            each.sum().backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        self.losses.append(each.detach().double().numpy())
        self.step += 1
