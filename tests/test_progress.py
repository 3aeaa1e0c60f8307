import io

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
