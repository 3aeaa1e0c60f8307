"""Subjects of direction discovery: networks or functions that map added vectors to effects.

    delta[k, r] = effect of vector k on row r,   r = a prompt, or one of its tokens where all of them are targets

1. `context(prompts)` caches the activations that effects need: a list of parts, each a differentiable function of vectors.
2. `effect` runs the parts without gradients, on batches of vectors.
3. `loss_and_grad` of an objective that is a sum over directions and prompts runs forward and backward part by part.
4. A coupled objective (contrastive) needs all effects jointly. If their graphs exceed the memory, one run without gradients gives
   delta, the objective gives dL/d(delta), and a second run backpropagates this cotangent part by part (GradCache: Gao et al. 2021,
   arXiv 2101.06983). Memory then grows with delta only.

`cost` counts forward equivalents: one vector through one prompt, forward or backward, also where vectors or prompts share a pass;
weights get no gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.arrays import as_tensor
from repscope.discovery.objectives import Objective, Seen
from repscope.errors import UserError, unknown
from repscope.models.language import LanguageModel
from repscope.models.prompts import Encoded, Prompt, PromptLike, as_prompts, encode
from repscope.models.sites import PICKS, Tokens
from repscope.models.variants.block_replay import Part, block_replay

PASS_TOKENS = 768  #: token budget of one forward pass of a language model; a larger one is no faster on a CPU
PASS_ROWS = 4096  #: rows per call of a plain function
MEMORY = 1 << 30  #: limit for graphs in bytes


@dataclass(eq=False)
class Context:
    """Cached activations of prompts.

    parts: functions to run. rows: (row), the prompt of each row. prompts: their number. width, features: of a vector and of its
    effect. states: source states for norms and PCA (for a language model without each prompt's first token, an outlier). spread:
    (feature), standard deviation of the target's coordinates over the same tokens. pass_tokens: tokens per pass. token_bytes:
    approximate graph size per token. why: reason for full forward passes, else empty. ends: (prompt, d_model), the last tokens at
    the later site of a language subject that has one. cost: forward equivalents so far.
    """

    parts: Sequence[Part]
    rows: Int[Tensor, "row"]
    prompts: int
    width: int
    features: int
    states: Float[Tensor, "state width"]
    spread: Float[Tensor, "feature"]
    pass_tokens: int
    token_bytes: float
    why: str = ""
    ends: Float[Tensor, "prompt d_model"] | None = None
    cost: float = 0.0

    @property
    def norm(self) -> float:
        """Median norm of a source state, the unit of relative scales; 1 if it is zero."""
        return float(self.states.norm(dim=-1).median()) or 1.0

    def chunks(self, count: int, part: Part) -> Iterator[slice]:
        """Batches of vectors for a part."""
        most = max(1, self.pass_tokens // part.tokens)
        edges = np.linspace(0, count, -(-count // most) + 1).astype(int).tolist()
        for first, stop in pairwise(edges):
            yield slice(first, stop)


class Subject(ABC):
    """A network or function to which vectors are added. `site` and `model` identify where its directions apply."""

    site: str = ""
    model: str = ""

    @abstractmethod
    def context(self, prompts: Any) -> Context:
        """Cache the activations of these prompts."""

    def effect(self, context: Context, vectors: Float[Tensor, "direction width"]) -> Float[Tensor, "direction row feature"]:
        """Effects without gradients."""
        vectors = as_tensor(vectors, "vectors", "direction width")
        delta = vectors.new_empty(len(vectors), len(context.rows), context.features)
        with torch.no_grad():
            for part in context.parts:
                for some in context.chunks(len(vectors), part):
                    delta[some, part.rows] = part.run(vectors[some])
                    context.cost += (some.stop - some.start) * part.prompts
        return delta

    def effect_and_vjp(
        self, context: Context, vectors: Float[Tensor, "direction width"], cotangent: Float[Tensor, "direction row feature"]
    ) -> tuple[Float[Tensor, "direction row feature"], Float[Tensor, "direction width"]]:
        """Effects, and the gradient of <cotangent, effect> in each vector, from one run; extra memory: one pass."""
        delta = vectors.new_empty(len(vectors), len(context.rows), context.features)

        def pull(part: Part, some: slice, moved: Tensor, v: Tensor) -> Tensor:
            delta[some, part.rows] = moved.detach()
            return (moved * cotangent[some][:, part.rows]).sum()

        return delta, self._backward(context, vectors, pull)

    def vjp_at_zero(self, context: Context, cotangent: Float[Tensor, "direction row feature"]) -> Float[Tensor, "direction width"]:
        """The gradient of <cotangent, effect> at zero for each cotangent; parts that can (`Part.pull`) run forward once for all."""
        grad = context.states.new_zeros(len(cotangent), context.width)
        for part in context.parts:
            pulled = None if part.pull is None else part.pull(cotangent[:, part.rows])
            if pulled is None:
                pulled = self._backward(replace(context, parts=[part]), torch.zeros_like(grad), _against(cotangent))
            grad += pulled
            context.cost += 2 * len(cotangent) * part.prompts
        return grad

    def loss_and_grad(
        self, context: Context, vectors: Float[Tensor, "direction width"], objective: Objective, memory: float = MEMORY
    ) -> tuple[Float[Tensor, "direction"], Float[Tensor, "direction width"]]:
        """The loss of each direction and the gradient of their sum.

        memory: limit for all graphs in bytes; above it, coupled objectives run forward twice.
        """
        if not objective.coupled:
            terms = vectors.new_zeros(len(vectors))

            def each(part: Part, some: slice, moved: Tensor, v: Tensor) -> Tensor:
                loss = objective.terms(self._seen(context, moved, v, part.rows))
                terms[some] += loss.detach()
                return loss.sum()

            return terms, self._backward(context, vectors, each)
        tokens = len(vectors) * sum(part.tokens for part in context.parts)
        if tokens * context.token_bytes <= memory:
            return self._at_once(context, vectors, objective)
        delta = self.effect(context, vectors).requires_grad_()
        with torch.enable_grad():
            v = vectors.clone().requires_grad_()
            terms = objective.terms(self._seen(context, delta, v, None))
            cotangent, direct = torch.autograd.grad(terms.sum(), (delta, v), allow_unused=True)
        assert cotangent is not None
        grad = self._backward(context, vectors, _against(cotangent))
        return terms.detach(), grad if direct is None else grad + direct

    def _at_once(
        self, context: Context, vectors: Tensor, objective: Objective
    ) -> tuple[Float[Tensor, "direction"], Float[Tensor, "direction width"]]:
        """One forward and one backward pass with all graphs in memory."""
        with torch.enable_grad():
            v = vectors.clone().requires_grad_()
            columns = [torch.cat([part.run(v[some]) for some in context.chunks(len(vectors), part)]) for part in context.parts]
            order = torch.cat([part.rows for part in context.parts]).argsort()
            terms = objective.terms(self._seen(context, torch.cat(columns, 1)[:, order], v, None))
            (grad,) = torch.autograd.grad(terms.sum(), v)
        context.cost += 2 * len(vectors) * context.prompts
        return terms.detach(), grad

    def _backward(
        self, context: Context, vectors: Tensor, loss: Callable[[Part, slice, Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "direction width"]:
        """Gradients of a sum of losses, one per part and batch of vectors."""
        grad = torch.zeros_like(vectors)
        with torch.enable_grad():
            for part in context.parts:
                for some in context.chunks(len(vectors), part):
                    v = vectors[some].clone().requires_grad_()
                    (step,) = torch.autograd.grad(loss(part, some, part.run(v), v), v)
                    grad[some] += step
                    context.cost += 2 * (some.stop - some.start) * part.prompts
        return grad

    @staticmethod
    def _seen(context: Context, delta: Tensor, vectors: Tensor, rows: Tensor | None) -> Seen:
        return Seen(delta, vectors, context.rows if rows is None else context.rows[rows], context.prompts, context.spread)


def _against(cotangent: Float[Tensor, "direction row feature"]) -> Callable[[Part, slice, Tensor, Tensor], Tensor]:
    """The loss of a part: the product of its effects with a cotangent."""
    return lambda part, some, moved, _: (moved * cotangent[some][:, part.rows]).sum()


class LanguageSubject(Subject):
    """A language model between the outputs of two blocks, vectors added at all tokens of a prompt.

    Parameters
    ----------
    lm
        The model, without edits.
    source, target
        `resid_post` of two blocks. Default: a quarter and three quarters of the depth, 7 and 22 of 30 as in MELBO.
    target_tokens
        `all` (one row per token, as MELBO), `last`, `mean`, a span, or `last 3`: the mean of the last three.
    memory
        Limit for a pass in bytes.
    whole
        Run whole passes in any case.
    share
        Whether what prompts begin with in common runs once per vector.
    end
        `resid_post` of a later block, for `effect_and_end`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        source: str | None = None,
        target: str | None = None,
        *,
        target_tokens: str = "all",
        memory: float = MEMORY,
        whole: bool = False,
        share: bool = True,
        end: str | None = None,
    ) -> None:
        if (source is None or target is None) and lm.blocks < 2:
            raise UserError(f"{lm.name} has {lm.blocks} block, and a source and a target behind it are two.")
        self.lm, self.tokens, self.memory, self.whole, self.share, self.end = lm, target_tokens, memory, whole, share, end
        self.source = source or f"resid_post.{max(0, min(lm.blocks // 4, lm.blocks - 2))}"
        self.target = target or f"resid_post.{3 * lm.blocks // 4}"
        self.site, self.model = str(lm.resolve(self.source)[0]), lm.fingerprint

    @property
    def speaks(self) -> bool:
        """Whether the model predicts a next token."""
        return self.lm.causal and self.lm.model.get_output_embeddings() is not None

    def context(self, prompts: Iterable[PromptLike]) -> Context:
        """Run each prompt once and cache the activations between source and target.

        Raises
        ------
        UserError
            As `block_replay`; for an unknown choice of tokens.
        """
        encoded, pooled = self.encoded(list(as_prompts(self.lm.tokenizer, prompts)))
        how: dict[str, Any] = {"pooled": pooled, "whole": self.whole, "share": self.share, "end": self.end}
        kept = block_replay(self.lm, encoded, self.source, self.target, **how)
        behind = [slice(1 if len(state) > 1 else 0, None) for state in kept.states]
        target = torch.cat([t[at] for t, at in zip(kept.targets, behind)])
        fits = int(self.memory / kept.token_bytes)
        return Context(
            kept.parts,
            kept.rows,
            len(encoded.ids),
            kept.states[0].shape[1],
            target.shape[1],
            torch.cat([s[at] for s, at in zip(kept.states, behind)]),
            target.std(0, correction=0),
            max(1, min(PASS_TOKENS, fits)),
            kept.token_bytes,
            kept.why,
            kept.ends,
        )

    def effect_and_end(
        self, context: Context, vectors: Float[Tensor, "direction width"]
    ) -> tuple[Float[Tensor, "direction row feature"], Float[Tensor, "direction prompt d_model"]]:
        """Effects at the target, and at the later site on each prompt's last token, from one run."""
        assert context.ends is not None
        delta = vectors.new_empty(len(vectors), len(context.rows), context.features)
        last = context.ends.new_empty(len(vectors), *context.ends.shape)
        with torch.no_grad():
            for part in context.parts:
                assert part.onward is not None
                for some in context.chunks(len(vectors), part):
                    delta[some, part.rows], last[some, list(part.numbers)] = part.onward(vectors[some])
                    context.cost += (some.stop - some.start) * part.prompts
        return delta, last

    def encoded(self, prompts: Sequence[PromptLike]) -> tuple[Encoded, bool]:
        """Token ids with the positions where effects are read, and whether these are averaged per prompt.

        Raises
        ------
        UserError
            Without prompts, or for an unknown choice of tokens.
        """
        if not prompts:
            raise UserError("There is no prompt; give at least one text to steer.")
        word, _, count = self.tokens.partition(" ")
        if word == "last" and count.isdigit() and int(count) > 0:
            whole = encode(self.lm.tokenizer, prompts, Tokens("all"), self.lm.context, causal=self.lm.causal)
            return Encoded(whole.ids, np.maximum(whole.stop - int(count), 0), whole.stop), True
        picked = Tokens.spanning(self.tokens)
        spans = {span for p in prompts if isinstance(p, Prompt) for span in p.spans}
        if picked.span and picked.span not in spans:
            raise unknown("choice of tokens", self.tokens, [*PICKS, "last 3", *sorted(spans)])
        return encode(self.lm.tokenizer, prompts, picked, self.lm.context, causal=self.lm.causal), not picked.ragged


@dataclass(eq=False)
class FunctionSubject(Subject):
    """A differentiable function (row, width) → (row, feature).

    f: the function. site, model: its names in results.
    """

    f: Callable[[Float[Tensor, "row width"]], Float[Tensor, "row feature"]]
    site: str = "input"
    model: str = field(default="")

    def context(self, prompts: Float[Tensor, "sample width"]) -> Context:
        """States as samples.

        Raises
        ------
        UserError
            If there is none, or some are not finite.
        """
        states = as_tensor(prompts, "states")
        if states.dim() != 2 or not len(states):
            raise UserError(f"The states have the shape {tuple(states.shape)}; give (sample, width) with a sample at least.")
        if not bool(torch.isfinite(states).all()):
            raise UserError("Some states are not finite; leave these samples out.")
        with torch.no_grad():
            base = self.f(states)

        def run(vectors: Tensor) -> Tensor:
            moved = self.f((states + vectors[:, None]).flatten(0, 1))
            return torch.unflatten(moved, 0, (len(vectors), -1)) - base

        rows = torch.arange(len(states))
        token_bytes = 4.0 * 8 * (states.shape[1] + base.shape[1])
        part = Part(len(states), rows, len(states), run)
        return Context(
            [part], rows, len(states), states.shape[1], base.shape[1], states, base.std(0, correction=0), PASS_ROWS, token_bytes
        )
