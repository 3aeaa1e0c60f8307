import io
import sys
import types

from rich.console import Console

from repscope import progress


def test_lines_tell_the_time_left_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.progress("Capturing", 100) as advance:
        advance(25)
        advance(25)
    with progress.progress("Downloading", None) as advance:
        advance(1)
    said = capsys.readouterr().err.splitlines()
    assert said == ["Capturing: 25 %, about 60 s left", "Capturing: 50 %, about 40 s left", "Downloading: 20 s so far"]


def test_short_work_says_nothing(capsys):
    with progress.progress("Capturing", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_nested_work_shows_as_bars_under_the_first(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress("entities", 4) as outer:
        with progress.progress("Capturing", 2) as inner:
            inner(1)
            progress._live[0][0].refresh()
        outer(1)
    said = screen.getvalue()
    assert "entities" in said
    assert "Capturing" in said
    assert "50%" in said
    assert progress._live == []


class Handle:
    """A display that keeps what a notebook would show."""

    def __init__(self):
        self.shown = []

    def __call__(self, data, *, raw, display_id=False):
        self.shown.append(data)
        return self

    def update(self, data, *, raw):
        self.shown.append(data)


def test_a_notebook_shows_bars_that_are_replaced_and_go(monkeypatch, capsys):
    """Without ipywidgets: one output, nested work as further lines, empty at the end; nothing on standard error."""
    handle, clock = Handle(), iter(range(0, 1000, 2))
    monkeypatch.setattr(progress.notebook, "in_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=handle))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.progress("probes of <b>", 4) as outer:
        outer(1)
        with progress.progress("Capturing", None) as inner:
            inner(1)
    assert [len(s["text/plain"].splitlines()) for s in handle.shown] == [1, 2, 0]
    assert handle.shown[0]["text/plain"] == "probes of <b>: 25 %, about 6 s left"
    assert '<progress max="4" value="1">' in handle.shown[0]["text/html"]
    assert "&lt;b&gt;" in handle.shown[0]["text/html"]
    assert handle.shown[-1]["text/html"] == ""
    assert progress._cells == []
    assert capsys.readouterr().err == ""


def test_a_notebook_shows_nothing_of_short_work(monkeypatch):
    handle = Handle()
    monkeypatch.setattr(progress.notebook, "in_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=handle))
    with progress.progress("Capturing", 4) as advance:
        advance(4)
    assert handle.shown == []
