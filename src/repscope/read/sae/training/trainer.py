"""Training of sparse autoencoders, transcoders and crosscoders.

Input: a source of rows (`batches`), a recipe, sites. 1. The first batches give the scale of each site and the start of b_dec. 2.
Each step computes loss and gradients of one batch (`topk_step` on the fast path, `dense_step` for JumpReLU, Gated and ReLU), and
the optimizer changes the parameters. 3. Latents that fire reset their count of rows since firing; for AuxK a latent is dead from
`Recipe.dead_after` rows on. 4. Checkpoints hold all of it, so that a run that was killed continues as if nothing had happened: its
final file is the same, byte for byte. Output: an autoencoder of raw rows.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.sites import Site
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.training import checkpoint, parameters
from repscope.read.sae.training.architectures import BatchTopK, TopK
from repscope.read.sae.training.batches import Source, TensorPosition
from repscope.read.sae.training.crosscoder import Crosscoder
from repscope.read.sae.training.dense_step import DenseStep
from repscope.read.sae.training.layout import Layout, Rows
from repscope.read.sae.training.optimizer import Optimizer
from repscope.read.sae.training.recipe import Recipe
from repscope.read.sae.training.topk_step import StepResult, TopKStep

Sites = str | Site | Sequence[str | Site]
_THRESHOLD_RATE = 0.01  #: of the running mean of BatchTopK's smallest activation


@dataclass(frozen=True, eq=False)
class Trained:
    """model: the autoencoder of raw rows. log: one row per logged step, with loss terms, variance explained, L0, dead latents."""

    model: SparseAutoencoder | Crosscoder
    log: tuple[Mapping[str, float], ...]

    @property
    def autoencoder(self) -> SparseAutoencoder:
        """The autoencoder; that of the sources side by side for a crosscoder."""
        return self.model.autoencoder if isinstance(self.model, Crosscoder) else self.model


class Trainer:
    """State of a training, one step at a time. `train` is the loop around it.

    parameters: tensors by name; encoder and decoder have one row per latent. step: number of steps done. position: where the source
    continues. rows_since_fired: (latent).
    """

    def __init__(self, recipe: Recipe, layout: Layout, parameters: dict[str, Tensor]) -> None:
        parameters = dict(sorted(parameters.items()))  # one order, so that sums over parameters round equally after a resume
        self.recipe, self.layout, self.parameters = recipe, layout, parameters
        self.dtype = parameters["decoder"].dtype
        self.optimizer = Optimizer(recipe, parameters)
        self.step_count = 0
        self.position: Any = None
        self.log: list[dict[str, float]] = []
        self.rows_since_fired: Int[Tensor, latent] = torch.zeros(recipe.latents, dtype=torch.long)
        self._smallest = (0.0, 0.0)  # running mean of BatchTopK's smallest activation, and the weight of what it has seen
        if isinstance(recipe.architecture, TopK):
            self._topk: TopKStep | None = TopKStep(recipe, layout.d_out, self.dtype)
        else:
            self._topk = None
        self._dense = DenseStep(recipe, layout.widths_out)

    @classmethod
    def begin(cls, recipe: Recipe, layout: Layout, batches: Sequence[Rows], dtype: torch.dtype = torch.float32) -> "Trainer":
        """A new training, with scales and biases from the first batches.

        Raises
        ------
        UserError
            If the batches lack a site, or have only zero rows.
        """
        if recipe.skip and not layout.transcoder:
            raise UserError("Only a transcoder has a skip connection; name another site to write, or leave skip out.")
        layout = layout.measured(batches, recipe.normalize)
        x, y = (torch.cat(rows) for rows in zip(*(layout.scaled(batch, dtype) for batch in batches)))
        return cls(recipe, layout, parameters.initial(recipe, layout, x, y))

    @property
    def dead(self) -> Int[Tensor, "dead"]:
        """Latents that have not fired for `dead_after` rows."""
        return (self.rows_since_fired >= self.recipe.dead_after).nonzero().squeeze(1)

    def step(self, batch: Rows) -> StepResult:
        """One step on one batch of rows by site.

        Raises
        ------
        UserError
            If the loss is not finite, or the batch does not fit.
        """
        x, y = self.layout.scaled(batch, self.dtype)
        subtract = self.layout.subtract_b_dec
        if self._topk is not None:
            result = self._topk(self.parameters, x, y, subtract=subtract, dead=self.dead)
        else:
            sparsity = self.recipe.sparsity(self.step_count)
            result = self._dense(self.parameters, x, y, subtract=subtract, sparsity=sparsity)
        total = sum(result.losses.values())
        if not abs(total) < float("inf"):
            raise UserError(
                f"The loss of step {self.step_count} is {total}; check the rows for infinity or lower the learning rate."
            )
        norm = self.optimizer.step(result.gradients, self.recipe.rate(self.step_count))
        result.gradients.clear()
        result.losses["gradient_norm"] = norm
        self.rows_since_fired += len(x)
        self.rows_since_fired[result.fired > 0] = 0
        if isinstance(self.recipe.architecture, BatchTopK) and result.smallest < float("inf"):
            mean, weight = self._smallest
            self._smallest = (mean + _THRESHOLD_RATE * (result.smallest - mean), weight + _THRESHOLD_RATE * (1 - weight))
        self.step_count += 1
        return result

    def logged(self, result: StepResult, batch: Rows) -> dict[str, float]:
        """The log's row of the step that was just done."""
        _, y = self.layout.scaled(batch, self.dtype)
        spread = float((y - y.mean(0)).square().sum()) / len(y)
        squared = result.losses["squared_error"]
        return {
            "step": self.step_count,
            **result.losses,
            "variance_explained": 1 - squared / spread if spread else float("nan"),
            "l0": result.active,
            "dead": float(len(self.dead)) / self.recipe.latents,
            "learning_rate": self.recipe.rate(self.step_count - 1),
        }

    def model(self) -> SparseAutoencoder | Crosscoder:
        """The autoencoder (or crosscoder) of raw rows at this step.

        Raises
        ------
        UserError
            If a BatchTopK has no threshold yet.
        """
        mean, weight = self._smallest
        described = {"recipe": self.recipe.to_json(), "steps": self.step_count, "sites": list(self.layout.sites)}
        held = {name: value.detach().clone() for name, value in self.parameters.items()}
        sae = parameters.autoencoder(self.recipe, self.layout, held, mean / weight if weight else float("inf"), described)
        if not self.layout.crosscoder:
            return sae
        return Crosscoder(sae, self.layout.sites_in, self.layout.widths_in, self.layout.scales_in)

    def save(self, path: Path) -> None:
        """Write a checkpoint. Errors as `checkpoint.write`."""
        tensors = {f"parameter.{name}": value for name, value in self.parameters.items()}
        tensors |= {**self.optimizer.state(), "rows_since_fired": self.rows_since_fired}
        position = None if self.position is None else [self.position.epoch, self.position.block, self.position.offset]
        state = {
            "recipe": self.recipe.to_json(),
            "layout": dataclasses.asdict(self.layout),
            "step": self.step_count,
            "position": position,
            "smallest": list(self._smallest),
            "floor": self._topk.floor if self._topk else 0.0,
            "log": self.log,
        }
        checkpoint.write(path, tensors, state)

    @classmethod
    def resume(cls, path: Path, recipe: Recipe, layout: Layout) -> "Trainer":
        """The training of a checkpoint.

        Raises
        ------
        UserError
            If the file is no checkpoint, or one of another recipe or other sites.
        """
        tensors, state = checkpoint.read(path)
        was = Recipe.from_json(state["recipe"])
        if was != recipe:
            old, new = was.to_json(), recipe.to_json()
            changed = ", ".join(f"{k} {json.dumps(old[k])} → {json.dumps(new[k])}" for k in new if old.get(k) != new[k])
            raise UserError(f"{path.parent} holds a training with another recipe ({changed}); choose another folder.")
        held = Layout(**{name: tuple(value) for name, value in state["layout"].items()})
        if (held.sites_in, held.sites_out) != (layout.sites_in, layout.sites_out):
            theirs, ours = ", ".join(held.sites), ", ".join(layout.sites)
            raise UserError(f"{path.parent} holds a training of {theirs}, not of {ours}; choose another folder.")
        start = len("parameter.")
        trainer = cls(recipe, held, {n[start:]: v for n, v in tensors.items() if n.startswith("parameter.")})
        trainer.optimizer.restore(tensors)
        trainer.rows_since_fired = tensors["rows_since_fired"]
        trainer.step_count, trainer.log = state["step"], state["log"]
        trainer.position = None if state["position"] is None else TensorPosition(*state["position"])
        trainer._smallest = (state["smallest"][0], state["smallest"][1])
        if trainer._topk is not None:
            trainer._topk.floor = state["floor"]
        return trainer


def train(
    source: Source,
    recipe: Recipe,
    sites: Sites,
    *,
    sites_out: Sites | None = None,
    out: Path | str | None = None,
    checkpoint_every: int = 500,
    log_every: int = 100,
    on_log: Callable[[Mapping[str, float]], None] | None = None,
) -> Trained:
    """Train an autoencoder of a site, a transcoder between two sites, or a crosscoder over several sources.

    Parameters
    ----------
    source
        An `ActivationStore`, or `TensorRows`.
    recipe
        How to train.
    sites
        One site: an autoencoder. Several: a crosscoder of these sources.
    sites_out
        Another site to write: a transcoder.
    out
        A folder for the checkpoint. A training that was interrupted there continues; one that is finished is read.
    checkpoint_every, log_every
        Steps between checkpoints, and between rows of the log.
    on_log
        Called with each row of the log.

    Raises
    ------
    UserError
        If the folder holds another training or is in use, the source ends before the last step, or the rows do not fit.
    """
    layout = Layout.of(sites, sites_out)
    if out is None:
        return _train(source, recipe, layout, None, checkpoint_every, log_every, on_log)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for left_over in folder.glob(f".{checkpoint.NAME}.*.part"):  # of runs that were killed while they wrote
                left_over.unlink(missing_ok=True)
            return _train(source, recipe, layout, folder / checkpoint.NAME, checkpoint_every, log_every, on_log)
    except Timeout as error:
        raise UserError(f"Another process is training in {folder}; wait for it or choose another folder.") from error


def _train(
    source: Source,
    recipe: Recipe,
    layout: Layout,
    path: Path | None,
    checkpoint_every: int,
    log_every: int,
    on_log: Callable[[Mapping[str, float]], None] | None,
) -> Trained:
    if path is not None and path.exists():
        trainer = Trainer.resume(path, recipe, layout)
    else:
        first = source.batches(layout.sites, rows=recipe.batch, seed=recipe.seed, epochs=None)
        trainer = Trainer.begin(recipe, layout, [batch.rows for batch, _ in zip(first, range(recipe.calibration))])
    if trainer.step_count < recipe.steps:
        how = {"rows": recipe.batch, "seed": recipe.seed}
        for batch in source.batches(layout.sites, **how, start=trainer.position, epochs=None):
            result = trainer.step(batch.rows)
            trainer.position = batch.position
            if trainer.step_count % log_every == 0 or trainer.step_count in (1, recipe.steps):
                trainer.log.append(trainer.logged(result, batch.rows))
                if on_log is not None:
                    on_log(trainer.log[-1])
            done = trainer.step_count >= recipe.steps
            if path is not None and (done or trainer.step_count % checkpoint_every == 0):
                trainer.save(path)
            if done:
                break
        else:
            raise UserError(
                f"The source ended after {trainer.step_count} of {recipe.steps} steps; train fewer or harvest more rows."
            )
    return Trained(trainer.model(), tuple(trainer.log))
