"""`make bench`: which ratios fell, and scripts that are run once, ended at their limit, and left out."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


ratios = loaded("ratios")
run_all = loaded("run_all")

PAGE = """# Benchmarks

<!-- capture:begin -->
## Capture

### Block 10

| method | tokens/s | repscope is faster by: median (range) | of the floor |
|---|---|---|---|
| peer | 204 (184–224) | 6.78× (5.97–8.70) | 58 % |
| **repscope** | 1,381 | 1.00× (1.00–1.00) | 66 % |
<!-- capture:end -->

## A call

| method | CPU ms | of a bare hook, median (range) |
|---|---|---|
| bare hook | 9.80 | 1.00 (1.00–1.00)× |
| `lm.capture` | 11.76 | 1.22 (0.85–1.64)× |

| | median (range) |
|---|---|
| passes, s | 2.05 (1.68–2.31) |
| of its floor | 47 (40–57) % |

| networks | stacked ÷ transformers |
|---|---|
| 16 | 3.97 (3.33–5.52) |
| 16 | 2.65 (2.31–3.27) |
"""


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.04 (1.00–1.14)", 1.04),
        ("6.78× (5.97–8.70)", 6.78),
        ("**12 %**", 12),
        ("+0.5", 0.5),
        ("1,204", 1204),
        ("2e-3", 0.002),
        ("–", None),
        ("", None),
    ],
)
def test_the_first_number_of_a_cell_is_its_value(cell: str, value: float | None) -> None:
    assert ratios.number(cell) == value


def test_ratios_are_found_with_the_better_direction() -> None:
    found = {str(cell): pair for cell, pair in ratios.ratios(PAGE).items()}
    assert found == {
        "capture / Block 10, table 1: peer | repscope is faster by: median (range)": (6.78, True),
        "capture / Block 10, table 1: repscope | repscope is faster by: median (range)": (1.0, True),
        "capture / Block 10, table 1: repscope | of the floor": (66.0, True),
        "A call, table 1: `lm.capture` | of a bare hook, median (range)": (1.22, False),
        "A call, table 2: of its floor | median (range)": (47.0, True),
        "A call, table 3: 16 | stacked ÷ transformers": (3.97, True),
        "A call, table 3: 16 (2) | stacked ÷ transformers": (2.65, True),
    }


@pytest.mark.parametrize(
    ("old", "new", "fell"),
    [
        ("6.78× (", "5.78× (", False),  # 14.7 % less
        ("6.78× (", "5.70× (", True),
        ("66 %", "40 %", True),
        ("58 %", "10 %", False),  # the peer's
        ("1,381", "12", False),  # no ratio
        ("1.22 (", "1.40 (", False),  # smaller is better
        ("1.22 (", "1.50 (", True),
        ("1.22 (", "0.50 (", False),
        ("3.97 (", "4.90 (", False),
        ("| 16 | 2.65 (2.31–3.27) |\n", "", True),  # no longer there
    ],
)
def test_what_is_worse_by_more_than_15_percent_fell(old: str, new: str, fell: bool) -> None:
    assert old in PAGE
    assert bool(ratios.falls(PAGE, PAGE.replace(old, new))) == fell


def test_pages_of_the_project_have_ratios_in_every_timed_table() -> None:
    found = ratios.ratios((FOLDER / "RESULTS.md").read_text())
    sections = {cell.section.partition(" / ")[0] for cell in found}
    assert {"capture", "edits", "jacobian", "packing", "relations", "discovery", "paths", "cka", "minimal pairs"} <= sections
    assert all(value > 0 for value, _ in found.values())
    assert ratios.falls((FOLDER / "RESULTS.md").read_text(), (FOLDER / "RESULTS.md").read_text()) == []


def test_every_script_and_page_exists() -> None:
    for script in run_all.SCRIPTS.values():
        assert (FOLDER / script.file).exists()
        assert (FOLDER / script.page).exists()
        text = (FOLDER / script.file).read_text()
        assert all(word in text for word in script.arguments if word.startswith("--")), script
    makefile = (FOLDER.parent / "Makefile").read_text().replace("$(VENV)", ".venv")
    for target in {need for script in run_all.SCRIPTS.values() for need in script.needs}:
        assert f"\n{target}:" in makefile


def test_every_script_that_writes_a_table_is_run() -> None:
    files = {script.file for script in run_all.SCRIPTS.values()} | {"run_all.py", "families.py"}
    assert {path.name for path in FOLDER.glob("*.py") if '"--write"' in path.read_text()} == files


GOOD = "import pathlib, sys\npathlib.Path('ran').open('a').write(sys.argv[1])\n"
SLOW = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("child").write_text(str(child.pid))
child.wait()
"""


@pytest.fixture
def bench(tmp_path: Path) -> "run_all.Bench":
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "bad.py").write_text("print('why'); raise SystemExit(3)")
    scripts = {
        "good": run_all.Script("good.py", 1, needs=(), arguments=("x",)),
        "slow": run_all.Script("slow.py", 0.03, needs=(), arguments=()),
        "bad": run_all.Script("bad.py", 1, needs=(), arguments=()),
        "data": run_all.Script("good.py", 1, needs=(), arguments=("{blimp}",)),
        "peers": run_all.Script("good.py", 1, needs=("no-such-target",), arguments=("y",)),
    }
    return run_all.Bench(scripts, {"blimp": None}, folder=tmp_path, root=tmp_path, state=tmp_path / "state")


def test_a_finished_script_is_not_run_again_until_it_is_forgotten(bench: "run_all.Bench") -> None:
    assert bench.run("good").said == "done"
    assert bench.run("good").said == "earlier"
    assert (bench.root / "ran").read_text() == "x"
    bench.forget(["good"])
    assert bench.run("good").said == "done"
    assert (bench.root / "ran").read_text() == "xx"


def test_a_script_over_its_limit_ends_with_all_that_it_started(bench: "run_all.Bench") -> None:
    started = time.monotonic()
    outcome = bench.run("slow")
    assert outcome.said.startswith("over its limit")
    assert outcome.bad
    assert time.monotonic() - started < 30
    child = int((bench.root / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the script's child went on")
    assert not bench.ended_well("slow")


def test_failures_and_missing_data_are_told_and_not_recorded(bench: "run_all.Bench") -> None:
    assert bench.run("bad").said == "failed: exit code 3"
    assert "why" in (bench.state / "bad.log").read_text()
    assert bench.run("data").said == "left out: needs --blimp"
    assert not bench.run("data").bad
    assert bench.run("peers").said.startswith("failed: its environment")
    assert not (bench.root / "ran").exists()
    assert not any(bench.ended_well(name) for name in ("bad", "data", "peers"))
    bench.given = {"blimp": Path("z")}
    assert bench.run("data").said == "done"
