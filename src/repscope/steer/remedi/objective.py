"""The loss of an editor, on what is computed once: states below the edit, attribute vectors, and the unedited network's answers.

For a fact with question x, entity tokens E, change d, new object o′ and old object o (first tokens):

    mediated     − log p(o′ | x, h_E + d)
    unmediated   − log(1 − p(o | x, h_E + d))
    KL           mean over the words between entity and answer of KL(p ‖ p_edited) of that word, given what precedes it
    loss         mean over facts of  λ_m mediated + λ_u unmediated + λ_KL KL          (λ: 1, 1, 10)

KL is over the whole batch; the authors' code keeps that of a batch's last fact only. A question that ends with its entity has no
word in between, and a KL of 0.

1. `prepare` runs questions and sentences once: states at the site, attribute vectors (mean over the attribute's tokens), and the
   final norm's output at the words in between.
2. `edit_losses` pads some facts on the right, adds d at the entity's tokens, runs the blocks above the site only (`block_calls`),
   behind the words that stand before all their entities, and gives the head the positions that the loss reads. Differentiable in d.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.positions import as_float
from repscope.models.language import LanguageModel
from repscope.models.prompts import encode
from repscope.models.sites import Tokens
from repscope.models.variants.block_calls import BlockCalls, block_calls, block_calls_after
from repscope.steer.remedi.facts import EditFact

_KEPT_BYTES = 500_000_000  #: of log-probabilities of the unedited network, beyond which they are computed again
_LARGEST = -1e-7  #: log-probability of the old object above which log(1 − p) is cut off, so that its gradient stays finite


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss."""

    mediated: float = 1.0
    unmediated: float = 1.0
    kl: float = 10.0


@dataclass(frozen=True, eq=False)
class Losses:
    """Terms per fact, in nats. right: whether the new object's first token is the most likely one."""

    mediated: Float[Tensor, "fact"]
    unmediated: Float[Tensor, "fact"]
    kl: Float[Tensor, "fact"]
    right: Float[Tensor, "fact"]

    def total(self, weights: Weights) -> Float[Tensor, ""]:
        """The loss: mean over facts of the weighted sum."""
        each = weights.mediated * self.mediated + weights.unmediated * self.unmediated + weights.kl * self.kl
        return each.mean()


@dataclass(frozen=True, eq=False)
class Prepared:
    """Facts with all that does not depend on the editor.

    block: of the site. ids, states: per fact (token) and (token, d_model) at the site. start, stop: of the entity. attributes:
    (fact, d_model). between: per fact, the final norm's output of the unedited network at the words before those in between.
    target, original: first tokens of the objects.
    """

    lm: LanguageModel
    site: str
    block: int
    ids: Sequence[Int[np.ndarray, "token"]]
    states: Sequence[Float[Tensor, "token d_model"]]
    start: Int[np.ndarray, "fact"]
    stop: Int[np.ndarray, "fact"]
    attributes: Float[Tensor, "fact d_model"]
    between: Sequence[Float[Tensor, "position d_model"]]
    target: Int[Tensor, "fact"]
    original: Int[Tensor, "fact"]
    _calls: dict[tuple[bytes, int], BlockCalls | None] = field(default_factory=dict, repr=False)
    _plain: list[Float[Tensor, "position vocab"]] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Int[np.ndarray, "fact"]:
        """Tokens of each question."""
        return np.array([len(row) for row in self.ids])

    def calls(self, prefix: Int[np.ndarray, "token"], length: int) -> BlockCalls | None:
        """The blocks for so many tokens behind a prefix; None where it cannot be shared."""
        key = (prefix.tobytes(), length)
        if key not in self._calls:
            after = len(prefix) > 0
            self._calls[key] = block_calls_after(self.lm, prefix, length) if after else block_calls(self.lm, length)
        return self._calls[key]

    def before(self, row: int) -> Int[np.ndarray, "token"]:
        """The words before the entity of a fact."""
        return self.ids[row][: self.start[row]]

    def plain(self, rows: Int[np.ndarray, "row"]) -> Float[Tensor, "position vocab"]:
        """Log-probabilities of the unedited network at the words in between; kept where all of them are small enough."""
        head, dtype = self.lm.head(), self.lm.model.dtype

        def made(x: Tensor) -> Tensor:
            return as_float(head(x.to(dtype))).log_softmax(-1)

        with torch.no_grad():
            if 4 * sum(map(len, self.between)) * self.lm.vocabulary > _KEPT_BYTES:
                return made(torch.cat([self.between[row] for row in rows]))
            if not self._plain:
                self._plain.extend(made(x) if len(x) else x.new_zeros(0, self.lm.vocabulary) for x in self.between)
        return torch.cat([self._plain[row] for row in rows])


def prepare(lm: LanguageModel, facts: Sequence[EditFact], site: str) -> Prepared:
    """Run questions and sentences once.

    Raises
    ------
    UserError
        For no fact, a network that is not causal, a site that is not the output of a block, or the last block.
    """
    if not facts:
        raise UserError("There is no fact to edit; give at least one.")
    if not lm.causal:
        raise UserError(f"{lm.name} is not causal: it does not continue texts, so its answers cannot be edited.")
    (resolved,) = lm.resolve(site)
    if resolved.kind != "resid_post" or resolved.layer is None or resolved.layer >= lm.blocks - 1:
        raise UserError(
            f"Editors act on the output of a block below the last one, such as resid_post.{lm.blocks // 3}, not {site}."
        )
    prompts = [fact.prompt for fact in facts]
    name = str(resolved)
    encoded = encode(lm.tokenizer, prompts, Tokens("all", "subject"), lm.context, causal=True)
    states = lm.capture(prompts, name, "all")
    ends = lm.capture(prompts, lm.last, "all")
    offsets = states.offsets
    device = lm.device
    return Prepared(
        lm,
        name,
        resolved.layer,
        [np.asarray(row) for row in encoded.ids],
        [torch.from_numpy(states[name][a:b]).to(device) for a, b in pairwise(offsets)],
        encoded.start,
        encoded.stop,
        torch.from_numpy(lm.capture([f.context for f in facts], name, "attribute.mean")[name]).to(device),
        [torch.from_numpy(ends[lm.last][a + e - 1 : b - 1]).to(device) for (a, b), e in zip(pairwise(offsets), encoded.stop)],
        torch.tensor([fact.target for fact in facts], device=device),
        torch.tensor([fact.original for fact in facts], device=device),
    )


def edit_losses(
    prepared: Prepared, rows: Int[np.ndarray, "row"], directions: Float[Tensor, "row d_model"], logits: Callable[[Tensor], Tensor]
) -> Losses:
    """The terms of the loss for some facts, given the change of each; `logits` maps outputs of the last block (`head_of`)."""
    lm, lengths, device = prepared.lm, prepared.lengths[rows], directions.device
    prefix = prepared.before(int(rows[0]))
    shared = all(np.array_equal(prepared.before(int(row)), prefix) for row in rows)
    calls = prepared.calls(prefix, int(lengths.max()) - len(prefix)) if shared else None
    if calls is None:
        prefix = prefix[:0]
        calls = prepared.calls(prefix, int(lengths.max()))
    assert calls is not None
    cut, width = len(prefix), int(lengths.max()) - len(prefix)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    hidden = torch.zeros(len(rows), width, directions.shape[1], dtype=directions.dtype, device=device)
    entity = torch.zeros(len(rows), width, 1, dtype=directions.dtype, device=device)
    for at, row in enumerate(rows):
        ids[at, : lengths[at] - cut] = torch.from_numpy(prepared.ids[row][cut:]).to(device)
        hidden[at, : lengths[at] - cut] = prepared.states[row][cut:].to(directions.dtype)
        entity[at, prepared.start[row] - cut : prepared.stop[row] - cut] = 1
    changed = hidden + entity * directions[:, None]
    out = calls.run(ids, changed, prepared.block + 1, lm.blocks - 1)
    asked = [(at, p) for at, row in enumerate(rows) for p in range(int(prepared.stop[row]) - 1, int(lengths[at]) - 1)]
    where = torch.tensor([(at, int(lengths[at]) - 1) for at in range(len(rows))] + asked, device=device)
    logp = as_float(logits(out[where[:, 0], where[:, 1] - cut])).log_softmax(-1)
    answers, words = logp[: len(rows)], logp[len(rows) :]
    index = torch.from_numpy(np.asarray(rows)).to(device)
    target, original = prepared.target[index], prepared.original[index]
    old = answers.gather(1, original[:, None])[:, 0].clamp_max(_LARGEST)
    kl = torch.zeros(len(rows), dtype=logp.dtype, device=device)
    if asked:
        owner = where[len(rows) :, 0]
        counts = torch.bincount(owner, minlength=len(rows)).clamp_min(1)
        plain = prepared.plain(rows)
        each = (plain.exp() * (plain - words)).sum(-1)
        kl = kl.index_add(0, owner, each) / counts
    return Losses(
        mediated=-answers.gather(1, target[:, None])[:, 0],
        unmediated=-torch.log(-torch.expm1(old)),
        kl=kl,
        right=(answers.argmax(-1) == target).to(logp.dtype),
    )


def head_of(lm: LanguageModel) -> Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row vocab"]]:
    """The map from outputs of the last block to logits: final norm and head."""
    head = lm.head()
    if lm.last.kind != "final_norm":
        return head
    norm = lm.module.get_submodule(lm.tap(lm.last).path)
    return lambda x: head(norm(x.to(lm.model.dtype)))
