"""Damage of a run: what can be made again is made again and said so, what cannot is one sentence, nothing is silent or mixed."""

import json
from pathlib import Path

import pandas as pd
import pytest
from pydantic import Field

from repscope import manifest
from repscope.cli import run as command
from repscope.errors import UserError
from repscope.report.page import Page
from repscope.results import Result, Row
from repscope.studies.index import write_index
from repscope.studies.run.folder import RunFolder
from repscope.studies.run.history import claim_rows, query, run_rows
from repscope.studies.run.options import ModelOptions
from repscope.studies.run.runner import Run, load_record
from repscope.studies.run.study import Answer, Cost, Step, Study, Subject


class ItemOptions(ModelOptions):
    items: tuple[str, ...] = Field(("a", "b"), description="Steps.")
    table: Path | None = Field(None, description="A file.")

    def files(self):
        return [self.table] if self.table else []


def study_of(ran, during=lambda name: None, verified=False):
    """A step for each word of the table or of `items`, which writes an artifact."""

    def steps(setup):
        o = setup.options
        words = o.table.expanduser().read_text().split(",") if o.table else o.items

        def one(name):
            def compute(context):
                ran.append(name)
                context.artifacts.mkdir(exist_ok=True)
                (context.artifacts / f"{name}.txt").write_text(f"of {name}")
                during(name)
                return Result.of([Row(metric="count", item=name, value=len(name))], notes=("counted",))

            return Step(name, compute, Cost)

        return [one(name) for name in words]

    def page(record):
        return Page("Items", "What?", ", ".join(record.table["item"]), (), (), (), {})

    subject = None if verified else lambda setup: Subject("tiny", "a fingerprint", {"model": "none"})  # no network: quick
    return Study("count", "What?", ItemOptions, steps, page, lambda record: Answer(["done"]), subject=subject, verified=verified)


def answered(out, during=lambda name: None, fresh=False, verified=False, **options):
    ran = []
    run = Run(study_of(ran, during, verified), ItemOptions(tiny=True, **options), out=out, fresh=fresh)
    run.answer()
    return run, ran


def bytes_of(run):
    """Everything that is published."""
    kept = [run.folder / "report.html", *(run.folder / "results").iterdir(), *(run.folder / "artifacts").rglob("*")]
    return {p.relative_to(run.folder).as_posix(): p.read_bytes() for p in kept if p.is_file()}


def break_(path, how):
    whole = path.read_bytes()
    match how:
        case "flip":
            path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case _:
            path.unlink()


HOW = ["flip", "cut", "empty", "delete"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("file", ["table.parquet", "arrays.safetensors", "notes.parquet", manifest.NAME])
def test_a_damaged_step_is_computed_again_and_said_so(tmp_path, file, how):
    run, _ = answered(tmp_path)
    published = bytes_of(run)
    (kept,) = (run.folder / ".steps").glob("a-*")
    break_(kept / file, how)
    unseen = file == manifest.NAME and how == "delete"  # as a step of an earlier version
    if not unseen:
        with pytest.raises(UserError, match=r"; run the same command again"):
            load_record(run.study, run.run_folder)
        assert [done for _, _, done in Run(study_of([]), run.options, out=tmp_path).plan()] == [False, True]
    again, ran = answered(tmp_path)
    assert ran == ([] if unseen else ["a"])
    assert bytes_of(again) == published
    if not unseen:
        assert "is damaged" in again.notes[0]
        assert "the step 'a' was computed again" in again.notes[0]
    assert answered(tmp_path)[0].notes == ("counted",)


def test_a_file_that_changed_since_the_run_is_told(tmp_path):
    table = tmp_path / "own.csv"
    table.write_text("a,b")
    assert answered(tmp_path, table=table)[0].notes == ("counted",)
    assert answered(tmp_path, table=table)[0].notes == ("counted",)
    table.write_text("a,c")
    again, ran = answered(tmp_path, table=table)
    assert ran == ["a", "c"]
    assert again.notes[0] == f"{table} changed since this run was last finished, so its steps were computed again."
    assert answered(tmp_path, table=table)[0].notes == ("counted",)


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_step_of_an_earlier_version_is_computed_again_where_it_cannot_be_read(tmp_path, how):
    run, _ = answered(tmp_path)
    (kept,) = (run.folder / ".steps").glob("a-*")
    (kept / manifest.NAME).unlink()
    break_(kept / "table.parquet", "cut" if how == "flip" else how)
    assert answered(tmp_path)[1] == ["a"]


@pytest.mark.parametrize("how", ["cut", "empty", "delete"])
def test_fresh_always_works(tmp_path, how):
    run, _ = answered(tmp_path)
    published = bytes_of(run)
    for path in sorted(p for p in run.folder.rglob("*") if p.is_file() and p.name != ".lock"):
        break_(path, how)
    again, ran = answered(tmp_path, fresh=True)
    assert ran == ["a", "b"]
    assert bytes_of(again) == published


@pytest.mark.parametrize("how", HOW)
def test_artifacts_are_made_again_by_the_step_that_wrote_them(tmp_path, how):
    run, _ = answered(tmp_path)
    published = bytes_of(run)
    (run.folder / "artifacts" / "mine.txt").write_text("the user's own")
    path = run.folder / "artifacts" / "b.txt"
    path.write_text("of B") if how == "flip" else break_(path, how)
    again, ran = answered(tmp_path)
    assert ran == ["b"]
    assert "b.txt" in again.notes[0]
    assert bytes_of(again) == published | {"artifacts/mine.txt": b"the user's own"}
    (listed,) = (run.folder / ".artifacts").glob("a-*")
    break_(listed, "cut" if how == "flip" else "delete")
    assert answered(tmp_path)[1] == ["a"]
    assert (run.folder / "artifacts" / "mine.txt").exists()


def test_what_a_killed_step_left_belongs_to_it(tmp_path):
    def killed(name):
        if name == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path, killed)

    def keeps(name):  # goes on with its file, as a harvest does
        if name == "b":
            path.unlink()
            kept.rename(path)

    (folder,) = tmp_path.iterdir()
    path, kept = folder / "artifacts" / "b.txt", folder / "kept"
    path.rename(kept)
    stamp = kept.stat()
    kept.copy(path) if hasattr(kept, "copy") else path.write_bytes(kept.read_bytes())
    run, ran = answered(tmp_path, keeps)
    assert ran == ["b"]
    assert path.stat().st_ino == stamp.st_ino
    path.unlink()
    assert answered(tmp_path)[1] == ["b"]
    assert run.folder == folder


def test_a_changed_file_leaves_no_rows_of_the_old_one(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("x,y")
    run, ran = answered(tmp_path / "runs", table=table)
    assert ran == ["x", "y"]
    table.write_text("y,z")
    again, ran = answered(tmp_path / "runs", table=table)
    assert (again.folder, ran) == (run.folder, ["y", "z"])
    assert sorted(query("select item from results", tmp_path / "runs")["item"]) == ["y", "z"]
    assert {p.name for p in (run.folder / "results").iterdir()} == {"y.parquet", "z.parquet"}
    table.write_text("x,y")


def test_a_file_below_the_home_is_part_of_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text("x")
    assert answered(tmp_path / "runs", table=Path("~/t.csv"))[1] == ["x"]
    (tmp_path / "t.csv").write_text("z")
    assert answered(tmp_path / "runs", table=Path("~/t.csv"))[1] == ["z"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("x,y")
    with pytest.raises(UserError, match=r"t\.csv changed while the study read it"):
        answered(tmp_path / "runs", lambda name: name == "y" and table.write_text("x,z"), table=table)
    assert answered(tmp_path / "runs", table=table)[1] == ["x", "z"]


def test_publishing_that_is_killed_leaves_no_finished_run(tmp_path, monkeypatch):
    run, _ = answered(tmp_path)
    published = bytes_of(run)
    write_facts = RunFolder.write_facts

    def killed(self, facts):
        if "answer" in facts:
            raise KeyboardInterrupt
        write_facts(self, facts)

    monkeypatch.setattr(RunFolder, "write_facts", killed)
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="no finished run"):
        query("select 1", tmp_path)
    assert bytes_of(answered(tmp_path)[0]) == published


def test_who_comes_second_leaves_the_folder_alone(tmp_path):
    second = Run(study_of([]), ItemOptions(tiny=True), out=tmp_path)

    def during(name):
        with pytest.raises(UserError, match="Another process is working on"):
            second.answer()

    exists = Path.exists
    with pytest.MonkeyPatch.context() as patch:  # the second looks before the first has made its folder
        patch.setattr(Path, "exists", lambda self: self != second.folder and exists(self))
        run, ran = answered(tmp_path, during)
    assert ran == ["a", "b"]
    assert run.folder.is_dir()
    assert set(bytes_of(run)) >= {"report.html", "artifacts/a.txt"}


# ---------------------------------------------------------------------------------------------------- reading of runs


@pytest.fixture
def two(tmp_path):
    """A sound run and one to be damaged."""
    answered(tmp_path, items=("sound",))
    return tmp_path, answered(tmp_path, items=("a", "b"))[0]


_READ = [(file, how) for file in ("results/a.parquet", "run.json", manifest.NAME) for how in HOW]


#: without a manifest it is a run of an earlier version
@pytest.mark.parametrize(("file", "how"), [p for p in _READ if p != (manifest.NAME, "delete")])
def test_commands_that_read_go_on_without_a_damaged_run_and_name_it(two, capsys, file, how):
    out, broken = two
    break_(broken.folder / file, how)
    name = broken.folder.name
    states = {row["run"]: row["state"] for row in run_rows(out)}
    assert states[name].startswith("damaged (")
    assert sorted(states.values())[1] == "done"
    notes = []
    assert list(query("select distinct item from results where step != 'verify'", out, notes)["item"]) == ["sound"]
    assert name in notes[0]
    notes = []
    claim_rows(out, notes)
    assert name in notes[0]
    write_index(out)
    capsys.readouterr()
    for words in (["runs"], ["query", "select 1"], ["claims"]):
        assert command([*words, "--out", str(out)]) == 0
        said = capsys.readouterr()
        assert name in said.out + said.err
    for words in (["show"], ["report"]):
        assert command([*words, name, "--out", str(out)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    answered(out, items=("a", "b"))
    assert {row["state"] for row in run_rows(out)} == {"done"}


def test_a_page_that_is_drawn_again_is_no_damage(two):
    _, run = two
    run.run_folder.draw(Page("Another", "?", "!", (), (), (), {}))
    assert run.run_folder.damage() is None
    assert manifest.damage(run.folder) is None
    break_(run.folder / "results" / "a.parquet", "flip")
    run.run_folder.draw(Page("Another", "?", "!", (), (), (), {}))
    assert "a.parquet" in run.run_folder.damage()


def test_a_damaged_cache_of_the_checks_is_made_again(tmp_path, monkeypatch):
    from repscope.disk import cache_home

    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))
    run, _ = answered(tmp_path / "runs", verified=True)
    table = pd.read_parquet(run.folder / "results" / "verify.parquet")
    (kept,) = (cache_home() / "verified").iterdir()
    for name in ("table.parquet", "arrays.safetensors", manifest.NAME):
        for how in ("flip", "cut", "empty"):
            break_(kept / name, how)
            again, _ = answered(tmp_path / "runs", fresh=True, verified=True)
            assert manifest.damage(kept) is None
            pd.testing.assert_frame_equal(pd.read_parquet(again.folder / "results" / "verify.parquet"), table)


def test_threads_are_recorded(two):
    import torch

    _, run = two
    assert json.loads((run.folder / "run.json").read_text())["threads"] == torch.get_num_threads()
