"""Proofs: which fast ways to run a network give what one prompt at a time gives. Takes token ids, never text.

A fast path (a padded batch, a shared prefix, packed prompts, generation in a batch or from a cache) is not looked up in a table of
families. It is tried on the network and compared with the plain passes of each prompt alone, at every length that matters:

1. `switch_lengths` are the lengths at which the configuration says that the network changes its behaviour: windows, chunks, the
   trained length of rotary scaling. The lengths below the first of them are level 0, those from it on level 1, and so on.
2. A trial at level 0 takes prompts of 1 to 9 tokens; at level n the prompts have one token less and one more than the n-th switch
   length, and twice as many, and a short one stands beside them.
3. A path holds for a prompt where it holds at the prompt's level and at all below. Otherwise the reason is kept: such prompts run
   one at a time, which is right by definition, or the operation is refused.
4. A trial at level 1 or above waits until runs that it would serve have twice its tokens; until then prompts run one at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

_SHORT = (9, 1, 6, 3)  #: tokens of the prompts of a trial at level 0; fewer than a convolution's kernel, and more
_SWITCHES = re.compile(r"window|chunk|original_max_position|local_attention|index_topk|block_size|max_distance|conv.*kernel|d_conv")
_COUNTS = re.compile(r"layers|pattern")  #: numbers of layers, though a window is in their name
_SPECIAL = re.compile(r"token_(id|index)$")
_WORTH = 2  #: times the tokens of a trial that a run must have
Trial = Callable[[Sequence[int]], str]


@dataclass(eq=False)
class Proofs:
    """What was tried on one network.

    switches: lengths at which its behaviour changes. most: tokens that it takes, None for no bound. found: fast path and level →
    why it does not hold, empty where it does. wanted: fast path and level → tokens of runs that it would have served so far.
    """

    switches: tuple[int, ...]
    most: int | None
    found: dict[tuple[str, int], str] = field(default_factory=dict)
    wanted: dict[tuple[str, int], float] = field(default_factory=dict)

    def level(self, length: int) -> int:
        """How many switch lengths a prompt of so many tokens has reached."""
        return sum(switch <= length for switch in self.switches)

    def lengths(self, level: int) -> list[int]:
        """Tokens of the prompts of a trial."""
        first = self.switches[0] if self.switches else 1 << 60
        if level == 0:
            return [n for n in _SHORT if n < first and n <= (self.most or n)] or [1]
        switch = self.switches[level - 1]
        around = [switch + 1, switch - 1, min(5, max(1, switch // 2)), 2 * switch]
        return list(dict.fromkeys(n for n in around if 0 < n <= (self.most or n)))

    def refused(self, path: str, longest: int, trial: Trial, worth: float = float("inf")) -> str:
        """Why a fast path does not hold for prompts of up to so many tokens, tried where it was not yet; empty where it does.

        Parameters
        ----------
        path
            Its name.
        longest
            Tokens of the longest prompt.
        trial
            Given the tokens of its prompts, says why the path does not hold.
        worth
            Tokens of the run that the path is for; those of earlier runs are added.
        """
        for level in range(self.level(longest) + 1):
            if (path, level) not in self.found:
                lengths = self.lengths(level)
                self.wanted[path, level] = self.wanted.get((path, level), 0.0) + worth
                if level and _WORTH * sum(lengths) > self.wanted[path, level]:
                    return f"to prove it for {lengths[0]} tokens would take longer than it saves"
                self.found[path, level] = trial(lengths)
            if why := self.found[path, level]:
                return why
        return ""

    def holds_below(self, path: str, longest: int, trial: Trial, worth: float) -> tuple[int, str]:
        """The length from which on a path does not hold, beyond `longest` where it holds throughout; and why."""
        why = ""
        for level in range(self.level(longest) + 1):
            reached = self.switches[level - 1] if level else 0
            if why := self.refused(path, reached, trial, worth):
                return reached, why
        return longest + 1, ""


def switch_lengths(config: Mapping[str, Any], most: int | None) -> tuple[int, ...]:
    """The lengths at which a configuration says that the network changes its behaviour.

    Parameters
    ----------
    config
        The configuration as a dictionary, that of the text model where there are several.
    most
        Tokens that the network takes.
    """
    found: set[int] = set()
    for name, value in _entries(config):
        for number in value if isinstance(value, (list, tuple)) else (value,):
            counts = isinstance(number, int) and not isinstance(number, bool) and number > 1
            if counts and _SWITCHES.search(name) and not _COUNTS.search(name):
                found |= {number, number // 2} if name == "local_attention" else {number}
    if any(kind in ("dynamic", "longrope") for name, kind in _entries(config) if name in ("rope_type", "type")):
        found |= {int(v) for n, v in _entries(config) if n == "max_position_embeddings" and isinstance(v, int)}
    return tuple(sorted(n for n in found if n > 1 and (most is None or n < most)))


def special_ids(config: Mapping[str, Any]) -> set[int]:
    """Token ids that a configuration gives a meaning of their own: ends, padding, places of images."""
    held = [v for name, v in _entries(config) if _SPECIAL.search(name)]
    return {i for v in held for i in (v if isinstance(v, (list, tuple)) else (v,)) if isinstance(i, int)}


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
        else:
            yield str(name), value


def prompts_of(lengths: Sequence[int], vocabulary: int, special: set[int]) -> list[Int[np.ndarray, "token"]]:
    """Random prompts of these lengths, the same each time, without special tokens."""
    plain = np.setdiff1d(np.arange(vocabulary), list(special))
    rng = np.random.default_rng(0)
    return [(plain if len(plain) else np.arange(vocabulary))[rng.integers(0, len(plain) or vocabulary, n)] for n in lengths]


def differing(ours: Sequence[Tensor], theirs: Sequence[Tensor], agree: Callable[[Tensor, Tensor], bool], said: str) -> str:
    """Which of several tensors differ between two ways to them, as a reason; empty where none does."""
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or not agree(a, b):
            return f"{said}: a prompt of {len(b)} tokens comes out otherwise"
    return ""
