"""The chaos harness in its short form (`make chaos` is the whole): nothing is silent, nothing is raw."""

import pytest

from chaos import kills, places, reading
from chaos.commands import QUICK, prepare
from chaos.formats import all_formats


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos") / "inputs"
    prepare(folder)
    return folder


def test_mutated_inputs_are_read_or_refused(processes):
    found = reading.run(processes, 6, [f for f in all_formats() if not f.torch])
    assert not found.bad, "\n".join(found.bad)
    assert all(count["refused"] or count["read"] for count in found.counts.values())


def test_a_killed_command_ends_as_if_it_had_not_been(processes, inputs, tmp_path):
    found = kills.run(processes, [QUICK[0], QUICK[2]], 5, inputs, tmp_path)
    assert found.cases == 10
    assert not found.bad, "\n".join(found.bad)


def test_disks_that_fail_are_one_sentence_and_nothing_is_lost(processes, inputs, tmp_path):
    found = places.run(processes, [QUICK[2]], 3, inputs, tmp_path)
    assert not found.bad, "\n".join(found.bad)
    assert any(count["refused"] for count in found.counts.values()), "no trap was sprung"


def test_impossible_folders_are_one_sentence(processes, inputs, tmp_path):
    found = places.folders(processes, inputs, tmp_path, [QUICK[0]])
    assert not found.bad, "\n".join(found.bad)
