"""Two or more networks on the same prompts: that they can be compared, and their activations batch by batch.

Memory: the activations of one chunk of prompts for each network, however many prompts there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.models.sites import PerSite, Site, Tokens

ROWS_PER_PROMPT = 16  #: token positions of a prompt, drawn without replacement, where all its tokens are requested
_CHUNK = 64  #: prompts of one capture


@dataclass(frozen=True)
class PromptBatch:
    """Activations of the same rows in several networks.

    rows: per network, site → (row, feature). prompt: (row), index of the prompt that each row is from.
    """

    rows: tuple[PerSite[Float[np.ndarray, "row feature"]], ...]
    prompt: Int[np.ndarray, "row"]


def shared_sites(networks: Sequence[LanguageModel], at: str | Site | Sequence[str | Site]) -> list[Site]:
    """The requested sites, which all networks must have.

    Raises
    ------
    UserError
        For networks with other blocks, or as `lm.resolve`.
    """
    first, *others = networks
    sites = first.resolve(at)
    for lm in others:
        if lm.resolve(at) != sites:
            raise UserError(f"{first.name} has {len(sites)} of these sites and {lm.name} {len(lm.resolve(at))}; name others.")
    return sites


def same_ids(networks: Sequence[LanguageModel], prompts: Sequence[PromptLike]) -> None:
    """Refuse networks whose tokenizers make other ids of the prompts.

    Raises
    ------
    UserError
        For the first prompt that differs.
    """
    held = [lm.encoded(prompts, Tokens("all")).ids for lm in networks]
    for lm, ids in zip(networks[1:], held[1:]):
        for i, (a, b) in enumerate(zip(held[0], ids)):
            if not np.array_equal(a, b):
                raise UserError(
                    f"The tokenizers of {networks[0].name} and {lm.name} make other tokens of prompt {i}; compare networks with "
                    "one tokenizer, or give token ids."
                )


def listed(lm: LanguageModel, prompts: Any, least: int) -> list[PromptLike]:
    """The prompts as a list.

    Raises
    ------
    UserError
        For what is no list of prompts, or fewer than `least`.
    """
    held: list[PromptLike] = lm.prompt_list(prompts)
    if len(held) < least:
        raise UserError(f"There are {len(held)} prompts; at least {least} are needed for an interval over prompts.")
    return held


def prompt_batches(
    networks: Sequence[LanguageModel],
    prompts: Sequence[PromptLike],
    batches: Sequence[Int[np.ndarray, "prompt"]],
    sites: Sequence[Site],
    tokens: str | int | Tokens,
    *,
    seed: int = 0,
) -> Iterator[PromptBatch]:
    """Activations of each batch of prompts (arrays of their indices), in all networks.

    Raises
    ------
    UserError
        For tokenizers or widths that differ, and as `lm.capture`.
    """
    picked = Tokens.parse(tokens)
    rng = np.random.default_rng(seed)
    for group in _chunks(batches):
        indices = np.concatenate(group)
        chunk = [prompts[i] for i in indices]
        same_ids(networks, chunk)
        held = [lm.capture(chunk, list(sites), picked) for lm in networks]
        offsets = held[0].offsets
        rows = [np.arange(a, b) for a, b in pairwise(offsets)]
        if picked.ragged:
            rows = [np.sort(rng.permutation(r)[:ROWS_PER_PROMPT]) for r in rows]
        start = 0
        for batch in group:
            mine = rows[start : start + len(batch)]
            at = np.concatenate(mine)
            found = tuple(PerSite((s, acts[s].reshape(len(acts[s]), -1)[at]) for s in sites) for acts in held)
            for site in sites:
                widths = {one[site].shape[1] for one in found}
                if len(widths) > 1:
                    raise UserError(f"{site} has {min(widths)} features in one network and {max(widths)} in another.")
            yield PromptBatch(found, np.repeat(batch, [len(r) for r in mine]))
            start += len(batch)


def _chunks(batches: Sequence[Int[np.ndarray, "prompt"]]) -> Iterator[list[Int[np.ndarray, "prompt"]]]:
    """Consecutive batches of about as many prompts as one capture takes."""
    group: list[Int[np.ndarray, prompt]] = []
    for batch in batches:
        if group and sum(map(len, group)) + len(batch) > _CHUNK:
            yield group
            group = []
        group.append(batch)
    yield group
