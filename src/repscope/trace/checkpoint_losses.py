"""Loss and error of a Hugging Face language model or classifier on texts.

1. `EncodedExamples`: token ids of every text, truncated to a length; a language model skips texts of one token.
2. Batches contain texts of similar length, padded on the right, with limits on tokens and logits; none spans a length at which the
   network changes its behaviour. On the first batch of each kind, batched and single outputs are compared; if they differ, and for
   a classifier without a pad token, the batch size is 1.
3. Language model: `loss` is nats per predicted token, `error` the share of tokens that are not the most likely. Classifier: `loss`
   is cross-entropy, `error` the share of wrong classes. Padding is never counted.
4. Each is a pair of sums per example (numerator, denominator); the loss is their ratio over examples, as are its intervals.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from repscope.data.evaluation import Texts
from repscope.errors import UserError
from repscope.models.engine.proofs import switch_lengths
from repscope.models.engine.rewritten_state import Rewritten

Sums = dict[str, Float[np.ndarray, "example 2"]]

LENGTH = 512  #: default maximum of tokens per text
_TOKENS = 1024  #: per batch
_LOGITS = 32 << 20  #: entries of a batch's logits: 128 MB in float32
_ROWS = 256  #: logit rows normalised at once
_PADS = {"attention_mask": 0, "token_type_ids": 0}


@dataclass(frozen=True)
class EncodedExamples:
    """Tokenized texts.

    fields: per text the tokenizer's outputs. pad: id of the pad token, None if batches cannot be padded. splits: name → rows.
    labels: class numbers, None for a language model. notes: truncated and skipped texts.
    """

    fields: tuple[dict[str, list[int]], ...]
    pad: int | None
    splits: dict[str, Int[np.ndarray, "example"]]
    labels: Int[np.ndarray, "example"] | None
    notes: tuple[str, ...] = ()


def encode_examples(
    tokenizer: Any, config: Any, texts: Texts, labels: Int[np.ndarray, "example"] | None, length: int = LENGTH
) -> EncodedExamples:
    """Token ids of texts.

    Parameters
    ----------
    tokenizer, config
        Of the network.
    texts
        Single texts or pairs.
    labels
        Classes; None for a language model.
    length
        Maximum of tokens per text; also limited by the network's positions.

    Raises
    ------
    UserError
        For a length below two, or if no text has a token to predict.
    """
    if length < 2:
        raise UserError(f"Texts of {length} tokens predict nothing; take a length of at least 2.")
    places = [getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    most = min(length, *(int(p) for p in places if isinstance(p, int) and p > 0), length)
    both = list(zip(texts.texts, texts.pairs or [None] * len(texts.texts)))
    rows = [dict(tokenizer(text, second, truncation=True, max_length=most)) for text, second in both]
    notes = list(texts.notes)
    full = [both[i] for i, row in enumerate(rows) if len(row["input_ids"]) == most]
    if long := sum(len(tokenizer(*pair, truncation=True, max_length=most + 1)["input_ids"]) > most for pair in full):
        notes.append(f"{long} of {len(rows)} texts were cut to {most} tokens.")
    least = 2 if labels is None else 1
    keep = np.array([len(row["input_ids"]) >= least for row in rows])
    if not keep.all():
        notes.append(f"{int((~keep).sum())} of {len(rows)} texts have fewer than {least} tokens, and were left out.")
    place = np.cumsum(keep) - 1
    splits = {name: place[[int(i) for i in texts.rows(name) if keep[i]]] for name in texts.names}
    if lost := [name or texts.name for name, held in splits.items() if not len(held)]:
        raise UserError(f"{lost[0]} has no text of {least} tokens or more; a shorter one predicts nothing.")
    pad = getattr(config, "pad_token_id", None)
    if pad is None and labels is None:  # a causal model never attends to right padding, so any token is valid
        pad = 0
    kept = tuple(row for row, held in zip(rows, keep) if held)
    return EncodedExamples(kept, pad, splits, None if labels is None else labels[keep], tuple(notes))


def losses_by_example(held: EncodedExamples, name: Callable[[str, str], str]) -> Callable[[nn.Module], Sums]:
    """Evaluation function on texts: network → sums per example.

    Parameters
    ----------
    held
        The texts.
    name
        Name of a loss by split and kind: `Texts.loss`.
    """

    lengths = [len(f["input_ids"]) for f in held.fields]
    together: dict[int, bool] = {}  # level of length → whether batched and single outputs agree

    def evaluate(module: nn.Module) -> Sums:
        config: Any = module.config
        state = Rewritten(module)
        switches = switch_lengths(config.get_text_config().to_dict(), None)
        levels = [sum(s <= length for s in switches) for length in lengths]
        width = int(getattr(config, "vocab_size", 1)) if held.labels is None else 1
        taken = inspect.signature(module.forward).parameters  # some tokenizers return fields that the network does not accept
        found = np.zeros((len(held.fields), 3))  # nats, mistakes, count

        def measured(rows: Sequence[int]) -> Float[np.ndarray, "example 3"]:
            batch = {k: v for k, v in _padded([held.fields[i] for i in rows], held.pad or 0).items() if k in taken}
            state.rewind()
            with torch.inference_mode():
                logits = module(**batch).logits
                if held.labels is None:
                    return _next_tokens(logits, batch["input_ids"], _counted(held, rows))
                return _classes(logits, torch.from_numpy(held.labels[rows]))

        for level in sorted(set(levels)):
            mine = [i for i, at in enumerate(levels) if at == level]
            for rows in _batches(lengths, mine, held.pad is None or not together.get(level, True), max(1, _LOGITS // width)):
                found[rows] = measured(rows)
                if len(rows) > 1 and level not in together:
                    alone = np.concatenate([measured([i]) for i in rows])
                    tolerance = 1e-3 if next(module.parameters()).dtype == torch.float32 else 5e-2
                    together[level] = bool(np.allclose(found[rows][:, 0], alone[:, 0], rtol=tolerance, atol=tolerance))
                    found[rows] = alone
                elif len(rows) > 1 and not together[level]:
                    found[rows] = np.concatenate([measured([i]) for i in rows])
        state.rewind()
        return {
            name(split, kind): found[rows][:, [column, 2]]
            for split, rows in held.splits.items()
            for kind, column in (("loss", 0), ("error", 1))
        }

    return evaluate


def _next_tokens(
    logits: Float[Tensor, "example token vocabulary"], ids: Int[Tensor, "example token"], mask: Int[Tensor, "example token"]
) -> Float[np.ndarray, "example 3"]:
    targets, counted = ids[:, 1:], mask[:, 1:].bool()
    nats = torch.zeros(targets.shape, dtype=torch.float64)
    wrong = torch.zeros(targets.shape, dtype=torch.float64)
    where = counted.nonzero()
    for start in range(0, len(where), _ROWS):
        i, j = where[start : start + _ROWS].T
        scores, answers = logits[i, j].float(), targets[i, j]
        nats[i, j] = functional.cross_entropy(scores, answers, reduction="none").double()
        wrong[i, j] = (scores.argmax(-1) != answers).double()
    return np.asarray(torch.stack([nats.sum(1), wrong.sum(1), counted.sum(1).double()], 1).numpy())


def _counted(held: EncodedExamples, rows: Sequence[int]) -> Int[Tensor, "example token"]:
    lengths = torch.tensor([len(held.fields[i]["input_ids"]) for i in rows])
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()


def _classes(logits: Float[Tensor, "example class"], labels: Int[Tensor, "example"]) -> Float[np.ndarray, "example 3"]:
    nats = functional.cross_entropy(logits.float(), labels, reduction="none").double()
    wrong = (logits.argmax(-1) != labels).double()
    return np.asarray(torch.stack([nats, wrong, torch.ones_like(nats)], 1).numpy())


def _batches(lengths: Sequence[int], which: Sequence[int], alone: bool, most: int) -> Iterator[list[int]]:
    """Batches of rows of similar length within a token limit (a single long text may exceed it); with `alone`, of one row each."""
    budget, rows = min(_TOKENS, most), list[int]()
    for i in sorted(which, key=lambda i: -lengths[i]):
        longest = lengths[rows[0]] if rows else 0
        if rows and ((len(rows) + 1) * longest > budget or alone):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def _padded(fields: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Int[Tensor, "example token"]]:
    longest = max(len(f["input_ids"]) for f in fields)
    names = [name for name in fields[0] if name in ("input_ids", *_PADS)]
    batch = {name: torch.tensor([f[name] + [_PADS.get(name, pad)] * (longest - len(f[name])) for f in fields]) for name in names}
    if "attention_mask" not in batch:
        batch["attention_mask"] = torch.tensor([[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in fields])
    return batch
