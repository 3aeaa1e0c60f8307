"""Predictors of a GINC prompt after every number of examples: pretraining mixture, format-aware observer, oracle.

- `pretraining`: what next-token training converges to. It reads the prompt as one document of the mixture of concepts.
- `format_aware`: knows that a prompt is made of independent examples of one concept and one start slot. Latent: (concept, slot);
  each example starts there with a uniform value, and the likelihoods of examples multiply.
- `oracle`: knows concept and slot. It makes the labels and is the ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError
from repscope.trace.bayes.mixture import Mixture, floored, softmax
from repscope.worlds.ginc import GincPrompts, GincWorld

_TEXTS = 2048  #: examples at a time


@dataclass(frozen=True, eq=False)
class PromptForecast:
    """Distribution of the label after each number of examples, and the posterior on the prompt's own concept."""

    answers: Float[np.ndarray, "prompt example symbol"]
    truth: Float[np.ndarray, "prompt example"]


def mixture_of(world: GincWorld, floor: float, concepts: Sequence[int] | None = None) -> Mixture:
    """The pretraining distribution of a world, with a floor under its transitions."""
    chosen = np.asarray(world.seen if concepts is None else concepts)
    return Mixture(
        world.starts[chosen],
        floored(world.transitions[chosen], floor),
        np.arange(len(chosen)),
        np.eye(world.sizes.symbols)[world.symbols],
        np.full(len(chosen), 1 / len(chosen)),
    )


def pretraining(world: GincWorld, prompts: GincPrompts, floor: float, concepts: Sequence[int] | None = None) -> PromptForecast:
    """The exact predictor of the pretraining mixture on prompts.

    Raises
    ------
    UserError
        For a prompt that is impossible under every concept, with a floor of 0.
    """
    chosen = np.asarray(world.seen if concepts is None else concepts)
    found = mixture_of(world, floor, concepts).forecast(prompts.tokens, prompts.positions.tolist())
    own = prompts.concept[:, None] == chosen  # all false for an unseen concept
    return PromptForecast(found.next, np.einsum("bkm,bm->bk", found.posterior, own.astype(float)))


def format_aware(world: GincWorld, prompts: GincPrompts, floor: float, concepts: Sequence[int] | None = None) -> PromptForecast:
    """The exact predictor of an observer who knows the format of prompts.

    Raises
    ------
    UserError
        As `pretraining`.
    """
    chosen = np.asarray(world.seen if concepts is None else concepts)
    sizes, length = world.sizes, prompts.length
    slots = np.arange(1, sizes.slots)
    starts = np.zeros((len(slots), sizes.states))
    for row, slot in enumerate(slots):
        starts[row, np.arange(sizes.values) * sizes.slots + slot] = 1 / sizes.values
    models = len(chosen) * len(slots)
    mixture = Mixture(
        np.tile(starts, (len(chosen), 1)),
        floored(world.transitions[chosen], floor),
        np.repeat(np.arange(len(chosen)), len(slots)),
        np.eye(sizes.symbols)[world.symbols],
        np.full(models, 1 / models),
    )
    count, every = prompts.oracle.shape[:2]
    examples = prompts.tokens.reshape(count, every, length + 1)
    answers = np.empty(prompts.oracle.shape)
    truth = np.empty((count, every))
    own = (prompts.concept[:, None] == chosen).astype(float)
    step = max(1, _TEXTS // every)
    for start in range(0, count, step):
        rows = slice(start, start + step)
        part = examples[rows].reshape(-1, length + 1)[:, :length]
        each, inputs, whole = (x.reshape(-1, every, *x.shape[1:]) for x in mixture.by_model(part))
        before = np.concatenate([np.zeros_like(whole[:, :1]), np.cumsum(whole[:, :-1], axis=1)], axis=1)
        logs = before + inputs
        if (dead := np.isneginf(logs).all(-1)).any():
            raise UserError(
                f"Prompt {start + int(dead.any(1).argmax())} is impossible for every concept and start slot; give a floor above 0."
            )
        weights = softmax(logs)
        answers[rows] = np.einsum("bkm,bkms->bks", weights, each)
        truth[rows] = np.einsum("bkcs,bc->bk", weights.reshape(-1, every, len(chosen), len(slots)), own[rows])
    return PromptForecast(answers, truth)


def oracle(prompts: GincPrompts) -> PromptForecast:
    """The predictor that knows concept and start slot."""
    return PromptForecast(prompts.oracle, np.ones(prompts.oracle.shape[:2]))
