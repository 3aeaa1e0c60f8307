"""Greedy or sampled continuation of token ids by a Hugging Face model, independent of the batch.

Each token is sampled by inverting the cumulative distribution with a uniform number from the prompt's own random stream.
`continued` uses transformers' `generate`, with all options explicit, not inherited from the model's generation config;
`decoding` is the faster way, where a network allows it.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.positions import padded

_LIKELY = 1024  #: most likely tokens among which a sampled one is sought first
Choice = Callable[[Float[Tensor, "row vocab"], Int[np.ndarray, "row"]], Int[Tensor, "row"]]  #: next tokens of some rows


@dataclass(frozen=True)
class Continuation:
    """Continuation of a prompt.

    text: without special tokens. ids: (token), including an end-of-text token. stopped: whether it ended with such a token.
    """

    text: str
    ids: Int[np.ndarray, "token"]
    stopped: bool

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: at most `max_new_tokens`; temperature 0 is greedy; `top_p` keeps the most likely tokens that hold it;
    `share_random_numbers`: a prompt given twice draws the same numbers.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    share_random_numbers: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; ask for one new token at least.")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature={self.temperature}, top_p={self.top_p}: temperature is 0 or more, top_p above 0 and at most 1."
            )

    def draws(self, ids: Sequence[Int[np.ndarray, "token"]]) -> list[np.random.Generator]:
        """A random stream per prompt, from the seed, its tokens, and its number of earlier occurrences."""
        given: dict[bytes, int] = {}
        streams = []
        for row in ids:
            key = np.ascontiguousarray(row, dtype=np.int64).tobytes()
            copy = given[key] = 0 if self.share_random_numbers else given.get(key, -1) + 1
            digest = hashlib.sha256(f"{self.seed}/{copy}/".encode() + key).digest()
            streams.append(np.random.default_rng(int.from_bytes(digest[:16], "little")))
        return streams


@dataclass(frozen=True)
class GenerationBatch:
    """Prompts padded on the left. ids: token ids. mask: 0 at padding. pad: padding id, also after a row's end."""

    ids: Int[Tensor, "row column"]
    mask: Int[Tensor, "row column"]
    pad: int

    @classmethod
    def of(cls, rows: Sequence[Int[np.ndarray, "token"]], pad: int, device: torch.device) -> "GenerationBatch":
        """From the token ids of each prompt."""
        reversed_ids, lengths = padded([row[::-1] for row in rows], pad)
        ids, columns = reversed_ids[:, ::-1].copy(), np.arange(reversed_ids.shape[1])
        mask = columns >= len(columns) - lengths[:, None]
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device), pad)


def continued(
    model: Any,
    batch: GenerationBatch,
    sampling: Sampling,
    draws: Sequence[np.random.Generator],
    *,
    use_cache: bool,
    on_tokens: Callable[[Int[np.ndarray, "row"]], None] | None = None,
) -> list[tuple[Int[np.ndarray, "token"], bool]]:
    """The new tokens of each row up to the end-of-text token, and whether that occurred.

    The model has a head and is inside `unhooked`; `draws` are the random streams of the rows. `on_tokens` is called at each step
    with the new token of every row.
    """
    chooser = [_Drawn(choice(sampling, draws))] if sampling.temperature > 0 else []
    streamer = _Streamer(on_tokens) if on_tokens is not None else None
    stops = ends_of(model)
    whole = _generated(model, batch, sampling.max_new_tokens, stops, use_cache, chooser, streamer)
    rows = []
    for new in whole[:, batch.ids.shape[1] :].cpu().numpy():
        ended = np.flatnonzero(np.isin(new, list(stops))) if stops else np.array([], dtype=np.int64)
        rows.append((new[: ended[0] + 1] if len(ended) else new, bool(len(ended))))
    return rows


def forced_logits(
    model: Any, batch: GenerationBatch, new: Int[np.ndarray, "row step"], *, use_cache: bool
) -> Float[Tensor, "step row vocab"]:
    """The logits that `continued` samples from, at each step of a generation in which the tokens `new` are forced."""
    forced = _Forced(new)
    _generated(model, batch, new.shape[1], set(), use_cache, [forced], None)
    return torch.stack(forced.seen)


def _generated(
    model: Any, batch: GenerationBatch, steps: int, ends: set[int], use_cache: bool, processors: Sequence[Any], streamer: Any
) -> Int[Tensor, "row column"]:
    """transformers' `generate` with every option explicit; others would be taken from the model's generation config."""
    from transformers import GenerationConfig, LogitsProcessorList

    options = {"do_sample": False, "num_beams": 1, "use_cache": use_cache}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=steps, pad_token_id=batch.pad, eos_token_id=sorted(ends) or None, **options
    )
    whole: Tensor = _with_options(model, config).generate(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        streamer=streamer,
    )
    return whole


def _with_options(model: Any, config: Any) -> Any:
    """A shallow copy of a model with shared modules and its own options, so that the user's model keeps its options."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise UserError("A model with a learned prompt (PEFT) is not continued; merge the adapter or use another kind.")
        model = model.get_base_model()  # the adapter's layers stand inside; its own `generate` would set the options there
    other = copy.copy(model)
    other.generation_config = config
    return other


def ends_of(model: Any) -> set[int]:
    """The model's end-of-text tokens."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return {ends} if isinstance(ends, int) else set(ends or ())


def growing_texts(
    model: Any, tokenizer: Any, rows: Int[np.ndarray, "row"], on_token: Callable[[int, str], None]
) -> Callable[[Int[np.ndarray, "row"]], None]:
    """A function of new tokens that calls `on_token` with each unfinished row's number and its text so far."""
    stops = ends_of(model)
    texts: list[list[int]] = [[] for _ in rows]

    def grow(new: Int[np.ndarray, "row"]) -> None:
        for number, ids, token in zip(rows, texts, new):
            if not ids or ids[-1] not in stops:
                ids.append(int(token))
                on_token(int(number), tokenizer.decode(ids, skip_special_tokens=True))

    return grow


class _Streamer:
    """A transformers streamer: receives the prompts first, then one token per row at each step."""

    def __init__(self, on_tokens: Callable[[Int[np.ndarray, "row"]], None]) -> None:
        self._on_tokens, self._begun = on_tokens, False

    def put(self, value: Tensor) -> None:
        """Pass on everything after the prompts."""
        if self._begun:
            self._on_tokens(value.cpu().numpy().reshape(-1))
        self._begun = True

    def end(self) -> None:
        """No action at the end."""


class _Forced:
    """A logits processor that stores the logits of each step and makes the given token the most likely."""

    def __init__(self, new: Int[np.ndarray, "row step"]) -> None:
        self._new, self.seen = new, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        step = torch.from_numpy(self._new[:, len(self.seen), None]).to(scores.device)
        self.seen.append(scores.detach().clone())
        return torch.full_like(scores, -torch.inf).scatter_(-1, step, 0.0)


class _Drawn:
    """A logits processor that makes the sampled token the most likely."""

    def __init__(self, chosen: Choice) -> None:
        self._chosen = chosen

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        chosen = self._chosen(scores, np.arange(len(scores)))
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen[:, None], 0.0)


def choice(sampling: Sampling, draws: Sequence[np.random.Generator]) -> Choice:
    """The rule by which rows get their next tokens: the most likely, or one drawn from the row's own stream."""

    def greedy(logits: Float[Tensor, "row vocab"], rows: Int[np.ndarray, "row"]) -> Int[Tensor, "row"]:
        return logits.argmax(-1)

    def drawn(logits: Float[Tensor, "row vocab"], rows: Int[np.ndarray, "row"]) -> Int[Tensor, "row"]:
        p = (logits.double() / sampling.temperature).softmax(-1)
        u = torch.tensor([draws[row].random() for row in rows], dtype=torch.float64, device=p.device)
        return inverted(p, u, sampling.top_p)

    return drawn if sampling.temperature > 0 else greedy


def inverted(p: Float[Tensor, "row vocab"], u: Float[Tensor, "row"], top_p: float, likely: int = _LIKELY) -> Int[Tensor, "row"]:
    """The token at which the cumulative probability, most likely tokens first, reaches u times that of the nucleus.

    Equally likely tokens are in the order of their ids. Nearly always the token is among the `likely` most likely ones; only the
    rows for which it is not are sorted as a whole.
    """
    some = p.shape[-1] > likely
    index = p.topk(likely, -1).indices.sort(-1).values if some else None
    held = p if index is None else p.gather(-1, index)
    ordered, place = held.sort(dim=-1, descending=True, stable=True)
    total = ordered.cumsum(-1)
    # A token is in the nucleus if the tokens before it have less than top_p in total.
    kept = (total - ordered < top_p).sum(-1, keepdim=True)
    mass = total.gather(-1, kept - 1) if index is None or top_p < 1 else p.sum(-1, keepdim=True)
    at = torch.searchsorted(total, u[:, None] * mass)
    chosen = place.gather(-1, at.clamp_max(kept - 1))
    if index is None:
        return chosen[:, 0]
    found: Tensor = index.gather(-1, chosen)[:, 0]
    # Tokens as likely as the last of these may be missing among them; and the nucleus may go on beyond.
    sure = (at < (ordered > ordered[:, -1:]).sum(-1, keepdim=True)) & ((kept < likely) | (top_p >= 1))
    rest = torch.nonzero(~sure[:, 0])[:, 0]
    if len(rest):
        found[rest] = inverted(p[rest], u[rest], top_p, p.shape[-1])
    return found
