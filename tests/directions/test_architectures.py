"""llama.cpp's names of architectures against those of transformers."""

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import repscope as rs
from ggufs import VOCABULARY, tokenizer
from repscope.directions.architectures import LLAMA_CPP, agree

#: networks that llama.cpp runs and transformers has no class for, or none that predicts text
_NONE = {
    "clip",
    "baichuan",
    "grok",
    "qwen",
    "plamo",
    "plamo2",
    "plamo3",
    "codeshell",
    "orion",
    "minicpm",
    "xverse",
    "openelm",
    "arctic",
    "rwkv6qwen2",
    "rwkv7",
    "arwkv7",
    "jais",
    "wavtokenizer-dec",
    "plm",
    "bailingmoe",
    "bailingmoe2",
    "dream",
    "smallthinker",
    "llada",
    "grovemoe",
    "cogvlm",
    "rnd1",
    "maincoder",
}


def test_every_architecture_of_llama_cpp_has_its_place():
    known = set(gguf.MODEL_ARCH_NAMES.values())
    assert set(LLAMA_CPP) <= known
    for name in known - _NONE - set(LLAMA_CPP):
        assert name in CONFIG_MAPPING_NAMES or transformers.__version__ < "5.2", name


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        ("llama", "mistral"),
        ("llama", "mixtral"),
        ("gptneox", "gpt_neox"),
        ("qwen2moe", "qwen2_moe"),
        ("qwen3moe", "qwen3_moe"),
        ("gemma3", "gemma3_text"),
        ("command-r", "cohere"),
        ("phi2", "phi"),
        ("starcoder", "gpt_bigcode"),
        ("gpt-oss", "gpt_oss"),
        ("deepseek2", "deepseek_v3"),
        ("minimax-m2", "minimax_m2"),
        ("glm4moe", "glm4_moe"),
        ("ernie4_5-moe", "ernie4_5_moe"),
        ("falcon-h1", "falcon_h1"),
        ("qwen35", "qwen3_5_text"),
        ("qwen2vl", "qwen2_5_vl"),
        ("hunyuan-dense", "hunyuan_v1_dense"),
        ("granitehybrid", "granitemoehybrid"),
        ("lfm2moe", "lfm2_moe"),
        ("kimi-linear", "kimi_linear"),
        ("olmo2", "olmo3"),
        ("gemma2", "gemma2"),
        ("gemma3_text", "gemma3_text"),
        ("mistral", "mistral"),
        ("Llama", "mistral"),
        ("unheard-of", "unheard_of"),
    ],
)
def test_names_of_one_architecture_agree(hint, kind):
    assert agree(hint, kind)


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        ("llama", "qwen2"),
        ("qwen2", "qwen3"),
        ("qwen2", "qwen2_moe"),
        ("gemma2", "gemma3_text"),
        ("phi2", "phi3"),
        ("mistral", "llama"),
        ("llama", "llama4"),
        ("command-r", "cohere2"),
        ("gptneox", "gpt_neo"),
        ("mamba", "mamba2"),
        ("unheard-of", "llama"),
    ],
)
def test_names_of_two_do_not(hint, kind):
    assert not agree(hint, kind)


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("hint", "kind", "fields"),
    [
        ("llama", "MistralForCausalLM", {}),
        ("llama", "LlamaForCausalLM", {}),
        ("gemma3", "Gemma3ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8}),
        ("gptneox", "GPTNeoXForCausalLM", {}),
        ("phi2", "PhiForCausalLM", {}),
        ("command-r", "CohereForCausalLM", {}),
    ],
)
def test_a_control_vector_with_llama_cpps_name_steers(tmp_path, hint, kind, fields):
    writer = gguf.GGUFWriter(tmp_path / "cv.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", 1)
    vector = np.linspace(-1, 1, 32, dtype=np.float32)
    writer.add_tensor("direction.2", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    model = made(made.config_class(**SIZES, **fields)).eval()
    row = list(range(5, 12))
    lm = rs.load(model, tokenizer=tokenizer())
    with rs.steer.steering(lm, tmp_path / "cv.gguf"):
        got = lm.capture([row], at="resid_post.3").numpy()[0]
    layers = (model.gpt_neox if "NeoX" in kind else model.model).layers
    seen = []

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    def add(_module, _given, out):
        moved = first(out) + torch.tensor(vector)
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    handles = [
        layers[2].register_forward_hook(add),
        layers[3].register_forward_hook(lambda _module, _given, out: seen.append(first(out))),
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([row]))
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(got, seen[0][0, -1].numpy(), atol=1e-4)
