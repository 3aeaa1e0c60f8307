"""llama.cpp's rule for control vectors, told again from its description and not by calling ours."""

import json
import re
import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.worlds.tiny import tiny

WIDTH, BLOCKS = 32, 4
PROMPTS = ["The place called San Diego", "A"]


def made(*blocks, seed=0, **rest):
    rng = np.random.default_rng(seed)
    held = [Direction.of(rng.normal(size=WIDTH), f"resid_post.{b}", f"d{b}", **rest) for b in blocks]
    return DirectionSet.of(*held, model="f00", note="today", architecture="llama", blocks=BLOCKS)


def llama_cpp(path, n_layer):
    """What llama.cpp adds to the output of each block: {block: vector}, or None where it refuses the file."""
    buffer, width = np.zeros(0, np.float32), None
    for tensor in gguf.GGUFReader(path).tensors:
        number = re.fullmatch(r"direction\.(-?\d+)", tensor.name)
        if number is None or int(number[1]) <= 0:
            return None
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32 or len(tensor.shape) != 1:
            return None
        width = width or int(tensor.shape[0])
        if width != tensor.shape[0]:
            return None
        start = width * (int(number[1]) - 1)  # on load
        if len(buffer) < start + width:
            buffer = np.concatenate([buffer, np.zeros(start + width - len(buffer), np.float32)])
        buffer[start : start + width] += tensor.data
    added = {}
    for il in range(1, n_layer):  # on use: block 0 gets nothing
        start = width * (il - 1)
        if start + width <= len(buffer):
            added[il] = buffer[start : start + width].copy()
    return added


def test_llama_cpp_adds_what_an_edit_adds(tmp_path):
    lm, held = tiny(), made(1, 3)
    added = llama_cpp(held.to_gguf(tmp_path / "v.gguf"), BLOCKS)
    with lm.edit(*[Edit.add(d.site, d) for d in held]):
        expected = lm.logits(PROMPTS)
    assert np.abs(np.asarray(expected) - np.asarray(lm.logits(PROMPTS))).max() > 0.01

    def adding(vector):
        return lambda _m, _i, out: (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector

    layers = lm.model.model.layers
    hooks = [layers[n].register_forward_hook(adding(torch.from_numpy(v))) for n, v in added.items()]
    try:
        for prompt, row in zip(PROMPTS, np.asarray(expected)):
            ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
            with torch.no_grad():
                plain = lm.model(ids).logits[0, -1].numpy()
            np.testing.assert_allclose(plain, row, atol=2e-6)
    finally:
        for hook in hooks:
            hook.remove()
    assert {n: v.tobytes() for n, v in added.items() if v.any()} == {n: d.weights.tobytes() for n, d in zip((1, 3), held)}


def tensors(path):
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def test_ours_comes_back_with_its_card(tmp_path):
    held = made(3, 1, norm=40.0, works=(1.0, 9.0), does={"effect": 0.5}, found_by="DCT", trained_on="prompts")
    for unit in (False, True):
        path = held.to_gguf(tmp_path / f"{unit}.gguf", unit=unit)
        back = DirectionSet.load(path)
        assert (back.model, back.note, back.architecture, back.blocks) == ("f00", "today", "llama", BLOCKS)
        assert back.names == ("d1", "d3")  # in the order of blocks
        for d in back:
            was = held[d.name]
            assert d.card() == was.card()
            np.testing.assert_allclose(d.weights, was.weights, rtol=1e-6)
            assert unit or d.weights.tobytes() == was.weights.tobytes()
        again = back.to_gguf(tmp_path / "again.gguf", unit=unit)
        assert tensors(again) == tensors(path)
    unit = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "True.gguf").tensors}
    assert all(np.linalg.norm(v) == pytest.approx(1, abs=1e-6) for v in unit.values())
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.model_hint"].contents() == "llama"
    assert fields["controlvector.layer_count"].contents() == 2


def written(path, tensors, architecture="controlvector", **keys):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for key, value in keys.items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key.replace("__", "."), value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_repengs_layout_is_read_and_written_again_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    rows = {f"direction.{n}": rng.normal(size=16).astype(np.float32) for n in (31, 2, 17)}
    rows = {name: row / np.linalg.norm(row) for name, row in rows.items()}
    back = DirectionSet.load(written(tmp_path / "repeng.gguf", rows))
    assert [d.site for d in back] == ["resid_post.2", "resid_post.17", "resid_post.31"]
    assert back.architecture == "mistral"
    assert "repeng.gguf" in back.note
    assert tensors(back.to_gguf(tmp_path / "ours.gguf")) == {name: row.tobytes() for name, row in rows.items()}


ROW = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"direction.0": ROW, "direction.1": ROW}, r"direction\.0, which llama\.cpp refuses"),
        ({"direction.x": ROW}, "takes direction.N alone"),
        ({"direction.1.2": ROW}, "takes direction.N alone"),
        ({"direction.-1": ROW}, "takes direction.N alone"),
        ({"direction.01": ROW}, "no block's"),
        ({"direction.1": ROW.astype(np.float16)}, "F16"),
        ({"direction.1": np.ones((2, 2), np.float32)}, "2 dimensions"),
        ({"direction.1": ROW, "direction.2": ROW[:3]}, "3 and 4 features"),
        ({}, "no direction"),
        ({"direction.1": 0 * ROW}, "finite norm above zero"),
        ({"direction.1": np.nan * ROW}, "finite norm above zero"),
        ({"direction.999999": ROW}, "no block's"),
    ],
    ids=lambda case: str(list(case)) if isinstance(case, dict) else "",
)
def test_what_llama_cpp_refuses_is_refused(tmp_path, held, words):
    path = written(tmp_path / "v.gguf", held)
    if "no block's" not in words and "above zero" not in words and held:
        assert llama_cpp(path, BLOCKS) is None
    with pytest.raises(UserError, match=words):
        DirectionSet.load(path)


def test_damaged_and_hostile_files_end_in_one_sentence(tmp_path):
    good = made(1).to_gguf(tmp_path / "good.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    for cut in range(4, len(good) - 1, 37):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match="cannot be read as a control vector"):
            DirectionSet.load(path)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    for hostile in (
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + b"\0" * 3 + b"\3" * 20,
        head + struct.pack("<IIQ", 9, 0, 1 << 60),
        head + struct.pack("<IIQ", 9, 9, 4),
        head + struct.pack("<IQ", 8, 1 << 60),
    ):
        path.write_bytes(hostile)
        with pytest.raises(UserError, match="cannot be read as a control vector"):
            DirectionSet.load(path)
    rng = np.random.default_rng(0)
    for _ in range(200):  # whatever a byte becomes, it is read or refused
        wrong = bytearray(good)
        wrong[rng.integers(4, len(good))] = rng.integers(256)
        path.write_bytes(wrong)
        with suppress(UserError):
            DirectionSet.load(path)


FACTS = {"model": "", "note": "", "architecture": "", "directions": "[]"}


@pytest.mark.parametrize(
    "card",
    [
        "{",
        "[]",
        "{}",
        json.dumps(FACTS),
        json.dumps(FACTS | {"model": 1}),
        json.dumps(FACTS | {"directions": json.dumps([{"site": "resid_post.1", "name": "x", "scale": 9.0}])}),
        json.dumps(FACTS | {"directions": json.dumps([{"site": "resid_post.2", "name": "x", "scale": 2.0}])}),
    ],
)
def test_a_header_that_does_not_tell_of_these_tensors_is_refused(tmp_path, card):
    path = written(tmp_path / "v.gguf", {"direction.1": ROW}, repscope__directions=card)
    with pytest.raises(UserError, match="cannot be read as a control vector"):
        DirectionSet.load(path)
    with pytest.raises(UserError, match="says that it is 'llama'"):
        DirectionSet.load(written(tmp_path / "m.gguf", {"direction.1": ROW}, "llama"))


def test_what_a_control_vector_cannot_say_is_not_written(tmp_path):
    def at(site, name="a", width=4, **rest):
        return Direction.of(np.ones(width), site, name, **rest)

    for wrong, words in (
        ([at("resid_post.0")], "refuses a control vector for block 0"),
        ([at("resid_pre.3")], r"resid_post\.2"),
        ([at("mlp_out.3")], "alone"),
        ([at("resid_post")], "alone"),
        ([at("resid_post.-1")], "alone"),
        ([], "empty"),
        ([at("resid_post.3"), at("resid_post.3", "b")], "choose one"),
        ([at("resid_post.3", tokens="last")], "at every token"),
        ([at("resid_post.3"), at("resid_post.2", "b", 5)], "one width"),
    ):
        with pytest.raises(UserError, match=words):
            DirectionSet.of(*wrong).to_gguf(tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())
