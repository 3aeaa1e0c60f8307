"""The command line on tables of the user's: the options, and what is told on standard error and in `--json`."""

import json

import pytest

from repscope.cli import run


def told(capsys):
    out, err = capsys.readouterr()
    return json.loads(out), [line.removeprefix("note: ") for line in err.splitlines() if line.startswith("note: ")]


@pytest.fixture
def cities(tmp_path):
    path = tmp_path / "cities.csv"
    sizes = [f"{i},5" for i in range(40)] + ["inf", "NA"]
    rows = [f"{i};City {i};{'north' if i % 2 else 'south'};{size}" for i, size in enumerate(sizes)]
    path.write_text("\n".join([";name;side;size", *rows, "42;City 3;north;3,5", "43;;south;1,5"]))
    return path


def test_what_a_study_leaves_out_is_told(cities, tmp_path, capsys):
    asked = ["study", "entities", "--tiny", "--entities", str(cities), "--out", str(tmp_path / "runs"), "--json"]
    assert run(asked) == 0
    said, notes = told(capsys)
    assert said["notes"] == notes
    told_of = " ".join(notes)
    for part in (
        "separated by semicolons",
        "Column 1 of cities.csv has no name",
        "1 row of 44 dropped for an empty 'name'",
        "1 row of 44 dropped as copies",
        "Column 'size' has 'inf' in line 42, which is no finite number",
        "It is left out",
    ):
        assert part in told_of
    assert run([*asked, "--na", "inf", "NA", "--decimal", ","]) == 0
    said, notes = told(capsys)
    assert any("1 'inf', 1 'NA'" in note for note in notes)
    assert not any("It is left out" in note for note in notes)
    assert run([*asked[:-1], "--attribute", "size"]) == 2
    error = capsys.readouterr().err.strip()
    assert "'size' has 'inf' in line 42" in error
    assert len(error.splitlines()) == 1
    assert run(asked[:-1]) == 0
    out, err = capsys.readouterr()
    assert "note: " not in out
    assert "note: The columns of cities.csv are separated by semicolons." in err.splitlines()


def test_a_set_that_came_out_smaller_is_told(tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    rows = [f'"The soup {i} was good.","The soup {i} was bad.",g{i}' for i in range(40)]
    path.write_text("\n".join(["positive,negative,group", *rows, rows[0], '"a","",g']))
    asked = ["study", "contrast", "--tiny", "--contrast", str(path), "--out", str(tmp_path / "runs"), "--json"]
    assert run(asked) == 0
    said, notes = told(capsys)
    assert said["notes"] == notes
    for part in (
        "1 of 42 pairs are empty",
        "1 of 42 pairs are copies",
        "texts per pole were drawn at random",
        "choices were drawn",
    ):
        assert any(part in note for note in notes), (part, notes)


@pytest.mark.parametrize(
    "command",
    [
        ["study", "entities"],
        ["study", "relations"],
        ["study", "contrast"],
        ["study", "discover"],
        ["study", "paths"],
        ["compare"],
        ["connect"],
        ["steer"],
    ],
)
def test_every_command_that_reads_a_table_takes_the_same_options(command, capsys):
    assert run([*command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--decimal", "--na", "--quote", "--no-quote"):
        assert option in text


def test_a_wrong_decimal_mark_is_one_sentence(cities, capsys):
    assert run(["study", "entities", "--tiny", "--entities", str(cities), "--decimal", ";"]) == 2
    error = capsys.readouterr().err.strip()
    assert "decimal" in error
    assert len(error.splitlines()) == 1
