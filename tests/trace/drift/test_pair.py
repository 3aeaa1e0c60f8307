"""Pairs of checkpoints: what is opened, what is refused in one sentence, and how much memory it takes."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpointed import network, saved, tokenizer
from repscope.errors import UserError
from repscope.trace.drift.pair import Pair, check_tokenizers
from repscope.trace.drift.weights import ALL, NORM, UNCHANGED32, measured, weight_drift


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("pairs")
    saved(home, "llama", [0, 1])
    saved(home, "gpt2", [0, 1])
    return home


def rewritten(folder, to, change):
    """A copy of a folder with other weights."""
    shutil.copytree(folder, to)
    file = to / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return to


def total(pair, metric=NORM):
    result = weight_drift(pair, spectra=False)
    return float(result.select(metric=metric, item=ALL)["value"].iloc[0])


def test_folders_files_and_mappings_give_the_same_numbers(home):
    a, b = home / "llama-0", home / "llama-1"
    states = [load_file(f / "model.safetensors") for f in (a, b)]
    distance = sum(float((states[1][n] - v).double().square().sum()) for n, v in states[0].items()) ** 0.5
    norm = sum(float(v.double().square().sum()) for v in states[0].values()) ** 0.5
    for pair in (Pair.open(a, b), Pair.open(a / "model.safetensors", b / "model.safetensors"), Pair.of(*states)):
        assert total(pair) == pytest.approx(distance / norm, rel=1e-6)
        assert {t.name for t in pair.tensors()} == set(states[0])


def test_shards_are_read_as_one(home, tmp_path):
    shards = tmp_path / "shards"
    network("llama", 1).save_pretrained(shards, max_shard_size="4KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert total(Pair.open(home / "llama-1", shards)) == 0


def test_the_same_path_twice_is_identical(home):
    pair = Pair.open(home / "llama-0", home / "llama-0")
    assert total(pair) == 0
    assert total(pair, UNCHANGED32) == 1
    check_tokenizers(pair)


def test_copies_of_tied_weights_and_prefixes_are_no_difference(home, tmp_path):
    def untie(state):
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()

    def strip(state):
        for name in list(state):
            state[name.removeprefix("transformer.")] = state.pop(name)

    def computed(state):
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)

    copy = rewritten(home / "llama-0", tmp_path / "copy", untie)
    assert total(Pair.open(home / "llama-0", copy)) == 0
    assert total(Pair.open(copy, home / "llama-0")) == 0
    for name, change in (("stripped", strip), ("masks", computed)):
        other = rewritten(home / "gpt2-0", tmp_path / name, change)
        assert total(Pair.open(home / "gpt2-0", other)) == 0
        assert total(Pair.open(other, home / "gpt2-1")) == pytest.approx(
            total(Pair.open(home / "gpt2-0", home / "gpt2-1")), rel=1e-6
        )


def test_an_untied_head_of_its_own_is_no_copy(home, tmp_path):
    def untie(state):
        state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1

    other = rewritten(home / "llama-0", tmp_path / "untied", untie)
    with pytest.raises(UserError, match=r"llama-0 lacks lm_head.weight, which .*untied has"):
        Pair.open(home / "llama-0", other)


def refused(base, tuned, *says):
    def compare():
        pair = Pair.open(base, tuned)
        check_tokenizers(pair)
        list(measured(pair))

    with pytest.raises(UserError) as error:
        compare()
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for part in says:
        assert part in sentence


def test_what_cannot_be_compared_is_refused_in_a_sentence(home, tmp_path):
    base = home / "llama-0"
    refused(base, home / "gpt2-0", "is a llama and", "a gpt2; give two checkpoints of one architecture")
    refused(base / "model.safetensors", home / "gpt2-0" / "model.safetensors", "lacks")

    def drop(state):
        del state["model.layers.1.mlp.up_proj.weight"]

    def widen(state):
        state["model.norm.weight"] = torch.ones(17)

    def spoil(state):
        state["model.norm.weight"][0] = float("nan")

    def pack(state):
        state["model.layers.0.mlp.up_proj.weight"] = torch.ones(24, 16, dtype=torch.int8)

    def small(state):
        state["model.layers.0.mlp.up_proj.weight"] = torch.ones(24, 16).to(torch.float8_e4m3fn)

    refused(base, rewritten(base, tmp_path / "dropped", drop), "lacks model.layers.1.mlp.up_proj.weight", "(1 such tensors in all)")
    refused(base, rewritten(base, tmp_path / "widened", widen), "model.norm.weight is 16 in", "and 17 in")
    refused(base, rewritten(base, tmp_path / "spoilt", spoil), "model.norm.weight of", "values that are not finite")
    refused(base, rewritten(base, tmp_path / "float8", small), "F8_E4M3", "mean nothing without their scales")
    packed = [rewritten(base, tmp_path / f"packed-{i}", pack) for i in range(2)]
    refused(base, packed[0], "whole numbers that differ", "quantised")
    assert total(Pair.open(*packed)) == 0, "equal whole numbers are left out"
    refused(base, tmp_path / "nowhere", "There is no folder")
    refused(base, tmp_path / "nowhere.safetensors", "There is no checkpoint")
    (tmp_path / "pickled").mkdir()
    shutil.copy(base / "config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    refused(base, tmp_path / "pickled", "never reads pickled weights")
    refused(None, base, "is no adapter, so it names no base")


def test_truncated_and_damaged_files_are_refused(home, tmp_path):
    base = home / "llama-0"
    whole = (base / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    header[first]["shape"][0] += 1
    wrong = json.dumps(header).encode()
    damages = {
        "cut": (whole[:-100], "is cut short"),
        "head": (whole[:40], "is cut short"),
        "short": (b"\x00\x01", "is not a safetensors file"),
        "other": (b"PK\x03\x04" + b"\x00" * 100, "safetensors"),
        "shape": (len(wrong).to_bytes(8, "little") + wrong + whole[8 + length :], "damaged safetensors header"),
    }
    for name, (content, says) in damages.items():
        folder = tmp_path / name
        shutil.copytree(base, folder)
        (folder / "model.safetensors").write_bytes(content)
        refused(base, folder, says)


def test_a_file_that_shrinks_while_it_is_read_is_refused(home, tmp_path):
    shutil.copytree(home / "llama-0", tmp_path / "shrinking")
    file = tmp_path / "shrinking" / "model.safetensors"
    pair = Pair.open(home / "llama-0", tmp_path / "shrinking")
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(UserError, match="is cut short"):
        list(measured(pair))


def test_other_tokenizers_are_refused_and_a_missing_one_is_not(home, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(home / "llama-1", other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"the":4', '"The":4').replace('"the": 4', '"The": 4'))
    words = tokenizer("llama")
    assert words("the")["input_ids"] != words("The")["input_ids"]
    reversed_ = json.loads(file.read_text())
    vocabulary = reversed_["model"]["vocab"]
    reversed_["model"]["vocab"] = {w: len(vocabulary) - 1 - i for w, i in vocabulary.items()}
    file.write_text(json.dumps(reversed_))
    refused(home / "llama-0", other, "tokenize texts differently")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    check_tokenizers(Pair.open(home / "llama-0", other))


def test_settings_that_change_the_function_are_noted(home, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(home / "llama-1", other)
    config = json.loads((other / "config.json").read_text())
    config["num_attention_heads"] = 4
    (other / "config.json").write_text(json.dumps(config))
    (note,) = Pair.open(home / "llama-0", other).notes
    assert note.startswith("num_attention_heads is 2 in the base's config.json and 4")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_is_below_twice_the_largest_tensor(tmp_path):
    """Resident pages, those of files too, however large a tensor is."""
    for name, seed in (("a", 0), ("b", 1)):
        g = torch.Generator().manual_seed(seed)
        sizes = {"big.weight": (8000, 1024), **{f"layers.{i}.weight": (512, 1024) for i in range(4)}}
        save_file({n: torch.rand(s, generator=g) for n, s in sizes.items()}, tmp_path / f"{name}.safetensors")
    pair = Pair.open(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    before, most, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    weight_drift(pair, spectra=False)
    done.set()
    thread.join()
    largest = 8000 * 1024 * 4
    assert 0 < most[0] - before < 0.5 * largest, "parts of fixed size, whatever the tensor"
