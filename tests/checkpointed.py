"""Tiny Hugging Face checkpoints in folders: networks drawn from seeds, with a tokenizer beside them."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "tree",
    "and",
    "saw",
    "it",
    "was",
    "good",
    "bad",
    "very",
    "not",
]
TEXTS = [
    "the cat sat on the mat",
    "a dog ran under the tree",
    "it was very good",
    "the dog saw the cat and ran",
    "it was not bad and not very good",
    "a tree",
    "the mat was under the dog and the cat was on it",
]
_SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=2)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_SIZES, max_position_embeddings=32, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    ),
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**_SIZES, max_position_embeddings=32, num_labels=3, pad_token_id=0)
    ),
    "llama-classifier": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**_SIZES, max_position_embeddings=32, num_labels=3, bos_token_id=1, eos_token_id=2)
    ),
}


def tokenizer(kind):
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask", *["token_type_ids"] * (kind == "bert")],
    )


def network(kind, seed, scale=1.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = KINDS[kind]().eval()
        with torch.no_grad():
            for value in module.parameters():
                value.add_(scale * 0.2 * torch.randn(value.shape))
    return module


def saved(folder, kind, seeds, dtypes=None):
    """Folders of checkpoints, one a seed."""
    found = []
    for seed, dtype in zip(seeds, dtypes or [torch.float32] * len(seeds)):
        home = folder / f"{kind}-{seed}"
        network(kind, seed).to(dtype).save_pretrained(home)
        tokenizer(kind).save_pretrained(home)
        found.append(home)
    return found
