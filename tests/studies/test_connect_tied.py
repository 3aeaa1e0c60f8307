"""Ends of a line that store tied, duplicated or derived tensors: the same networks, so the same line."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpointed import TEXTS, saved
from repscope.cli import run
from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.checkpoint_files import Weights
from repscope.models.loading.sources import with_head
from repscope.trace.streaming import check_slots, slots_of, stream_losses


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def home(tmp_path):
    saved(tmp_path, "llama", [0, 1])  # tied
    (tmp_path / "lm.txt").write_text("\n".join(TEXTS))
    return tmp_path


def changed(home, source, name, change):
    shutil.copytree(home / source, home / name)
    state = load_file(home / name / "model.safetensors")
    change(state)
    save_file({k: v.clone() for k, v in state.items()}, home / name / "model.safetensors", {"format": "pt"})
    return home / name


def copied(state):
    state["lm_head.weight"] = state["model.embed_tokens.weight"]


def older(state):
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    state["model.rotary_emb.inv_freq"] = torch.ones(4)


def both(state):
    copied(state)
    older(state)


def differs(state):
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 0.5


def losses(home, a, b, capsys):
    words = ["connect", str(home / a), str(home / b), "--data", str(home / "lm.txt"), "--points", "5", "--out", str(home / "out")]
    code = run([*words, "--json"])
    said = capsys.readouterr()
    return json.loads(said.out)["rows"] if code == 0 else said.err


@pytest.mark.parametrize(("left", "right"), [(None, copied), (copied, None), (copied, copied), (None, older), (older, both)])
def test_stored_copies_and_derived_tensors_change_no_line(home, capsys, left, right):
    ends = ["llama-0", "llama-1"]
    want = losses(home, *ends, capsys)
    for i, change in enumerate((left, right)):
        if change:
            changed(home, ends[i], f"changed-{i}", change)
            ends[i] = f"changed-{i}"
    got = losses(home, *ends, capsys)
    assert len(got) == len(want) == 2
    for row, expected in zip(got, want):
        assert {**row, "pair": ""} == {**expected, "pair": ""}


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [
        (None, differs, "lm_head.weight is [22, 16] in the one and absent in the other, and no copy of another tensor there"),
        (differs, None, "lm_head.weight is absent in the one and [22, 16] in the other, and no copy of another tensor there"),
        (copied, differs, "lm_head.weight differs from model.embed_tokens.weight in"),
    ],
)
def test_an_output_matrix_that_differs_in_one_end_is_refused(home, capsys, left, right, says):
    ends = ["llama-0", "llama-1"]
    for i, change in enumerate((left, right)):
        if change:
            changed(home, ends[i], f"changed-{i}", change)
            ends[i] = f"changed-{i}"
    error = losses(home, *ends, capsys)
    assert says in error.splitlines()[-1]


def test_output_matrices_that_differ_in_both_ends_are_interpolated(home):
    """Each point is the network with both matrices interpolated, by transformers' own module."""
    ends = [changed(home, f"llama-{i}", f"untied-{i}", differs) for i in (0, 1)]
    module = with_head(ends[0])
    row = torch.tensor([[4, 6, 8, 10]])

    def evaluate(net):
        return {"loss": float(net(input_ids=row).logits.square().sum())}

    held = [Weights(end) for end in ends]
    check_slots(module, held[0])
    found = stream_losses(lambda: module, held, evaluate, points=3)
    middle = with_head(ends[0])
    states = [load_file(end / "model.safetensors") for end in ends]
    with torch.no_grad():
        for name, value in middle.named_parameters(remove_duplicate=False):
            value.copy_((states[0][name] + states[1][name]) / 2)
        want = evaluate(middle)["loss"]
    assert middle.lm_head.weight.data_ptr() != middle.model.embed_tokens.weight.data_ptr()
    np.testing.assert_allclose(found.losses["loss"][0, 1], want, rtol=1e-5)


def test_distances_count_tied_weights_once(home, capsys):
    a, b = (load_file(home / f"llama-{i}" / "model.safetensors") for i in (0, 1))
    want = float(np.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a)))
    from repscope.studies.connect.options import ConnectOptions
    from repscope.studies.connect.task import connect_task

    for name in ("llama-0", "llama-1"):
        changed(home, name, f"copied-{name}", copied)
    told = connect_task(
        ConnectOptions(models=(str(home / "copied-llama-0"), str(home / "copied-llama-1")), data=str(home / "lm.txt"))
    )
    np.testing.assert_allclose(told.distances(np.array([[0, 1]])), want, rtol=1e-5)


def test_a_set_passes_over_copies_and_derived_tensors(home):
    changed(home, "llama-1", "older", both)
    plain = CheckpointSet.of([home / "llama-0", home / "llama-1"])
    held = CheckpointSet.of([home / "llama-0", home / "older"])
    assert held.sizes == plain.sizes
    assert set(held.state(1)) == set(plain.state(1))
    assert held.fingerprint() == plain.fingerprint()
    changed(home, "llama-1", "other", differs)
    with pytest.raises(UserError, match=r"are not networks of one kind: lm_head.weight is \[22, 16\]"):
        CheckpointSet.of([home / "llama-0", home / "other"])


def test_slots_refuse_tied_weights_that_differ(home):
    module = with_head(home / "llama-0")
    state = load_file(home / "llama-0" / "model.safetensors")
    copied(state)
    assert "lm_head.weight" not in slots_of(module, state)
    differs(state)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        slots_of(module, state)
