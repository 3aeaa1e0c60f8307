"""Tests of whether fast execution paths give the same output as running each prompt alone.

A fast path (padded batch, shared prefix, packed prompts, batched or cached generation) is not looked up in a table of families.
It is tested on the network against plain passes of each prompt alone, at every relevant length:

1. `switch_lengths` are the lengths at which the network's behaviour changes according to its configuration: attention windows,
   chunks, the trained length of rotary scaling. Lengths below the first are level 0, those from it on level 1, and so on.
2. A trial at level 0 has prompts of 1 to 9 tokens. At level n, with switch length s, the prompts have s - 1, s + 1 and 2 s tokens,
   plus a short one.
3. A path is valid for a prompt if it is valid at the prompt's level and all lower ones. Otherwise the reason is stored, and such
   prompts run one at a time, the reference, or the operation is refused.
4. A trial at level 1 or above is delayed until the runs that need it have twice its tokens; before, prompts run one at a time.
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
    """Results of the trials on one network.

    switches: lengths at which its behaviour changes. most: maximum number of tokens, if any. found: fast path and level → why it is
    invalid, empty if valid. wanted: fast path and level → tokens of the runs so far that would have used it.
    """

    switches: tuple[int, ...]
    most: int | None
    found: dict[tuple[str, int], str] = field(default_factory=dict)
    wanted: dict[tuple[str, int], float] = field(default_factory=dict)

    def level(self, length: int) -> int:
        """Number of switch lengths that a prompt of this length has reached."""
        return sum(switch <= length for switch in self.switches)

    def lengths(self, level: int) -> list[int]:
        """Lengths of the prompts of a trial."""
        first = self.switches[0] if self.switches else 1 << 60
        if level == 0:
            return [n for n in _SHORT if n < first and n <= (self.most or n)] or [1]
        switch = self.switches[level - 1]
        around = [switch + 1, switch - 1, min(5, max(1, switch // 2)), 2 * switch]
        return list(dict.fromkeys(n for n in around if 0 < n <= (self.most or n)))

    def refused(self, path: str, longest: int, trial: Trial, worth: float = float("inf")) -> str:
        """Why a fast path is invalid for prompts of up to `longest` tokens; empty if valid. Runs missing trials.

        `trial` maps the lengths of its prompts to the reason why the path is invalid. `worth` is the number of tokens of this run;
        those of earlier runs are added.
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
        """The length from which a path is invalid (beyond `longest` if always valid), and why."""
        why = ""
        for level in range(self.level(longest) + 1):
            reached = self.switches[level - 1] if level else 0
            if why := self.refused(path, reached, trial, worth):
                return reached, why
        return longest + 1, ""


def switch_lengths(config: Mapping[str, Any], most: int | None) -> tuple[int, ...]:
    """The lengths, below the maximum, at which the network's behaviour changes according to its configuration."""
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
    """Special token ids of a configuration: ends, padding, image placeholders."""
    held = [v for name, v in _entries(config) if _SPECIAL.search(name)]
    return {i for v in held for i in (v if isinstance(v, (list, tuple)) else (v,)) if isinstance(i, int)}


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
        else:
            yield str(name), value


def prompts_of(lengths: Sequence[int], vocabulary: int, special: set[int]) -> list[Int[np.ndarray, "token"]]:
    """Deterministic random prompts of these lengths, without special tokens."""
    plain = np.setdiff1d(np.arange(vocabulary), list(special))
    rng = np.random.default_rng(0)
    return [(plain if len(plain) else np.arange(vocabulary))[rng.integers(0, len(plain) or vocabulary, n)] for n in lengths]


def differing(ours: Sequence[Tensor], theirs: Sequence[Tensor], agree: Callable[[Tensor, Tensor], bool], said: str) -> str:
    """Describe which of several tensors differ between two computations; empty if none."""
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or not agree(a, b):
            return f"{said}: a prompt of {len(b)} tokens comes out otherwise"
    return ""
