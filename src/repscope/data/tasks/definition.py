"""Tasks: pairs of an input and an output, and their split into train, dev and test by item.

Every input occurs once, so no item is on two sides of a split. Knows no tokenizer and no network.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from repscope.errors import UserError

Pair = tuple[str, str]  #: an input and its output

_LONGEST = 1000  #: characters of an input or an output
_LEAST = 2  #: items of each part of a split


@dataclass(frozen=True)
class Split:
    """Items of a task in three disjoint parts.

    train: examples in prompts and averages. dev: for choices (heads, blocks). test: for reports.
    """

    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]


@dataclass(frozen=True)
class Task:
    """A task: each input has one output.

    name: of the task. pairs: (input, output), every input once. source: where they are from. notes: what was left out.
    """

    name: str
    pairs: tuple[Pair, ...]
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what would fail later, far from its cause."""
        object.__setattr__(self, "pairs", tuple((x, y) for x, y in self.pairs))
        if not self.pairs:
            raise UserError(f"The task {self.name!r} has no pair; give pairs of an input and an output.")
        twice = [x for x, n in Counter(self.inputs).items() if n > 1]
        if twice:
            raise UserError(f"The task {self.name!r} has the input {twice[0]!r} twice; `of_pairs` merges copies.")
        if len(self.outputs) < 2:
            raise UserError(
                f"The task {self.name!r} has one label ({self.outputs[0]!r}), which is right without reading the input: "
                "give pairs with at least two different outputs."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Task({self.name}, {len(self)} pairs, {len(self.outputs)} outputs)"

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs, in order."""
        return tuple(x for x, _ in self.pairs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The distinct outputs, most common first."""
        return tuple(y for y, _ in Counter(y for _, y in self.pairs).most_common())

    def split(self, seed: int = 0, *, dev: float = 0.2, test: float = 0.3) -> Split:
        """A random split by item; `dev` and `test` are shares of the items, the rest is train.

        Raises
        ------
        UserError
            If a part would have fewer than two items.

        >>> parts = Task("double", tuple((str(i), str(2 * i)) for i in range(20)), "").split(seed=1)
        >>> [len(part) for part in (parts.train, parts.dev, parts.test)]
        [10, 4, 6]
        """
        sizes = [len(self) - round(dev * len(self)) - round(test * len(self)), round(dev * len(self)), round(test * len(self))]
        if min(sizes) < _LEAST:
            raise UserError(
                f"The task {self.name!r} has {len(self)} pairs, and a split of {sizes[0]}, {sizes[1]} and {sizes[2]} (train, dev, "
                "test) leaves fewer than two in a part; give more pairs or other shares."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        parts = np.split(order, np.cumsum(sizes)[:-1])
        return Split(*(tuple(self.pairs[int(i)] for i in sorted(part)) for part in parts))


def of_pairs(name: str, pairs: Iterable[Sequence[str]], source: str, notes: Sequence[str] = ()) -> Task:
    """A task from raw pairs: text in Unicode NFC without space around it, copies merged; all omissions are counted in the notes.

    Inputs with several different outputs have no one correct answer and are left out.

    Raises
    ------
    UserError
        If no usable pair is left, or only one output.
    """
    held: dict[str, str] = {}
    several: set[str] = set()
    unusable = copies = total = 0
    for raw in pairs:
        total += 1
        x, y = (unicodedata.normalize("NFC", text).strip() for text in raw)
        if not x or not y or max(len(x), len(y)) > _LONGEST:
            unusable += 1
        elif held.get(x, y) != y:
            several.add(x)
        else:
            copies += x in held
            held[x] = y
    found = list(notes)
    if unusable:
        found.append(f"{name}: {unusable} of {total} pairs are empty or longer than {_LONGEST} characters and left out.")
    if copies:
        found.append(f"{name}: {copies} pairs that occur twice count once.")
    if several:
        shown = ", ".join(sorted(several)[:3])
        found.append(f"{name}: {len(several)} inputs have several outputs and are left out ({shown}).")
    kept = tuple((x, y) for x, y in held.items() if x not in several)
    if total and not kept:
        raise UserError(f"The task {name!r} has no usable pair among {total}: {' '.join(found)}")
    return Task(name, kept, source, tuple(found))
