"""Translation of a GGUF file's settings to a transformers configuration; unknown ones are refused.

transformers reads some of a file's keys and silently ignores the others. Here each key under the architecture's prefix is listed:

1. `FIELDS`: keys that name a field of the configuration. The field gets the file's value. A key that the class has no field for
   must have the value at which it does nothing.
2. `NOTHING`: keys that change no number.
3. Rotary frequencies (`_rope`): base, width, and scaling of kind none, linear, YaRN or longrope (Phi-3's factors), and the
   factors of Llama 3 (`rope_freqs.weight`), as rope parameters of transformers. A type that is not named is linear, a base that
   is not named is 10,000, as llama.cpp takes them.
4. What the file says by its tensors: number of key-value heads, width of a head, vocabulary, biases.
5. What llama.cpp knows by the architecture alone (`_by_architecture`): the scale of attention in Gemma 2 and 3.
6. Any other key is refused unless its value is zero, false or empty.

Only architectures whose conversion is tested against the original network are supported (`ARCHITECTURES`).
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.errors import UserError

Shape = tuple[int, ...]

#: architectures in GGUF's words whose files are converted → whether a part of each head may be rotated
ARCHITECTURES = {
    "llama": False,
    "qwen2": False,
    "qwen2moe": False,
    "qwen3": False,
    "qwen3moe": False,
    "gemma2": False,
    "gemma3": False,
    "phi3": True,
    "stablelm": True,
    "starcoder2": False,
    "gpt2": False,
    "bloom": False,
    "falcon": False,
    "nemotron": True,
    "mamba": False,
    "lfm2": False,
}
_NO_ROPE = ("gpt2", "bloom", "mamba")
#: without a key of theirs llama.cpp refuses the file, and transformers takes a default of its own
_NEEDED = ("block_count", "context_length", "embedding_length")

#: key → fields of configurations, of which a class has one at most, and values at which the key does nothing
FIELDS: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "block_count": (("num_hidden_layers",), ()),
    "embedding_length": (("hidden_size",), ()),
    "feed_forward_length": (("intermediate_size", "ffn_hidden_size", "n_inner"), (0,)),
    "attention.head_count": (("num_attention_heads",), (0,)),
    "attention.layer_norm_rms_epsilon": (("rms_norm_eps", "layer_norm_epsilon", "norm_eps"), ()),
    "attention.layer_norm_epsilon": (("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"), ()),
    "attention.sliding_window": (("sliding_window",), (0,)),
    "attn_logit_softcapping": (("attn_logit_softcapping",), (0,)),
    "final_logit_softcapping": (("final_logit_softcapping",), (0,)),
    "attention.clamp_kqv": ((), (0,)),
    "attention.causal": ((), (True,)),
    "use_parallel_residual": ((), (False,)),
    "expert_count": (("num_experts",), (0,)),
    "expert_used_count": (("num_experts_per_tok",), (0,)),
    "expert_feed_forward_length": (("moe_intermediate_size",), (0,)),
    "expert_shared_feed_forward_length": (("shared_expert_intermediate_size",), (0,)),
    "expert_weights_norm": (("norm_topk_prob",), (False,)),
    "expert_weights_scale": ((), (0, 1)),
    "expert_gating_func": ((), (0, 1)),  # 1 is softmax
    "embedding_scale": ((), (0, 1)),
    "residual_scale": ((), (0, 1)),
    "logit_scale": ((), (0, 1)),
    "ssm.conv_kernel": (("conv_kernel",), ()),
    "ssm.inner_size": (("intermediate_size",), ()),
    "ssm.state_size": (("state_size",), ()),
    "ssm.time_step_rank": (("time_step_rank",), ()),
    "shortconv.l_cache": (("conv_L_cache",), ()),
}
#: keys that change no number, and those that have a function of their own below
NOTHING = ("context_length", "vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned")
#: architectures whose tensors say what a key says, and where llama.cpp does not look at the key
_BY_TENSORS = {"use_parallel_residual": ("stablelm",)}
#: the key → architectures whose class has the field and uses it only when told by another
_UNUSED = {"attention.sliding_window": ("qwen2", "qwen2moe", "qwen3", "qwen3moe")}
#: fields that a class uses and does not declare
_UNDECLARED = (("qwen3_moe", "head_dim"), ("mamba", "intermediate_size"))
_HEADS = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.max_alibi_bias")
_ROPE = (
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.alpha",
)
_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of its network.

    architecture: in GGUF's words. keys: its settings, without the architecture's prefix. shapes: of its tensors, rows first.
    factors: values of the tensors that rescale rotary frequencies.
    """

    architecture: str
    keys: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    factors: Mapping[str, Float[np.ndarray, "frequency"]] = field(default_factory=dict)

    def rows(self, tensor: str) -> int | None:
        """Rows of a tensor of the first block that has it, or of one outside of the blocks; None where there is none."""
        for name in (tensor, *(f"blk.{i}.{tensor}" for i in range(int(self.keys.get("block_count", 0))))):
            if name in self.shapes:
                return self.shapes[name][0]
        return None

    def any(self, *endings: str) -> bool:
        """Whether a tensor of a block has one of these endings."""
        return any(name.startswith("blk.") and name.endswith(endings) for name in self.shapes)


def checked(header: Header, path: object) -> None:
    """Refuse a file that no configuration can be made of.

    Raises a `UserError` when it lacks a setting that every network has, or lists by block what is one number for all.
    """
    arch, keys = header.architecture, header.keys
    if arch not in ARCHITECTURES:
        return  # transformers says whether it knows it, and `settle` whether it is proved
    needed = _NEEDED if arch == "mamba" else (*_NEEDED, "attention.head_count")
    if lacking := [key for key in needed if key not in keys]:
        raise UserError(f"{path} lacks the setting {arch}.{lacking[0]}, without which no network can be made; fetch it again.")
    if not any(f"attention.layer_norm_{kind}epsilon" in keys for kind in ("rms_", "")):
        raise UserError(f"{path} lacks the epsilon of its norms ({arch}.attention.layer_norm_rms_epsilon); fetch it again.")
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(keys.get(key), list | tuple) and not (arch == "lfm2" and key == "attention.head_count_kv"):
            raise _unread(path, arch, key, list(keys[key]))


def settle(config: Any, header: Header, path: object) -> tuple[str, ...]:
    """Apply the settings of a file to the configuration that transformers built from it, in place.

    Returns the tensors that are expressed by settings, not by parameters. Raises a `UserError` for an architecture that is not in
    `ARCHITECTURES`, and for a setting that the network cannot have.
    """
    arch, keys = header.architecture, header.keys
    if arch not in ARCHITECTURES:
        raise UserError(
            f"{path} holds a network of the architecture {arch!r}, whose conversion from GGUF is not proved; load the original "
            f"safetensors model instead (proved are {', '.join(ARCHITECTURES)})."
        )
    heads = _heads(config, header, path)
    for key, value in keys.items():
        if key in NOTHING or key in _HEADS or key in _ROPE or arch in _BY_TENSORS.get(key, ()):
            continue
        fields, idle = FIELDS.get(key, ((), (0, False, "", 1) if key.endswith("_scale") else (0, False, "")))
        held = [name for name in fields if _has(config, name) and arch not in _UNUSED.get(key, ())]
        if held and not (key == "feed_forward_length" and value in idle):
            setattr(config, held[0], None if value == 0 and "window" in key else value)
        elif not _idle(key, value, idle, config, header, heads):
            raise _unread(path, arch, key, value)
    _by_architecture(config, header, heads)
    if arch not in _NO_ROPE:
        _rope(config, header, heads, path)
    elif unread := [key for key in _ROPE if keys.get(key) and key != "rope.dimension_count"]:
        raise _unread(path, arch, unread[0], keys[unread[0]])
    _biases(config, header)
    _vocabulary(config, header)
    return tuple(name for name in _FACTORS if name in header.factors)


def _has(config: Any, name: str) -> bool:
    """Whether the class of a configuration has a field; transformers also keeps fields on it that the class does not use."""
    kind = type(config)
    fields = {*getattr(kind, "__dataclass_fields__", ()), *inspect.signature(kind.__init__).parameters}
    return name in fields or name in (getattr(kind, "attribute_map", None) or {}) or (kind.model_type, name) in _UNDECLARED


def _unread(path: object, arch: str, key: str, value: Any) -> UserError:
    return UserError(
        f"{path} sets {arch}.{key} to {str(value)[:40]}, which cannot be read from GGUF for this architecture, so its answers "
        "would be wrong; load the original safetensors model instead."
    )


def _idle(key: str, value: Any, idle: Sequence[Any], config: Any, header: Header, head: int) -> bool:
    """Whether a key that the class has no field for has a value at which it does nothing."""
    if isinstance(value, list | tuple):
        return not any(value)
    if key == "attention.sliding_window":
        return bool(value == 0 or value >= header.keys["context_length"])
    if key == "feed_forward_length":  # BLOOM: four times the width, by its code
        return bool(value in idle or value == 4 * config.hidden_size)
    if key == "attention.scale":
        return bool(value == 0 or math.isclose(value, head**-0.5, rel_tol=1e-4))
    return value in idle


# --------------------------------------------------------------------------------------------------------- heads


def _heads(config: Any, header: Header, path: object) -> int:
    """Give a configuration its numbers and widths of heads. Returns the width of a head, 0 where there are none."""
    arch, keys = header.architecture, header.keys
    n = keys.get("attention.head_count") or 0
    if not n:
        return 0
    width = keys.get("attention.key_length") or _width(header, n)
    if (other := keys.get("attention.value_length", width)) != width:
        raise _unread(path, arch, "attention.value_length", other)
    if _has(config, "head_dim"):
        config.head_dim = width
    elif width * n != keys["embedding_length"]:
        raise _unread(path, arch, "attention.key_length", width)
    kv = keys.get("attention.head_count_kv")
    if isinstance(kv, list | tuple):  # by block, 0 for a convolution
        kv = max(kv)
    if kv is None:
        rows = header.rows("attn_k.weight")
        kv = rows // width if rows else n
    if _has(config, "num_key_value_heads"):
        config.num_key_value_heads = int(kv)
    # With several, GGUF holds all queries first, and transformers expects them in groups with their keys and values.
    elif kv != (1 if arch == "falcon" else n):
        raise _unread(path, arch, "attention.head_count_kv", kv)
    alibi = keys.get("attention.max_alibi_bias", 0)
    if alibi != (8 if arch == "bloom" and alibi else 0):
        raise _unread(path, arch, "attention.max_alibi_bias", alibi)
    return int(width)


def _width(header: Header, n: int) -> int:
    """The width of a head that no key names: by the rows of the queries, or the stream divided by the heads."""
    rows = header.rows("attn_q.weight")
    return int(rows if rows else header.keys["embedding_length"]) // int(n)


def _by_architecture(config: Any, header: Header, width: int) -> None:
    arch, keys = header.architecture, header.keys
    if arch in ("gemma2", "gemma3"):
        # llama.cpp knows the models of 27B by their number of blocks; there queries are scaled by the stream's share of a head.
        largest = keys["block_count"] == {"gemma2": 46, "gemma3": 62}[arch]
        config.query_pre_attn_scalar = keys["embedding_length"] // keys["attention.head_count"] if largest else width
        if scale := keys.get("attention.scale"):
            config.query_pre_attn_scalar = scale**-2
    if arch == "qwen2moe" and "expert_weights_norm" not in keys:
        config.norm_topk_prob = False
    if arch == "falcon":
        config.num_kv_heads, config.multi_query = 1, True
        config.new_decoder_architecture, config.alibi, config.parallel_attn = False, False, True
        config.bias = header.any("attn_qkv.bias")


def _biases(config: Any, header: Header) -> None:
    """Biases that the class has only when asked; llama.cpp adds those that the file holds."""
    if hasattr(config, "attention_bias") and header.any("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"):
        config.attention_bias = True
    if hasattr(config, "mlp_bias") and header.any("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"):
        config.mlp_bias = True


def _vocabulary(config: Any, header: Header) -> None:
    if rows := header.rows("token_embd.weight"):
        config.vocab_size = rows  # llama.cpp pads the list of tokens, or not
        if (pad := getattr(config, "pad_token_id", None)) is not None and pad >= rows:
            config.pad_token_id = None  # transformers' default, of another vocabulary
    if rows := header.rows("position_embd.weight"):
        config.max_position_embeddings = rows


# -------------------------------------------------------------------------------------------- rotary frequencies


def _rope(config: Any, header: Header, width: int, path: object) -> None:
    arch, keys = header.architecture, header.keys
    rotated = int(keys.get("rope.dimension_count") or width)
    if rotated != width and not ARCHITECTURES[arch]:
        raise _unread(path, arch, "rope.dimension_count", rotated)
    base = {"rope_theta": float(keys.get("rope.freq_base", 10_000.0))}
    if ARCHITECTURES[arch]:
        base["partial_rotary_factor"] = rotated / width
        if hasattr(config, "partial_rotary_factor"):
            config.partial_rotary_factor = rotated / width
    scaled: dict[str, Any] = base | _scaling(config, header, base["rope_theta"], rotated, path)
    if arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10_000.0))}
        config.rope_parameters = {"full_attention": scaled, "sliding_attention": local}
        return
    if (local_base := keys.get("rope.freq_base_swa", base["rope_theta"])) != base["rope_theta"]:
        raise _unread(path, arch, "rope.freq_base_swa", local_base)
    config.rope_parameters = scaled


def _scaling(config: Any, header: Header, base: float, rotated: int, path: object) -> dict[str, Any]:
    """How frequencies are rescaled, as transformers' rope parameters."""
    keys, arch = header.keys, header.architecture
    factor = float(keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1.0)
    kind = keys.get("rope.scaling.type") or "linear"
    attention = float(keys.get("rope.scaling.attn_factor") or 1.0)
    alpha = keys.get("rope.scaling.alpha", 0)
    if alpha not in (0, 1):
        raise _unread(path, arch, "rope.scaling.alpha", alpha)
    context = keys["context_length"]
    trained = int(keys.get("rope.scaling.original_context_length") or context)
    if "rope_factors_long.weight" in header.factors or "rope_factors_short.weight" in header.factors:
        return _longrope(config, header, factor, attention, trained, path)
    if "rope_freqs.weight" in header.factors:
        if factor != 1:
            raise _unread(path, arch, "rope.scaling.factor", factor)
        return _llama3(header.factors["rope_freqs.weight"], base, rotated, path)
    if kind == "longrope":
        raise _unread(path, arch, "rope.scaling.type", "longrope without its factors")
    if kind == "none" or (kind == "linear" and factor == 1):
        if attention != 1:
            raise _unread(path, arch, "rope.scaling.attn_factor", attention)
        return {"rope_type": "default"}
    if arch == "phi3":  # whose class has lists for short and long prompts alone
        raise _unread(path, arch, "rope.scaling.factor", factor)
    if kind == "linear":
        if attention != 1:
            raise _unread(path, arch, "rope.scaling.attn_factor", attention)
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise _unread(path, arch, "rope.scaling.type", kind)
    if (extrapolated := keys.get("rope.scaling.yarn_ext_factor", 1)) not in (1, -1):
        raise _unread(path, arch, "rope.scaling.yarn_ext_factor", extrapolated)
    own = attention * float(keys.get("rope.scaling.yarn_attn_factor") or 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": trained,
        "beta_fast": float(keys.get("rope.scaling.yarn_beta_fast") or 32.0),
        "beta_slow": float(keys.get("rope.scaling.yarn_beta_slow") or 1.0),
        "attention_factor": own * (1.0 + 0.1 * math.log(factor)),
    }


def _longrope(config: Any, header: Header, factor: float, attention: float, trained: int, path: object) -> dict[str, Any]:
    lists = [header.factors.get(name) for name in ("rope_factors_short.weight", "rope_factors_long.weight")]
    if header.architecture != "phi3" or lists[0] is None or lists[1] is None or factor != 1:
        raise UserError(
            f"{path} rescales its rotary frequencies by lists for short and long prompts, which are read for phi3 alone; load "
            "the original safetensors model instead."
        )
    config.original_max_position_embeddings = trained
    return {
        "rope_type": "longrope",
        "short_factor": [float(f) for f in lists[0]],
        "long_factor": [float(f) for f in lists[1]],
        "attention_factor": attention,
        "original_max_position_embeddings": trained,
    }


def _llama3(found: Float[np.ndarray, "frequency"], base: float, rotated: int, path: object) -> dict[str, Any]:
    """Llama 3's parameters, where they give the factors that the file holds.

    The factors are 1 for short waves, the largest for long ones, and between these follow from the context it was trained on.
    """
    factor = float(np.round(found.max(), 3))
    frequencies = base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    turns = 8192 * frequencies / (2 * np.pi)  # in the context that all of Llama 3 was trained on
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if found.shape != expected.shape or factor <= 1 or not np.allclose(found, expected, rtol=1e-4):
        raise UserError(
            f"{path} rescales its rotary frequencies, and not as Llama 3 does, so transformers has no parameters for it; load the "
            "original safetensors model instead."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
