"""Language model with tokenizer: capture, logits, scores, generation, gradients and Jacobians.

Inside `lm.edit(…)` the same methods run the edited network. Edit positions are relative to each prompt, so results do not depend on
batching or caching. An edit that changes none of the requested rows is an error.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.activations import Activations
from repscope.models.engine.cost_estimate import Forecast, forecast
from repscope.models.engine.fingerprint import WeightSource, of_module
from repscope.models.engine.generation import Continuation, Sampling
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.positions import as_float, row_offsets
from repscope.models.engine.random_weights import with_random_weights
from repscope.models.engine.row_writer import Rows, as_tensor, cast, dtype_of
from repscope.models.engine.text_network import TextNetwork, TokenScores, check_batch_tokens, check_count
from repscope.models.inputs.chats import chat_prompt
from repscope.models.inputs.given import Chat
from repscope.models.inputs.text_spans import described
from repscope.models.jacobian import Jacobian
from repscope.models.linear.jacobian_passes import Prefixes, plan_jacobian
from repscope.models.network import per_row
from repscope.models.prompts import Encoded, Prompt, PromptLike, Ragged, with_continuation
from repscope.models.sites import Site, Tokens


class LanguageModel(TextNetwork):
    """A language model and its tokenizer, the unmodified Hugging Face objects: `lm.model`, `lm.tokenizer`.

    Parameters
    ----------
    model
        A Hugging Face model, with or without a head.
    tokenizer
        Its tokenizer.
    name
        Its name in tables.
    source
        Origin of the weights; by default a digest of sampled entries.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None, source: WeightSource | None = None) -> None:
        if source is None:
            precision = str(model.dtype).removeprefix("torch.")
            source = WeightSource(name or type(model).__name__, of_module(model), precision, None, None)
        super().__init__(model, tokenizer, source if name is None else replace(source, name=name))

    def __repr__(self) -> str:
        size = f"{self.anatomy.blocks} blocks × {self.anatomy.width}" if self.anatomy else "no blocks found"
        return f"LanguageModel({self.name}, {size}, {self.source.precision}, {self.fingerprint})"

    def tokens(self, text: str | Prompt | Chat) -> list[str]:
        """The tokens of a text as strings, exactly as the network receives them."""
        return [self.tokenizer.decode([int(i)]) for i in self.encoded([text], Tokens("all")).ids[0]]

    def chat(self, content: str | Prompt | Chat, system: str | None = None) -> Prompt:
        """Format a user's turn or a whole chat with the model's chat template, ready for the answer.

        Parameters
        ----------
        content
            A user's turn; or a list of turns, each `{"role": …, "content": …}` with a text or a `Prompt`. If the last turn is the
            user's, the template's opening of an answer follows; if it is the assistant's, the model continues its content.
        system
            System prompt.

        Returns
        -------
        Prompt
            With the spans of the contents, a span `turn0`, `turn1` … for each turn, and `content` for the last turn of a user.

        Raises
        ------
        UserError
            When the tokenizer has no chat template, or the template fails, omits a turn or changes a content.
        """
        turns: Any = content
        if isinstance(content, (str, Prompt)):
            turns = [{"role": "user", "content": content}]
        if not isinstance(turns, (list, tuple)):
            raise UserError(f"A chat is a text, a Prompt or a list of turns, but {described(content)} was given.")
        first = [] if system is None else [{"role": "system", "content": system}]
        return chat_prompt(self.tokenizer, [*first, *turns])

    def plan(
        self,
        prompts: Iterable[PromptLike],
        at: str | Site | Sequence[str | Site] = "resid_post",
        tokens: str | int | Tokens = "last",
        *,
        batch_tokens: int | None = None,
        dtype: str = "float32",
    ) -> Forecast:
        """Printable cost estimate of a capture: blocks, tokens, passes, FLOPs, bytes, seconds. Arguments as `capture`.

        Under edits it is the plan of the edited network's run; whether the edits have an effect is not checked.

        >>> from repscope.worlds.tiny import tiny
        >>> print(tiny().plan(["A map of Paris", "A map of Rome"], "resid_post.1"))  # doctest: +ELLIPSIS
        network  tiny: resid_post.1
        blocks   2 of 4
        prompts  2, 2 distinct
        ...
        """
        sites, picked, size = self.resolve(at), Tokens.parse(tokens), dtype_of(dtype).itemsize
        check_batch_tokens(batch_tokens)
        given = self.repeatable(prompts)
        encoded = self.encoded(given, picked)
        self.resolve_edits(given, encoded.ids)
        for installed in self.installed:
            installed.planned = True
        planned = self.planned(encoded.ids, batch_tokens, sites)
        return forecast(self, planned, sites, encoded.ids, int(row_offsets(encoded, picked)[-1]), size)

    def capture(
        self,
        prompts: Iterable[PromptLike],
        at: str | Site | Sequence[str | Site],
        tokens: str | int | Tokens = "last",
        *,
        batch_tokens: int | None = None,
        out: str | Path | None = None,
        dtype: str = "float32",
    ) -> Activations:
        """Activations at sites, per prompt.

        Parameters
        ----------
        prompts
            Texts, `Prompt`s with spans, chats (lists of turns, see `chat`), or token ids. For causal networks a token that the
            tokenizer appends to a text (EOS) is dropped; token ids are not changed.
        at
            One site (`"resid_post.8"`), one head (`"z.8.3"`), a kind for all its blocks (`"resid_post"`), or a list.
        tokens
            `last`, `first`, `mean`, `all` or an index, optionally after a span name (`"subject.last"`).
        batch_tokens
            Tokens per batch, including padding; by default chosen from the device's speed and memory.
        out
            A folder for the rows, one `.npy` per site; the result is then memory-mapped and memory use stays constant.
        dtype
            `float32` or `float16`: precision of the stored rows. Means are computed in float32.

        Returns
        -------
        Activations
            Rows in the order of the prompts.

        Raises
        ------
        UserError
            For unknown sites, spans or tokens, prompts that are empty or too long, or an edit that changes no row.
        """
        sites, picked = self.resolve(at), Tokens.parse(tokens)
        if out is not None and not isinstance(out, (str, Path)):
            raise UserError(f"out is {described(out)}; it must name a folder.")
        check_batch_tokens(batch_tokens)
        given = self.repeatable(prompts)
        encoded = self.encoded(given, picked)
        self.run_once_per_pass(sites)
        self.check_edits(given, encoded, sites, picked)

        def run(rows: Rows) -> None:
            self.run(sites, encoded, self.planned(encoded.ids, batch_tokens, sites), picked, rows.write)

        return self.activations(at, encoded, picked, run, dtype, Path(out) if out is not None else None)

    def logits(
        self, prompts: Iterable[PromptLike], tokens: str | int = "last", *, batch_tokens: int | None = None
    ) -> Float[np.ndarray, "row vocab"]:
        """Next-token logits, computed at the requested positions only.

        Raises
        ------
        UserError
            As `capture` and `unembed`.
        """
        self.head()
        return self.unembed(self.capture(prompts, self.last, tokens, batch_tokens=batch_tokens)[self.last], normed=True)

    def hidden_before(self, prompts: Iterable[PromptLike], span: str, *, batch_tokens: int | None = None) -> Activations:
        """The final norm's output before each token of a span but the first: what these tokens are predicted from.

        Of a causal network, what stands from the last of them on is not run.

        Raises
        ------
        UserError
            As `capture`.
        """
        picked = Tokens("all", span)
        check_batch_tokens(batch_tokens)
        given = self.repeatable(prompts)
        spans = self.encoded(given, picked)
        ids = spans.ids
        if self.causal and not self.installed:  # edits find their positions in whole prompts
            ids = Ragged.of(row[: max(1, stop - 1)] for row, stop in zip(spans.ids, spans.stop))
        before = Encoded(ids, spans.start, spans.stop - 1)
        self.check_edits(given, before, [self.last], picked)

        def run(rows: Rows) -> None:
            self.run([self.last], before, self.planned(ids, batch_tokens, [self.last]), picked, rows.write)

        return self.activations(self.last, before, picked, run)

    def unembed(self, hidden: Float[np.ndarray, "row d_model"], *, normed: bool = False) -> Float[np.ndarray, "row vocab"]:
        """Logits of residual-stream vectors, as in the logit lens: head(final_norm(hidden)).

        Parameters
        ----------
        hidden
            Vectors at `resid_post` of any block, or at `final_norm` with `normed=True`.

        Raises
        ------
        UserError
            When the model has no head, or its head is not a function of the final norm's output alone.
        """
        head = self.head()
        with unhooked(self.model):
            logits: np.ndarray = as_float(head(self.head_inputs(hidden, normed=normed))).cpu().numpy()
        return logits

    def head_inputs(self, hidden: Float[np.ndarray, "row d_model"], *, normed: bool = False) -> Float[Tensor, "row d_model"]:
        """What the head is applied to in `unembed`: the final norm's output. Arguments and errors as there."""
        self.head()
        rows = as_tensor(hidden, "The vectors to unembed")
        assert self.anatomy is not None
        if rows.dim() != 2 or rows.shape[1] != self.anatomy.width:
            raise UserError(f"The vectors to unembed have the shape {tuple(rows.shape)}; it must be (row, {self.anatomy.width}).")
        with unhooked(self.model):
            x: Tensor = cast(rows, self.model.dtype, "The vectors to unembed", "load the model with dtype='float32'").to(
                self.device
            )
            if not normed and self.last.kind == "final_norm":
                x = self.module.get_submodule(self.tap(self.last).path)(x)
        return x

    def score(
        self, prompts: Sequence[str | Prompt | Chat], continuations: Sequence[str], *, batch_tokens: int | None = None
    ) -> TokenScores:
        """Log-probability of each continuation after its prompt.

        A token that overlaps both belongs to the continuation. For edits, the continuation's tokens count as generated.

        Raises
        ------
        UserError
            When the lists differ in length, a continuation has no token, or its prompt is empty.
        """
        check_batch_tokens(batch_tokens)
        given = self.prompt_list(prompts)
        if isinstance(continuations, (str, bytes)) or not isinstance(continuations, Iterable):
            raise UserError(f"Continuations are a list of texts, and {described(continuations)} was given: put it in [ ].")
        tails = list(continuations)
        if len(given) != len(tails):
            raise UserError(f"There are {len(given)} prompts and {len(tails)} continuations; give one for each.")
        for i, prompt in enumerate(given):
            if not isinstance(prompt, Prompt):
                raise UserError(f"Prompt {i} is token ids, and a continuation is scored after a text; give the text.")
        return self.token_scores([with_continuation(prompt, tail) for prompt, tail in zip(given, tails)], batch_tokens)

    def generate(
        self,
        prompts: Iterable[PromptLike],
        max_new_tokens: int = 32,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        use_cache: bool = True,
        batch_tokens: int | None = None,
        share_random_numbers: bool = False,
        on_token: Callable[[int, str], None] | None = None,
    ) -> list[Continuation]:
        """Continue prompts, greedily or by sampling.

        Each prompt has its own random stream, derived from the seed and its tokens, so results do not depend on the batch; a
        repeated prompt gets independent samples.

        Parameters
        ----------
        prompts
            Texts, `Prompt`s or token ids.
        max_new_tokens
            Maximum number of new tokens; the model's end-of-text token ends a text earlier.
        temperature
            0 for greedy decoding.
        top_p
            Nucleus sampling: sample from the most likely tokens with this total probability.
        seed
            The same seed gives the same text.
        use_cache
            Cache keys and values; without, each step runs the whole text again.
        batch_tokens
            Tokens per batch including padding and new ones; by default four times as many as for `capture`.
        share_random_numbers
            Whether repeated prompts share random numbers, so that differences are due to edits.
        on_token
            Callback for streaming: called with a prompt's index and its continuation so far, after every new token.

        Raises
        ------
        UserError
            When the model cannot generate, a prompt leaves no room for new tokens, or an edit changes no logit.
        """
        check_count("max_new_tokens", max_new_tokens, -math.inf)
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise UserError(f"{name} is {described(value)}; it must be a number.")
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, share_random_numbers)
        return self.continuations(prompts, sampling, batch_tokens, use_cache, on_token)

    def gradient(
        self,
        prompts: Iterable[PromptLike],
        of: Callable[[Tensor], Tensor],
        at: str | Site | Sequence[str | Site],
        tokens: str | int | Tokens = "all",
        *,
        of_at: str = "logits",
        of_tokens: str | int = "last",
        batch_tokens: int | None = None,
    ) -> tuple[Float[np.ndarray, "prompt"], Activations]:
        """Gradient of a scalar with respect to any site, per prompt.

        Parameters
        ----------
        prompts, batch_tokens
            As for `capture`.
        of
            Maps the logits (row, vocab) at one token of each prompt, or another site's vectors, to one number per row.
        at, tokens
            Sites and positions of the gradients.
        of_at
            Input of `of`: `logits`, or a site after all of `at`.
        of_tokens
            The single token of each prompt that `of` reads.

        Returns
        -------
        values, gradients
            The scalar of each prompt, and the rows of its gradient.

        Raises
        ------
        UserError
            As `capture`; when `of` does not return one number per row, or does not depend on a site.
        """
        sites, picked, read = self.resolve(at), Tokens.parse(tokens), Tokens.parse(of_tokens)
        if read.pooled or read.ragged:
            raise UserError(f"The scalar is read at one token of each prompt, but {read} names several.")
        head, targets = (self.head(), [self.last]) if of_at == "logits" else (None, self.resolve(of_at))
        if len(targets) > 1:
            raise UserError(f"The scalar is read at one site, but {of_at} names {len(targets)}; name one, such as {targets[-1]}.")
        target = targets[0]
        check_batch_tokens(batch_tokens)
        given = self.prompt_list(prompts)
        self.run_once_per_pass([*sites, target])
        encoded, ends = self.encoded(given, picked), self.encoded(given, read)
        self.resolve_edits(given, encoded.ids)
        values = np.empty(len(given))

        def scalar(hidden: Tensor, which: Int[np.ndarray, "row"]) -> Tensor:
            scores = per_row(of(head(hidden) if head is not None else hidden), len(which))
            values[which] = scores.detach().double().cpu().numpy()
            return scores.sum()

        def run(rows: Rows) -> None:
            budget = batch_tokens or self.batch_tokens
            self.differentiate(sites, encoded, picked, (target, ends.start), scalar, rows.write, budget)

        return values, self.activations(at, encoded, picked, run)

    def jacobian(
        self,
        prompts: Iterable[PromptLike],
        source: str | Site | Sequence[str | Site],
        target: str | Site,
        *,
        source_tokens: str | int = "last",
        target_tokens: str | int = "last",
        prefixes: Prefixes | None = None,
        at_once: int | None = None,
    ) -> Jacobian:
        """The Jacobian from one site to another, per prompt: as an operator, a matrix or singular triplets.

        Parameters
        ----------
        prompts
            Texts, `Prompt`s or token ids.
        source
            Sites of the perturbation: one, a list, or a kind (`"resid_post"`) for all its blocks up to the target.
        target
            The site whose change is measured.
        source_tokens
            One position, or several (`subject`, `all`) that all receive the same perturbation.
        target_tokens
            One position of each prompt, or the mean of several.
        prefixes
            Shared by several Jacobians of the same prompts, which then run the positions before the source once.
        at_once
            Most prompts that share a pass, if not as many as the engine would take (see `MeanJacobian.low_rank`).

        Returns
        -------
        Jacobian
            `.jvp`, `.vjp`, `.matrix()`, `.mean()`, `.mean().svd()`.

        Raises
        ------
        UserError
            As `capture`; for a source after the target, in depth or in position.

        >>> from repscope.worlds.tiny import tiny
        >>> lm = tiny()
        >>> jac = lm.jacobian(["A map of Paris"], "resid_post.0", "resid_post.3", source_tokens=2)
        >>> jac.matrix().shape, jac.mean().svd(4, tolerance=0.1).s.shape
        ((1, 32, 32), (4,))
        """
        self.run_once_per_pass([*self.resolve(source), *self.resolve(target)])
        ends = (source, target, source_tokens, target_tokens)
        return Jacobian.over(plan_jacobian(self, self.tokenizer, prompts, *ends, prefixes=prefixes, at_once=at_once))

    def twin(self, seed: int = 0) -> "LanguageModel":
        """The same architecture with random weights: the control for effects of training."""
        fresh = with_random_weights(self.model, seed).to(self.device, self.model.dtype).eval()
        name = f"{self.name}, random weights (seed {seed})"
        source = replace(self.source, name=name, fingerprint=of_module(fresh), path=None, revision=None)
        return LanguageModel(fresh, self.tokenizer, name, source)
