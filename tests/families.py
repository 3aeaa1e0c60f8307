"""Tiny random models of every family the tests know, and a tiny tokenizer.

A row of `_ROWS` is a class of transformers and the fields of its configuration. The tables after it say what is true of each
family, so that a test asks a table and never a name. A row is built when asked for; importing this module loads no modelling code.
"""

from functools import partial

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 320
_TEXT = [
    "The place called San Francisco lies north of San Diego.",
    "A map that shows Paris, Lagos and São Paulo; the name Zürich has an umlaut.",
    "Hydrogen, helium and lithium are chemical elements. What do you know about New York?",
]
# Most families' own special ids lie outside so small a vocabulary; 0 is the tokenizer's <eos>.
_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_PLACES = _IDS | {"max_position_embeddings": 128}
_WIDE = _PLACES | {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 64}
_GROUPED = _WIDE | {"num_hidden_layers": 4, "intermediate_size": 48, "num_key_value_heads": 2}
_GPT = _IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
_OPT = _PLACES | {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "ffn_dim": 64}
_FALCON = _PLACES | {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
_BLOOM = _IDS | {"hidden_size": 32, "n_head": 4, "n_layer": 3}
# A window that no short prompt fills and a long one does, in some blocks and not in others.
_GEMMA = _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 100}
_GEMMA3_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
# transformers 5.0 forgets that Mamba's head is its embedding unless told, and Phi's pad_token_id unless given.
_MAMBA = _IDS | {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "tie_word_embeddings": True}
_EXPERTS = {"num_experts_per_tok": 2, "pad_token_id": 0}

_ROWS = {
    "llama": ("LlamaForCausalLM", _GROUPED),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", _GROUPED | {"head_dim": 8}),
    "mistral": ("MistralForCausalLM", _GROUPED | {"sliding_window": 100}),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA),
    "gemma3": ("Gemma3ForCausalLM", _GEMMA | {"layer_types": _GEMMA3_LAYERS}),
    "olmo2": ("Olmo2ForCausalLM", _GROUPED),
    "mixtral": ("MixtralForCausalLM", _GROUPED | _EXPERTS | {"num_local_experts": 4}),
    "olmoe": ("OlmoeForCausalLM", _GROUPED | _EXPERTS | {"num_experts": 4}),
    "phi": ("PhiForCausalLM", _GROUPED | {"pad_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel", _GPT),
    "gptj": ("GPTJForCausalLM", _GPT | {"rotary_dim": 4}),
    "gpt-neox": ("GPTNeoXForCausalLM", _WIDE),
    "gpt-neox-sequential": ("GPTNeoXForCausalLM", _WIDE | {"use_parallel_residual": False}),
    # As OPT-125M and OPT-350M; the latter's embedding is narrower than its stream.
    "opt": ("OPTForCausalLM", _OPT | {"word_embed_proj_dim": 32}),
    "opt-post-norm": ("OPTForCausalLM", _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    # As Falcon-7B (one norm, one key-value head), Falcon-40B (two norms, grouped heads) and Falcon-RW (sequential, no rotation).
    "falcon": ("FalconForCausalLM", _FALCON),
    "falcon-new": ("FalconForCausalLM", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("FalconForCausalLM", _FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True}),
    "bloom": ("BloomForCausalLM", _BLOOM),
    "bert": ("BertForMaskedLM", _WIDE),
    "roberta": ("RobertaForMaskedLM", _WIDE | {"max_position_embeddings": 130, "type_vocab_size": 1}),
    "modernbert": (
        "ModernBertForMaskedLM",
        _WIDE | {"num_hidden_layers": 4, "local_attention": 200, "pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    ),
    "mamba": ("MambaForCausalLM", _MAMBA),
}
_VISION_SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
}
_VISION_ROWS = {
    "vit": ("ViTModel", _VISION_SIZES),
    "vit-classifier": ("ViTForImageClassification", _VISION_SIZES | {"num_labels": 5}),
}


def _made(row):
    name, fields = row
    kind = getattr(transformers, name)
    return kind(kind.config_class(**fields))


FAMILIES = {name: partial(_made, row) for name, row in _ROWS.items()}
VISION = {name: partial(_made, row) for name, row in _VISION_ROWS.items()}
_FACTOR = {"mamba": 2}  #: it starts five times larger than the others, and its states grow with the square

#: How a block adds up; Mamba has no attention and no MLP, so there only its two ends are sites.
FORMS = dict.fromkeys(FAMILIES, "sequential") | {
    "phi": "parallel",
    "gptj": "parallel",
    "gpt-neox": "parallel",
    "falcon": "parallel",
    "falcon-new": "parallel",
    "opt-post-norm": "post-norm",
    "bert": "post-norm",
    "roberta": "post-norm",
    "mamba": "residual only",
}
CAUSAL = set(FAMILIES) - {"bert", "roberta", "modernbert"}
#: Key-value heads where they are fewer than the 4 heads.
KV_HEADS = {"falcon": 1, "falcon-new": 2} | {
    name: fields["num_key_value_heads"] for name, (_, fields) in _ROWS.items() if "num_key_value_heads" in fields
}
#: Blocks of which some, or all, see no further back than a window.
WINDOWED = {"mistral", "gemma2", "gemma3", "modernbert"}
#: MLPs that are a choice among experts, whose weights are stacked in three dimensions.
EXPERTS = {"mixtral", "olmoe"}
#: No norm between the last block and the head.
NO_FINAL_NORM = {"opt-post-norm", "bert", "roberta"}
#: Why prompts of up to 64 tokens are not packed; the others' are.
UNPACKED = {
    "gemma2": "it does not attend by torch's",
    "gptj": "it does not attend by torch's",
    "bloom": "it takes no token positions",
    "falcon-alibi": "come out otherwise",
    "roberta": "come out otherwise",
    "mamba": "it takes no token positions",
}


def build(family):
    """A tiny model of a family whose weights are large enough that every part matters."""
    torch.manual_seed(0)
    model = (FAMILIES | VISION)[family]().eval()
    factor = _FACTOR.get(family, 4)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(factor)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model


def build_tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False)
    core.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    fast.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    return fast
