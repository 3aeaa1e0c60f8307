"""Logit lens: next-token predictions from the output of each block.

After nostalgebraist 2020, "interpreting GPT":
1. Capture every block's output at every token of one prompt.
2. Apply the final norm and the head at the last positions (default 64; a position costs ten times the head per block); record the
   top tokens and the probability of the model's own prediction.
3. Control: random directions of equal norm through the same norm and head. A block "knows" the prediction if its probability is
   outside the range of the control.
The lens uses the basis of the last block; a negative result at an early block does not show that the information is absent.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from repscope import stats
from repscope.conditions import RANDOM
from repscope.directions.random import random_like
from repscope.errors import UserError
from repscope.progress import progress
from repscope.results import Result, Row, at

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

DEFINITION = "probability that the lens gives to the model's own next token"
_DRAWS = 8
LAST = 64  #: default number of positions


def logit_lens(lm: "LanguageModel", prompt: str, *, top: int = 5, seed: int = 0, last: int = LAST) -> Result:
    """The lens over one prompt.

    Parameters
    ----------
    lm
        A language model with a final norm and a head.
    prompt
        The text.
    top
        Top tokens per cell.
    seed
        Of the random directions.
    last
        Number of tokens at the end of the prompt to read; a note reports omitted ones.

    Returns
    -------
    Result
        table: mean over token positions of the probability of the final prediction, by block, with its control. side["cells"]:
        one row per block and position: block (-1: embedding), position, token, predicted, probability, top_five, of_final.

    Raises
    ------
    UserError
        For an empty prompt, for no token or position; as `LanguageModel.capture` and `unembed`.
    """
    if top < 1 or last < 1:
        raise UserError(f"The lens shows top={top} tokens at the last={last} positions; ask for at least 1 of each.")
    sites = lm.resolve(["embed", "resid_post"])
    acts = lm.capture([prompt], sites, "all")
    read = acts[sites[-1]].shape[0]
    first = max(0, read - last)
    tokens = lm.tokens(prompt)[first:read]
    at_end = _probabilities(lm, acts[sites[-1]][first:])
    final = at_end.argmax(1)
    rng = np.random.default_rng(seed)
    cells, rows = [], []
    with progress("lens", len(sites)) as advance:
        for site in sites:
            held = acts[site][first:]
            probability = at_end if site == sites[-1] else _probabilities(lm, held)
            of_final = probability[np.arange(len(final)), final]
            leading = np.argsort(-probability, axis=1)[:, :top]
            block = -1 if site.layer is None else site.layer
            for i, best in enumerate(leading):
                said = [lm.tokenizer.decode([t]) for t in best]
                five = "  ".join(f"{t!r} {p:.2f}" for t, p in zip(said, probability[i, best]))
                read_out = {"predicted": said[0], "probability": probability[i, best[0]], "top_five": five, "of_final": of_final[i]}
                cells.append({"block": block, "position": first + i, "token": tokens[i], **read_out})
            where = {**at(site), "token": "all", "item": "final prediction", "seed": seed}
            where |= {"metric": "probability", "definition": DEFINITION}
            rows.append(Row.of(stats.mean(of_final, unit="token", seed=seed), **where))
            draws = _random_control(lm, held, final, rng)
            rows.append(Row.of(stats.null(draws, unit="random direction"), condition=RANDOM, **where))
            advance(1)
    notes = (f"The prompt has {read} tokens; the network read them all, the lens the last {last}.",) if first else ()
    return Result.of(rows, side={"cells": pd.DataFrame(cells)}, notes=notes)


def _probabilities(lm: "LanguageModel", hidden: Float[np.ndarray, "token d_model"]) -> Float[np.ndarray, "token vocab"]:
    logits = lm.unembed(hidden)
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def _random_control(
    lm: "LanguageModel", hidden: Float[np.ndarray, "token d_model"], final: Int[np.ndarray, "token"], rng: np.random.Generator
) -> Float[np.ndarray, "draw"]:
    """The same mean over tokens, per draw of random directions of equal norm."""
    drawn = random_like(np.broadcast_to(hidden, (_DRAWS, *hidden.shape)), rng).astype(np.float32)
    probability = _probabilities(lm, drawn.reshape(-1, hidden.shape[1]))[np.arange(_DRAWS * len(final)), np.tile(final, _DRAWS)]
    means: np.ndarray = probability.reshape(_DRAWS, -1).mean(1)
    return means
