"""Training of stacked language models on fresh documents: AdamW, warm-up, linear decay, clipping per network; resumable.

1. Networks share steps, not numbers: each has its own gradient, norm and Adam state, as if it were trained alone.
2. Every `keep` steps the weights, the moments and the losses so far go to one safetensors file; a killed training continues there
   and ends with the same weights. Documents of a step depend on the seed and the step alone.
3. Steps run on one thread: products this small gain nothing from more, and results do not depend on their number.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from repscope import manifest
from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.models.engine.memory import memory_kept
from repscope.models.loading.stacked_weights import State
from repscope.progress import progress
from repscope.untrusted import parse_json
from repscope.worlds.hans.stacked import one_thread

LossOf = Callable[[State, int], Float[Tensor, "network"]]  #: weights and step → each network's mean loss
Logits = Callable[[State, Int[Tensor, "network document token"]], Float[Tensor, "network document token vocabulary"]]
Documents = Callable[[int], Int[Tensor, "network document token"]]
Visit = Callable[[int, State], None]
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Training:
    """Schedule. steps: updates. rate: peak learning rate. warm_up: steps of linear increase. final: share of the rate at the end.

    decay: of weights, decoupled. clip: largest norm of a network's gradient. keep: steps between saved states.
    """

    steps: int
    rate: float = 3e-3
    warm_up: int = 100
    final: float = 0.03
    decay: float = 0.01
    clip: float = 1.0
    keep: int = 200

    def __post_init__(self) -> None:
        """Refuse a schedule that trains nothing."""
        if self.steps < 1 or not self.rate > 0:
            raise UserError(f"A training of {self.steps} steps at a rate of {self.rate:g} trains nothing.")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.rate * min(1.0, (step + 1) / self.warm_up) * max(self.final, 1 - step / self.steps)


@dataclass(frozen=True, eq=False)
class Trained:
    """Trained networks. state: weights. losses: nats per token of each step, per network."""

    state: State
    losses: Float[np.ndarray, "step network"]


def next_token_loss(logits: Logits, documents: Documents) -> LossOf:
    """Each network's mean cross-entropy of the next token, in nats per token. An axis of one network in documents is for all."""

    def loss(state: State, step: int) -> Float[Tensor, "network"]:
        networks = len(next(iter(state.values())))
        tokens = documents(step).expand(networks, -1, -1)
        found = logits(state, tokens[..., :-1])
        nats = functional.cross_entropy(found.flatten(0, -2), tokens[..., 1:].reshape(-1), reduction="none")
        return nats.view(networks, -1).mean(1)

    return loss


def train(
    logits: Logits, start: State, documents: Documents, schedule: Training, *, saved: Path | None = None, title: str = "training"
) -> Trained:
    """Train stacked networks to predict the next token.

    Parameters
    ----------
    logits
        (state, tokens) → logits, differentiable.
    start
        Initial weights.
    documents
        Step → documents (network, document, token); a network axis of one is for all.
    schedule
        Of the optimiser.
    saved
        File for the state of an interrupted training; removed at the end.
    title
        Of the progress bar.

    Raises
    ------
    UserError
        When a loss is not a number.
    """
    return train_by(next_token_loss(logits, documents), start, schedule, saved=saved, title=title)


def train_by(
    loss: LossOf,
    start: State,
    schedule: Training,
    *,
    saved: Path | None = None,
    title: str = "training",
    visit: Visit | None = None,
    at: Collection[int] = (),
) -> Trained:
    """Train stacked networks by any loss: (weights, step) → each network's mean loss. The rest as `train`.

    Before the first update, and after those numbers of updates that are in `at`, `visit` sees the number of updates and the
    weights, which it must not change. An interrupted training visits again only what came after its saved state.
    """
    weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    decayed = [w for w in weights.values() if w.dim() > 2]
    others = [w for w in weights.values() if w.dim() <= 2]
    groups = [{"params": decayed, "weight_decay": schedule.decay}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=schedule.rate, betas=_BETAS, fused=True)
    first, losses = _resumed(saved, weights, adam)
    with progress(title, schedule.steps) as advance, one_thread(), memory_kept():
        advance(first)
        if visit is not None and not first and 0 in at:
            visit(0, _copies(weights))
        for step in range(first, schedule.steps):
            adam.zero_grad()
            with torch.enable_grad():
                each = loss(weights, step)
                each.sum().backward()  # type: ignore[no-untyped-call]
            if not bool(torch.isfinite(each).all()):
                raise UserError(f"The loss is not a number at step {step}; lower the learning rate of {schedule.rate:g}.")
            _clip(list(weights.values()), schedule.clip)
            for group in adam.param_groups:
                group["lr"] = schedule.rate_at(step)
            adam.step()
            losses.append(each.detach().double().numpy())
            advance(1)
            if visit is not None and step + 1 in at:
                visit(step + 1, _copies(weights))
            if saved is not None and (step + 1) % schedule.keep == 0 and step + 1 < schedule.steps:
                _save(saved, step + 1, weights, adam, losses)
    if saved is not None:
        saved.unlink(missing_ok=True)
    return Trained({name: w.detach() for name, w in weights.items()}, np.stack(losses))


def _copies(weights: State) -> State:
    return {name: w.detach().clone() for name, w in weights.items()}


def _clip(weights: list[Tensor], most: float) -> None:
    """Scale each network's gradient to at most a norm."""
    grads = [w.grad for w in weights if w.grad is not None]
    squares = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0)
    factor = (most / squares.sqrt().clamp(min=most)).float()
    for g in grads:
        g.mul_(factor.view(-1, *[1] * (g.dim() - 1)))


def _save(path: Path, step: int, weights: State, adam: torch.optim.AdamW, losses: list[np.ndarray]) -> None:
    held = {f"w/{name}": w.detach() for name, w in weights.items()}
    for name, w in weights.items():
        held |= {f"{part}/{name}": adam.state[w][part] for part in ("exp_avg", "exp_avg_sq")}
    held["losses"] = torch.from_numpy(np.stack(losses))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        metadata = {"progress": json.dumps({"step": step}), "seal": manifest.UNSEALED}
        save_file({k: v.contiguous() for k, v in held.items()}, partial, metadata)
        manifest.seal(partial)


def _resumed(path: Path | None, weights: State, adam: torch.optim.AdamW) -> tuple[int, list[np.ndarray]]:
    """The step to continue at, with weights and moments restored; 0 without a saved state, or with a damaged one."""
    if path is None or not path.is_file() or manifest.sealed(path) is False:
        return 0, []
    try:
        with safe_open(path, "pt") as held:
            step = int(parse_json(held.metadata()["progress"])["step"])
            tensors = {k: held.get_tensor(k) for k in held.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return 0, []
    if any(tensors.get(f"w/{name}", torch.empty(0)).shape != w.shape for name, w in weights.items()):
        return 0, []
    with torch.no_grad():
        for name, w in weights.items():
            w.copy_(tensors[f"w/{name}"])
            adam.state[w] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg/{name}"].clone(),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].clone(),
            }
    return step, list(tensors["losses"].numpy())
