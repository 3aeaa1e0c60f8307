"""RunFolder: one run on disk, and how runs are found. `run.json` marks a folder as a run.

    run.json                     study, options, and when the run is finished how it was made (`facts`)
    report.html                  the page
    results/<step>.parquet       one table per step, in the schema of all studies
    artifacts/                   files for others: directions, checkpoints
    .steps/<step>-<key>/         each step's whole result under what it depends on
    .partial/, .scratch/         what a step keeps until it is finished, and while it runs

The only writer of run folders. Files are whole or not there.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from repscope.disk import explained, need_folder, whole_file
from repscope.errors import UserError, unknown
from repscope.names import file_name, readable
from repscope.report.page import Page, write
from repscope.results import COLUMNS, Result
from repscope.untrusted import parse_json

MARK = "run.json"
PAGE = "report.html"
_FOLDERS = (".steps", ".partial", ".scratch", "results", "artifacts")


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
    def locked(self, mark: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder for this process; it is made, and marked as a run, when it is not there.

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
                if not (self.path / MARK).is_file():
                    self.write_facts(mark)
                self.tidy()
                yield
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
        kept = self.step(name, key)
        try:
            return Result.load(kept)
        except Exception as error:  # of Parquet, of safetensors, of their contents
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{kept} is damaged ({reason[0]}); run the same command with --fresh to compute it again.") from error

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
        """Write tables, facts and page; the page's path."""
        for name, result in results.items():
            with whole_file(self.path / "results" / f"{file_name(name)}.parquet") as partial:
                result.table.to_parquet(partial, index=False)
        self.write_facts(facts)
        return write(page, self.page)

    def tidy(self) -> None:
        """Remove partial files of a killed process."""
        shutil.rmtree(self.path / ".scratch", ignore_errors=True)
        for part in list(self.path.rglob("*.part")):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all results and the page."""
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.page.unlink(missing_ok=True)

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
            When a table is damaged.
        """
        parts = []
        for path in sorted((self.path / "results").glob("*.parquet")):
            try:
                parts.append(pd.read_parquet(path))
            except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
                reason = str(error).splitlines()[0]
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
    return [RunFolder(p) for p in sorted(out.iterdir()) if p.is_dir() and (p / MARK).is_file()]


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


def slug(name: str, most: int = 60) -> str:
    """A name as a part of a folder's name."""
    return readable(Path(name).name.removesuffix(".gguf"), most)


__all__ = ["MARK", "PAGE", "RunFolder", "find_run", "list_runs", "need_folder", "slug"]
