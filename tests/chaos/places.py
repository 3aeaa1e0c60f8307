"""Places: disks that fill, fail or are read-only, limits of files, impossible folders, two commands at once, and terminals.

Refused is one sentence and exit code 2; afterwards, in a sound place, the same command ends as if nothing had been.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from chaos.commands import DISK_ERRORS, Command, Trap, Trial, left_by
from chaos.outcomes import Tally
from processes import Processes

_SIZES = (1000, 4000, 20_000, 100_000)  #: bytes that a file may have, that of standard error too


def run(processes: Processes, commands: Sequence[Command], count: int, inputs: Path, home: Path, seed: int = 0) -> Tally:
    """Disk errors at so many operations of each command, limits of files, tmpfs where it can be mounted, and two at once."""
    tally, rng = Tally(), random.Random(seed)
    for command in commands:
        out = home / command.name / "whole"
        whole = Trial(processes, command.filled(inputs, out), home / command.name)
        assert whole.ended() == 0, whole.said
        expected, operations = left_by(out), whole.operations
        traps = [Trap(rng.randint(1, operations), rng.choice(DISK_ERRORS)) for _ in range(count)]
        traps += [Trap(size=size) for size in _SIZES[: max(1, count // 3)]]
        for trap in traps:
            kind = "limit of files" if trap.size is not None else "disk error"
            outcome, said = _trapped(processes, command, inputs, home / command.name / "trapped", trap, expected)
            tally.add(f"{command.name}, {kind}", repr(trap), outcome, said)
        for size in (16, 64, 256, 1024)[: count // 2]:
            if (found := _full(processes, command, inputs, home / command.name / "full", size, expected)) is not None:
                tally.add(f"{command.name}, full disk", f"{size} kB", *found)
        tally.add(f"{command.name}, two at once", "", *_two(processes, command, inputs, home / command.name / "two", expected))
        shutil.rmtree(home / command.name, ignore_errors=True)
    return tally


def _sentence(said: str) -> bool:
    """Whether the last line is a sentence of ours and nothing is a traceback."""
    lines = [line for line in said.strip().splitlines() if line]
    return bool(lines) and lines[-1].startswith("repscope: ") and "Traceback" not in said


def _again(processes, command, inputs, out, home, expected, before: tuple[str, str]) -> tuple[str, str]:
    """The same command in a sound place: `before` if it ends as if nothing had been."""
    again = Trial(processes, command.filled(inputs, out), home)
    code = again.ended()
    if code != 0:
        return "raw", f"does not continue: {code} {again.said[-300:]}"
    return before if left_by(out) == expected else ("silent", "other bytes afterwards")


def _trapped(processes, command, inputs, home, trap, expected) -> tuple[str, str]:
    shutil.rmtree(home, ignore_errors=True)
    out = home / "out"
    trial = Trial(processes, command.filled(inputs, out), home / "process", trap)
    code = trial.ended()
    if code not in (0, 2) or (code == 2 and not _sentence(trial.said)):
        return "raw", f"{code}: {trial.said[-300:]}"
    if code == 0 and left_by(out) != expected:
        return "silent", "exit code 0 with other bytes"
    return _again(processes, command, inputs, out, home / "process", expected, ("equal" if code == 0 else "refused", ""))


def _full(processes, command, inputs, home, kilobytes, expected) -> tuple[str, str] | None:
    """On a file system of that size; None where none can be mounted."""
    shutil.rmtree(home, ignore_errors=True)
    disk = home / "disk"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        return None
    try:
        trial = Trial(processes, command.filled(inputs, disk / "out"), home / "process")
        code = trial.ended()
        if code not in (0, 2) or (code == 2 and not _sentence(trial.said)):
            return "raw", f"{code}: {trial.said[-300:]}"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, capture_output=True)
        before = ("equal" if code == 0 else "refused", "")
        return _again(processes, command, inputs, disk / "out", home / "process", expected, before)
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True)


def _two(processes, command, inputs, home, expected) -> tuple[str, str]:
    """Two of the same at once: one ends, the other ends too or is refused, and the result is that of one."""
    shutil.rmtree(home, ignore_errors=True)
    out = home / "out"
    both = [Trial(processes, command.filled(inputs, out), home / name) for name in ("a", "b")]
    codes = [trial.ended() for trial in both]
    said = " | ".join(trial.said[-200:] for trial in both)
    if 0 not in codes or not set(codes) <= {0, 2} or any(c == 2 and not _sentence(t.said) for c, t in zip(codes, both)):
        return "raw", f"{codes}: {said}"
    if left_by(out) != expected:
        return "silent", f"{codes}: other bytes"
    return ("refused" if 2 in codes else "equal"), ""


# ------------------------------------------------------------------------------------------------- terminals and folders


def terminals(home: Path, runs: Path) -> Tally:
    """Pipes whose reader goes away, a full device, closed streams, narrow encodings: text degrades, and never a traceback."""
    tally = Tally()
    here = [sys.executable, "-m", "repscope"]
    words = {"runs": ["runs", "--out", str(runs)], "claims": ["claims", "--out", str(runs)], "help": ["--help"]}
    for name, given in words.items():
        command = " ".join(f"'{word}'" for word in [*here, *given])
        for kind, shell, code in (
            ("| head -1", f"{command} | head -1; exit ${{PIPESTATUS[0]}}", 0),
            ("2>&1 | true", f"{command} 2>&1 | true; exit ${{PIPESTATUS[0]}}", 0),
            ("> /dev/full", f"{command} > /dev/full", 2),
            (">&-", f"{command} >&-", 0),
            (">&- 2>&- <&-", f"{command} >&- 2>&- <&-", 0),
            ("PYTHONIOENCODING=ascii", f"PYTHONIOENCODING=ascii {command}", 0),
            ("LC_ALL=C", f"PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C {command}", 0),
            ("PYTHONIOENCODING=latin-1", f"PYTHONIOENCODING=latin-1 {command}", 0),
        ):
            done = subprocess.run(["bash", "-c", shell], capture_output=True, cwd=home)
            said = done.stderr.decode(errors="replace")
            right = done.returncode == code and "Traceback" not in said and "Exception ignored" not in said
            outcome = "raw" if not right else "equal" if code == 0 else "refused"
            tally.add(f"terminal, {kind}", name, outcome, f"{done.returncode} {said}")
    return tally


def folders(processes: Processes, inputs: Path, home: Path, commands: Sequence[Command]) -> Tally:
    """Impossible folders: each refused in one sentence, nothing written."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "file").write_text("x")
    (home / "dangling").symlink_to(home / "nowhere")
    (home / "loop").symlink_to(home / "loop")
    places = {
        "a file": home / "file",
        "below a file": home / "file" / "x",
        "a dangling link": home / "dangling",
        "a loop of links": home / "loop" / "x",
        "an over-long name": home / ("n" * 300),
        "an over-long path": Path(str(home) + "/d" * 3000),
        "not a folder of files": Path("/proc/self/x"),
        "bytes that are not UTF-8": home / os.fsdecode(b"\xff\xfe"),
    }
    tally = Tally()
    for command in commands:
        for kind, place in places.items():
            trial = Trial(processes, command.filled(inputs, place), home / "process")
            code = trial.ended()
            right = code == 2 and _sentence(trial.said)
            tally.add(f"folder, {kind}", command.name, "refused" if right else "raw", f"{code} {trial.said[-300:]}")
    return tally
