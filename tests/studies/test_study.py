"""The machinery: steps are kept under what they depend on, a killed run goes on, and its table is that of a run left alone."""

import time
from pathlib import Path

import pandas as pd
import pytest
from pydantic import Field

from repscope.cli import main
from repscope.errors import UserError
from repscope.report.page import Page
from repscope.results import Result, Row
from repscope.studies.run.options import ModelOptions
from repscope.studies.run.room import need_room
from repscope.studies.run.runner import Run
from repscope.studies.run.study import Answer, Cost, Step, Study
from tiny_runs import COUNTRIES


class CountOptions(ModelOptions):
    upto: int = Field(3, description="How far.")
    table: Path | None = Field(None, description="A file.")

    def files(self):
        return [self.table] if self.table else []


def counting(versions=(1, 1), ran=None, fail=False, cost=None):
    """A study of two steps that notes which of them run."""
    ran = [] if ran is None else ran

    def page(record):
        return Page("Counting", "How many?", f"{record.table['value'].max():.0f}", (), (), (), {})

    def steps(setup):
        def first(context):
            ran.append("first")
            with pytest.raises(KeyError):
                context.inputs["second"]
            return Result.of([Row(metric="count", item="n", value=setup.options.upto)], notes=("counted",))

        def second(context):
            if fail:
                raise RuntimeError("bang")
            ran.append("second")
            return Result.of([Row(metric="count", item="twice", value=2 * context.inputs["first"].table["value"][0])])

        each = lambda: cost or Cost(tokens=10, network_flops=1e9)  # noqa: E731
        return [
            Step("first", first, each, version=versions[0]),
            Step("second", second, each, version=versions[1], needs=("first",)),
        ]

    return Study("count", "How many?", CountOptions, steps, page, lambda record: Answer(["done"])), ran


def answer(tmp_path, options=None, fresh=False, **how):
    study, ran = counting(**how)
    run = Run(study, options or CountOptions(tiny=True), out=tmp_path, fresh=fresh)
    run.answer()
    return run, ran


def test_a_second_run_computes_nothing(tmp_path):
    run, ran = answer(tmp_path)
    assert ran == ["first", "second"]
    assert run.folder.name.startswith("count-tiny-")
    assert (run.folder / "report.html").read_text().count("Counting")
    again, ran = answer(tmp_path)
    assert ran == []
    pd.testing.assert_frame_equal(again.table, run.table)
    assert set(again.table["study"]) == {"count"}
    assert set(again.table["model"]) == {run.subject.fingerprint}


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"versions": (1, 2)}, ["second"]),
        ({"versions": (2, 1)}, ["first", "second"]),
        ({"fresh": True}, ["first", "second"]),
        ({"options": CountOptions(tiny=True, upto=4)}, ["first", "second"]),
        ({"options": CountOptions(tiny=True, seed=1)}, ["first", "second"]),
    ],
)
def test_what_a_step_depends_on_makes_it_run_again(tmp_path, change, runs):
    answer(tmp_path)
    assert answer(tmp_path, **change)[1] == runs


def test_a_changed_file_of_the_users_makes_it_run_again(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a")
    options = CountOptions(tiny=True, table=table)
    answer(tmp_path / "runs", options)
    table.write_text("b")
    assert answer(tmp_path / "runs", options)[1] == ["first", "second"]


def test_a_failed_step_keeps_those_before_it(tmp_path):
    with pytest.raises(RuntimeError, match="bang"):
        answer(tmp_path, fail=True)
    assert answer(tmp_path)[1] == ["second"]


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        (Cost(memory_bytes=1e18), "The step 'big' needs about 1e\\+09 GB of memory and this machine has"),
        (Cost(disk_bytes=1e18), "keeps about 1e\\+09 GB and the disk of .* free; give another --out"),
        (Cost(fit_flops=1e30), "takes about .* years; give smaller numbers"),
        (Cost(network_flops=float("nan")), "takes about nan years"),
    ],
)
def test_what_no_machine_can_finish_is_refused(tmp_path, cost, says):
    for costs in ({"small": Cost(tokens=10, network_flops=1e15, memory_bytes=1e8), "big": cost}, {"big": cost}):
        with pytest.raises(UserError, match=says):
            need_room("count", costs, tmp_path / "deep" / "runs")
    need_room("count", {"small": Cost(tokens=10, network_flops=1e15, memory_bytes=1e8)}, tmp_path)
    need_room("count", {}, tmp_path)


def test_a_run_and_its_plan_are_refused_alike(tmp_path):
    study, ran = counting(cost=Cost(memory_bytes=1e18))
    run = Run(study, CountOptions(tiny=True), out=tmp_path)
    for ask in (run.plan, run.answer):
        with pytest.raises(UserError, match="'first' needs about"):
            ask()
    assert not ran
    assert not [p for p in tmp_path.iterdir() if p.is_dir()], "no folder is left"


def test_a_plan_runs_nothing_and_knows_what_is_done(tmp_path):
    study, ran = counting()
    run = Run(study, CountOptions(tiny=True), out=tmp_path)
    assert [(name, cost.tokens, done) for name, cost, done in run.plan()] == [("first", 10, False), ("second", 10, False)]
    assert ran == []
    run.answer()
    assert all(done for _, _, done in run.plan())


def test_two_processes_do_not_work_on_one_run(tmp_path):
    from filelock import FileLock

    study, _ = counting()
    run = Run(study, CountOptions(tiny=True), out=tmp_path)
    run.folder.mkdir(parents=True)
    with FileLock(run.folder / ".lock"), pytest.raises(UserError, match="Another process"):
        run.answer()


def _table(out):
    folder = next(p for p in out.iterdir() if p.is_dir())
    parts = [pd.read_parquet(p).assign(file=p.name) for p in sorted((folder / "results").glob("*.parquet"))]
    return pd.concat(parts, ignore_index=True)


def test_killed_at_any_moment_the_next_run_goes_on_and_its_table_is_the_same(tmp_path, tiny_runs, processes):
    """SIGKILL after each step in turn and between them, then one run to the end; beside it a run left alone."""
    alone, done_alone = tiny_runs.in_a_process()
    assert done_alone.returncode == 0
    killed, order = 0, [*COUNTRIES, "--out", str(tmp_path / "killed")]
    for wait in (0, 1, 2, 3):
        process = processes.start(main, order)
        deadline = time.monotonic() + 60
        while process.running and time.monotonic() < deadline:
            done = len(list((tmp_path / "killed").glob("*/.steps/*/table.parquet")))
            if done >= wait and (tmp_path / "killed").exists():
                time.sleep(0.05 * wait)
                break
            time.sleep(0.01)
        if process.running:
            process.kill()
            killed += 1
        process.wait()
    assert killed >= 2
    last = processes.start(main, order)
    last.communicate()
    assert last.returncode == 0
    pd.testing.assert_frame_equal(_table(tmp_path / "killed"), _table(alone))
    folder = next(p for p in (tmp_path / "killed").iterdir() if p.is_dir())
    assert not list(folder.rglob("*.part")), "nothing half-written remains"
