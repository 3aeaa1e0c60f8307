"""A hidden Markov model over symbols, checked: start, transition and emission as arrays, from hmmlearn, or from a file."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError, unknown

_TOLERANCE = 1e-6  #: of a sum of probabilities
_NAMES = ("start", "transition", "emission")


@dataclass(frozen=True, eq=False)
class HiddenMarkovModel:
    """Start (state), transition (from, to) and emission (state, symbol) probabilities, float64.

    Raises
    ------
    UserError
        If shapes do not fit, an entry is negative or not finite, or a distribution does not sum to 1 (within 1e-6).
    """

    start: Float[np.ndarray, "state"]
    transition: Float[np.ndarray, "state state"]
    emission: Float[np.ndarray, "state symbol"]
    name: str = "the model"

    def __post_init__(self) -> None:
        """Check and convert."""
        for part in _NAMES:
            try:
                values = np.asarray(getattr(self, part), np.float64)
            except (TypeError, ValueError) as error:
                raise UserError(f"The {part} probabilities of {self.name} are not numbers ({error}).") from error
            object.__setattr__(self, part, values)
        n = self.start.shape[0] if self.start.ndim == 1 else 0
        if n == 0 or self.transition.shape != (n, n) or self.emission.ndim != 2 or len(self.emission) != n:
            raise UserError(
                f"{self.name} has start {self.start.shape}, transition {self.transition.shape} and emission {self.emission.shape}; "
                "they must be (state), (state, state) and (state, symbol)."
            )
        for part in _NAMES:
            values = np.atleast_2d(getattr(self, part))
            if not np.isfinite(values).all() or (values < 0).any():
                raise UserError(f"The {part} probabilities of {self.name} have an entry that is negative or not finite.")
            sums = values.sum(-1)
            worst = int(np.abs(sums - 1).argmax())
            if abs(sums[worst] - 1) > _TOLERANCE:
                row = "" if part == "start" else f" of state {worst}"
                raise UserError(
                    f"The {part} probabilities{row} of {self.name} sum to {sums[worst]:.6g}; normalise them, as each must sum to 1."
                )

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


def read_models(path: str | Path) -> list[HiddenMarkovModel]:
    """Hidden Markov models from a file: one or several, which are the concepts of a mixture.

    `.npz` with the arrays start, transition and emission (several models: with a leading axis), or `.json` with the same keys, or a
    list of such objects. Nothing is unpickled.

    Raises
    ------
    UserError
        If the file is missing, of another kind, damaged, or holds no model; and as `HiddenMarkovModel`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file {file}; check the path.")
    if file.suffix == ".npz":
        try:
            with zipfile.ZipFile(file):  # np.load takes a bare array under this suffix too, which has no names
                pass
            with np.load(file, allow_pickle=False) as held:
                arrays = {name: np.asarray(held[name]) for name in held.files}
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} cannot be read as arrays ({str(error).splitlines()[0]}).") from error
        found: list[dict[str, Any]]
        if arrays.get("transition", np.zeros(0)).ndim == 3:
            count = len(arrays["transition"])
            if any(len(np.atleast_1d(arrays.get(n, ()))) != count for n in _NAMES):
                raise UserError(f"{file} has {count} transition matrices and another number of starts or emissions.")
            found = [{n: arrays[n][i] for n in _NAMES} for i in range(count)]
        else:
            found = [arrays]
    elif file.suffix == ".json":
        try:
            parsed = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{file} is not valid JSON ({error}).") from error
        found = parsed if isinstance(parsed, list) else [parsed]
    else:
        raise unknown("kind of file of hidden Markov models", file.suffix or file.name, (".npz", ".json"))
    models = []
    for i, one in enumerate(found):
        if not isinstance(one, dict) or any(n not in one for n in _NAMES):
            raise UserError(f"Model {i} of {file} lacks one of {', '.join(_NAMES)}.")
        models.append(HiddenMarkovModel(one["start"], one["transition"], one["emission"], f"model {i} of {file.name}"))
    if not models:
        raise UserError(f"{file} holds no model.")
    return models


def check_mixture(models: Sequence[HiddenMarkovModel]) -> None:
    """Refuse models that make no mixture.

    Raises
    ------
    UserError
        For other numbers of symbols, or two models that are the same: no text could tell them apart.
    """
    for i, one in enumerate(models):
        if one.symbols != models[0].symbols:
            raise UserError(
                f"{models[0].name} has {models[0].symbols} symbols and {one.name} {one.symbols}; they must be the same."
            )
        for j in range(i):
            other = models[j]
            if other.states == one.states and all(
                np.allclose(getattr(one, n), getattr(other, n), rtol=0, atol=1e-12) for n in _NAMES
            ):
                raise UserError(f"Concepts {j} and {i} are the same model, so no text can tell them apart; drop one.")


def _drawn(cumulative: Float[np.ndarray, "n outcome"], rng: np.random.Generator) -> np.ndarray:
    found: np.ndarray = (cumulative[:, :-1] <= rng.random(len(cumulative))[:, None]).sum(-1)
    return found
