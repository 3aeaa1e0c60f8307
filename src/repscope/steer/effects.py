"""Effects of added vectors on choices between two continuations and on generated text.

With v the vector added at a site and tokens, q a prompt, and two continuations of it, `yes` and `no`:

    log-odds      log p_v(yes | q) - log p_v(no | q), in nats; the effect of v is the difference from no vector
    KL            mean over the positions of a text of Σ_w p(w) (log p(w) - log p_v(w)), in nats per token
    damage        nats per token of steered text minus those of unsteered text, both under the *unsteered* model and sampled with
                  the same random numbers: the logarithm of the ratio of their perplexities

1. All vectors (directions, strengths, random controls, sites) are variants of one prompt: they share the computation below their
   block, without padding (`models.variants.prompt_variants`). Only the positions that are read go through the head.
2. Texts for the damage are sampled at temperature 1, as repetitive greedy text would count as fluent. `repeats`, the share of
   repeated 3-grams, shows remaining repetition.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.data.contrasts import Choice
from repscope.errors import unknown
from repscope.models.edits import Edit
from repscope.models.engine.generation import Continuation
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.positions import as_float
from repscope.models.engine.row_writer import cast
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt, encode, with_continuation
from repscope.models.sites import Site, Tokens
from repscope.models.variants.prompt_variants import PromptVariant, run_variants_last
from repscope.progress import progress

#: metric → its definition
DEFINITIONS = {
    "effect": "change of log p(yes) - log p(no), nats",
    "kl": "KL(unsteered ‖ steered) of the next token, nats per token",
    "damage": "increase of -log p under the unsteered model, nats per token, sampled at temperature 1",
    "repeats": "share of 3-grams that stood before",
    "log-odds": "log p(yes) - log p(no), nats",
}
_HEAD_ROWS = 384  #: rows of logits per batch: 75 MB for a vocabulary of 49,152
_WHERE: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "all": lambda prompt, total: (0, total),
    "prompt": lambda prompt, total: (0, prompt),
    "last": lambda prompt, total: (prompt - 1, prompt),
    "generated": lambda prompt, total: (prompt, total),
}  #: positions of a text at which a vector is added, by its numbers of tokens


def in_turn(lm: LanguageModel, text: str, chat: bool) -> Prompt:
    """A text as a prompt; with `chat`, as a user turn in the model's chat template."""
    return lm.chat(text) if chat else Prompt(text)


def log_odds(
    lm: LanguageModel, choices: Sequence[Choice], added: Sequence[Edit], *, chat: bool = False
) -> Float[np.ndarray, "added_plus_1 choice"]:
    """Log-odds of `yes` against `no`, in nats; the first row is unsteered, the others have one edit each (`Edit.add`).

    Raises
    ------
    UserError
        For an unknown choice of tokens, an empty continuation, or a network that is not causal.
    """
    out = np.empty((len(added) + 1, len(choices)))
    with progress("Choices", 2 * len(choices) * (len(added) + 1)) as advance:
        for column, choice in enumerate(choices):
            nats = []
            for tail in (choice.yes, choice.no):
                ids, start = _ids(lm, with_continuation(in_turn(lm, choice.prompt, chat), tail))
                wanted = torch.from_numpy(ids[start:]).to(lm.device)
                rows = [
                    (logits.gather(2, wanted.expand(len(logits), -1)[..., None])[..., 0] - logits.logsumexp(-1)).double().sum(1)
                    for _, logits in _steered(lm, ids[:-1], start, len(ids) - start, added)
                ]
                nats.append(torch.cat(rows).cpu().numpy())
                advance(len(added) + 1)
            out[:, column] = nats[0] - nats[1]
    return out


def divergence(lm: LanguageModel, texts: Sequence[Prompt], added: Sequence[Edit]) -> Float[np.ndarray, "added text"]:
    """Mean over the positions of the span "continuation" of KL(unsteered ‖ steered) of the next token, in nats per token."""
    out = np.empty((len(added) + 1, len(texts)))
    with progress("Divergence", len(texts) * (len(added) + 1)) as advance:
        for column, text in enumerate(texts):
            ids, start = _ids(lm, text)
            p: Tensor | None = None
            for rows, logits in _steered(lm, ids[:-1], start, len(ids) - start, added):
                p = logits[0].softmax(-1) if p is None else p
                # Σ p log q in one pass over the logits; double precision for all would cost more than the network
                cross = torch.einsum("rew,ew->re", logits, p).double() - logits.logsumexp(-1).double()
                out[rows, column] = cross.mean(-1).cpu().numpy()
                advance(len(logits))
    out = out[:1] - out
    return out[1:]


@dataclass(frozen=True)
class Written:
    """Texts generated from openings, steered or not, and their scores.

    texts: (opening). nats: (opening), mean -log p per token under the unsteered model. repeats: (opening), share of repeated
    3-grams.
    """

    texts: tuple[str, ...]
    nats: Float[np.ndarray, "opening"]
    repeats: Float[np.ndarray, "opening"]


def written(
    lm: LanguageModel,
    openings: Sequence[str | Prompt],
    added: Sequence[Edit | None],
    *,
    new_tokens: int = 24,
    seed: int = 0,
    prefixes: Sequence[str] = (),
) -> list[Written]:
    """Texts generated from each opening under each vector (None: unsteered), with the same random numbers for all.

    Parameters
    ----------
    lm
        The model.
    openings
        Beginnings of texts.
    added
        Edits that add a vector, one per condition.
    new_tokens
        Maximum of generated tokens.
    seed
        Of the sampling, at temperature 1.
    prefixes
        For each of `added`, a text before every opening, such as an instruction; it is removed before scoring.
    """
    heads = list(prefixes) or [""] * len(added)
    kinds = [None if one is None else (str(one.site), one.tokens) for one in added]
    groups: list[list[Continuation]] = [[] for _ in added]
    with progress("Writing", len(added)) as advance:
        for kind in dict.fromkeys(zip(kinds, heads)):  # those at the same site are rows of one batch
            mine = [i for i, it in enumerate(zip(kinds, heads)) if it == kind]
            vectors = [one.arrays["vector"].numpy() for i in mine if (one := added[i]) is not None]
            prompts = [_behind(kind[1], o) for o in openings]
            found = texts(lm, prompts, vectors, *(kind[0] or ("", "all")), new_tokens=new_tokens, seed=seed)
            for place, i in enumerate(mine):
                begin = place * len(openings) if vectors else 0
                groups[i] = found[begin : begin + len(openings)]
            advance(len(mine))
    by_group = nats_per_token(lm, list(openings) * len(groups), [c for group in groups for c in group]).reshape(len(groups), -1)
    return [
        Written(tuple(c.text for c in group), row, np.array([repeated(c.ids) for c in group]))
        for group, row in zip(groups, by_group)
    ]


def texts(
    lm: LanguageModel,
    prompts: Sequence[str | Prompt],
    vectors: Sequence[Float[np.ndarray, "feature"]] | Float[np.ndarray, "vector feature"],
    site: str = "",
    tokens: str = "all",
    *,
    new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Continuation]:
    """Continuations of each prompt under each vector, vector by vector, as rows of one batch; without vectors, unsteered.

    The random numbers of a prompt are the same under all vectors.
    """
    if not len(vectors):
        return lm.generate(list(prompts), new_tokens, temperature=temperature, seed=seed, share_random_numbers=True)
    tiled = [p for _ in vectors for p in prompts]
    each = np.repeat(np.stack(list(vectors)), len(prompts), axis=0)
    with lm.edit(Edit.add(site, each, tokens=tokens, per_prompt=True)):
        return lm.generate(tiled, new_tokens, temperature=temperature, seed=seed, share_random_numbers=True)


def nats_per_token(
    lm: LanguageModel, prompts: Sequence[str | Prompt], continuations: Sequence[Continuation]
) -> Float[np.ndarray, "text"]:
    """Mean -log p per token of each continuation under the model, in nats; 0 for an empty text, which has no token to score."""
    nats = np.zeros(len(continuations))
    if rows := [i for i, c in enumerate(continuations) if c.text]:
        scores = lm.score([prompts[i] for i in rows], [continuations[i].text for i in rows])
        nats[rows] = -scores.logprob / scores.tokens
    return nats


def kl_from_first(logits: Float[Tensor, "variant *position vocab"]) -> Float[Tensor, "other_variant *position"]:
    """KL(first row ‖ each other row) of the next token, in nats, in double precision."""
    logp = logits.double().log_softmax(-1)
    return (logp[:1].exp() * (logp[:1] - logp[1:])).sum(-1)


def repeated(ids: Int[np.ndarray, "token"]) -> float:
    """Share of a text's 3-grams that occurred before.

    >>> repeated(np.array([1, 2, 3, 1, 2, 3])), repeated(np.array([1, 2, 3, 4]))
    (0.25, 0.0)
    """
    grams = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _behind(head: str, opening: str | Prompt) -> str | Prompt:
    if not head:
        return opening
    if isinstance(opening, str):
        return head + opening
    if opening.special or "content" not in opening.spans:
        return Prompt(head + opening.text)
    at = opening.spans["content"][0]  # a rendered turn: the instruction stands inside it
    return Prompt(opening.text[:at] + head + opening.text[at:], special=False)


def _ids(lm: LanguageModel, text: Prompt) -> tuple[Int[np.ndarray, "token"], int]:
    """Token ids and the position at which the continuation begins."""
    encoded = encode(lm.tokenizer, [text], Tokens("all", "continuation"), lm.context, causal=lm.causal)
    return encoded.ids[0], int(encoded.start[0])


def _steered(
    lm: LanguageModel, ids: Int[np.ndarray, "token"], prompt: int, ends: int, added: Sequence[Edit]
) -> Iterator[tuple[slice, Float[Tensor, "row end vocab"]]]:
    """Logits after the last `ends` positions, in batches of rows; row 0 is unsteered, row 1 + i has `added[i]`."""
    last = Site("resid_post", lm.blocks - 1)
    forks = [PromptVariant(last, len(ids) - 1, len(ids), lambda there: there)]
    for one in added:
        if one.tokens not in _WHERE:
            raise unknown("choice of tokens", one.tokens, _WHERE)
        start, stop = _WHERE[one.tokens](prompt, len(ids))
        if start < stop:
            forks.append(PromptVariant(lm.resolve(one.site)[0], start, stop, _adding(one.arrays["vector"])))
        else:  # nothing is generated before the first token
            forks.append(forks[0])
    head = lm.head()
    for begin in range(0, len(forks), max(1, _HEAD_ROWS // ends)):
        rows = slice(begin, begin + max(1, _HEAD_ROWS // ends))
        hidden = run_variants_last(lm, ids, forks[rows], ends)
        with unhooked(lm.model):
            logits = as_float(head(hidden))
        yield slice(rows.start, rows.start + len(logits)), logits


def _adding(vector: Float[Tensor, "feature"]) -> Callable[[Tensor], Tensor]:
    step = vector.float()

    def add(there: Tensor) -> Tensor:
        wide = there.float() + step.to(there.device)
        return cast(wide, there.dtype, "The steered state", "load the model with dtype='float32' or 'bfloat16'")

    return add
