"""Logit lens: what a model would predict if each block were its last (nostalgebraist, 2020, "interpreting GPT").

1. Capture every block's output at every token of one prompt.
2. Put each through the final norm and the head; keep the leading tokens and the probability of the model's own prediction.
3. Control: vectors of the same length in random directions through the same norm and head. A block "knows" the prediction
   where its probability leaves the range of that control.
The lens reads in the basis of the last block; that it finds nothing early does not show that nothing is there.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from repscope import stats
from repscope.results import Result, Row

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

RANDOM = "random direction of equal norm"
DEFINITION = "probability that the lens gives to the model's own next token"
_DRAWS = 8


def logit_lens(lm: "LanguageModel", prompt: str, *, top: int = 5, seed: int = 0) -> Result:
    """The lens over one prompt.

    Parameters
    ----------
    lm
        A language model with a final norm and a head.
    prompt
        The text.
    top
        Leading tokens kept a cell.
    seed
        Of the random directions.

    Returns
    -------
    Result
        table: mean over token positions of the probability of the final prediction, by block, with its control. side["cells"]:
        a row a block and position: block (-1 is the embedding), position, token, predicted, probability, top_five, of_final.

    Raises
    ------
    UserError
        As `LanguageModel.capture` and `unembed`.
    """
    sites = lm.resolve(["embed", "resid_post"])
    acts = lm.capture([prompt], sites, "all")
    tokens = lm.tokens(prompt)
    last = _probabilities(lm, acts[sites[-1]])
    final = last.argmax(1)
    rng = np.random.default_rng(seed)
    cells, rows = [], []
    for site in sites:
        held = acts[site]
        probability = last if site == sites[-1] else _probabilities(lm, held)
        of_final = probability[np.arange(len(final)), final]
        leading = np.argsort(-probability, axis=1)[:, :top]
        block = -1 if site.layer is None else site.layer
        for i, best in enumerate(leading):
            said = [lm.tokenizer.decode([t]) for t in best]
            cells.append(
                {"block": block, "position": i, "token": tokens[i], "predicted": said[0], "probability": probability[i, best[0]],
                 "top_five": "  ".join(f"{t!r} {p:.2f}" for t, p in zip(said, probability[i, best])), "of_final": of_final[i]}
            )  # fmt: skip
        where = {
            "metric": "probability",
            "definition": DEFINITION,
            "site": str(site),
            "layer": site.layer,
            "token": "all",
            "seed": seed,
        }
        rows.append(Row.of(stats.mean(of_final, unit="token", seed=seed), item="final prediction", **where))
        draws = _random_control(lm, held, final, rng)
        control = stats.null(draws, unit="random direction")
        rows.append(Row.of(control, item="final prediction", condition=RANDOM, **where))
    return Result.of(rows, side={"cells": pd.DataFrame(cells)})


def _probabilities(lm: "LanguageModel", hidden: Float[np.ndarray, "token d_model"]) -> Float[np.ndarray, "token vocab"]:
    logits = lm.unembed(hidden)
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def _random_control(
    lm: "LanguageModel",
    hidden: Float[np.ndarray, "token d_model"],
    final: Int[np.ndarray, "token"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "draw"]:
    """The same mean over tokens, from vectors as long as these that point anywhere; once a draw."""
    drawn = rng.standard_normal((_DRAWS, *hidden.shape)).astype(np.float32)
    drawn *= np.linalg.norm(hidden, axis=1, keepdims=True) / np.linalg.norm(drawn, axis=2, keepdims=True)
    probability = _probabilities(lm, drawn.reshape(-1, hidden.shape[1]))[
        np.arange(_DRAWS * len(final)), np.tile(final, _DRAWS)
    ]
    means: np.ndarray = probability.reshape(_DRAWS, -1).mean(1)
    return means
