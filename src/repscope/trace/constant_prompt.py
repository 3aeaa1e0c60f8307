"""A constant prompt compared with tuning: how much of what tuning changed in next-token predictions does a prompt give?

URIAL (Lin et al. 2024, arXiv:2312.01552): a base network after a constant prompt of instructions and a few examples answers much
like a tuned one. Here on the same tokens, for each document:

1. The tuned network reads the document (with `chat`, as a user's turn in its chat template) and answers greedily. All networks
   score the tokens of that answer; with `new_tokens=0` those of the document from its second token on.
2. Base network alone: after what the tuned network reads. With the prompt: after the prompt and the document; a prompt with
   "{document}" in it encloses the document. Control: the same after another prompt of as many tokens, with the same end.
3. KL(tuned ‖ base) and token shift as in `drift.next_tokens`, by position in the answer, and

    KL recovered by the prompt = 1 - Σ KL(tuned ‖ base after the prompt) / Σ KL(tuned ‖ base alone)

   over all positions of all documents, negative where the prompt leads away; intervals over documents. Any text before a document
   changes predictions, so what counts is the difference to the control.

Alignment is checked, not assumed: the prompt and the document are tokenised as one text, and must be the prompt's tokens followed
by those of the document alone. Where they merge, the document is refused by name.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from repscope import stats
from repscope.conditions import BASE_NETWORK, ESTIMATE, OTHER_PROMPT, over
from repscope.data.reading import shortened
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt, Ragged, special_tokens
from repscope.models.sites import Tokens
from repscope.progress import progress
from repscope.results import Result, Row
from repscope.trace.drift.next_tokens import SHIFTS, Answered, PositionSums, answered, hidden_before
from repscope.trace.drift.prompted import same_ids
from repscope.trace.task_shift.contexts import NEUTRAL_TEXT

PLACE = "{document}"  #: where a document stands in a prompt that encloses it
RECOVERED = "KL recovered by the prompt"
DEFINITION = "1 - Σ KL(tuned ‖ base after the prompt) / Σ KL(tuned ‖ base alone), over all positions"
_LARGEST = 1_000_000  #: bytes of a prompt file
_CHUNK = 8  #: documents of one pass
Ids = Int[np.ndarray, "token"]


@dataclass(frozen=True, eq=False)
class _Texts:
    """The same answer tokens after each context. contexts: condition → ids and start of the answers; tuned: what it reads."""

    tuned: Answered
    contexts: dict[str, Answered]
    notes: tuple[str, ...]


def read_prompt(path: str | Path) -> str:
    """The prompt in a text file (UTF-8), as it is.

    Raises
    ------
    UserError
        For a file that is missing, larger than 1 MB, not UTF-8, or empty.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"There is no prompt file {str(path)!r}; give a text file.")
        if (size := path.stat().st_size) > _LARGEST:
            raise UserError(
                f"The prompt file {str(path)!r} has {size} bytes, more than a prompt of {_LARGEST}; give a shorter one."
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"The prompt file {str(path)!r} cannot be read ({error.strerror}); give another one.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"The prompt file {str(path)!r} is not UTF-8 text; save it as UTF-8.") from error
    if not text.replace(PLACE, "").strip():
        raise UserError(f"The prompt file {str(path)!r} is empty; write the prompt into it.")
    return text


def constant_prompt(
    base: LanguageModel,
    tuned: LanguageModel,
    prompt: str,
    documents: Iterable[str],
    *,
    chat: bool = False,
    new_tokens: int = 32,
    control: str | None = None,
    seed: int = 0,
) -> Result:
    """How much of a tuned network's next-token predictions a constant prompt gives the base network.

    Parameters
    ----------
    base, tuned
        The networks before and after tuning, with one tokenizer.
    prompt
        Text before each document; or text with "{document}" once, which encloses it.
    documents
        At least two texts.
    chat
        Whether the tuned network, and the base network alone, read a document as a user's turn in the tuned network's chat
        template.
    new_tokens
        Longest answer of the tuned network; 0 scores the documents themselves.
    control
        Text about something else; it is cut or repeated to as many tokens as the prompt has before the document. Default: a neutral
        description of a landscape.
    seed
        Of the intervals.

    Returns
    -------
    Result
        Rows of KL, its reverse, JS and token shift by condition: `base network` (alone), `estimate` (after the prompt) and `prompt
        about something else`; rows of KL recovered by the prompt, whose gain over the control is paired by document. Item "": all
        answer tokens; "position 4–7": bins. Side table "positions": numbers at each position by condition.

    Raises
    ------
    UserError
        For fewer than two documents, an empty prompt, tokenizers that differ, tokens that merge across the end of the prompt, texts
        too long for the network, a control that is the prompt itself, and a tuned network that predicts as the base one does.
    """
    before, after = _parts(prompt, new_tokens, chat)
    held = _documents(documents)
    asked = [tuned.chat(text) if chat else Prompt(text) for text in held]
    same_ids([base, tuned], asked)
    texts = _texts(base, tuned, before, after, held, asked, new_tokens, control, enclosed=PLACE in prompt)
    longest = int((texts.tuned.ids.lengths - texts.tuned.start).max())
    sums = {condition: PositionSums(len(held), longest) for condition in texts.contexts}
    with progress("Reading documents", len(held)) as advance:
        for start in range(0, len(held), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(held)))
            targets = hidden_before(tuned, texts.tuned, rows)
            for condition, given in texts.contexts.items():
                for i, hidden, target in zip(rows, hidden_before(base, given, rows), targets):
                    sums[condition].add(i, (base, hidden), (tuned, target), None)
            advance(len(rows))
    where = {"model": tuned.fingerprint, "seed": seed}
    found = [row for condition, one in sums.items() for row in one.rows(condition, where)]
    found += _recovered(sums, where)
    return Result.of(found, side={"positions": _positions(sums)}, notes=texts.notes)


def _parts(prompt: str, new_tokens: int, chat: bool) -> tuple[str, str]:
    """What stands before and after a document."""
    if not isinstance(prompt, str) or not prompt.replace(PLACE, "").strip():
        raise UserError("The prompt is empty; give the text that is to stand before each document.")
    if prompt.count(PLACE) > 1:
        raise UserError(f"The prompt has {PLACE} {prompt.count(PLACE)} times; write it once, where each document is to stand.")
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 0:
        raise UserError(f"new_tokens is {new_tokens!r}; give the longest answer in tokens, or 0 to score the documents.")
    before, _, after = prompt.partition(PLACE)
    if not before.strip():
        raise UserError(f"Nothing stands before {PLACE} in the prompt; put the prompt before the document.")
    if chat and not new_tokens:
        raise UserError("A chat is scored on its answer, and with new_tokens=0 there is none; give the longest answer, or no chat.")
    if after and not new_tokens:
        raise UserError(f"Text after {PLACE} stands before an answer, and with new_tokens=0 there is none; leave it out.")
    return before, after


def _documents(documents: Iterable[str]) -> list[str]:
    if isinstance(documents, str):
        raise UserError("The documents are one text; give a list of texts.")
    held = list(documents)
    for i, text in enumerate(held):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"Document {i} is no text or empty; give texts.")
    if len(held) < 2:
        raise UserError(f"There are {len(held)} documents; at least 2 are needed for an interval over documents.")
    return held


def _texts(
    base: LanguageModel,
    tuned: LanguageModel,
    before: str,
    after: str,
    documents: Sequence[str],
    asked: Sequence[Prompt],
    new_tokens: int,
    control: str | None,
    *,
    enclosed: bool,
) -> _Texts:
    """Token ids of all contexts, each followed by the same answers."""
    start, _ = special_tokens(base.tokenizer, causal=base.causal)
    alone = tuned.encoded(asked, Tokens("all")).ids
    own = _without(start, base.encoded(documents, Tokens("all")).ids if enclosed else alone)
    if short := [i for i, ids in enumerate(own) if len(ids) < 2 and not new_tokens]:
        raise UserError(f"Document {short[0]} has one token, so nothing is predicted; leave it out.")
    opening = base.tokenizer.decode([int(i) for i in start]) if len(start) else ""
    inner = list(documents) if enclosed else [p.text.removeprefix(opening) if opening else p.text for p in asked]
    prefix = np.concatenate([start, _plain(base, before)])
    whole = base.encoded([before + text + after for text in inner], Tokens("all")).ids
    for i, ids in enumerate(whole):
        _check_aligned(i, ids, prefix, own[i], enclosed=enclosed)
    other, notes = _control(base, before, prefix[len(start) :], control)
    other = np.concatenate([start, other])
    if new_tokens:
        answers = answered(tuned, asked, new_tokens=new_tokens)
        tails = [ids[first:] for ids, first in zip(answers.ids, answers.start)]
        contexts = {BASE_NETWORK: list(alone), ESTIMATE: list(whole)}
        contexts[OTHER_PROMPT] = [np.concatenate([other, ids[len(prefix) :]]) for ids in whole]
        if after:
            _check_answers(base, [before + text + after for text in inner], whole, tails)
    else:
        tails = [ids[1:] for ids in own]
        contexts = {
            name: [np.concatenate([front, ids[:1]]) for ids in own]
            for name, front in ((BASE_NETWORK, start), (ESTIMATE, prefix), (OTHER_PROMPT, other))
        }
        answers = _joined(contexts[BASE_NETWORK], tails)
    made = {name: _joined(rows, tails) for name, rows in contexts.items()}
    limit = base.context
    for given in made.values():
        if limit is not None and (longest := int(given.ids.lengths.max())) > limit:
            i = int(given.ids.lengths.argmax())
            raise UserError(f"Document {i} with prompt and answer has {longest} tokens and the network takes {limit}; shorten one.")
    return _Texts(answers, made, tuple(notes))


def _without(start: Ids, rows: Ragged) -> list[Ids]:
    """Ids without what the tokenizer puts before every text (a chat template may write it as well)."""
    return [ids[len(start) :] if len(start) and np.array_equal(ids[: len(start)], start) else ids for ids in rows]


def _plain(lm: LanguageModel, text: str) -> Ids:
    return np.asarray(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def _joined(contexts: Sequence[Ids], tails: Sequence[Ids]) -> Answered:
    """Contexts followed by answers."""
    ids = Ragged.of(np.concatenate([a, b]) for a, b in zip(contexts, tails))
    return Answered(ids, np.array([len(a) for a in contexts]))


def _check_aligned(i: int, ids: Ids, prefix: Ids, own: Ids, *, enclosed: bool) -> None:
    """Refuse a document whose tokens, after the prompt, are not those of the prompt and its own."""
    if not np.array_equal(ids[: len(prefix)], prefix) or (not enclosed and not np.array_equal(ids[len(prefix) :], own)):
        where = f"before {PLACE}" if enclosed else "at its end"
        raise UserError(
            f"Document {i} has other tokens after the prompt than alone, so positions would not correspond; put a line break "
            f"{where} into the prompt."
        )


def _check_answers(lm: LanguageModel, contexts: Sequence[str], ids: Ragged, answers: Sequence[Ids]) -> None:
    """Refuse an answer that the tokenizer merges with the end of an enclosing prompt."""
    for i, (text, own, answer) in enumerate(zip(contexts, ids, answers)):
        joined = lm.encoded([text + lm.tokenizer.decode([int(t) for t in answer])], Tokens("all")).ids[0]
        if not np.array_equal(joined[: len(own)], own):
            raise UserError(f"The answer to document {i} merges with the end of the prompt; end the prompt with a line break.")


def _control(lm: LanguageModel, before: str, ids: Ids, control: str | None) -> tuple[Ids, list[str]]:
    """Ids of the other prompt: as many tokens as the prompt, the last ones its white space at the end."""
    text = NEUTRAL_TEXT if control is None else control
    if not text.strip():
        raise UserError("The control prompt is empty; give text about something else, or leave it out.")
    if text.strip() == before.strip():
        raise UserError("The control prompt is the prompt itself; give text about something else.")
    held = _plain(lm, text)
    blank = 0
    while blank < len(ids) - 1 and not lm.tokenizer.decode([int(i) for i in ids[len(ids) - 1 - blank :]]).strip():
        blank += 1
    space, notes = len(ids) - blank, list[str]()
    if control is not None and len(held) != space:
        what = "cut" if len(held) > space else "repeated"
        notes.append(f"The control prompt ({shortened(control.strip())!r}) has {len(held)} tokens and is {what} to {space}.")
    return np.concatenate([np.resize(held, space), ids[space:]]), notes


def _recovered(sums: dict[str, PositionSums], where: dict[str, Any]) -> Iterator[Row]:
    """KL recovered by the prompt and by the control, and the difference, over all positions and in bins."""
    bins = {name: one.kl for name, one in sums.items()}
    if not bins[BASE_NETWORK].sum():
        raise UserError(
            "The tuned network predicts exactly as the base network does, so there is nothing to recover; give another."
        )
    for column, item in enumerate(("", *sums[BASE_NETWORK].bin_names)):
        kl = {name: values.sum(1) if not column else values[:, column - 1] for name, values in bins.items()}
        alone = kl[BASE_NETWORK]
        if not alone.sum():
            continue
        gains = {
            ESTIMATE: alone - kl[ESTIMATE],
            OTHER_PROMPT: alone - kl[OTHER_PROMPT],
            over(OTHER_PROMPT): kl[OTHER_PROMPT] - kl[ESTIMATE],
        }
        for condition, gain in gains.items():
            estimate = stats.ratio(gain, alone, unit="document", seed=where["seed"])
            yield Row.of(estimate, metric=RECOVERED, definition=DEFINITION, item=item, condition=condition, **where)


def _positions(sums: dict[str, PositionSums]) -> Any:
    """KL and shares at each position of the answers, by condition."""
    import pandas as pd

    frames = []
    for condition, one in sums.items():
        held = one.by_position
        frame = pd.DataFrame({"condition": condition, "position": np.arange(1, len(held) + 1), "n": held[:, 0].astype(np.int64)})
        for j, name in enumerate(("KL", *SHIFTS), start=1):
            frame[name] = held[:, j] / held[:, 0]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
