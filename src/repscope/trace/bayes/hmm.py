"""A hidden Markov model over symbols, checked: start, transition and emission as arrays, or from hmmlearn.

Whether two models are the same is decided by what they say about texts, not by their arrays: a copy with permuted or split states
has other arrays and the same likelihoods, and no text can tell it from the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError

PARTS = ("start", "transition", "emission")  #: arrays of a model, in the order of the class
_TOLERANCE = 1e-6  #: of a sum of probabilities
_EXACT = 1e-12  #: of a sum that is left as it is; others, such as those of float32 files, are divided by it
_SAME = 1e-9  #: nats between the log-likelihoods of a text under two models that are one
_TEXTS = 16  #: per model, by which models are told apart
_SYMBOLS = (48, 512)  #: least and most per text


@dataclass(frozen=True, eq=False)
class HiddenMarkovModel:
    """Start (state), transition (from, to) and emission (state, symbol) probabilities, float64.

    Raises
    ------
    UserError
        If shapes do not fit, an entry is negative or not finite, a state has no transition or emission that is possible, or a
        distribution does not sum to 1 (within 1e-6; smaller errors are divided out).
    """

    start: Float[np.ndarray, "state"]
    transition: Float[np.ndarray, "state state"]
    emission: Float[np.ndarray, "state symbol"]
    name: str = "the model"

    def __post_init__(self) -> None:
        """Check and convert."""
        for part in PARTS:
            object.__setattr__(self, part, _numbers(getattr(self, part), part, self.name))
        n = self.start.shape[0] if self.start.ndim == 1 else 0
        shaped = self.transition.shape == (n, n) and self.emission.ndim == 2 and len(self.emission) == n
        if n == 0 or not shaped or self.emission.shape[1] == 0:
            raise UserError(
                f"{self.name} has start {self.start.shape}, transition {self.transition.shape} and emission {self.emission.shape}; "
                "they must be (state), (state, state) and (state, symbol)."
            )
        for part in PARTS:
            values = np.atleast_2d(getattr(self, part))
            if not np.isfinite(values).all() or (values < 0).any():
                raise UserError(f"The {part} probabilities of {self.name} have an entry that is negative or not finite.")
            sums = values.sum(-1)
            if part != "start" and (sums == 0).any():
                kind = "transition" if part == "transition" else "emission"
                raise UserError(
                    f"Every {kind} of state {int((sums == 0).argmax())} of {self.name} is impossible: its row is 0; "
                    "a state needs at least one, such as a transition to itself."
                )
            worst = int(np.abs(sums - 1).argmax())
            if abs(sums[worst] - 1) > _TOLERANCE:
                row = "" if part == "start" else f" of state {worst}"
                raise UserError(
                    f"The {part} probabilities{row} of {self.name} sum to {sums[worst]:.6g}; normalise them, as each must sum to 1."
                )
            if abs(sums[worst] - 1) > _EXACT:
                object.__setattr__(self, part, (values / sums[:, None]).reshape(getattr(self, part).shape))

    @classmethod
    def of(cls, model: Any, name: str = "the model") -> "HiddenMarkovModel":
        """From a fitted `hmmlearn.hmm.CategoricalHMM`, or any object with startprob_, transmat_ and emissionprob_.

        Raises
        ------
        UserError
            If it has no such probabilities, and as the class.
        """
        fields = ("startprob_", "transmat_", "emissionprob_")
        if lacking := [f for f in fields if not hasattr(model, f)]:
            raise UserError(f"{type(model).__name__} has no {lacking[0]}; give a fitted hmmlearn CategoricalHMM, or arrays.")
        return cls(model.startprob_, model.transmat_, model.emissionprob_, name)

    @property
    def states(self) -> int:
        """Hidden states."""
        return len(self.start)

    @property
    def symbols(self) -> int:
        """Symbols."""
        return int(self.emission.shape[1])

    def documents(self, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Sampled sequences of symbols (document, token)."""
        cumulative = [np.cumsum(x, -1) for x in (np.atleast_2d(self.start), self.transition, self.emission)]
        state = _drawn(np.repeat(cumulative[0], count, 0), rng)
        tokens = np.empty((count, length), np.int64)
        for t in range(length):
            tokens[:, t] = _drawn(cumulative[2][state], rng)
            state = _drawn(cumulative[1][state], rng)
        return tokens


def check_mixture(models: Sequence[HiddenMarkovModel]) -> None:
    """Refuse models that make no mixture.

    Two models are the same if texts drawn from them (16 from each) have the same likelihood under both, to 1e-9 nats. Texts have
    twice as many symbols as the largest model has states, but at least 48 and at most 512: models that agree on all texts of that
    length agree on all texts (Paz 1971, Introduction to Probabilistic Automata).

    Raises
    ------
    UserError
        For other numbers of symbols, or two models that are the same: no text could tell them apart.
    """
    for one in models:
        if one.symbols != models[0].symbols:
            raise UserError(
                f"{models[0].name} has {models[0].symbols} symbols and {one.name} {one.symbols}; they must be the same."
            )
    if len(models) < 2:
        return
    rng = np.random.default_rng(0)
    length = int(np.clip(2 * max(m.states for m in models), *_SYMBOLS))
    texts = np.concatenate([m.documents(_TEXTS, length, rng) for m in models])
    logs = np.stack([_log_likelihood(m, texts) for m in models]).reshape(len(models), len(models), -1)  # under, drawn from, text
    for i in range(len(models)):
        for j in range(i):
            own = logs[[i, j]][:, [i, j]]
            if np.isfinite(own).all() and np.abs(own[0] - own[1]).max() < _SAME:
                raise UserError(
                    f"Models {j} and {i} are the same: every text has the same likelihood under both, so that none can "
                    "tell them apart; drop one."
                )


def _log_likelihood(model: HiddenMarkovModel, texts: Int[np.ndarray, "text token"]) -> Float[np.ndarray, "text"]:
    alpha, found = np.broadcast_to(model.start, (len(texts), model.states)), np.zeros(len(texts))
    for t in range(texts.shape[1]):
        alpha = alpha * model.emission.T[texts[:, t]]
        mass = alpha.sum(-1)
        with np.errstate(divide="ignore"):
            found += np.log(mass)
        alpha = (alpha / np.where(mass > 0, mass, 1.0)[:, None]) @ model.transition
    return found


def _numbers(given: Any, part: str, name: str) -> Float[np.ndarray, "*n"]:
    try:
        values = np.asarray(given)
        if values.dtype.kind not in "fiub":
            raise ValueError(f"their type is {values.dtype.name}")
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The {part} probabilities of {name} are not an array of numbers ({error}).") from error


def _drawn(cumulative: Float[np.ndarray, "n outcome"], rng: np.random.Generator) -> np.ndarray:
    found: np.ndarray = (cumulative[:, :-1] <= rng.random(len(cumulative))[:, None]).sum(-1)
    return found
