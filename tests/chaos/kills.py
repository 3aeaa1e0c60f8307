"""Kills: a command is killed at a file operation, at a moment, or asked by a signal; the same command then ends as if it had not.

SIGTERM and SIGINT must end it with 143 and 130 and no traceback.
"""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.commands import Command, Trap, Trial, left_by
from chaos.outcomes import Tally
from processes import Processes

_KINDS = ("operation", "operation", "moment", "SIGTERM", "SIGINT")


def run(processes: Processes, commands: Sequence[Command], count: int, inputs: Path, home: Path, seed: int = 0) -> Tally:
    """So many kills of each command, in folders of their own; fewer, but at least five, where it takes over 3 seconds."""
    tally, rng = Tally(), random.Random(seed)
    for command in commands:
        out = home / command.name / "whole"
        whole = Trial(processes, command.filled(inputs, out), home / command.name)
        whole.begun()
        began = time.monotonic()
        code = whole.ended()
        seconds = time.monotonic() - began
        assert code == 0, f"{command.name}: {code} {whole.said}"
        expected, operations = left_by(out), whole.operations
        for number in range(min(count, max(5, round(count * 3 / seconds)))):
            kind = _KINDS[number % len(_KINDS)]
            at = rng.randint(1, operations) if kind == "operation" else 0
            wait = rng.uniform(0, seconds)
            outcome, said = _one(processes, command, inputs, home / command.name / "killed", kind, at, wait, expected)
            tally.add(f"{command.name}, killed", f"{kind} {at or round(wait, 2)}", outcome, said)
        shutil.rmtree(home / command.name, ignore_errors=True)
    return tally


def _one(processes, command, inputs, home, kind, at, wait, expected) -> tuple[str, str]:
    shutil.rmtree(home, ignore_errors=True)
    out = home / "out"
    trial = Trial(processes, command.filled(inputs, out), home / "process", Trap(at or None))
    trial.begun()
    if kind != "operation":
        time.sleep(wait)
        trial.send(getattr(signal, kind, signal.SIGKILL))
    code = trial.ended()
    asked = {"SIGTERM": 143, "SIGINT": 130}.get(kind, -signal.SIGKILL)
    if code not in (0, asked) or "Traceback" in trial.said:
        return "raw", f"{code} instead of {asked}: {trial.said[-300:]}"
    again = Trial(processes, command.filled(inputs, out), home / "process")
    code = again.ended()
    if code != 0:
        return "raw", f"does not continue: {code} {again.said[-300:]}"
    found = left_by(out)
    if found != expected:
        names = sorted(set(found) ^ set(expected)) or [n for n in found if found[n] != expected[n]]
        return "silent", f"other bytes in {names[:3]}"
    left = [str(p.relative_to(out)) for p in out.rglob("*.part")]
    if left and command.name != "directions":  # a file beside others: no lock says that no process writes it
        return "silent", f"half-written files remain: {left[:3]}"
    return "equal", ""
