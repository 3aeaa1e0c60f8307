"""The exact predictor of a mixture of hidden Markov models: next-symbol distribution and posterior over models, for many texts.

    α_t(m, j) = emission_m(j, x_t) Σ_i α_{t-1}(m, i) T_m(i, j)         p(x_{t+1} | x_≤t) ∝ Σ_m π_m Σ_j (α_t T_m)(j) emission_m(j, ·)

1. Models may share transitions: `of` says which matrix each of them has, so that models that differ in their start alone cost no
   memory. They may share emissions; models with emissions of their own are filled up with states that nothing leads to.
2. α is rescaled per text and model at every symbol; the logs of the factors add up to the log-likelihood (Rabiner 1989). What
   a model holds impossible has log-likelihood −∞. A text that all models hold impossible is refused: it has no posterior. A floor
   (1 − ε) T + ε / states makes everything possible; it is part of the model, and curves depend on it.
3. Where each state emits one symbol with certainty, only states of the symbol at hand are alive. States are sorted by symbol, texts
   are grouped by the symbol at hand, and the product is taken over the group's few states alone.
4. Texts are taken in chunks, so memory does not grow with their number beyond the answer asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError
from repscope.trace.bayes.hmm import HiddenMarkovModel, check_mixture

_CELLS = 1 << 20  #: entries of α (model, text, state) at a time: 8 MB


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a mixture predicts at chosen places of texts.

    next: p(next symbol). posterior: p(model | symbols so far). log_likelihood: ln p(symbols | model), of the whole text.
    """

    next: Float[np.ndarray, "text place symbol"]
    posterior: Float[np.ndarray, "text place model"]
    log_likelihood: Float[np.ndarray, "text model"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Hidden Markov models with prior weights.

    starts: one per model. transitions: one or more matrices. of: which matrix each model has. emission: (state, symbol), shared, or
    (model, state, symbol). prior: of the models.
    """

    starts: Float[np.ndarray, "model state"]
    transitions: Float[np.ndarray, "matrix state state"]
    of: Int[np.ndarray, "model"]
    emission: Float[np.ndarray, "*model state symbol"]
    prior: Float[np.ndarray, "model"]

    @classmethod
    def uniform(cls, models: Sequence[HiddenMarkovModel], floor: float = 0.0) -> "Mixture":
        """A uniform mixture of models.

        Raises
        ------
        UserError
            If the models have different symbols, or two are the same.
        """
        check_mixture(models)
        shared = all(m.states == models[0].states and np.array_equal(m.emission, models[0].emission) for m in models)
        prior = np.full(len(models), 1 / len(models))
        if shared:
            starts = np.stack([m.start for m in models])
            matrices = np.stack([floored(m.transition, floor) for m in models])
            return cls(starts, matrices, np.arange(len(models)), models[0].emission, prior)
        count, most = len(models), max(m.states for m in models)
        starts, matrices, emission = (
            np.zeros((count, most)),
            np.zeros((count, most, most)),
            np.zeros((count, most, models[0].symbols)),
        )
        for i, m in enumerate(models):
            starts[i, : m.states] = m.start
            matrices[i, : m.states, : m.states] = floored(m.transition, floor)
            emission[i, : m.states] = m.emission
        return cls(starts, matrices, np.arange(count), emission, prior)

    @property
    def models(self) -> int:
        """Number of models."""
        return len(self.starts)

    @property
    def symbols(self) -> int:
        """Number of symbols."""
        return int(self.emission.shape[-1])

    @property
    def _step(self) -> int:
        """Texts at a time."""
        states = int(self.starts.shape[1])
        return max(1, _CELLS // (self.models * max(states, 0 if self._shared else self.symbols)))

    @property
    def _shared(self) -> bool:
        return self.emission.ndim == 2

    def forecast(self, texts: Int[np.ndarray, "text token"], places: Sequence[int] | None = None) -> Forecast:
        """Predictions after the symbols at `places` (all by default) of texts with the same number of tokens.

        Raises
        ------
        UserError
            For a symbol or a place that does not exist, or a text that every model holds impossible.
        """
        tokens = self._checked(texts)
        asked = np.arange(tokens.shape[1]) if places is None else np.asarray(places, np.int64)
        if asked.size and (asked.min() < 0 or asked.max() >= tokens.shape[1]):
            wrong = asked.min() if asked.min() < 0 else asked.max()
            raise UserError(f"Place {wrong} was asked of texts of {tokens.shape[1]} symbols; places count from 0.")
        out = Forecast(
            np.empty((len(tokens), len(asked), self.symbols)),
            np.empty((len(tokens), len(asked), self.models)),
            np.empty((len(tokens), self.models)),
        )
        read = {int(place): np.flatnonzero(asked == place) for place in asked}
        prior = np.log(self.prior)
        for rows in chunks(len(tokens), self._step):
            for t, log, alpha in self._walk(tokens[rows], set(read)):
                if (dead := np.isneginf(log).all(1)).any():
                    raise UserError(
                        f"Text {rows.start + int(dead.argmax())} is impossible under every model at its symbol {t}; "
                        "give a floor, which makes every transition possible."
                    )
                if t in read:
                    weights = softmax(log + prior)
                    if self._shared:
                        following = np.einsum("bm,mbn->bn", weights, alpha) @ self._emission
                    else:
                        following = np.einsum("bm,mbs->bs", weights, alpha @ self._emission)
                    for i in read[t]:
                        out.next[rows, i] = following
                        out.posterior[rows, i] = weights
            out.log_likelihood[rows] = log
        return out

    def by_model(
        self, texts: Int[np.ndarray, "text token"]
    ) -> tuple[Float[np.ndarray, "text model symbol"], Float[np.ndarray, "text model"], Float[np.ndarray, "text model"]]:
        """Each model's own prediction of the last symbol, ln p(all symbols before it), and ln p(all symbols). For short texts."""
        tokens = self._checked(texts)
        count, length = tokens.shape
        shape = (count, self.models)
        predicted, before, whole = np.empty((*shape, self.symbols)), np.empty(shape), np.empty(shape)
        for rows in chunks(count, self._step):
            for t, log, alpha in self._walk(tokens[rows], {length - 2}):
                if t == length - 2:
                    predicted[rows] = (alpha @ self._emission).transpose(1, 0, 2)
                    before[rows] = log
            whole[rows] = log
        return predicted, before, whole

    def log_likelihood(self, texts: Int[np.ndarray, "text token"]) -> Float[np.ndarray, "text model"]:
        """ln p(text | model) in nats; −∞ for what a model holds impossible.

        Raises
        ------
        UserError
            For a symbol that does not exist.
        """
        tokens = self._checked(texts)
        found = np.empty((len(tokens), self.models))
        for rows in chunks(len(tokens), self._step):
            for _, log, _ in self._walk(tokens[rows], set()):
                found[rows] = log
        return found

    def _checked(self, texts: Int[np.ndarray, "text token"]) -> Int[np.ndarray, "text token"]:
        tokens = np.asarray(texts)
        symbols = self.symbols
        if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.dtype.kind not in "iu":
            raise UserError(f"Texts have the shape {tokens.shape} and type {tokens.dtype}; give whole numbers (text, token).")
        if tokens.size and (tokens.min() < 0 or tokens.max() >= symbols):
            wrong = tokens.min() if tokens.min() < 0 else tokens.max()
            raise UserError(f"A text has the symbol {wrong}; the models have symbols 0 to {symbols - 1}.")
        return tokens

    def _walk(
        self, tokens: Int[np.ndarray, "text token"], read: set[int]
    ) -> Iterator[tuple[int, Float[np.ndarray, "text model"], Float[np.ndarray, "model text state"]]]:
        """After each symbol: its place, ln p(symbols so far | model), and p(next state | symbols so far, model).

        After the last symbol the states are only moved on if it is in `read`.
        """
        log = np.zeros((len(tokens), self.models))
        alpha = np.broadcast_to(self._starts[:, None], (self.models, len(tokens), self._starts.shape[1]))
        last = tokens.shape[1] - 1
        for t in range(tokens.shape[1]):
            alpha, mass = self._seen(alpha, tokens[:, t], move=t < last or t in read)
            with np.errstate(divide="ignore"):
                log = log + np.log(mass)
            yield t, log, alpha

    def _seen(
        self, alpha: Float[np.ndarray, "model text state"], symbol: Int[np.ndarray, "text"], *, move: bool
    ) -> tuple[Float[np.ndarray, "model text state"], Float[np.ndarray, "text model"]]:
        """α given the next symbol, moved on by the transitions, and the symbol's probability under each model."""
        if self._slices is None:
            seen = alpha * self._by_symbol[..., symbol, :]
            mass = seen.sum(-1)
            seen = seen / np.where(mass > 0, mass, 1.0)[..., None]
            return (self._moved(seen, slice(None)) if move else seen), mass.T
        after = np.empty(alpha.shape) if move else np.zeros(alpha.shape)
        mass = np.empty(alpha.shape[:2])
        order = np.argsort(symbol, kind="stable")
        kinds, starts = np.unique(symbol[order], return_index=True)
        for kind, texts in zip(kinds, np.split(order, starts[1:])):
            states = self._slices[int(kind)]
            if states.start == states.stop:  # no state emits it
                mass[:, texts], after[:, texts] = 0.0, 0.0
                continue
            seen = alpha[:, texts, states]
            total = seen.sum(-1)
            mass[:, texts] = total
            seen = seen / np.where(total > 0, total, 1.0)[..., None]
            if move:
                after[:, texts] = self._moved(seen, states)
        return after, mass.T

    def _moved(self, seen: Float[np.ndarray, "model text some"], states: slice) -> Float[np.ndarray, "model text state"]:
        """The states' distribution one step later."""
        if len(self._transitions) == self.models:
            found: np.ndarray = np.matmul(seen, self._transitions[:, states])
            return found
        found = np.empty((*seen.shape[:2], self._transitions.shape[-1]))
        for models, matrix in self._groups:
            part = seen[models]
            moved = part.reshape(-1, part.shape[-1]) @ matrix[states]
            found[models] = moved.reshape(*part.shape[:2], -1)
        return found

    @cached_property
    def _groups(self) -> list[tuple[Int[np.ndarray, "some"], Float[np.ndarray, "state state"]]]:
        return [(np.flatnonzero(self.of == i), matrix) for i, matrix in enumerate(self._transitions)]

    @cached_property
    def _order(self) -> Int[np.ndarray, "state"]:
        """States in the order of their symbols if each emits one with certainty, else as they are."""
        return np.argsort(self.emission.argmax(1), kind="stable") if self._certain else np.arange(self.starts.shape[1])

    @cached_property
    def _certain(self) -> bool:
        return self._shared and bool(((self.emission == 0) | (self.emission == 1)).all())

    @cached_property
    def _slices(self) -> list[slice] | None:
        """For each symbol its states, if each state emits one symbol."""
        if not self._certain:
            return None
        ends = np.searchsorted(self.emission.argmax(1)[self._order], np.arange(self.emission.shape[1] + 1))
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]

    @cached_property
    def _starts(self) -> Float[np.ndarray, "model state"]:
        return np.ascontiguousarray(self.starts[:, self._order])

    @cached_property
    def _transitions(self) -> Float[np.ndarray, "matrix state state"]:
        matrices = self.transitions[:, self._order][:, :, self._order]
        if len(matrices) == self.models and not np.array_equal(self.of, np.arange(self.models)):
            matrices = matrices[self.of]
        return np.ascontiguousarray(matrices)

    @cached_property
    def _emission(self) -> Float[np.ndarray, "*model state symbol"]:
        return np.ascontiguousarray(self.emission[..., self._order, :])

    @cached_property
    def _by_symbol(self) -> Float[np.ndarray, "*model symbol state"]:
        return np.ascontiguousarray(np.moveaxis(self._emission, -1, -2))


def floored(matrices: Float[np.ndarray, "*n state state"], floor: float) -> Float[np.ndarray, "*n state state"]:
    """(1 − ε) T + ε / states.

    Raises
    ------
    UserError
        For a floor that is no probability.
    """
    if not 0 <= floor < 1:
        raise UserError(f"The floor is {floor}; it is a probability below 1.")
    found: np.ndarray = (1 - floor) * matrices + floor / matrices.shape[-1]
    return found


def softmax(logs: Float[np.ndarray, "*n model"]) -> Float[np.ndarray, "*n model"]:
    """Weights proportional to the exponentials."""
    weights = np.exp(logs - logs.max(-1, keepdims=True))
    found: np.ndarray = weights / weights.sum(-1, keepdims=True)
    return found


def chunks(count: int, step: int) -> Iterator[slice]:
    """Consecutive slices."""
    for start in range(0, count, step):
        yield slice(start, start + step)
