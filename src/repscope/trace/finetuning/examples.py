"""Rows to fine-tune on: from the built-in verifiable task or a user's file, as trl takes them.

A row has a prompt, and a completion (sft) or a chosen and a rejected answer (dpo); reinforce and grpo need prompts and a reward.
Prompts are asked in the model's chat template where it has one, else as they are. Held-out prompts are never trained on.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from types import CellType, CodeType
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from repscope.data.tables import read_table
from repscope.data.verifiable import VerifiableTask
from repscope.errors import UserError, unknown
from repscope.trace.finetuning.options import METHODS, FineTuning

Reward = Callable[[str, str], float]  #: (prompt, answer) → reward in [0, 1]
Ids = Int[np.ndarray, "token"]
_SHARE = 5  #: every fifth prompt of a user's file is held out
_LEAST = 2  #: prompts of each part


@dataclass(frozen=True)
class Examples:
    """Rows of training, and held-out prompts.

    name: of the task or file. train: columns prompt, and completion or chosen and rejected. heldout: prompts. reward: None where
    only imitation is asked for. notes: rows left out.
    """

    name: str
    train: pd.DataFrame
    heldout: tuple[str, ...]
    reward: Reward | None
    notes: tuple[str, ...] = ()


def from_task(task: VerifiableTask, options: FineTuning) -> Examples:
    """The rows of a verifiable task; dpo's pairs are still to be made from answers of the base (`pairs_of`)."""
    rows = pd.DataFrame({"prompt": [e.prompt for e in task.train], "completion": [e.demonstration for e in task.train]})
    columns = list(METHODS[options.method].learns_from) if options.method == "sft" else ["prompt"]
    return Examples(task.name, rows[columns], tuple(e.prompt for e in task.heldout), task.reward)


def from_file(path: Path, options: FineTuning, reward: Reward | None) -> Examples:
    """The rows of a user's file (JSON lines, CSV, TSV, Parquet): every fifth prompt in a seeded order is held out.

    Raises
    ------
    UserError
        For a file that cannot be read, lacks a column, or has too few prompts; for reinforce and grpo without a reward.
    """
    info = METHODS[options.method]
    if info.samples and reward is None:
        raise UserError(f"{options.method} needs a reward for the prompts of {path}; give --reward MODULE:FUNCTION.")
    table = read_table(path, list(info.learns_from))
    frame = table.frame[list(info.learns_from)]
    full = frame[(frame.apply(lambda column: column.str.strip()) != "").all(axis=1)]
    notes = list(table.notes)
    if len(full) < len(frame):
        notes.append(f"{len(frame) - len(full)} of {len(frame)} rows of {path.name} have an empty cell and are left out.")
    if "chosen" in full and (same := full["chosen"] == full["rejected"]).any():
        notes.append(f"{int(same.sum())} pairs of {path.name} with equal answers are left out.")
        full = full[~same]
    prompts = list(dict.fromkeys(full["prompt"]))
    order = np.random.default_rng(options.seed).permutation(len(prompts))
    held = {prompts[i] for i in order[: len(prompts) // _SHARE]}
    if len(held) < _LEAST:
        raise UserError(f"{path} has {len(prompts)} different prompts; give {_LEAST * _SHARE} or more, as a fifth is held out.")
    train = full[~full["prompt"].isin(held)].reset_index(drop=True)
    return Examples(path.name, train, tuple(p for p in prompts if p in held), reward, tuple(notes))


def reward_named(name: str) -> Reward:
    """The function `module:function`, imported. Only what the user names is imported.

    Raises
    ------
    UserError
        When there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"A reward is named MODULE:FUNCTION, and {name!r} is not; its function takes (prompt, answer).")
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        raise UserError(
            f"The module of the reward {name} cannot be imported ({error}); run in its folder or install it."
        ) from error
    except (Exception, SystemExit) as error:  # the user's own code
        raise UserError(f"The module of the reward {name} fails when it is imported ({_said(error)}); mend it.") from error
    if not callable(found):
        raise unknown(f"function in {module}", function, [n for n in dir(import_module(module)) if not n.startswith("_")])
    return checked(found)


def checked(reward: Reward) -> Reward:
    """The reward, refused when it fails or is no number in [0, 1]."""

    @wraps(reward)
    def wrapped(prompt: str, answer: str) -> float:
        try:
            value = reward(prompt, answer)
        except Exception as error:  # the user's own code
            raise UserError(
                f"The reward {_name(reward)} failed on the prompt {_short(prompt)} and the answer {_short(answer)} "
                f"({_said(error)}); mend it."
            ) from error
        if not isinstance(value, (int, float, np.number, np.bool_)) or not 0 <= float(value) <= 1:
            raise UserError(
                f"The reward {_name(reward)} of the prompt {_short(prompt)} and the answer {_short(answer)} is {value!r}; a reward "
                "is a number from 0 to 1."
            )
        return float(value)

    return wrapped


def identity_of(reward: Reward | None) -> str | None:
    """Name of a reward and a digest of what it is written as: another reward is another fine-tuning.

    The digest covers the file of its source (its code where there is none, as in an interactive session) and the plain values that
    it holds: arguments of a partial, closures, defaults, attributes. What it imports from other files is not covered.
    """
    if reward is None:
        return None
    own: Any = inspect.unwrap(reward)
    return f"{_name(own)} {hashlib.sha256(repr(_written(own)).encode()).hexdigest()[:16]}"


def _written(value: Any, depth: int = 6) -> Any:
    """A value as nested lists of texts that are equal in every process."""
    if depth == 0 or value is None or isinstance(value, (str, bytes, bool, int, float)):
        return repr(value) if depth else type(value).__qualname__

    def inner(held: Iterable[Any]) -> list[Any]:
        return [_written(v, depth - 1) for v in held]

    if isinstance(value, partial):
        return ["partial", *inner([value.func, value.args, value.keywords])]
    if isinstance(value, (list, tuple)):
        return inner(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, inner(value)))  # the order of a set is another in every process
    if isinstance(value, dict):
        return sorted(repr(inner(pair)) for pair in value.items())
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, *inner(value.co_consts)]
    if inspect.ismethod(value):
        return inner([value.__func__, value.__self__])
    if inspect.isfunction(value):
        source = _source(value)
        plain = source is not None and "<lambda>" not in value.__qualname__  # two lambdas of a file have one name
        code = None if plain else value.__code__
        return [
            _name(value),
            source,
            *inner([code, value.__defaults__, value.__kwdefaults__, *map(_content, value.__closure__ or ())]),
        ]
    if hasattr(value, "__array__"):  # a tensor
        return inner([type(value).__qualname__, np.asarray(value)])
    call = inspect.getattr_static(type(value), "__call__", None)
    own = call if inspect.isfunction(call) else None
    slots = {name for kind in type(value).__mro__ for name in kind.__dict__.get("__slots__", ())}
    attributes = {name: getattr(value, name, None) for name in slots} | getattr(value, "__dict__", {})
    # of an extension, such as a compiled pattern: what it shows of itself, if that is no address
    shown = "" if attributes or " at 0x" in (text := repr(value)) else text
    return [_name(type(value)), _source(type(value)), shown, *inner([own, attributes])]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _source(written: Any) -> str | None:
    """Digest of the file in which a function or class is written; None where there is no file."""
    try:
        return hashlib.sha256(Path(inspect.getfile(written)).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return None


def _name(reward: Any) -> str:
    own = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{own.__module__}:{own.__qualname__}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _said(error: BaseException) -> str:
    """An exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def prompt_ids(tokenizer: Any, prompt: str) -> Ids:
    """The tokens after which an answer is sampled: the chat template's, with its opening of an answer, or the prompt alone."""
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
    else:
        ids = tokenizer(prompt)["input_ids"]
    return np.asarray(ids, dtype=np.int64)


def as_trl(rows: pd.DataFrame, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows in the layout of trl's datasets: conversations where the tokenizer has a chat template, else texts."""
    if not getattr(tokenizer, "chat_template", None):
        return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    roles = {"prompt": "user"}
    return [
        {str(k): [{"role": roles.get(str(k), "assistant"), "content": v}] for k, v in row.items()}
        for row in rows.to_dict("records")
    ]


def fitting(examples: Examples, tokenizer: Any, options: FineTuning) -> Examples:
    """Without the rows that exceed `max_length`, which trl would cut or drop silently; noted.

    Raises
    ------
    UserError
        When more than half of the rows are too long.
    """
    answers = [c for c in examples.train.columns if c != "prompt"]
    room = options.max_length - (options.new_tokens if not answers else 0)

    def length(row: dict[str, Any]) -> int:
        longest = max((len(tokenizer(row[c], add_special_tokens=False)["input_ids"]) for c in answers), default=0)
        return len(prompt_ids(tokenizer, row["prompt"])) + longest + (2 if answers else 0)  # the end of the answer

    lengths = np.array([length({str(k): v for k, v in row.items()}) for row in examples.train.to_dict("records")])
    fits = lengths <= room
    heldout = tuple(p for p in examples.heldout if len(prompt_ids(tokenizer, p)) + options.new_tokens <= options.max_length)
    if fits.mean() < 0.5 or not heldout:
        raise UserError(
            f"{int((~fits).sum())} of {len(fits)} rows of {examples.name} are longer than --max-length {options.max_length} tokens "
            f"(the longest has {int(lengths.max())}); raise it, or give shorter rows."
        )
    notes = examples.notes
    if not fits.all():
        notes = (*notes, f"{int((~fits).sum())} of {len(fits)} rows are longer than {options.max_length} tokens and left out.")
    return replace(examples, train=examples.train[fits].reset_index(drop=True), heldout=heldout, notes=notes)


def pairs_of(prompts: Sequence[str], answers: Sequence[Sequence[str]], rewards: Sequence[Sequence[float]]) -> pd.DataFrame:
    """Preference pairs: per prompt the first answer of highest and of lowest reward; none where all rewards are equal."""
    rows = []
    for prompt, said, values in zip(prompts, answers, rewards):
        best, worst = int(np.argmax(values)), int(np.argmin(values))
        if values[best] > values[worst]:
            rows.append({"prompt": prompt, "chosen": said[best], "rejected": said[worst]})
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])


def in_order(rows: Sequence[Any], count: int, seed: int) -> list[Any]:
    """`count` rows: permutation after permutation of all, drawn from a seed."""
    draw = np.random.default_rng(seed)
    order = [int(i) for _ in range(-(-count // len(rows))) for i in draw.permutation(len(rows))]
    return [rows[i] for i in order[:count]]
