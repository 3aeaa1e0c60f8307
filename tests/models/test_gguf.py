"""GGUF files against the networks that they were written from: transformers' own module, whose weights and settings are known."""

import math

import numpy as np
import pytest
import torch
import transformers

import ggufs
from ggufs import VOCABULARY, interleaved, net, off, write
from repscope.errors import UserError
from repscope.models.loading import gguf_settings
from repscope.models.loading.sources import load_parts

EPS = float(np.float32(1e-5))
SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
W = SIZES | {"rms_norm_eps": EPS, "tie_word_embeddings": False}
BASE = {"rope.freq_base": 5e5}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MOE_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
WIDE = {"attention.key_length": 16, "attention.value_length": 16}
LAYERNORM = {"attention.layer_norm_epsilon": EPS}


#: what the oldest transformers that we admit cannot read at all, and says so
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 10)
TOO_NEW = ("gemma2", "gemma3", "phi3", "stablelm", "lfm2") if OLD else ()


def rope(kind="default", theta=5e5, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


GLOBAL = {
    "full_attention": rope("linear", 1e6, factor=8.0)["rope_parameters"],
    "sliding_attention": rope(theta=1e4)["rope_parameters"],
}

#: architecture → class, its fields, what the file says beside the sizes
KINDS = {
    "llama": ("LlamaForCausalLM", W | rope(), BASE | {"rope.dimension_count": 8}),
    "qwen2": ("Qwen2ForCausalLM", W | rope(), BASE),
    "qwen2moe": (
        "Qwen2MoeForCausalLM",
        W | rope() | MOE | {"shared_expert_intermediate_size": 24},
        BASE | MOE_KEYS | {"expert_shared_feed_forward_length": 24},
    ),
    "qwen3": ("Qwen3ForCausalLM", W | rope() | {"head_dim": 16}, BASE | WIDE),
    "qwen3moe": ("Qwen3MoeForCausalLM", W | rope() | MOE | {"head_dim": 16, "norm_topk_prob": True}, BASE | WIDE | MOE_KEYS),
    "gemma2": (
        "Gemma2ForCausalLM",
        W
        | {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
        },
        WIDE | {"attention.sliding_window": 16, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        W | {"num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "rope_parameters": GLOBAL},
        WIDE | {"attention.sliding_window": 16, "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        W | rope(theta=1e4, partial_rotary_factor=0.5) | {"sliding_window": 20},
        {"rope.dimension_count": 4, "attention.sliding_window": 20},
    ),
    "stablelm": (
        "StableLmForCausalLM",
        SIZES | rope(partial_rotary_factor=0.5) | {"layer_norm_eps": EPS, "use_qkv_bias": True},
        BASE | LAYERNORM | {"rope.dimension_count": 4},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", SIZES | rope() | {"norm_epsilon": EPS}, BASE | LAYERNORM),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256}, LAYERNORM),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_head": 4, "n_layer": 3}, LAYERNORM),
    "falcon": (
        "FalconForCausalLM",
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3},
        LAYERNORM | {"attention.head_count_kv": 1},
    ),
    "nemotron": (
        "NemotronForCausalLM",
        SIZES | rope(partial_rotary_factor=0.75) | {"head_dim": 16, "norm_eps": EPS},
        BASE | LAYERNORM | {"rope.dimension_count": 12, "attention.key_length": 16},
    ),
    "mamba": (
        "MambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
        {
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 64,
            "ssm.state_size": 8,
            "ssm.time_step_rank": 2,
            "feed_forward_length": 0,
            "attention.head_count": 0,
            "attention.layer_norm_rms_epsilon": EPS,
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        SIZES | rope() | {"norm_eps": EPS, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention", "conv"]},
        BASE | {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0], "attention.layer_norm_rms_epsilon": EPS},
    ),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path / "cache"))


def through(tmp_path, arch, *, fields=None, keys=None, factor=4, **how):
    """The relative difference of the logits that a file of the architecture gives from those of its network."""
    kind, own, said = KINDS[arch]
    model = net(kind, 2 if arch == "mamba" else factor, **(own | (fields or {})))
    path = write(tmp_path / f"{arch}.gguf", model, arch, keys=said | (keys or {}), **how)
    return off(load_parts(path)[0], model)


def test_every_architecture_that_is_taken_is_tested():
    assert set(KINDS) == set(gguf_settings.ARCHITECTURES)


@pytest.mark.parametrize("arch", [arch for arch in KINDS if arch not in TOO_NEW])
def test_a_file_is_the_network_that_it_was_written_from(tmp_path, arch):
    assert through(tmp_path, arch) < 1e-5


def test_what_this_transformers_cannot_read_is_refused(tmp_path):
    for arch in TOO_NEW:
        with pytest.raises(UserError, match="cannot read"):
            through(tmp_path, arch)


def here(cases):
    """Those of the cases, each with its architecture first, that this transformers can read."""
    return [case for case in cases if case[0] not in TOO_NEW]


# ------------------------------------------------------------------------------------------ rotary frequencies

LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
TRAINED = {"original_max_position_embeddings": 64}


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "qwen2moe", "starcoder2"])
@pytest.mark.parametrize(
    ("kind", "more", "keys"), [("linear", {}, LINEAR), ("yarn", TRAINED, YARN | {"rope.scaling.original_context_length": 64})]
)
def test_scaled_frequencies_of_every_family(tmp_path, arch, kind, more, keys):
    own = KINDS[arch][1]["rope_parameters"]
    fields = {"rope_parameters": own | {"rope_type": kind, "factor": 4.0} | more}
    assert through(tmp_path, arch, fields=fields, keys=keys) < 1e-5
    plain = net(KINDS[arch][0], **KINDS[arch][1])
    assert off(net(KINDS[arch][0], **(KINDS[arch][1] | fields)), plain) > 1e-3, "the scaling is seen in the logits"


@pytest.mark.parametrize(
    ("parameters", "keys"),
    [
        (rope("linear", factor=4.0), {"rope.scaling.factor": 4.0}),  # llama.cpp: linear where no type is named
        (rope("linear", factor=4.0), {"rope.scale_linear": 4.0}),
        (rope(), {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
        (rope(), {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}),
        (rope("yarn", factor=4.0, original_max_position_embeddings=256), YARN),
        (
            rope("yarn", factor=4.0, beta_fast=16.0, beta_slow=2.0, attention_factor=1.5 * (1 + 0.1 * math.log(4)), **TRAINED),
            YARN
            | {
                "rope.scaling.original_context_length": 64,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.attn_factor": 1.5,
                "rope.scaling.finetuned": True,
            },
        ),
        (
            rope("yarn", factor=4.0, attention_factor=0.5 * (1 + 0.1 * math.log(4)), **TRAINED),
            YARN
            | {
                "rope.scaling.original_context_length": 64,
                "rope.scaling.yarn_attn_factor": 0.5,
                "rope.scaling.yarn_ext_factor": 1.0,
            },
        ),
    ],
)
def test_spellings_of_scaled_frequencies(tmp_path, parameters, keys):
    assert through(tmp_path, "llama", fields=parameters, keys=keys) < 1e-5


def test_a_base_that_is_not_named_is_ten_thousand(tmp_path):
    for arch in ("llama", "qwen2"):
        assert through(tmp_path, arch, fields=rope(theta=1e4), leave=["rope.freq_base"]) < 1e-5


def llama3(base=5e5, width=64, factor=8.0):
    """The factors that llama.cpp's converter writes, by its loop."""
    made = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * base ** (i / width)
        smooth = (8192 / wave - 1) / 3
        made.append(1.0 if wave < 8192 / 4 else factor if wave > 8192 else 1 / ((1 - smooth) / factor + smooth))
    return np.array(made, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama_3_become_its_parameters(tmp_path, factor):
    wide = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    parameters = rope("llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    held = llama3(factor=factor)
    assert any(1.01 < f < factor - 0.01 for f in held), "one is between the two ends"
    found = through(
        tmp_path, "llama", fields=wide | parameters, keys={"rope.dimension_count": 64}, tensors={"rope_freqs.weight": held}
    )
    assert found < 1e-5
    with pytest.raises(UserError, match="rescales its rotary frequencies, and not as Llama 3 does"):
        through(tmp_path, "llama", fields=wide, keys={"rope.dimension_count": 64}, tensors={"rope_freqs.weight": held**2})


@pytest.mark.parametrize("n", [20, 100])  # shorter and longer than the context that it was trained on
def test_lists_of_phi_3(tmp_path, n):
    short, long = [1.0, 1.1, 1.2, 1.3], [1.0, 3.0, 6.0, 9.0]
    parameters = rope("longrope", 1e4, short_factor=short, long_factor=long, attention_factor=1.2, **TRAINED)
    model = net("Phi3ForCausalLM", **(W | parameters), **TRAINED)
    path = write(
        tmp_path / "phi3.gguf",
        model,
        "phi3",
        keys={"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.2},
        tensors={"rope_factors_short.weight": np.array(short), "rope_factors_long.weight": np.array(long)},
    )
    if OLD:
        with pytest.raises(UserError, match="cannot read"):
            load_parts(path)
        return
    assert off(load_parts(path)[0], model, ggufs.ids(n)) < 1e-5


# --------------------------------------------------------------------------------------- heads, biases, tensors


@pytest.mark.parametrize("kv", [4, 2, 1])
def test_llama_without_a_key_for_key_value_heads_reads_them_from_the_shapes(tmp_path, kv):
    assert through(tmp_path, "llama", fields={"num_key_value_heads": kv}, leave=["attention.head_count_kv"]) < 1e-5


def test_key_value_heads_listed_by_block(tmp_path):
    with pytest.raises(UserError, match=r"sets llama\.attention\.head_count_kv to \[2, 1, 2\]"):
        through(tmp_path, "llama", keys={"attention.head_count_kv": [2, 1, 2]})


def test_heads_wider_than_their_share_of_the_stream(tmp_path):
    wide = WIDE | {"rope.dimension_count": 16}
    assert through(tmp_path, "llama", fields={"head_dim": 16}, keys=wide) < 1e-5
    assert through(tmp_path, "llama", fields={"head_dim": 16}, leave=["rope.dimension_count"]) < 1e-5


@pytest.mark.parametrize("fields", [{"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True}])
def test_biases_of_llama(tmp_path, fields):
    assert through(tmp_path, "llama", fields=fields) < 1e-5


def test_biases_of_queries_keys_and_values_alone(tmp_path):
    model = net("LlamaForCausalLM", **(W | rope() | {"attention_bias": True}))
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias.data.zero_()
    drop = [f"blk.{i}.attn_output.bias" for i in range(3)]
    path = write(tmp_path / "m.gguf", model, "llama", keys=KINDS["llama"][2], drop=drop)
    assert off(load_parts(path)[0], model) < 1e-5


def test_a_file_named_mistral_has_no_window(tmp_path):
    if OLD:
        with pytest.raises(UserError, match="cannot read"):
            through(tmp_path, "llama", rename="mistral")
        return
    assert through(tmp_path, "llama", rename="mistral") < 1e-5
    with pytest.raises(UserError, match=r"sets llama\.attention\.sliding_window to 16"):
        through(tmp_path, "llama", keys={"attention.sliding_window": 16}, rename="mistral")


@pytest.mark.parametrize(
    ("arch", "blocks", "scalar"),
    [("gemma2", 46, 144), ("gemma3", 62, 168), ("gemma2", 42, 256), ("gemma3", 34, 256)],  # 27B, then 9B and 4B
)
def test_the_largest_gemmas_scale_attention_by_the_stream(arch, blocks, scalar):
    config = getattr(transformers, {"gemma2": "Gemma2Config", "gemma3": "Gemma3TextConfig"}[arch])()
    width, heads = {144: (4608, 32), 168: (5376, 32)}.get(scalar, (2560, 8))
    keys = {
        "block_count": blocks,
        "context_length": 8192,
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": heads // 2,
        "attention.key_length": 128 if scalar < 256 else 256,
    }
    gguf_settings.settle(config, gguf_settings.Header(arch, keys, {}), "m.gguf")
    assert config.query_pre_attn_scalar == scalar


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    here(
        [
            ("llama", "blk.0.attn_q_norm.weight", (8,)),
            ("llama", "blk.1.attn_norm.bias", (32,)),
            ("llama", "blk.3.attn_norm.weight", (32,)),
            ("llama", "output.bias", (VOCABULARY,)),
            ("llama", "blk.0.ffn_gate_exps.weight", (2, 48, 32)),
            ("qwen2", "blk.0.attn_output.bias", (32,)),
            ("gemma2", "blk.0.attn_q.bias.lora_a", (4,)),
            ("phi3", "blk.0.attn_qkv.bias", (64,)),
            ("lfm2", "blk.0.extra.weight", (32,)),
        ]
    ),
)
def test_tensors_that_nothing_takes_are_refused_by_name(tmp_path, arch, name, shape):
    with pytest.raises(UserError, match=r"holds tensors that a .* does not take"):
        through(tmp_path, arch, tensors={name: np.ones(shape)})


@pytest.mark.parametrize("arch", [arch for arch in ("llama", "qwen3moe", "lfm2") if arch not in TOO_NEW])
def test_tensors_that_are_not_there(tmp_path, arch):
    drop = {"llama": "blk.2.ffn_up.weight", "qwen3moe": "blk.1.ffn_up_exps.weight", "lfm2": "blk.1.ffn_up.weight"}[arch]
    with pytest.raises(UserError, match="lacks weights of a"):
        through(tmp_path, arch, drop=[drop])


# ----------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("arch", "key", "value"),
    here(
        [
            ("llama", "rope.dimension_count", 4),
            ("llama", "rope.scaling.type", "longrope"),
            ("llama", "rope.scaling.alpha", 1000.0),
            ("llama", "rope.scaling.attn_factor", 1.2),
            ("llama", "rope.scaling.yarn_log_multiplier", 0.1),
            ("llama", "rope.freq_base_swa", 1e4),
            ("llama", "rope.dimension_sections", [4, 2, 2, 0]),
            ("llama", "attention.scale", 0.1),
            ("llama", "attention.sliding_window", 16),
            ("llama", "attention.value_length", 16),
            ("llama", "attention.clamp_kqv", 8.0),
            ("llama", "attention.max_alibi_bias", 8.0),
            ("llama", "attention.causal", False),
            ("llama", "attention.temperature_length", 8192),
            ("llama", "attn_logit_softcapping", 50.0),
            ("llama", "final_logit_softcapping", 30.0),
            ("llama", "logit_scale", 0.0625),
            ("llama", "residual_scale", 0.22),
            ("llama", "embedding_scale", 12.0),
            ("llama", "expert_count", 8),
            ("llama", "use_parallel_residual", True),
            ("llama", "something.new", 3),
            ("llama", "something.new", "on"),
            ("llama", "feed_forward_length", [48, 24, 48]),
            ("phi3", "rope.scaling.factor", 4.0),
            ("qwen2", "attention.sliding_window", 16),
            ("qwen2", "attention.key_length", 16),
            ("qwen3moe", "expert_gating_func", 2),
            ("qwen3moe", "expert_weights_scale", 2.5),
            ("qwen3moe", "leading_dense_block_count", 1),
            ("gpt2", "rope.freq_base", 5e5),
            ("falcon", "attention.head_count_kv", 2),
            ("mamba", "ssm.dt_b_c_rms", True),
        ]
    ),
)
def test_settings_that_the_network_cannot_have_are_refused_by_name(tmp_path, arch, key, value):
    with pytest.raises(UserError, match=rf"gguf sets {arch}\.{key} to .*load the original safetensors model instead"):
        through(tmp_path, arch, keys={key: value})


@pytest.mark.parametrize(
    "keys",
    [
        {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": 8**-0.5},
        {"attention.sliding_window": 4096, "expert_count": 0, "expert_used_count": 0, "attention.causal": True},
        {"something.new": 0, "something.off": False, "something.none": "", "something.list": [0, 0]},
        {"rope.scaling.alpha": 0.0, "rope.scaling.attn_factor": 1.0, "tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_settings_that_do_nothing_may_stand(tmp_path, keys):
    assert through(tmp_path, "llama", keys=keys) < 1e-5


@pytest.mark.parametrize("key", ["block_count", "context_length", "embedding_length", "attention.head_count"])
def test_settings_without_which_there_is_no_network(tmp_path, key):
    with pytest.raises(UserError, match=rf"lacks the setting llama\.{key}|cannot read"):
        through(tmp_path, "llama", leave=[key])


def test_norms_without_their_epsilon(tmp_path):
    with pytest.raises(UserError, match="lacks the epsilon of its norms"):
        through(tmp_path, "llama", leave=["attention.layer_norm_rms_epsilon"])


def test_an_epsilon_is_the_files_own(tmp_path):
    for arch, field in here([("llama", "rms_norm_eps"), ("qwen3", "rms_norm_eps"), ("gemma2", "rms_norm_eps")]):
        eps = float(np.float32(0.05))
        assert through(tmp_path, arch, fields={field: eps}) < 1e-5


def test_architectures_whose_conversion_is_not_proved(tmp_path):
    model = net("LlamaForCausalLM", **(W | rope()))
    with pytest.raises(UserError, match=r"cannot read .*|whose conversion from GGUF is not proved"):
        load_parts(write(tmp_path / "m.gguf", model, "deci", keys=KINDS["llama"][2]))
    header = gguf_settings.Header("gemma4", KINDS["llama"][2], {})
    with pytest.raises(UserError, match="architecture 'gemma4', whose conversion from GGUF is not proved"):
        gguf_settings.settle(model.config, header, "m.gguf")


def test_files_that_are_no_whole_model(tmp_path):
    import gguf

    def small(path, **said):
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in said.items():
            (writer.add_string if isinstance(value, str) else writer.add_uint16)(key.replace("_", ".", 1), value)
        writer.add_tensor("x", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    with pytest.raises(UserError, match="holds a GGUF adapter, not a model"):
        load_parts(small(tmp_path / "a.gguf", general_type="adapter"))
    with pytest.raises(UserError, match=r"is one of 3 parts of a model.*--merge"):
        load_parts(small(tmp_path / "b.gguf", split_count=3))


def test_the_writer_is_not_the_reader_turned_round():
    """Interleaving as llama.cpp rotates: neighbours 2i and 2i + 1 of its rows are i and i + width / 2 of transformers'."""
    rows = np.arange(16).reshape(16, 1)
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert torch.is_tensor(ggufs.ids())
