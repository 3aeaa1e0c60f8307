"""Generation: a Hugging Face model continues rows of token ids, greedily or by sampling. Takes token ids, never text.

transformers' own `generate` does the work; what is added is what makes a continuation a property of its prompt: every option is
stated, not inherited from a file beside the weights, and a sampled token is found from one uniform number of the prompt's own
stream through the cumulative distribution, so that no other row of the batch takes part in the draw.
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


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    text: without special tokens. ids: (token), with the end-of-text token where there is one. stopped: whether it ended by itself.
    """

    text: str
    ids: Int[np.ndarray, "token"]
    stopped: bool

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: at most `max_new_tokens`; temperature 0 is greedy; `top_p` keeps the likeliest tokens that hold it;
    `alike`: a prompt given twice draws the same numbers.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    alike: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; ask for one new token at least.")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature={self.temperature}, top_p={self.top_p}: temperature is 0 or more, top_p above 0 and at most 1."
            )

    def draws(self, ids: Sequence[Int[np.ndarray, "token"]]) -> list[np.random.Generator]:
        """A stream of random numbers for each prompt, from the seed, its tokens, and how often it was given before."""
        given: dict[bytes, int] = {}
        streams = []
        for row in ids:
            key = np.ascontiguousarray(row, dtype=np.int64).tobytes()
            copy = given[key] = 0 if self.alike else given.get(key, -1) + 1
            digest = hashlib.sha256(f"{self.seed}/{copy}/".encode() + key).digest()
            streams.append(np.random.default_rng(int.from_bytes(digest[:16], "little")))
        return streams


def continued(
    model: Any,
    ids: Int[np.ndarray, "row column"],
    lengths: Int[np.ndarray, "row"],
    sampling: Sampling,
    draws: Sequence[np.random.Generator],
    pad: int,
    device: torch.device,
    *,
    use_cache: bool,
    told: Callable[[Int[np.ndarray, "row"]], None] | None = None,
) -> list[tuple[Int[np.ndarray, "token"], bool]]:
    """The new tokens of each row, up to the end-of-text token, and whether that came.

    Parameters
    ----------
    model
        A Hugging Face model with a head, at rest.
    ids
        Token ids, padded on the left.
    lengths
        Tokens of each row.
    sampling
        How to choose.
    draws
        Each row's random numbers.
    pad
        The id that stands left of a row and after its end.
    device
        Where ids go.
    use_cache
        Whether keys and values are kept between steps.
    told
        Called with the new token of every row, as soon as it is there.
    """
    chooser = [_Drawn(sampling, draws)] if sampling.temperature > 0 else []
    streamer = _Told(told) if told is not None else None
    whole = _generated(model, ids, lengths, sampling.max_new_tokens, ends_of(model), pad, device, use_cache, chooser, streamer)
    stops = ends_of(model)
    rows = []
    for new in whole[:, ids.shape[1] :].cpu().numpy():
        ended = np.flatnonzero(np.isin(new, list(stops))) if stops else np.array([], dtype=np.int64)
        rows.append((new[: ended[0] + 1] if len(ended) else new, bool(len(ended))))
    return rows


def forced_logits(
    model: Any,
    ids: Int[np.ndarray, "row column"],
    lengths: Int[np.ndarray, "row"],
    new: Int[np.ndarray, "row step"],
    pad: int,
    device: torch.device,
    *,
    use_cache: bool,
) -> Float[Tensor, "step row vocab"]:
    """The logits of each step of a generation in which the tokens are given: what `continued` chooses from, without the choice.

    Arguments as `continued`; `new` holds the tokens that each step is made to take.
    """
    forced = _Forced(new)
    _generated(model, ids, lengths, new.shape[1], set(), pad, device, use_cache, [forced], None)
    return torch.stack(forced.seen)


def _generated(
    model: Any,
    ids: Int[np.ndarray, "row column"],
    lengths: Int[np.ndarray, "row"],
    steps: int,
    ends: set[int],
    pad: int,
    device: torch.device,
    use_cache: bool,
    processors: Sequence[Any],
    streamer: Any,
) -> Int[Tensor, "row column"]:
    """transformers' own `generate` with every option stated; what is not stated would be filled in from the model's options."""
    from transformers import GenerationConfig, LogitsProcessorList

    mask = np.arange(ids.shape[1])[None] >= ids.shape[1] - lengths[:, None]
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=steps, do_sample=False, num_beams=1, use_cache=use_cache, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    whole: Tensor = _with_options(model, config).generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask.astype(np.int64)).to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        streamer=streamer,
    )
    return whole


def _with_options(model: Any, config: Any) -> Any:
    """A shallow copy of a model, which shares all modules, with options of its own: those of the user's model are never set."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise UserError("A model with a learned prompt (PEFT) is not continued; merge the adapter or use another kind.")
        model = model.get_base_model()  # the adapter's layers stand inside; its own `generate` would set the options there
    other = copy.copy(model)
    other.generation_config = config
    return other


def ends_of(model: Any) -> set[int]:
    """The tokens after which a model's text has ended."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return {ends} if isinstance(ends, int) else set(ends or ())


def growing(
    model: Any, tokenizer: Any, rows: Int[np.ndarray, "row"], told: Callable[[int, str], None]
) -> Callable[[Int[np.ndarray, "row"]], None]:
    """Makes of new tokens the text so far of each row that has not ended, and tells it with the row's number."""
    stops = ends_of(model)
    held: list[list[int]] = [[] for _ in rows]

    def grow(new: Int[np.ndarray, "row"]) -> None:
        for number, ids, token in zip(rows, held, new):
            if not ids or ids[-1] not in stops:
                ids.append(int(token))
                told(int(number), tokenizer.decode(ids, skip_special_tokens=True))

    return grow


class _Told:
    """What transformers calls a streamer: it is given the prompts first, then a token a row at each step."""

    def __init__(self, told: Callable[[Int[np.ndarray, "row"]], None]) -> None:
        self._told, self._begun = told, False

    def put(self, value: Tensor) -> None:
        """Pass on what comes after the prompts."""
        if self._begun:
            self._told(value.cpu().numpy().reshape(-1))
        self._begun = True

    def end(self) -> None:
        """Nothing is left to pass on."""


class _Forced:
    """A logits processor that keeps the logits of each step, and after which the likeliest token is the one that is given."""

    def __init__(self, new: Int[np.ndarray, "row step"]) -> None:
        self._new, self.seen = new, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        step = torch.from_numpy(self._new[:, len(self.seen), None]).to(scores.device)
        self.seen.append(scores.detach().clone())
        return torch.full_like(scores, -torch.inf).scatter_(-1, step, 0.0)


class _Drawn:
    """A logits processor after which the likeliest token is the one that was drawn."""

    def __init__(self, sampling: Sampling, draws: Sequence[np.random.Generator]) -> None:
        self._sampling, self._draws = sampling, draws

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        p = (scores.double() / self._sampling.temperature).softmax(-1)
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        total = ordered.cumsum(-1)
        # A token belongs to the nucleus when those before it hold less than top_p.
        kept = (total - ordered < self._sampling.top_p).sum(-1, keepdim=True)
        mass = total.gather(-1, kept - 1)
        u = torch.tensor([[draw.random()] for draw in self._draws], dtype=torch.float64, device=scores.device)
        place = torch.searchsorted(total, u * mass).clamp_max(kept - 1)
        chosen = index.gather(-1, place)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)
