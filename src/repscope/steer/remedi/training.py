"""Training of an editor: Adam on the loss of `objective`, early stopping on facts of subjects that it is not trained on.

1. Questions and sentences run once (`prepare`): an update runs the blocks above the site, forward and backward, and nothing else.
2. W and b are in units of the vectors: d = s_h (W (a / s_a) + b), with s_h and s_a the root mean squares of entity states and of
   attribute vectors. They start at 0, where nothing is edited.
3. Each epoch visits all facts in batches of similar length, in random order; the editor of the best epoch is kept, and training
   stops after `patience` epochs without a better one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.hooks import unhooked
from repscope.models.language import LanguageModel
from repscope.progress import progress
from repscope.steer.remedi.editor import KINDS, Editor, Kind
from repscope.steer.remedi.facts import EditFact
from repscope.steer.remedi.objective import Losses, Prepared, Weights, edit_losses, head_of, prepare


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained editor, its losses (columns epoch, split, mediated, unmediated, kl, total, right) and the best validation loss."""

    editor: Editor
    losses: pd.DataFrame
    best: float


def train_editor(
    lm: LanguageModel,
    facts: Sequence[EditFact] | Prepared,
    validation: Sequence[EditFact] | Prepared,
    site: str,
    *,
    kind: Kind = "linear",
    epochs: int = 20,
    patience: int = 2,
    batch: int = 16,
    learning_rate: float = 1e-3,
    weights: Weights = Weights(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Trained:
    """Train an editor of one site.

    Parameters
    ----------
    facts, validation
        Facts to train on and to stop by, of different subjects; or what `prepare` made of them.
    site
        Output of a block, such as `resid_post.8`.
    kind
        `linear` or `affine`.
    epochs, patience
        Epochs at most, and without improvement.
    batch
        Facts per update.

    Raises
    ------
    UserError
        For an unknown kind, no facts, shared subjects, a loss that is not finite; as `prepare`.
    """
    if kind not in KINDS:
        raise UserError(f"An editor is linear or affine, not {kind!r}.")
    if min(epochs, patience, batch) < 1:
        raise UserError(f"epochs, patience and batch are {epochs}, {patience} and {batch}; each must be 1 or more.")
    for name, part in (("facts to train on", facts), ("facts for validation", validation)):
        if not len(part):
            raise UserError(f"There are no {name}; give at least one.")
    ours, theirs = ({f.subject for f in part} if not isinstance(part, Prepared) else set() for part in (facts, validation))
    if shared := ours & theirs:
        raise UserError(f"{min(shared)!r} is in training and validation; give facts of different subjects.")
    train = facts if isinstance(facts, Prepared) else prepare(lm, facts, site)
    held = validation if isinstance(validation, Prepared) else prepare(lm, validation, site)
    logits = head_of(lm)
    width = train.attributes.shape[1]
    scale_a = float(train.attributes.square().mean().sqrt()) or 1.0
    scale_h = float(torch.cat(list(train.states)).square().mean().sqrt()) or 1.0
    weight = torch.zeros(width, width, device=train.attributes.device, requires_grad=True)
    bias = torch.zeros(width, device=weight.device, requires_grad=kind == "affine")
    optimizer = torch.optim.Adam([p for p in (weight, bias) if p.requires_grad], lr=learning_rate)

    def directions(prepared: Prepared, rows: Int[np.ndarray, "row"]) -> Float[Tensor, "row d_model"]:
        return scale_h * (prepared.attributes[torch.from_numpy(rows)].to(weight) / scale_a @ weight.T + bias)

    def losses(prepared: Prepared, rows: Int[np.ndarray, "row"]) -> Losses:
        return edit_losses(prepared, rows, directions(prepared, rows), logits)

    lines: list[dict[str, float | int | str]] = []
    best, kept, since = float("inf"), (weight.detach().clone(), bias.detach().clone()), 0
    with unhooked(lm.model, differentiable=True), progress(f"REMEDI at {train.site}", epochs) as advance:
        for epoch in count(1):
            parts = []
            for rows in batches(train, batch, [seed, epoch]):
                found = losses(train, rows)
                loss = found.total(weights)
                if not bool(torch.isfinite(loss)):
                    raise UserError(f"The loss of the editor at {site} is not finite; use a learning rate below {learning_rate:g}.")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                parts.append((found, len(rows)))
            lines.append({"epoch": epoch, "split": "training", **_means(parts, weights)})
            with torch.no_grad():
                lines.append({"epoch": epoch, "split": "validation", **_means(evaluated(held, losses, batch), weights)})
            advance(1)
            now, since = float(lines[-1]["total"]), since + 1
            if now < best:
                best, kept, since = now, (weight.detach().clone(), bias.detach().clone()), 0
            if epoch == epochs or since >= patience:
                break
    to_numpy = [part.double().cpu().numpy() for part in kept]
    made = Editor(
        train.site,
        (to_numpy[0] * scale_h / scale_a).astype(np.float32),
        (to_numpy[1] * scale_h).astype(np.float32),
        kind,
        lm.fingerprint,
        {"facts": len(train), "validation": len(held), "epochs": epoch, "learning_rate": learning_rate, "seed": seed},
    )
    return Trained(made, pd.DataFrame(lines), best)


def batches(prepared: Prepared, size: int, seed: Sequence[int]) -> list[Int[np.ndarray, "row"]]:
    """All facts in batches, facts and batches in random order: of one beginning where there are enough, and of similar length."""
    rng = np.random.default_rng(list(seed))
    parts = [part for group in _groups(prepared, rng.permutation(len(prepared))) for part in _cut(group, size)]
    return [parts[i] for i in rng.permutation(len(parts))]


def _groups(prepared: Prepared, order: Int[np.ndarray, "row"]) -> list[Int[np.ndarray, "row"]]:
    """Facts with the same words before the entity, each group by length."""
    same: dict[bytes, list[int]] = {}
    for row in order[np.argsort(prepared.lengths[order], kind="stable")]:
        same.setdefault(prepared.before(int(row)).tobytes(), []).append(int(row))
    return [np.array(rows) for rows in same.values()]


def _cut(rows: Int[np.ndarray, "row"], size: int) -> list[Int[np.ndarray, "row"]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def evaluated(
    prepared: Prepared, losses: Callable[[Prepared, Int[np.ndarray, "row"]], Losses], size: int
) -> list[tuple[Losses, int]]:
    """The losses of all facts, without gradients."""
    parts = [part for group in _groups(prepared, np.arange(len(prepared))) for part in _cut(group, 2 * size)]
    return [(losses(prepared, rows), len(rows)) for rows in parts]


def _means(parts: Sequence[tuple[Losses, int]], weights: Weights) -> dict[str, float]:
    total = sum(n for _, n in parts)
    names = ("mediated", "unmediated", "kl", "right")
    found = {name: float(sum(getattr(part, name).detach().sum() for part, _ in parts) / total) for name in names}
    whole = weights.mediated * found["mediated"] + weights.unmediated * found["unmediated"] + weights.kl * found["kl"]
    return found | {"total": whole}
