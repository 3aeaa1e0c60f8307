#!/usr/bin/env bash
# transformers 5.24.0 (with gguf 0.19.0): biases of attention in a Llama GGUF file are dropped.
#
# Expected: the biases are used, or an error names them. llama.cpp adds attn_q.bias, attn_k.bias, attn_v.bias and attn_output.bias of
# its "llama" architecture where the file has them (its converter writes them for models such as InternLM), and LlamaConfig has
# attention_bias for them (https://huggingface.co/docs/transformers/model_doc/llama). transformers' own loading report lists unexpected
# weights of safetensors files.
# Seen: no error, no warning, and `output_loading_info=True` reports no unexpected keys; the logits are those of another network.
#
# Ground truth: the transformers network that the file was written from. Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0 numpy==2.4.6
cd "$home"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
"$home/venv/bin/python" - <<'PYTHON'
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False, attention_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
model = LlamaForCausalLM(CONFIG).eval()
with torch.no_grad():
    for p in model.parameters():
        p.mul_(4) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))


def write(path, add):
    """The network as llama.cpp's convert_hf_to_gguf.py writes it; `add` adds further settings."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(64)
    add(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        x = value.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp interleaves the halves of each head
            x = x.reshape(4, 2, 4, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(x, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ROW = torch.tensor([np.random.default_rng(0).integers(2, 64, 40).tolist()])


def off(path):
    """Relative difference of the last logits of the loaded file from those of the network it was written from."""
    loaded = AutoModelForCausalLM.from_pretrained(".", gguf_file=path, dtype=torch.float32)
    with torch.no_grad():
        got, want = loaded(input_ids=ROW).logits[0, -1], model(input_ids=ROW).logits[0, -1]
    return float((got - want).norm() / want.norm())


with torch.no_grad():
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.copy_(torch.randn_like(p))
write("biased.gguf", lambda writer: writer.add_head_count_kv(4))
seen = off("biased.gguf")
_, told = AutoModelForCausalLM.from_pretrained(".", gguf_file="biased.gguf", dtype=torch.float32, output_loading_info=True)
stored = sum(t.name.endswith(".bias") for t in gguf.GGUFReader("biased.gguf").tensors)
with torch.no_grad():  # the same network without its biases
    want = model(input_ids=ROW).logits[0, -1]
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
without = off("biased.gguf")
print(f"{stored} biases in the file, {len(told['unexpected_keys'])} reported as unexpected")
print(f"relative difference of the logits: expected 0, seen {seen:.3f}; from the network without its biases {without:.1e}")
assert stored == 8 and without < 1e-4, "all else is loaded right"
assert seen > 1e-2 and not told["unexpected_keys"], "the behaviour has changed: biases are used or reported"
PYTHON
