"""Sets of checkpoints: what is written is read back, and what cannot be compared is refused in a sentence."""

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from repscope import manifest
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.stacked_weights import stack
from repscope.worlds.hans import classifier

SHAPE = classifier.Shape(9, 6, width=8, heads=2)


@pytest.fixture
def held(tmp_path):
    table = pd.DataFrame({"run": ["a", "b"], "group": ["rule", "lexical overlap"], "head_seed": [1, 2]})
    states = {s: stack(classifier.random_weights(SHAPE, 10 * s + i) for i in range(2)) for s in (0, 5)}
    return CheckpointSet.written(tmp_path / "set", SHAPE, table, states), states


def test_what_is_written_is_read_back(held):
    found, states = held
    assert found.runs == ("a", "b")
    assert len(found) == 4
    assert found.shape == SHAPE
    assert "2 runs, 4 checkpoints" in repr(found)
    last = CheckpointSet.open(found.folder).select(step="last")
    assert last.table["group"].tolist() == ["rule", "lexical overlap"]
    assert all(torch.equal(v, states[5][k]) for k, v in last.stacked().items())
    assert all(torch.equal(v, states[0][k][1]) for k, v in found.select(step=0, run="b").state(0).items())


def test_paths_one_by_one_and_folders_without_a_table(tmp_path):
    for name in ("checkpoint-10", "checkpoint-20"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(2)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    found = CheckpointSet.open(tmp_path)
    assert found.table["step"].tolist() == [10, 20]
    assert found.shape is None
    two = CheckpointSet.of([tmp_path / "checkpoint-10" / "model.safetensors", tmp_path / "checkpoint-20" / "model.safetensors"])
    assert two.runs == ("checkpoint-10/model", "checkpoint-20/model")


def rewritten(found, change):
    (found.folder / manifest.NAME).unlink()  # else it is damaged, which is told first
    table = pd.read_csv(found.folder / "checkpoints.csv")
    change(table).to_csv(found.folder / "checkpoints.csv", index=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.assign(path="../../etc/passwd"), "outside its folder"),
        (lambda t: t.assign(path="/etc/passwd"), "outside its folder"),
        (lambda t: t.drop(columns="step"), "lacks the column step"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "run a at step 0 twice"),
        (lambda t: t.assign(path=t["path"].str.replace("safetensors", "pt")), "There is no checkpoint"),
        (lambda t: t.assign(step=1.5), "not an integer"),
        (lambda t: t.iloc[:0], "not an integer|There are no checkpoints"),
    ],
)
def test_a_broken_table_is_told(held, change, says):
    rewritten(held[0], change)
    with pytest.raises(UserError, match=says):
        CheckpointSet.open(held[0].folder)


def test_weights_of_other_sizes_are_told(held):
    path = held[0].table["path"].iloc[3]
    state = held[0].state(3)
    save_file(state | {"head.weight": torch.zeros(3, 8)}, path)
    with pytest.raises(UserError, match=r"head.weight is \[3, 8\] in the one and \[2, 8\] in the other"):
        CheckpointSet.open(held[0].folder)
    save_file({k: v for k, v in state.items() if k != "head.bias"}, path)
    with pytest.raises(UserError, match=r"head.bias is absent in the one"):
        CheckpointSet.open(held[0].folder)


def test_pickles_damaged_files_and_the_like_are_refused(held, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="never reads pickled"):
        CheckpointSet.of([tmp_path / "a.pt"])
    (held[0].folder / manifest.NAME).unlink()  # else it is damaged, which is told first
    held[0].table["path"].iloc[0].write_bytes(b"12345678")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        CheckpointSet.open(held[0].folder)
    with pytest.raises(UserError, match="given twice"):
        CheckpointSet.of([tmp_path / "b", tmp_path / "b"])
    with pytest.raises(UserError, match="There is no folder"):
        CheckpointSet.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has neither"):
        CheckpointSet.open(tmp_path / "empty")
    for step in (1, 2, 3):
        (tmp_path / "series" / f"step-{step}").mkdir(parents=True)
        if step < 3:
            save_file({"w": torch.ones(2)}, tmp_path / "series" / f"step-{step}" / "model.safetensors")
    (tmp_path / "series" / "notes").mkdir()
    with pytest.raises(UserError, match="step-3 has no safetensors; complete this checkpoint"):
        CheckpointSet.open(tmp_path / "series")
    with pytest.raises(UserError, match="is one model and no set"):
        CheckpointSet.open(tmp_path / "series" / "step-1")
    (held[0].folder / "network.json").write_text('{"kind": "small transformer", "width": 7}')
    with pytest.raises(UserError, match="does not contain the sizes"):
        CheckpointSet.open(held[0].folder)


def test_a_column_or_a_value_that_is_not_there_is_told(held):
    with pytest.raises(UserError, match="column 'groups'"):
        held[0].select(groups="rule")
    with pytest.raises(UserError, match="No checkpoint has group='none'"):
        held[0].select(group="none")
