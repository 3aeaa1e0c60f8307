"""Finished `--tiny` runs, computed once per test session: the workers of xdist share them, and each test gets a copy of its own."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from repscope.studies.catalogue import study
from repscope.studies.run.folder import MARK
from repscope.studies.run.runner import Run, load_record

COUNTRIES = ["study", "entities", "--tiny", "--entities", "countries"]


def session_folder(tmp_path_factory) -> Path:
    """A folder of this session that all workers see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@dataclass(frozen=True)
class TinyRuns:
    """The tiny runs of a session. home: the folder that all workers share; only this class writes to it."""

    home: Path

    def copied(self, name: str, out: Path) -> Run[Any]:
        """The finished run of `study NAME --tiny`, in `out`, as `Run.answer` leaves it; nothing is computed or drawn again."""
        found = study(name)
        kept = self.home / name
        with FileLock(self.home / f"{name}.lock"):
            if not kept.is_dir():
                partial = self.home / f"{name}.part"
                shutil.rmtree(partial, ignore_errors=True)
                Run(found, found.options(tiny=True), out=partial).answer()
                partial.rename(kept)
        shutil.copytree(kept, out, dirs_exist_ok=True)
        run = Run(found, found.options(tiny=True), out=out)
        mark = run.folder / MARK  # its answer names files of the run
        mark.write_text(mark.read_text().replace(str(self.home / f"{name}.part"), str(out)))
        run.run_folder.write_digests()
        run.results.update(load_record(found, run.run_folder).results)
        return run

    def in_a_process(self) -> tuple[Path, subprocess.CompletedProcess[str]]:
        """The folder of runs and the process of `python -m repscope` and `COUNTRIES`; only to be read."""
        out, kept = self.home / "countries", self.home / "countries.json"
        with FileLock(self.home / "countries.lock"):
            if not kept.is_file():
                command = [sys.executable, "-m", "repscope", *COUNTRIES, "--out", str(out)]
                done = subprocess.run(command, capture_output=True, text=True)
                kept.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
        return out, subprocess.CompletedProcess(COUNTRIES, *json.loads(kept.read_text()))
