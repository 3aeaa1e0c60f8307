"""Damage: bits flipped, files cut, emptied and removed in what repscope wrote; then everything that reads it, and the same command.

equal: all outputs are those of the undamaged folder. made again: repscope said what was damaged, and the same command gives the
bytes of before. refused: it cannot be made again, or the reading command says so and shows nothing. silent: other numbers, and not
a word.
"""

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.commands import left_by
from chaos.isolated import each
from chaos.outcomes import Tally
from processes import Processes

_KINDS = ("bit", "bit", "bit", "bits", "cut", "empty", "removed", "swapped")
_WORDS = (
    *(
        "damaged",
        "that no harvest made",
        "is not the shard of",
        "holds no",
        "corrupt",
        "cannot be read",
        "cut short",
        "not a safetensors",
        "lacks",
        "no finished",
        "not finished",
        "There is no",
    ),
    *("made again", "is missing", "changed", "no longer", "another", "neither"),
)
_READING = (("runs", "--json"), ("query", "select item, metric, condition, value, lo, hi from results order by all"), ("claims",))


@dataclass(frozen=True)
class Place:
    """What is damaged.

    make: writes it into an empty folder; also the command that makes damage good. read: outputs of what reads it. share: of the
    cases that the others get, where a case takes long.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], list[str]]
    share: float = 1.0


def _studies(*words: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from chaos.formats import command

        command(*(word.format(inputs=os.environ["CHAOS_INPUTS"]) for word in words), "--out", folder / "runs")

    return make


def _read_runs(folder: Path) -> list[str]:
    from chaos.formats import command

    said = []
    (run,) = [p for p in (folder / "runs").iterdir() if p.is_dir()]
    for words in (*_READING, ("show", run.name, "--json"), ("report", run.name)):
        said.append(_tried(lambda words=words: "\0".join(command(*words, "--out", folder / "runs"))))
    return said


def _tried(read: Callable[[], str]) -> str:
    """The output of a reading command, or its sentence."""
    from repscope.errors import UserError

    try:
        return read()
    except UserError as error:
        return f"refused: {error}"


def _train(folder: Path) -> None:
    from chaos.formats import command

    words = ["--runs", 2, "--steps", 6, "--early-bias", 3, "--fork", 4, "--batch", 4, "--keep", 2]
    command("train", "--out", folder / "set", *words)


def _read_set(folder: Path) -> list[str]:
    from repscope.models.checkpoints import CheckpointSet

    def read() -> str:
        found = CheckpointSet.open(folder / "set")
        parts = [found.table.drop(columns="path").to_csv()]
        for i in range(len(found)):
            parts += [f"{name} {value.double().sum().item()!r}" for name, value in found.state(i).items()]
        return "\n".join(parts)

    return [_tried(read)]


def _harvest(folder: Path) -> None:
    from chaos.formats import command

    inputs = Path(os.environ["CHAOS_INPUTS"])
    words = ["--at", "resid_post.1", "--model", inputs / "llama-0", "--corpus", inputs / "texts.txt", "--length", 16]
    command("harvest", folder / "store", *words)


def _read_store(folder: Path) -> list[str]:
    from repscope.store import ActivationStore

    def read() -> str:
        batches = ActivationStore(str(folder / "store")).batches("resid_post.1", 64, buffer=512)
        return "\n".join(repr(batch.rows["resid_post.1"].double().sum().item()) for batch in batches)

    return [_tried(read)]


PLACES = {
    place.name: place
    for place in (
        Place("run of lens", _studies("lens", "{inputs}/llama-0", "Paris"), _read_runs),
        Place("run of contrast", _studies("study", "contrast", "--tiny"), _read_runs, 0.5),
        Place("run of entities", _studies("study", "entities", "--tiny", "--entities", "countries"), _read_runs, 0.4),
        Place("run of relations", _studies("study", "relations", "--tiny", "--relations", "country-continent"), _read_runs, 0.3),
        Place("set of train", _train, _read_set),
        Place("store of harvest", _harvest, _read_store),
    )
}


def damaged(path: Path, kind: str, rng: random.Random) -> None:
    """Damage a file."""
    data = bytearray(path.read_bytes())
    if kind == "removed" or not data:
        path.unlink()
        return
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else 16):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    else:  # two halves in the wrong order: equal bytes, equal length
        half = len(data) // 2
        data[:] = data[half:] + data[:half]
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a disk that decays


def trial(number: int, name: str, whole: str, seed: int) -> tuple[str, str]:
    """The outcome of one damage to a copy of a place; `whole` has the place, its outputs and bytes as they were."""
    import json

    place, rng = PLACES[name], random.Random(f"{name} {number} {seed}")
    work = Path(whole).with_name("work")
    os.environ |= {"CHAOS_INPUTS": str(Path(whole).with_name("inputs")), "REPSCOPE_CACHE": str(work / "home" / "cache")}
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work / "home", symlinks=True)
    files = sorted(p for p in (work / "home").rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    path, kind = rng.choice(files), rng.choice(_KINDS)
    what = f"{kind} in {path.relative_to(work / 'home')}"
    expected = json.loads(Path(whole).with_name("expected.json").read_text())
    damaged(path, kind, rng)
    before = [_plain(text, work / "home") for text in place.read(work / "home")]
    for found, wanted in zip(before, expected["outputs"]):
        if found != wanted and not _told(found):
            return "silent", f"{what}: reads {_difference(found, wanted)}"
    said = _tried(lambda: str(place.make(work / "home")))
    if said.startswith("refused"):
        return ("refused", "") if _told(said) else ("raw", f"{what}: {said}")
    left = left_by(work / "home")
    if left != expected["left"]:
        names = sorted(set(left) ^ set(expected["left"])) or [n for n in left if left[n] != expected["left"][n]]
        return "silent", f"{what}: the same command leaves other bytes in {names[:3]}"
    after = [_plain(text, work / "home") for text in place.read(work / "home")]
    if after != expected["outputs"]:
        return "silent", f"{what}: afterwards reads {[_difference(a, b) for a, b in zip(after, expected['outputs']) if a != b]}"
    return ("equal" if before == expected["outputs"] else "made again"), ""


def _plain(text: str, home: Path) -> str:
    """An output without the place and the seconds that runs took."""
    import re

    return re.sub(r'"seconds": [0-9.]+', "", text.replace(str(home), ""))


def _told(text: str) -> bool:
    """Whether an output says that something is wrong."""
    return any(word in text for word in _WORDS)


def _difference(found: str, wanted: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(found, wanted)) if a != b), min(len(found), len(wanted)))
    return f"…{found[max(0, at - 40) : at + 60]!r} for …{wanted[max(0, at - 40) : at + 60]!r}"


def run(processes: Processes, names: Sequence[str], count: int, home: Path, seed: int = 0) -> Tally:
    """So many damages to each place."""
    tally = Tally()
    for name in names:
        folder = home / name.replace(" ", "-")
        for _, outcome, said in each(processes, _prepared, [name], str(folder)):
            assert outcome == "equal", said
        for number, outcome, said in each(
            processes, trial, range(round(count * PLACES[name].share)), name, str(folder / "home"), seed
        ):
            tally.add(f"{name}, damaged", f"damage {number}", outcome, said)
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def _prepared(name: str, folder: str) -> tuple[str, str]:
    """Make a place, in a process as the trials are; keep its outputs and bytes."""
    import json

    from chaos.commands import prepare

    home = Path(folder) / "home"
    home.mkdir(parents=True)
    prepare(Path(folder) / "inputs")
    os.environ |= {"CHAOS_INPUTS": str(Path(folder) / "inputs"), "REPSCOPE_CACHE": str(home / "cache")}
    PLACES[name].make(home)
    outputs = [_plain(text, home) for text in PLACES[name].read(home)]
    (Path(folder) / "expected.json").write_text(json.dumps({"outputs": outputs, "left": left_by(home)}))
    return "equal", ""
