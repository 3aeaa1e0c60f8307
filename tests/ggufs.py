"""GGUF files of tiny networks, written as llama.cpp's converter writes them."""

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 320


def tokens():
    """Tokens and merges of a byte-level vocabulary of that size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e")]
    words = ["<eos>", "<bos>", *alphabet, *("".join(pair) for pair in merges)]
    return [*words, *(f"<unused{i}>" for i in range(len(words), VOCABULARY))], merges


def tokenizer():
    words, merges = tokens()
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<bos>")


def net(kind, factor=4, **fields):
    """A random network whose every weight matters: matrices large enough to see, biases and norms drawn too."""
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    common = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    model = made(made.config_class(**common, **fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model


def interleaved(x, heads):
    """Rows of queries or keys as Llama's are stored: the halves of each head interleaved."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _stored(arch, name, x, config):
    """The tensors of a file for one of the network: (name, values)."""
    heads, kv = getattr(config, "num_attention_heads", 0), getattr(config, "num_key_value_heads", None)
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        x = interleaved(x, heads if "q_proj" in name else kv or heads)
    if arch in ("gemma2", "gemma3", "nemotron") and "norm" in name and name.endswith("weight"):
        x = x + 1
    if arch == "gpt2" and x.ndim == 2 and ("attn.c_" in name or "mlp.c_" in name) and name.endswith("weight"):
        x = x.T
    if arch == "bloom" and "query_key_value" in name:
        x = x.reshape(heads, 3, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    if arch == "mamba" and name.endswith("A_log"):
        x = -np.exp(x)
    if "conv1d.weight" in name or "conv.conv.weight" in name:
        x = x[:, 0]
    if name.endswith("experts.gate_up_proj"):
        half = x.shape[1] // 2
        stem = name.removesuffix("gate_up_proj")
        return [(f"{stem}gate_proj.weight", x[:, :half]), (f"{stem}up_proj.weight", x[:, half:])]
    if name.endswith("experts.down_proj"):
        name += ".weight"
    if "shared_expert_gate" in name:
        x = x[0]
    return [(name, x)]


def write(path, model, arch, *, keys=(), leave=(), rename=None, tensors=(), drop=()):
    """Write the network as a GGUF file.

    keys: name of a setting, without the architecture → value; replaces what the configuration says. leave: settings left out.
    tensors: name → values, added. drop: tensors left out, by their names in the file. rename: general.name.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    if rename:
        writer.add_name(rename)
    known = {
        "context_length": config.max_position_embeddings if hasattr(config, "max_position_embeddings") else 256,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": getattr(config, "num_attention_heads", None),
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "vocab_size": VOCABULARY,
    } | dict(keys)
    for key, value in known.items():
        if value is None or key in leave:
            continue
        add = (
            writer.add_bool
            if isinstance(value, bool)
            else writer.add_uint32
            if isinstance(value, int)
            else writer.add_float32
            if isinstance(value, float)
            else writer.add_string
            if isinstance(value, str)
            else writer.add_array
        )
        add(f"{arch}.{key}", value)
    words, merges = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if i < 2 else 1 for i in range(VOCABULARY)])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    named = next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == arch)
    places = gguf.get_tensor_name_map(named, config.num_hidden_layers)
    tied = getattr(config, "tie_word_embeddings", False)
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        for spelt, x in _stored(arch, name, value.float().numpy(), config):
            stem, dot, kind = spelt.rpartition(".")
            place = places.get_name(stem) if kind in ("weight", "bias") else None
            if place is None:
                place, dot, kind = places.get_name(spelt), "", ""
            if place is None:
                stem, dot, kind = spelt.removeprefix("transformer.").rpartition(".")
                place = places.get_name(stem)
            assert place, spelt
            if place + dot + kind not in drop:
                writer.add_tensor(place + dot + kind, np.ascontiguousarray(x, np.float32))
    for name, x in dict(tensors).items():
        writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ids(n=40, seed=0):
    return torch.tensor([np.random.default_rng(seed).integers(2, VOCABULARY, n).tolist()])


def off(model, other, row=None):
    """How far the last logits of one network are from those of another, relatively."""
    row = ids() if row is None else row
    with torch.no_grad():
        a, b = (m(input_ids=row, use_cache=False).logits[0, -1] for m in (model, other))
    return float((a - b).norm() / b.norm())


__all__ = ["VOCABULARY", "ids", "interleaved", "net", "off", "tokenizer", "write"]
