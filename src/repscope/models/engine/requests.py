"""Argument checks of `LanguageModel`'s methods, and the batch loop of generation."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from repscope.errors import UserError
from repscope.models.engine.generation import Continuation, Sampling, continued, growing
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.positions import padded
from repscope.models.engine.token_network import TokenNetwork
from repscope.models.inputs.text_spans import described
from repscope.models.prompts import Prompt, Ragged


def check_batch_tokens(batch_tokens: Any) -> None:
    """Raise unless the token budget of a batch is a positive whole number or None."""
    if batch_tokens is not None:
        check_count("batch_tokens", batch_tokens)


def check_count(name: str, value: Any, least: float = 1) -> None:
    """Raise unless a count is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{name} is {described(value)}; it must be a whole number, 1 or more.")


def continuation_list(texts: Any) -> list[Any]:
    """Continuations as a list; a single text would be split into its letters, so it raises."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise UserError(f"Continuations are a list of texts, and {described(texts)} was given: put it in [ ].")
    return list(texts)


def text_prompt(prompt: Any, i: int) -> Prompt:
    """A prompt that has a text; token ids raise."""
    if isinstance(prompt, Prompt):
        return prompt
    raise UserError(f"Prompt {i} is token ids, and a continuation is scored after a text; give the text.")


def generate_batches(
    net: TokenNetwork,
    tokenizer: Any,
    ids: Ragged,
    sampling: Sampling,
    batch_tokens: int,
    use_cache: bool,
    told: Callable[[int, str], None] | None,
) -> list[Continuation]:
    """The continuation of each prompt, in batches of at most `batch_tokens` tokens, longest prompts first."""
    lengths, new_tokens = ids.lengths, sampling.max_new_tokens
    draws = sampling.draws(ids)
    out: list[Any] = [None] * len(lengths)
    order = np.argsort(lengths, kind="stable")[::-1]
    while len(order):
        width = int(lengths[order[0]])
        most, total = max(1, batch_tokens // (width + new_tokens)), width + new_tokens
        way = net.generation(total, float((lengths[order] + new_tokens).sum()) if len(order) > 1 else 0.0)
        rows, order = np.split(order, [most if way.batch else 1])
        batch, _ = padded([ids[i][::-1] for i in rows], net.pad)
        grow = None if told is None else growing(net.model, tokenizer, rows, told)
        with unhooked(net.model), net.taps.settled() as state, net.announced(rows, width - lengths[rows]):
            state.rewind()
            texts = continued(
                net.model,
                batch[:, ::-1].copy(),
                lengths[rows],
                sampling,
                [draws[i] for i in rows],
                net.pad,
                net.device,
                use_cache=use_cache and way.cache,
                told=grow,
            )
        for i, (new, stopped) in zip(rows, texts):
            out[i] = Continuation(tokenizer.decode(new, skip_special_tokens=True), new, stopped)
    return out
