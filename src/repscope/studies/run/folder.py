"""RunFolder: one run on disk, and how runs are found. `run.json` marks a folder as a run.

    run.json                     study, options, and when the run is finished how it was made (`facts`)
    report.html                  the page
    results/<step>.parquet       one table per step, in the schema of all studies
    artifacts/                   files for others: directions, checkpoints
    .steps/<step>-<key>/         each step's whole result under what it depends on
    .artifacts/<step>-<key>.json the files in artifacts/ that a step wrote, with their digests
    .partial/, .scratch/         what a step keeps until it is finished, and while it runs
    .digests.json                of what is published: run.json, page and tables; steps have their own (see `manifest`)

The only writer of run folders. Files are whole or not there, and compared with their digests when they are read.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from repscope import manifest
from repscope.disk import explained, need_folder, whole_file
from repscope.errors import UserError, unknown
from repscope.manifest import Manifest
from repscope.names import file_name, readable
from repscope.report.page import Page, write
from repscope.results import COLUMNS, Result
from repscope.untrusted import parse_json

MARK = "run.json"
PAGE = "report.html"
Stamps = Mapping[str, tuple[int, int, int]]  #: artifact → size, time of change, inode
_PUBLISHED = (manifest.NAME, "results", PAGE)  #: a folder with these and without its mark is a damaged run
_FOLDERS = (".steps", ".artifacts", ".partial", ".scratch", "results", "artifacts")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


#: keys of `run.json` that are read, and what fits them
_FACTS: dict[str, Callable[[Any], bool]] = {
    "study": lambda v: isinstance(v, str),
    "question": lambda v: isinstance(v, str),
    "model": lambda v: isinstance(v, str),
    "given": lambda v: isinstance(v, dict),
    "options": lambda v: isinstance(v, dict),
    "steps": lambda v: isinstance(v, dict) and all(isinstance(k, str) for k in v.values()),
    "files": lambda v: isinstance(v, dict) and all(isinstance(held, str) for held in v.values()),
    "seconds": _number,
    "took": lambda v: isinstance(v, dict) and all(isinstance(t, dict) and all(map(_number, t.values())) for t in v.values()),
    "verified": lambda v: isinstance(v, dict) and isinstance(v.get("summary"), str) and _texts(v.get("warnings")),
    "answer": _texts,
    "verdict": lambda v: v is None or (isinstance(v, dict) and isinstance(v.get("sentence"), str)),
    "versions": lambda v: isinstance(v, dict),
    "names": _texts,
    **{name: lambda v: v is None or isinstance(v, str) for name in ("precision", "revision", "date", "command", "loss unit")},
}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def page(self) -> Path:
        """The page; there when the run is finished."""
        return self.path / PAGE

    @property
    def finished(self) -> bool:
        """Whether the run has its page."""
        return self.page.is_file()

    @contextmanager
    def locked(self, mark: Mapping[str, Any]) -> Iterator[bool]:
        """Hold the folder for this process; it is made, and marked as a run, when it is not there: yields whether it was.

        Raises
        ------
        UserError
            When another process holds it, or the disk refuses.
        """
        from filelock import FileLock, Timeout

        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self._refuse_links()
                marked = (self.path / MARK).is_file()
                made = not any(entry.name != ".lock" for entry in self.path.iterdir())  # nothing of anybody's is in it
                if not marked:
                    self.write_facts(mark)
                self.tidy()
                yield made
                self.tidy()
        except Timeout:
            raise UserError(f"Another process is working on {self.path}; wait for it or choose another --out.") from None

    def _refuse_links(self) -> None:
        """Raise a `UserError` for a folder that is a link: what is written or removed would be elsewhere."""
        for name in _FOLDERS:
            if (self.path / name).is_symlink():
                raise UserError(
                    f"{self.path / name} is a link, and a run writes only in its own folder; put a folder in its place."
                )

    def step(self, name: str, key: str) -> Path:
        """The folder of a step's result under its key."""
        return self.path / ".steps" / f"{readable(name)}-{readable(key, 16)}"

    def partial(self, name: str, key: str) -> Path:
        """The folder of intermediate results of a step."""
        return self.path / ".partial" / f"{readable(name)}-{readable(key, 16)}"

    def load_step(self, name: str, key: str) -> Result:
        """A step's result.

        Raises
        ------
        UserError
            When its files are damaged.
        """
        try:
            return Result.load(self.step(name, key))
        except UserError as error:
            raise UserError(f"{str(error).partition('; ')[0]}; run the same command again, which computes it again.") from error

    def step_is_sound(self, name: str, key: str) -> bool:
        """Whether a step's result is there, with the bytes that were written, and so are its artifacts."""
        kept = self.step(name, key)
        return kept.is_dir() and manifest.damage(kept) is None and self.artifact_damage(name, key) is None

    def save_step(self, name: str, key: str, result: Result, before: Stamps, others: Collection[str], *, sync: bool = True) -> None:
        """Keep a step's result, and which artifacts are its own.

        Parameters
        ----------
        before
            The artifacts before the step.
        others
            Artifacts that belong to other steps, if this one did not change them.
        sync
            As for `whole_folder`.
        """
        now = self.artifact_stamps()
        own = [file for file, stamp in now.items() if before.get(file) != stamp or file not in others]
        listed = self._listed(name, key)
        if own:  # first, so that a step that is there has its list
            with whole_file(listed) as partial:
                partial.write_text(Manifest.of(self.artifacts, own).text(), encoding="utf-8")
        else:
            listed.unlink(missing_ok=True)
        result.save(self.step(name, key), sync=sync)

    def forget_step(self, name: str, key: str) -> None:
        """Remove a damaged step's result and its artifacts."""
        for file in self.artifact_names(name, key):
            (self.artifacts / file).unlink(missing_ok=True)
        self._listed(name, key).unlink(missing_ok=True)
        shutil.rmtree(self.step(name, key), ignore_errors=True)

    def other_keys(self, name: str, keys: Collection[str]) -> list[str]:
        """Keys, cut as in names, under which a step left artifacts that are not those of `keys`: of other contents, in its way."""
        here = self._listed(name, "0" * 16).name.removesuffix(f"{'0' * 16}.json")
        known = {key[:16] for key in keys}
        found = [path.stem.removeprefix(here) for path in (self.path / ".artifacts").glob("*.json") if path.stem.startswith(here)]
        return sorted(key for key in found if len(key) == 16 and key not in known)

    @property
    def artifacts(self) -> Path:
        """The folder of files for others."""
        return self.path / "artifacts"

    def artifact_stamps(self) -> Stamps:
        """The files in `artifacts`."""
        found = {}
        for folder, _, names in os.walk(self.artifacts):
            for name in names:
                file = Path(folder, name)
                if not name.endswith(".part") and file.is_file():
                    stat = file.stat()
                    found[file.relative_to(self.artifacts).as_posix()] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        return found

    def artifact_names(self, name: str, key: str) -> Collection[str]:
        """The artifacts that a step wrote; none where its list is missing or damaged."""
        try:
            return Manifest.read(self._listed(name, key)).files.keys()
        except UserError:
            return ()

    def _listed(self, name: str, key: str) -> Path:
        return self.path / ".artifacts" / f"{self.step(name, key).name}.json"

    def artifact_damage(self, name: str, key: str) -> str | None:
        """What is wrong with the artifacts that a step wrote, in words."""
        listed = self._listed(name, key)
        if not listed.is_file():  # a step without artifacts has no list
            return f"{listed.name} is missing" if f".artifacts/{listed.name}" in self._published() else None
        try:
            return Manifest.read(listed).damage(self.artifacts)
        except UserError:
            return f"{listed.name} is unreadable"

    def scratch(self) -> Path:
        """An empty folder for use during a step."""
        folder = self.path / ".scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        with whole_file(self.path / MARK) as partial:
            partial.write_text(json.dumps(facts, indent=2), encoding="utf-8")

    def publish(self, results: Mapping[str, Result], facts: Mapping[str, Any], page: Page) -> Path:
        """Write tables, facts and page; the page's path. Tables of steps that are no more are removed.

        The page is removed first and written last: a run whose tables are partly those of another time is not finished.
        """
        self.page.unlink(missing_ok=True)
        (self.path / manifest.NAME).unlink(missing_ok=True)
        tables = {self.path / "results" / f"{file_name(name)}.parquet": result for name, result in results.items()}
        for stale in set((self.path / "results").glob("*.parquet")) - set(tables):
            stale.unlink()
        for path, result in tables.items():
            with whole_file(path) as partial:
                result.table.to_parquet(partial, index=False)
        self.write_facts(facts)
        drawn = write(page, self.page)
        self.write_digests()
        return drawn

    def write_digests(self) -> None:
        """Write the manifest of what is published."""
        names = [MARK, PAGE, *(f"results/{p.name}" for p in (self.path / "results").glob("*.parquet"))]
        names += [f".artifacts/{p.name}" for p in (self.path / ".artifacts").glob("*.json")]
        with whole_file(self.path / manifest.NAME) as partial:
            partial.write_text(Manifest.of(self.path, names).text(), encoding="utf-8")

    def _published(self) -> Collection[str]:
        """The names in the manifest of what is published; none where it is missing or damaged."""
        try:
            return Manifest.read(self.path / manifest.NAME).files.keys()
        except UserError:
            return ()

    def draw(self, page: Page) -> Path:
        """Write the page of a finished run again; its path."""
        drawn, listed = write(page, self.page), self.path / manifest.NAME
        if listed.is_file():
            files = {**Manifest.read(listed).files, **Manifest.of(self.path, [PAGE]).files}
            with whole_file(listed) as partial:
                partial.write_text(Manifest(files).text(), encoding="utf-8")
        return drawn

    def damage(self, *, page: bool = True) -> str | None:
        """What is wrong with the tables and facts of a finished run, in words. The page, which nothing reads, by its size.

        page: whether a page that is missing counts, which can be drawn again.
        """
        listed = self.path / manifest.NAME
        if page or self.page.is_file() or not listed.is_file():
            return manifest.damage(self.path, sizes_only=(PAGE,))
        try:
            held = Manifest.read(listed).files
        except UserError:
            return f"{manifest.NAME} is unreadable"
        return Manifest({name: entry for name, entry in held.items() if name != PAGE}).damage(self.path)

    def tidy(self) -> None:
        """Remove partial files of a killed process."""
        shutil.rmtree(self.path / ".scratch", ignore_errors=True)
        for part in list(self.path.rglob("*.part")):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all results and the page."""
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for file in (self.page, self.path / manifest.NAME):
            file.unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """The content of `run.json`; empty if it is damaged, or holds what repscope does not write."""
        try:
            held = parse_json((self.path / MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return held if isinstance(held, dict) and all(fits(held[name]) for name, fits in _FACTS.items() if name in held) else {}

    def table(self) -> pd.DataFrame:
        """All rows of a finished run; none where it is not finished.

        Raises
        ------
        UserError
            When a file is damaged.
        """
        parts = []
        if self.finished:
            if (wrong := self.damage()) is not None:
                raise UserError(f"{self.path} is damaged: {wrong}; run its command again, or remove it.")
            for path in sorted((self.path / "results").glob("*.parquet")):
                try:
                    parts.append(pd.read_parquet(path))
                except Exception as error:  # of pyarrow and of what it reads
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    raise UserError(
                        f"{path} is damaged ({reason}); run its command again with --fresh, or remove {self.path}."
                    ) from error
        whole = [p for p in parts if list(p.columns) == list(COLUMNS)]
        return pd.concat(whole, ignore_index=True).astype(COLUMNS) if whole else pd.DataFrame(columns=list(COLUMNS))


def list_runs(out: Path) -> list[RunFolder]:
    """The runs in a folder, by name.

    Raises
    ------
    UserError
        When `out` or a part of its path is a file.
    """
    there = next((p for p in [out, *out.parents] if p.exists()), out)
    if there.exists() and not there.is_dir():
        raise UserError(f"{there} is a file; --out must be the folder of all runs.")
    if not out.is_dir():
        return []
    return [RunFolder(p) for p in sorted(out.iterdir()) if (p / MARK).is_file() or all((p / n).exists() for n in _PUBLISHED)]


def find_run(run: str, out: Path) -> RunFolder:
    """A run by its name, the beginning of its name, or its path.

    Raises
    ------
    UserError
        When there is none, or several begin so.
    """
    if (Path(run) / MARK).is_file():
        return RunFolder(Path(run))
    runs = {r.path.name: r for r in list_runs(out)}
    matching = [run] if run in runs else [name for name in runs if name.startswith(run)]
    if not matching:
        raise unknown("run", run, list(runs), "`repscope runs` lists them.")
    if len(matching) > 1:
        raise UserError(f"{len(matching)} runs begin with {run!r}: {', '.join(matching)}; give more of the name.")
    return runs[matching[0]]


def slug(name: str) -> str:
    """A name as a part of a folder's name."""
    return readable(Path(name).name.removesuffix(".gguf"), 60)


__all__ = ["MARK", "PAGE", "RunFolder", "find_run", "list_runs", "need_folder", "slug"]
