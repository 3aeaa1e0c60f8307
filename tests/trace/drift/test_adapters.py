"""LoRA folders as PEFT writes them: the tuned weights are those of PEFT's own merge, and what is not W + s B A is refused."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpointed import network, saved
from repscope.errors import UserError
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.weights import NORM, RANK, UNCHANGED32, weight_drift


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    for kind in ("llama", "gpt2", "bert"):
        saved(home, kind, [0])
    return home


def adapter(home, kind, to, **config):
    """A trained-looking adapter of a saved base, and the network that PEFT makes of it."""
    module = network(kind, 0)
    module.name_or_path = str(home / f"{kind}-0")
    config = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"]} | config
    torch.manual_seed(0)
    tuned = peft.get_peft_model(module, peft.LoraConfig(**config))
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in tuned.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=g))
    tuned.save_pretrained(to)
    return tuned


def read(pair):
    """The tuned weights that a pair gives, by name."""
    return {t.name: torch.cat([torch.tensor(y) for _, y, _ in t.parts()]).reshape(t.base.shape) for t in pair.tensors()}


def effective(tuned):
    """The weight of every module of PEFT's network, without merging: base and change."""
    found = {}
    for name, module in tuned.base_model.model.named_modules():
        if any(part in name for part in ("lora_", "base_layer", "original_module", "modules_to_save")):
            continue
        own = module.modules_to_save["default"] if hasattr(module, "modules_to_save") else module
        base = own.get_base_layer() if hasattr(own, "get_base_layer") else own
        for part, value in base.named_parameters(recurse=False):
            value = value.detach()
            if part == "weight" and hasattr(own, "get_delta_weight"):
                value = value + own.get_delta_weight("default").detach()
            found[f"{name}.{part}"] = value
    return found


CASES = {
    "plain": ("llama", {}),
    "rank stabilised": ("llama", {"use_rslora": True}),
    "patterns": ("llama", {"rank_pattern": {"layers.1.mlp.up_proj": 2, "q_proj": 4}, "alpha_pattern": {"up_proj": 9}}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "saved module": ("llama", {"modules_to_save": ["lm_head"]}),
    "saved norms": ("llama", {"modules_to_save": ["input_layernorm"]}),
    "biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "transposed and not": ("gpt2", {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "classifier": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_tuned_weights_are_those_of_peft(home, tmp_path, case):
    kind, config = CASES[case]
    tuned = adapter(home, kind, tmp_path / "lora", **config)
    expected, pair = effective(tuned), Pair.open(None, tmp_path / "lora")
    found = read(pair)
    changed = {n for n, v in expected.items() if n in found and not torch.equal(v, network(kind, 0).get_parameter(n))}
    assert len(changed) > 1
    missing = set(expected) - set(found)
    assert all(n in ("lm_head.weight",) and torch.equal(expected[n], expected[_embedding(kind)]) for n in missing)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    result = weight_drift(pair)
    sums = result.side["tensors"].set_index("tensor")
    assert set(sums.index[sums["change_squares"] > 0]) == changed
    for name in changed:
        before = network(kind, 0).get_parameter(name).detach()
        assert sums["change_squares"][name] == pytest.approx(float((expected[name] - before).double().square().sum()), rel=1e-4)


def _embedding(kind):
    return {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}[kind]


def test_the_spectrum_of_an_adapter_has_its_rank_and_is_that_of_the_merged_weights(home, tmp_path):
    tuned = adapter(home, "llama", tmp_path / "lora")
    lora = weight_drift(Pair.open(home / "llama-0", tmp_path / "lora"))
    merged = tuned.merge_and_unload()
    state = {n: v for n, v in merged.state_dict().items() if n != "lm_head.weight"}
    full = weight_drift(load_file(home / "llama-0" / "model.safetensors"), state)
    for metric in (NORM, RANK, UNCHANGED32):
        a, b = (r.select(metric=metric, condition="estimate").sort_values("row_id")["value"].to_numpy() for r in (lora, full))
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6), metric
    spectrum = lora.side["spectrum"]
    assert (spectrum[spectrum["singular_value"] > 0].groupby("tensor").size() == 3).all()


def test_an_adapter_on_another_base_changes_that_one(home, tmp_path):
    adapter(home, "llama", tmp_path / "lora")
    (other,) = saved(tmp_path, "llama", [3])
    changed = weight_drift(Pair.open(other, tmp_path / "lora"), spectra=False).side["tensors"].set_index("tensor")
    assert (changed["change_squares"] > 0).sum() == 4


def test_two_adapters_of_one_base_are_compared(home, tmp_path):
    for name, alpha in (("one", 5), ("two", 10)):
        adapter(home, "llama", tmp_path / name, lora_alpha=alpha)
    one, two, between = (
        weight_drift(Pair.open(a, b), spectra=False).side["tensors"]["change_squares"].sum()
        for a, b in ((None, tmp_path / "one"), (None, tmp_path / "two"), (tmp_path / "one", tmp_path / "two"))
    )
    assert two == pytest.approx(4 * one, rel=1e-5)
    assert between == pytest.approx(one, rel=1e-4)


def rewritten(folder, to, config=None, weights=None):
    shutil.copytree(folder, to)
    if config is not None:
        file = to / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if weights is not None:
        state = load_file(to / "adapter_model.safetensors")
        weights(state)
        save_file(state, to / "adapter_model.safetensors")
    return to


def test_what_is_not_such_an_adapter_is_refused_in_a_sentence(home, tmp_path):
    adapter(home, "llama", tmp_path / "lora")
    q = "base_model.model.model.layers.0.self_attn.q_proj"

    def unknown(state):
        state["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(3, 16)
        state["base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight"] = torch.zeros(16, 3)

    def stray(state):
        state[f"{q}.lora_C.weight"] = torch.zeros(3, 3)

    def half(state):
        del state[f"{q}.lora_B.weight"]

    def thin(state):
        state[f"{q}.lora_A.weight"] = torch.zeros(2, 16)

    def wide(state):
        state[f"{q}.lora_A.weight"] = torch.zeros(3, 17)

    cases = [
        ({"peft_type": "IA3"}, None, "an adapter of type IA3"),
        ({"use_dora": True}, None, "a LoRA adapter with use_dora"),
        ({"layer_replication": [[0, 1]]}, None, "with layer_replication"),
        ({"trainable_token_indices": [1]}, None, "with trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "init_lora_weights='pissa_niter_4', which changed its base"),
        ({"r": 0}, None, "no positive number"),
        ({"r": 4}, None, "factors of rank 3 and 3"),
        ({"rank_pattern": {"(": 2}}, None, "no regular expression"),
        ({"base_model_name_or_path": ""}, None, "names no base model"),
        ({"base_model_name_or_path": str(tmp_path / "gone")}, None, "which cannot be opened"),
        (None, unknown, "changes model.layers.9.self_attn.q_proj.weight, which its base"),
        (None, stray, "no tensor of"),
        (None, half, "has no lora_B for model.layers.0.self_attn.q_proj"),
        (None, thin, "factors of rank 2 and 3"),
        (None, wide, "by a matrix of 16 × 17, and it is 16 × 16"),
    ]
    for i, (config, weights, says) in enumerate(cases):
        folder = rewritten(tmp_path / "lora", tmp_path / f"case-{i}", config, weights)
        with pytest.raises(UserError) as error:
            Pair.open(None, folder)
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    bare = rewritten(tmp_path / "lora", tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    (bare / "adapter_model.bin").write_bytes(b"")
    for base, folder, says in (
        (home / "llama-0", bare, "pickled weights"),
        (home / "llama-0" / "model.safetensors", tmp_path / "lora", "has no config.json for it"),
        (home / "gpt2-0", tmp_path / "lora", "is this adapter of another base?"),
    ):
        with pytest.raises(UserError, match=None) as error:
            Pair.open(base, folder)
        assert says in str(error.value)
