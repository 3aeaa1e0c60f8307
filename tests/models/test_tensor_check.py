"""Weights of a folder that the network does not take, or takes twice."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from repscope.errors import UserError
from repscope.models.loading.sources import load_parts
from repscope.models.loading.tensor_check import derived

W = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
IDS = torch.tensor([[5, 9, 40, 7]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))


def saved(tmp_path, kind="LlamaForCausalLM", **fields):
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    model = made(made.config_class(**{**W, **fields})).eval()
    model.save_pretrained(tmp_path / "net")
    return tmp_path / "net", model


def changed(folder, change, **config):
    """The folder with other tensors in its file, and other fields in its configuration."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | config))
    return folder


def loaded(folder):
    return load_parts(folder, tokenizer=object())


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


LAYER = "model.layers.1.self_attn"


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({f"{LAYER}.k_proj.bias": (32,)}, r"holds weights that a LlamaForCausalLM does not take, model.*k_proj.bias first"),
        ({f"{LAYER}.q_proj.lora_A.default.weight": (4, 32)}, "an adapter beside its weights.*lora_A.*merge_and_unload"),
        ({f"{LAYER}.q_proj.lora_B.weight": (32, 4)}, "an adapter beside its weights"),
        ({f"base_model.model.{LAYER}.q_proj.lora_A.weight": (4, 32)}, "an adapter beside its weights"),
        ({f"{LAYER}.q_norm.weight": (8,)}, "does not take, .*q_norm.weight first"),
        ({"model.layers.2.mlp.up_proj.weight": (48, 32)}, "does not take, model.layers.2.mlp.up_proj.weight first"),
        ({"score.weight": (2, 32)}, "does not take, score.weight"),
        ({f"{LAYER}.q_proj.weight_scale": (1,)}, "does not take, .*weight_scale"),
        ({f"{LAYER}.attn.bias": (32,)}, r"does not take, .*attn\.bias"),
        ({"prompt_embeddings": (4, 32)}, "an adapter beside"),
    ],
)
def test_weights_that_nothing_takes_are_refused_by_name(tmp_path, added, says):
    folder, _ = saved(tmp_path)
    changed(folder, lambda state: state.update({name: torch.randn(shape) for name, shape in added.items()}))
    with pytest.raises(UserError, match=says):
        loaded(folder)


def test_an_unmerged_layer_is_told_as_an_adapter_not_as_a_missing_weight(tmp_path):
    folder, _ = saved(tmp_path)

    def wrap(state):
        state[f"{LAYER}.q_proj.base_layer.weight"] = state.pop(f"{LAYER}.q_proj.weight")

    with pytest.raises(UserError, match="an adapter beside its weights"):
        loaded(changed(folder, wrap))


def test_a_shard_with_weights_that_nothing_takes(tmp_path):
    folder, model = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    save_file({"more.weight": torch.ones(3)}, folder / "more.safetensors", {"format": "pt"})
    index["weight_map"]["more.weight"] = "more.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"does not take, more.weight first \(1 in all\)"):
        loaded(folder)


@pytest.mark.parametrize(
    ("kind", "fields", "added"),
    [
        ("LlamaForCausalLM", {}, {f"{LAYER}.rotary_emb.inv_freq": (4,), "model.rotary_emb.inv_freq": (4,)}),
        ("LlamaForCausalLM", {}, {f"{LAYER}.rotary_emb.cos_cached": (1, 1, 64, 8), "model.position_ids": (1, 64)}),
        (
            "GPT2LMHeadModel",
            {"n_embd": 32, "n_head": 4, "n_layer": 2},
            {"transformer.h.0.attn.bias": (1, 1, 64, 64), "transformer.h.0.attn.masked_bias": ()},
        ),
        (
            "GPTNeoXForCausalLM",
            {},
            {"gpt_neox.layers.0.attention.bias": (1, 1, 64, 64), "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (1,)},
        ),
        (
            "BertForMaskedLM",
            {},
            {"bert.pooler.dense.weight": (32, 32), "cls.seq_relationship.weight": (2, 32), "bert.embeddings.position_ids": (1, 64)},
        ),
        ("BertModel", {}, {"embeddings.position_ids": (1, 64)}),
    ],
)
def test_derived_tensors_and_other_heads_may_be_left_over(tmp_path, kind, fields, added):
    folder, model = saved(tmp_path, kind, **fields)
    before = loaded(folder)[2].fingerprint
    changed(folder, lambda state: state.update({name: torch.ones(shape) for name, shape in added.items()}))
    again, _, source = loaded(folder)
    assert torch.equal(logits(again), logits(model))
    assert source.fingerprint == before, "the fingerprint covers what was taken"


def test_a_head_of_another_task_is_left_over_where_the_network_is_read_without_one(tmp_path):
    folder, model = saved(tmp_path, "LlamaForSequenceClassification", pad_token_id=0)
    again, _, _ = loaded(folder)
    assert torch.equal(logits(again), logits(model.model))
    changed(folder, lambda state: state.update({f"{LAYER}.q_proj.bias": torch.ones(32)}))
    with pytest.raises(UserError, match=r"a LlamaModel does not take, .*q_proj\.bias"):
        loaded(folder)


def test_a_stored_copy_of_tied_weights_changes_nothing(tmp_path):
    folder, model = saved(tmp_path, tie_word_embeddings=True)
    before = loaded(folder)[2].fingerprint
    changed(folder, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    again, _, source = loaded(folder)
    assert torch.equal(logits(again), logits(model))
    assert source.fingerprint == before


def test_an_output_matrix_that_differs_from_the_embedding_is_used_or_refused(tmp_path):
    folder, _ = saved(tmp_path, tie_word_embeddings=True)
    head = torch.randn(64, 32)
    changed(folder, lambda state: state.update({"lm_head.weight": head}))
    again, _, source = loaded(folder)
    assert torch.equal(again.lm_head.weight, head)
    changed(folder, lambda state: state.update({"lm_head.weight": 2 * head}))
    assert loaded(folder)[2].fingerprint != source.fingerprint


def test_a_missing_output_matrix_of_an_untied_network(tmp_path):
    folder, _ = saved(tmp_path, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lacks weights of a LlamaForCausalLM, lm_head.weight first"):
        loaded(changed(folder, lambda state: state.pop("lm_head.weight")))


def test_an_adapter_folder_says_what_to_do(tmp_path):
    folder, _ = saved(tmp_path)
    only = tmp_path / "adapter"
    only.mkdir()
    (only / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "lab/other", "peft_type": "LORA"}))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, only / "adapter_model.safetensors")
    shutil.copy(only / "adapter_config.json", folder)
    for holder in (only, folder):  # beside whole weights too: transformers would read the base model that the file names
        with pytest.raises(UserError, match=r"holds an adapter \(adapter_config.json\).*merge_and_unload.*load it with PEFT"):
            loaded(holder)


def test_sizes_that_differ_are_one_sentence(tmp_path):
    folder, _ = saved(tmp_path)
    with pytest.raises(UserError, match="cannot load net"):
        loaded(changed(folder, lambda state: None, intermediate_size=64))


def test_masks_and_biases_of_one_name_are_told_by_their_shape():
    assert derived("h.0.attn.bias", (1, 1, 8, 8))
    assert not derived("h.0.attn.bias", (8,))
    assert derived("h.0.attn.masked_bias", ())
    assert not derived("h.0.attn.masked_bias", (8,))
    assert not derived("h.0.attn.c_attn.bias", (1, 1, 8, 8))
    assert not derived("layers.0.rotary_emb.inv_freq.weight", (4,))


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "Qwen2ForCausalLM", "BertForMaskedLM", "LlamaForCausalLM"])
def test_a_folder_without_a_tokenizer_says_what_to_copy(tmp_path, kind):
    folder, _ = saved(tmp_path, kind)
    with pytest.raises(UserError, match=r"^net holds weights but no tokenizer .*copy tokenizer.json .*tokenizer=…"):
        load_parts(folder)
    # transformers makes a tokenizer of special tokens alone of such a folder
    name = {"GPT2LMHeadModel": "GPT2Tokenizer", "Qwen2ForCausalLM": "Qwen2Tokenizer"}.get(kind, "BertTokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(UserError, match=r"^net has a tokenizer without a vocabulary"):
        load_parts(folder)


def test_weights_beyond_float16_are_refused_at_load(tmp_path):
    folder, _ = saved(tmp_path)
    changed(folder, lambda state: state.update({"model.norm.weight": torch.full((32,), 1e5)}))
    with pytest.raises(UserError, match=r"model.norm.weight of .* beyond float16.*dtype='float32'"):
        load_parts(folder, dtype="float16", tokenizer=object())
    assert load_parts(folder, dtype="bfloat16", tokenizer=object())
