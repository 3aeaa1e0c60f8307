"""Commands that write, on inputs that take seconds: how each is run in a process of its own, and the bytes that it leaves."""

import errno
import hashlib
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Processes, Started

#: what differs between two runs that are equal: times, locks, and manifests over these
_OTHER = {"run.json", "report.html", "index.html", ".lock", ".digests.json", "finetune.json", "training.log"}
_OPERATIONS = ("replace", "rename", "mkdir", "rmdir", "unlink", "remove", "link", "open", "fsync")


@dataclass(frozen=True)
class Command:
    """A command that writes. words: with {inputs} and {out}. seconds: that it takes, about, once its process runs."""

    name: str
    words: tuple[str, ...]

    def filled(self, inputs: Path, out: Path) -> list[str]:
        """The words with the places."""
        return [word.format(inputs=inputs, out=out) for word in self.words]


def _of(name: str, text: str) -> Command:
    return Command(name, tuple(text.split()))


_TRAIN = "--runs 2 --steps 6 --early-bias 3 --fork 4 --batch 4 --keep 2"
QUICK = (
    _of("train", f"train --out {{out}}/set {_TRAIN}"),
    _of("lens", "lens {inputs}/llama-0 Paris --out {out}"),
    _of("directions", "directions {inputs}/d.safetensors --to {out}/d.gguf"),
)
COMMANDS = (
    *QUICK,
    _of("harvest", "harvest {out}/store --at resid_post.1 --model {inputs}/llama-0 --corpus {inputs}/texts.txt --length 16"),
    _of("connect", "connect {inputs}/llama-0 {inputs}/llama-1 --data {inputs}/texts.txt --points 5 --out {out}"),
    _of("compare", "compare {inputs}/llama-0 {inputs}/llama-1 --data {inputs}/texts.txt --new-tokens 8 --out {out}"),
    _of("minimal-pairs", "minimal-pairs {inputs}/llama-0 {inputs}/pairs.csv --out {out}"),
    _of("contrast", "study contrast --tiny --out {out}"),
    _of("entities", "study entities --tiny --entities countries --out {out}"),
    _of("relations", "study relations --tiny --relations country-continent --out {out}"),
    _of("features", "study features --tiny --out {out}"),
    _of("bayes", "study bayes --tiny --out {out}"),
    _of("brain", "study brain --tiny --out {out}"),
    _of("emergence", "study emergence --tiny --out {out}"),
    _of("paths", "study paths --tiny --out {out}"),
    _of("drift", "study drift --tiny --out {out}"),
    _of("discover", "study discover --tiny --out {out}"),
)


def prepare(inputs: Path) -> None:
    """Write what the commands read."""
    from chaos.formats import _directions
    from checkpointed import TEXTS, saved

    inputs.mkdir(parents=True, exist_ok=True)
    saved(inputs, "llama", [0, 1])
    (inputs / "texts.txt").write_text("\n".join(f"{text} {i}" for i, text in enumerate(TEXTS * 4)))
    pairs = "".join(f"A map of {i} towns shows it.,A map of {i} towns show it.\n" for i in range(8))
    (inputs / "pairs.csv").write_text(f"good,bad\n{pairs}")
    _directions(inputs)


def left_by(out: Path) -> dict[str, str]:
    """Digests of the files that a command leaves, by name, without those that differ between equal runs."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in _OTHER]
    names = {str(path.relative_to(out)): path for path in files if not path.name.endswith((".lock", ".part"))}
    # discover's side-search.parquet has seconds; what remains in .partial where a disk refuses to remove it changes no result
    kept = {name: path for name, path in names.items() if not name.startswith("cache/") and "/.partial/" not in f"/{name}"}
    kept = {name: path for name, path in kept.items() if path.name != "side-search.parquet"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept.items()}


@dataclass(frozen=True)
class Trap:
    """What happens to a command. at: number of a file operation. error: raised there; None kills. size: most bytes of a file."""

    at: int | None = None
    error: int | None = None
    size: int | None = None


class Trial:
    """A command in a process of its own, with its exit code and what it wrote to standard error."""

    def __init__(self, processes: Processes, words: list[str], folder: Path, trap: Trap = Trap()) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("begun", "said", "count"):
            (folder / name).unlink(missing_ok=True)
        self.started: Started = processes.start(_command, words, str(folder), trap)

    def begun(self, seconds: float = 30.0) -> None:
        """Wait until the command runs, after all imports that come first."""
        until = time.monotonic() + seconds
        while not (self.folder / "begun").exists() and self.started.running and time.monotonic() < until:
            time.sleep(0.002)

    def ended(self, seconds: float = 300.0) -> int:
        """Wait for its end; the exit code, or minus the signal."""
        until = time.monotonic() + seconds
        while self.started.running and time.monotonic() < until:
            self.started.wait(0.2)
        if self.started.running:
            self.started.kill()
            return -signal.SIGALRM  # hung
        self.started.wait()
        return int(self.started.returncode or 0)

    @property
    def said(self) -> str:
        """Its standard error."""
        file = self.folder / "said"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def operations(self) -> int:
        """File operations until its end."""
        return int((self.folder / "count").read_text())

    def send(self, number: int) -> None:
        """A signal, if it runs."""
        if self.started.running and self.started.process.pid:
            os.kill(self.started.process.pid, number)


def _command(words: list[str], folder: str, trap: Trap) -> None:
    """In the process: standard error to a file, the trap set, then the command line as `repscope` runs it."""
    from repscope.process import start

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # ignored, where the harness runs in the background
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    counted = _trapped(trap)

    def load() -> Callable:
        from repscope.cli import run_process

        Path(folder, "begun").touch()
        counted[:] = [0, False]
        if trap.size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (trap.size, trap.size))
        return run_process

    try:
        start(load, words)
    finally:
        counted[1] = True
        if trap.size is None:
            Path(folder, "count").write_text(str(counted[0]))


def _trapped(trap: Trap) -> list:
    """Count file operations, [count, off]; the one with the trap's number kills the process, or fails."""
    counted: list = [0, True]  # off until the command begins

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def operation(*given, **named):
            if name == "open" and not (given[1] if len(given) > 1 else 0) & os.O_CREAT:
                return real(*given, **named)
            counted[0] += 1
            if not counted[1] and trap.at is not None and counted[0] == trap.at:
                if trap.error is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(trap.error, os.strerror(trap.error), str(given[0]) if given else None)
            return real(*given, **named)

        setattr(os, name, operation)

    for name in _OPERATIONS:
        wrap(name)
    return counted


#: errors of disks: full, quota, read-only, not permitted, a broken disk
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
