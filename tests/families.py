"""Tiny random models of several families and a tiny tokenizer."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

VOCABULARY = 320
_TEXT = [
    "The place called San Francisco lies north of San Diego.",
    "A map that shows Paris, Lagos and São Paulo; the name Zürich has an umlaut.",
    "Hydrogen, helium and lithium are chemical elements. What do you know about New York?",
]
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128}


def _llama():
    return LlamaForCausalLM(LlamaConfig(**_SIZES, intermediate_size=48, num_hidden_layers=4, num_key_value_heads=2))


def _gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128))


def _neox(parallel):
    config = GPTNeoXConfig(**_SIZES, intermediate_size=64, num_hidden_layers=3, use_parallel_residual=parallel)
    return GPTNeoXForCausalLM(config)


def _bert():
    return BertForMaskedLM(BertConfig(**_SIZES, intermediate_size=64, num_hidden_layers=3))


FAMILIES = {
    "llama": _llama,
    "gpt2": _gpt2,
    "gpt-neox": lambda: _neox(True),
    "gpt-neox-sequential": lambda: _neox(False),
    "bert": _bert,
}
FORMS = {
    "llama": "sequential",
    "gpt2": "sequential",
    "gpt-neox": "parallel",
    "gpt-neox-sequential": "sequential",
    "bert": "post-norm",
}


def build(family):
    """A tiny model of a family whose weights are large enough that every part matters."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model


def build_tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    core.train_from_iterator(_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    fast.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    return fast
