"""Outcomes of hostile cases, counted.

equal: the result is that of an undisturbed run. made again: equal, after repscope said that something was damaged. read: a user's
file was read; it is another file, and nothing says what it should hold. refused: one sentence. silent: another result without a
word. raw: a traceback, a crash or a hang. The last two must not occur.
"""

from collections import Counter
from dataclasses import dataclass, field

OUTCOMES = ("equal", "made again", "read", "refused", "silent", "raw")
BAD = ("silent", "raw")


@dataclass
class Tally:
    """Counts per kind of case, and an account of each bad one."""

    counts: dict[str, Counter] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def add(self, kind: str, case: str, outcome: str, said: str = "") -> None:
        """Count a case."""
        assert outcome in OUTCOMES, outcome
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome in BAD:
            self.bad.append(f"{outcome}: {kind}: {case}: {said}")

    @property
    def cases(self) -> int:
        """All cases."""
        return sum(sum(found.values()) for found in self.counts.values())

    def table(self, title: str) -> str:
        """The counts as Markdown."""
        lines = [f"## {title}", "", f"| | cases | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
        for kind, found in self.counts.items():
            lines.append(f"| {kind} | {sum(found.values())} | " + " | ".join(str(found[o] or "") for o in OUTCOMES) + " |")
        return "\n".join(lines)
