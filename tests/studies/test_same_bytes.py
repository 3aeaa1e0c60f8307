"""Equal commands give equal bytes, whatever Python's hash order is. `benchmarks/same_bytes.py` does it for all studies."""

import os
import subprocess
import sys

import pytest

from repscope.studies.relations.split import _most_common


def published(folder):
    found = [p for part in ("results", "artifacts") for p in (folder / part).rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_of_several_most_common_objects_the_first_is_taken():
    assert _most_common(["b", "a", "c", "a", "b"]) == "b"
    assert _most_common(["c", "a", "a"]) == "a"


@pytest.mark.parametrize("name", ["relations"])
def test_tables_and_artifacts_are_the_same_under_another_hash_seed(name, tmp_path, tiny_runs):
    here = published(tiny_runs.copied(name, tmp_path / "here").folder)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-m", "repscope", "study", name, "--tiny", "--out", str(tmp_path / "there")]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
    (there,) = (p for p in (tmp_path / "there").iterdir() if p.is_dir())
    assert published(there) == here
