"""The process of a command: signals, streams, encodings, and what its first moments import."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

HERE = [sys.executable, "-m", "repscope"]
#: a command line that waits in the way its first argument names, and says when it does
SLOW = """
    import sys, time
    from repscope.process import start

    class Late:
        def __del__(self):
            print("begun", flush=True)
            time.sleep(20)

    def command(words):
        if words[0] == "destructor":
            Late()
        print("begun", flush=True)
        while True:
            try:
                time.sleep(20)
            except BaseException:
                if words[0] != "stubborn":
                    from repscope.cli import _failed
                    return _failed(sys.exception())

    def load():
        if sys.argv[1] == "import":
            print("begun", flush=True)
            time.sleep(20)
        return command

    start(load)
"""


def _not_ignored():
    """As in a terminal; tests that run in the background ignore some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("where", ["import", "command", "destructor"])
def test_a_signal_ends_the_command_with_its_code_and_no_traceback(name, where):
    number = getattr(signal, name)
    code = textwrap.dedent(SLOW)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, where], preexec_fn=_not_ignored, **pipes)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert "ignored" not in said
    if where == "command":
        assert said.count("\n") == 1
        assert said.startswith("repscope: ")


def test_the_second_signal_ends_what_catches_everything():
    code = textwrap.dedent(SLOW)
    process = subprocess.Popen([sys.executable, "-c", code, "stubborn"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(1)  # until it sleeps where it catches everything
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143


def test_nothing_is_imported_before_signals_are_known():
    code = "import sys; old = set(sys.modules); import repscope.__main__, repscope.process; print(*(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=os.environ | _path())
    assert done.returncode == 0, done.stderr
    assert not {"typing", "cyclopts", "rich", "numpy", "asyncio", "logging", "re"} & set(done.stdout.split())


def _path():
    return {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} --help | head -1; exit ${{PIPESTATUS[0]}}", 0),
        ("{} claims --out nowhere 2>&1 | true; exit ${{PIPESTATUS[0]}}", 0),
        ("{} --help > /dev/full", 2),
        ("{} --help >&- 2>&- <&-", 0),
        ("PYTHONIOENCODING=ascii {} claims --out nowhere", 0),
        ("PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C {} claims --out nowhere", 0),
    ],
)
def test_streams_degrade(shell, code, tmp_path):
    done = subprocess.run(["bash", "-c", shell.format(" ".join(HERE))], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    assert done.stderr.count("\n") == (code == 2)


def test_a_full_pipe_that_does_not_block_is_waited_for():
    code = "import sys; from repscope.process import start; start(lambda: lambda words: print('x' * 400_000) or 0)"
    there, here = os.pipe()
    os.set_blocking(here, False)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=here, stderr=subprocess.PIPE, text=True)
    os.close(here)
    time.sleep(0.5)
    with os.fdopen(there, "rb") as pipe:
        assert len(pipe.read()) == 400_001
    assert process.wait(timeout=60) == 0, process.stderr.read()


def test_words_that_are_not_utf8_and_folders_that_are_gone_are_one_sentence(tmp_path):
    done = subprocess.run([*HERE, "runs", "--out", b"/tmp/\xff"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not UTF-8" in done.stderr
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = f"cd {gone}; rmdir {gone}; {' '.join(HERE)} verify --tiny"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_no_garbage_is_collected_while_modules_and_weights_are_loaded():
    import gc

    from repscope.process import Uncollected

    def fail():
        with Uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()  # until the outer one ends
        raise RuntimeError("inside")

    kept = gc.get_freeze_count()
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="inside"), Uncollected():
        fail()
    assert gc.isenabled()
    assert gc.get_freeze_count() == kept  # only a command's own process keeps what it loaded out of later collections
