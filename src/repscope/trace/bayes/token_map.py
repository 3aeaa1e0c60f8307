"""Any causal language model put to symbols through a map from symbols to its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from repscope.errors import UserError

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

_ROWS = 1 << 13  #: tokens of one call: memory does not grow with the number of texts


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Symbol → token id, one token per symbol. before: tokens put before every text, such as a BOS token.

    Raises
    ------
    UserError
        When two symbols have one token, or an id is negative.
    """

    tokens: Int[np.ndarray, "symbol"]
    before: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the ids."""
        ids = np.asarray(self.tokens)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or (ids < 0).any() or any(b < 0 for b in self.before):
            raise UserError("A token map needs one token id per symbol, each a number from 0 on; give a list such as [15, 16, 17].")
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            token = int(values[counts.argmax()])
            symbols = np.flatnonzero(ids == token).tolist()
            raise UserError(f"Symbols {symbols} have one token, {token}; give each symbol a token of its own.")
        object.__setattr__(self, "tokens", ids.astype(np.int64))

    @classmethod
    def of_texts(cls, model: "LanguageModel", texts: Sequence[str] | Mapping[int, str]) -> "TokenMap":
        """From the text of each symbol, which must be one token of the model's tokenizer, such as " a", " b".

        Tokens that the tokenizer puts before every text come before every sequence of symbols too.

        Raises
        ------
        UserError
            For a text that is not one token, a symbol without a text, and as the class.
        """
        if isinstance(texts, Mapping):
            if sorted(texts) != list(range(len(texts))):
                raise UserError(
                    f"A token map of {len(texts)} symbols needs the symbols 0 to {len(texts) - 1}, and has {sorted(texts)}."
                )
            texts = [texts[i] for i in range(len(texts))]
        from repscope.models.prompts import special_tokens

        ids = []
        for symbol, text in enumerate(texts):
            found = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(found) != 1:
                raise UserError(
                    f"The text {text!r} of symbol {symbol} is {len(found)} tokens of {model.name}; choose one that is one."
                )
            ids.append(int(found[0]))
        before, _ = special_tokens(model.tokenizer, causal=True)
        return cls(np.array(ids), tuple(int(i) for i in before))

    @classmethod
    def common(cls, model: "LanguageModel", symbols: int) -> "TokenMap":
        """Tokens that the model has seen often: the first `symbols` words of a letter or more, in the order of token ids.

        Byte-pair tokenizers number tokens by the order of their merges, so that small ids are frequent.

        Raises
        ------
        UserError
            When the tokenizer has fewer such words.
        """
        size, chosen = len(model.tokenizer), list[str]()
        for start in range(0, size, 4096):
            texts = [model.tokenizer.decode([i]) for i in range(start, min(size, start + 4096))]
            for text in texts:
                word = text.removeprefix(" ")
                if not (word.isascii() and word.isalpha()) or text in chosen:
                    continue
                if len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) == 1:
                    chosen.append(text)
                if len(chosen) == symbols:
                    return cls.of_texts(model, chosen)
        raise UserError(
            f"{model.name} has {len(chosen)} words of one token, and {symbols} symbols need one each; use fewer symbols."
        )

    def forecast(
        self, model: "LanguageModel", texts: Int[np.ndarray, "text token"], places: Sequence[int] | None = None
    ) -> tuple[Float[np.ndarray, "text place symbol"], Float[np.ndarray, "text place"]]:
        """What the model predicts after the symbols at `places` (all by default).

        Returns
        -------
        tuple
            Probabilities of the next symbol, renormalised over the map; and the mass that the map had before: where it is small,
            the model expects something else than these symbols.

        Raises
        ------
        UserError
            For symbols outside the map, ids outside the model's vocabulary, or texts longer than the model's context.
        """
        symbols = np.asarray(texts)
        if symbols.ndim != 2 or symbols.dtype.kind not in "iu" or not symbols.size:
            raise UserError(f"Texts are rows of symbols, (text, token), and have the shape {symbols.shape}; give whole numbers.")
        if symbols.min() < 0 or symbols.max() >= len(self.tokens):
            raise UserError(f"Texts have symbols {symbols.min()} to {symbols.max()}, and the map has 0 to {len(self.tokens) - 1}.")
        length = symbols.shape[1] + len(self.before)
        if model.context is not None and length > model.context:
            raise UserError(
                f"A text of {length} tokens is longer than the {model.context} that {model.name} reads; make it shorter."
            )
        at = np.arange(symbols.shape[1]) if places is None else np.asarray(places)
        before = np.array(self.before, dtype=np.int64)
        found, mass, step = [], [], max(1, _ROWS // length)
        for start in range(0, len(symbols), step):
            rows = [np.concatenate([before, self.tokens[row]]) for row in symbols[start : start + step]]
            logits = model.logits(rows, "all").reshape(len(rows), length, -1)[:, len(before) :][:, at]
            if self.tokens.max() >= logits.shape[-1]:
                raise UserError(
                    f"Token {self.tokens.max()} lies outside the {logits.shape[-1]} tokens of {model.name}; mend the map."
                )
            wide = logits.astype(np.float64)
            wide -= wide.max(-1, keepdims=True)
            odds = np.exp(wide)
            own = odds[..., self.tokens]
            share = own.sum(-1)
            if not (share > 0).all():
                raise UserError(f"{model.name} gives none of these symbols any probability somewhere; choose more frequent tokens.")
            found.append(own / share[..., None])
            mass.append(share / odds.sum(-1))
        return np.concatenate(found), np.concatenate(mass)
