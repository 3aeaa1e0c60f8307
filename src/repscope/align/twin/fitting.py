"""Fitting a twin: Poisson loss, early stopping on held-out trials, resumable.

1. Loss: Σ over neurons of ŷ - y log ŷ, mean over trials, plus a penalty (`TwinNetwork.penalty`).
2. Adam. After every epoch the mean correlation over neurons on the validation trials. If it has not risen for `patience` epochs,
   the rate falls by 0.3 and the best weights come back; after `decays` falls training ends. The best weights are returned.
3. Every random number depends on the seed and the epoch alone. With a `checkpoint`, a fit that was interrupted continues after its
   last epoch and ends with the same weights, bit by bit. The file holds tensors and numbers and is read with `weights_only`.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.align.twin.network import TwinNetwork
from repscope.disk import whole_file
from repscope.errors import UserError

BATCH, EPOCHS, PATIENCE, DECAYS, RATE = 64, 100, 4, 2, 0.01


@dataclass(frozen=True, eq=False)
class Recording:
    """Stimuli and responses of the same trials.

    stimuli: images (trial, channel, height, width) or videos (trial, channel, frame, height, width). responses: (trial, neuron), of
    videos (trial, frame, neuron), at least 0. behaviour: as responses with variables in place of neurons, or None.
    """

    stimuli: Float[Tensor, "trial channel *space"]
    responses: Float[Tensor, "trial *time neuron"]
    behaviour: Float[Tensor, "trial *time variable"] | None = None

    @classmethod
    def of(cls, stimuli: Any, responses: Any, behaviour: Any | None = None) -> "Recording":
        """From arrays, checked.

        Raises
        ------
        UserError
            For arrays of other shapes, different numbers of trials, values that are not finite, negative responses, or a neuron
            that never responds.
        """
        given = [stimuli, responses] + ([] if behaviour is None else [behaviour])
        x, y, *rest = (torch.as_tensor(np.asarray(a), dtype=torch.float32) for a in given)
        if x.ndim == 3:
            x = x[:, None]
        if x.ndim not in (4, 5) or y.ndim != x.ndim - 2:
            raise UserError(
                f"Stimuli of shape {tuple(x.shape)} and responses of shape {tuple(y.shape)} do not fit; give images (trial, "
                "channel, height, width) with (trial, neuron), or videos with (trial, frame, neuron)."
            )
        for what, a in (("responses", y), *(("behaviour", b) for b in rest)):
            if len(a) != len(x):
                raise UserError(f"There are {len(x)} stimuli and {len(a)} trials of {what}; give one per stimulus.")
        for what, a in (("stimuli", x), ("responses", y), *(("behaviour", b) for b in rest)):
            if not bool(torch.isfinite(a).all()):
                raise UserError(f"The {what} are not all finite; leave those trials out.")
        if bool((y < 0).any()):
            raise UserError("Some responses are negative; a Poisson model needs counts or rates of at least 0.")
        silent = (y.flatten(0, -2) == y.flatten(0, -2)[0]).all(0)
        if bool(silent.any()):
            raise UserError(
                f"{int(silent.sum())} neurons have the same response in all trials (first: {int(silent.nonzero()[0, 0])}); "
                f"leave them out."
            )
        return cls(x, y, rest[0] if rest else None)

    def of_trials(self, trials: Int[np.ndarray, "some"]) -> "Recording":
        """Some of the trials."""
        index = torch.as_tensor(trials)
        return Recording(self.stimuli[index], self.responses[index], None if self.behaviour is None else self.behaviour[index])

    def of_neurons(self, neurons: Int[np.ndarray, "some"]) -> "Recording":
        """Some of the neurons."""
        return Recording(self.stimuli, self.responses[..., torch.as_tensor(neurons)], self.behaviour)

    def __len__(self) -> int:
        return len(self.stimuli)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model. model: in evaluation mode. validation: mean correlation over neurons, per epoch. best: of these."""

    model: nn.Module
    validation: list[float] = field(default_factory=list)
    best: float = float("nan")

    @torch.no_grad()
    def predict(self, stimuli: Any, behaviour: Any | None = None, batch: int = 256) -> Float[np.ndarray, "trial *time neuron"]:
        """Rates, (trial, neuron) or (trial, frame, neuron)."""
        return predicted(self.model, Recording(*_tensors(stimuli, behaviour)), batch).numpy()


def fit_twin(
    model: nn.Module,
    train: Recording,
    validation: Recording,
    *,
    epochs: int = EPOCHS,
    patience: int = PATIENCE,
    decays: int = DECAYS,
    rate: float = RATE,
    batch: int = BATCH,
    penalty: float = 0.01,
    seed: int = 0,
    only: tuple[str, ...] = (),
    checkpoint: str | Path | None = None,
) -> Fitted:
    """Fit a twin (or a baseline) to a recording.

    Parameters
    ----------
    model
        A `TwinNetwork` or `LinearNonlinear`; a copy is trained. A twin's readouts are placed first.
    penalty
        Factor of the model's penalty.
    only
        Names of the parameters to train, for instance those of the readouts; by default all.
    checkpoint
        File to continue from if it exists, written after every epoch.

    Raises
    ------
    UserError
        For fewer than two validation trials, a checkpoint of another fit, or a loss that is not finite.
    """
    if len(validation) < 2:
        raise UserError("Early stopping needs at least two validation trials; leave some out of training.")
    model = copy.deepcopy(model)
    if isinstance(model, TwinNetwork):
        model.train(not only)
        with torch.no_grad():
            some = train.of_trials(np.arange(min(len(train), 2000)))
            model.place(_features(model, some.stimuli, batch), some.responses)
    state = _State.start(model, only, rate)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.is_file():
        state.load(path)
    while state.epoch < epochs and state.falls <= decays:
        _one_epoch(state, train, batch, penalty, seed, frozen=bool(only))
        state.validate(validation, patience, decays)
        if path is not None:
            state.save(path)
    model.load_state_dict(state.best_weights)
    model.eval()
    return Fitted(model, state.history, max(state.history, default=float("nan")))


@torch.no_grad()
def predicted(model: nn.Module, held: Recording, batch: int = 256) -> Tensor:
    """Rates of all trials."""
    model.eval()
    parts = []
    for k in range(0, len(held), batch):
        behaviour = None if held.behaviour is None else held.behaviour[k : k + batch]
        parts.append(model(held.stimuli[k : k + batch], behaviour))
    return torch.cat(parts)


@dataclass
class _State:
    """What training has reached, and what it needs to go on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    best_weights: dict[str, Tensor]
    history: list[float]
    epoch: int = 0
    stale: int = 0
    falls: int = 0

    @classmethod
    def start(cls, model: nn.Module, only: tuple[str, ...], rate: float) -> "_State":
        trained = []
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not only or name in only)
            trained += [parameter] if parameter.requires_grad else []
        if not trained:
            raise UserError(f"The model has no parameter named {only[0]!r}; there is nothing to train.")
        return cls(model, torch.optim.Adam(trained, lr=rate), copy.deepcopy(model.state_dict()), [])

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def validate(self, held: Recording, patience: int, decays: int) -> None:
        found = mean_correlation(predicted(self.model, held), held.responses)
        if found > max(self.history, default=-2.0):
            self.best_weights, self.stale = copy.deepcopy(self.model.state_dict()), 0
        else:
            self.stale += 1
        self.history.append(found)
        self.epoch += 1
        if self.stale >= patience:
            self.falls, self.stale = self.falls + 1, 0
            self.model.load_state_dict(self.best_weights)
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.3

    def save(self, path: Path) -> None:
        held = {
            "model": self.model.state_dict(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "counts": [self.epoch, self.stale, self.falls],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(held, partial)

    def load(self, path: Path) -> None:
        try:
            held = torch.load(path, weights_only=True)
            self.model.load_state_dict(held["model"])
            self.optimizer.load_state_dict(held["optimizer"])
            self.best_weights, self.history = held["best"], [float(v) for v in held["history"]]
            self.epoch, self.stale, self.falls = (int(n) for n in held["counts"])
        except Exception as error:  # of torch, whose files may hold anything
            wrong = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            raise UserError(f"{path} is no checkpoint of this fit ({wrong}); remove it or give another path.") from None


def _one_epoch(state: _State, train: Recording, batch: int, penalty: float, seed: int, frozen: bool) -> None:
    noise = torch.Generator().manual_seed((seed * 100_003 + state.epoch) % 2**31)
    model = state.model
    model.train(not frozen)  # a frozen core keeps the means of its batch normalisation
    order = torch.randperm(len(train), generator=noise)
    for k in range(0, len(order), batch):
        index = order[k : k + batch]
        if len(index) < 2:
            continue
        behaviour = None if train.behaviour is None else train.behaviour[index]
        rate, seen = model(train.stimuli[index], behaviour, noise), train.responses[index]
        loss = (rate - seen * rate.log()).sum(-1).mean() + penalty * model.penalty()  # type: ignore[operator]
        if not bool(torch.isfinite(loss)):
            raise UserError("The loss of the twin is not finite; take a lower rate, or responses in smaller units.")
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()


def mean_correlation(predicted: Tensor, seen: Tensor) -> float:
    """Mean over neurons of the correlation over trials (and frames); a constant prediction counts as 0."""
    a, b = (x.double().flatten(0, -2) for x in (predicted, seen))
    a, b = a - a.mean(0), b - b.mean(0)
    size = (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-12)
    return float(((a * b).sum(0) / size).mean())


@torch.no_grad()
def _features(model: TwinNetwork, stimuli: Tensor, batch: int) -> Tensor:
    return torch.cat([model.features(stimuli[k : k + batch]) for k in range(0, len(stimuli), batch)])


def _tensors(stimuli: Any, behaviour: Any | None) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.as_tensor(np.asarray(stimuli), dtype=torch.float32)
    x = x[:, None] if x.ndim == 3 else x
    return x, torch.zeros(len(x), 1), None if behaviour is None else torch.as_tensor(np.asarray(behaviour), dtype=torch.float32)
