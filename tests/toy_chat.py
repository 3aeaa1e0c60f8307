"""A toy to fine-tune: a language of twenty words whose untrained model ends answers often, and a reward on its words."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from repscope.data.verifiable import Example, VerifiableTask
from repscope.models.language import LanguageModel

WORDS = ["<end>", "<pad>", "cat", "dog", "sun", "sea", "red", "big", "a", "b", "c", "d", "e", "f", "g", "h"]


def reward(prompt, answer):
    """Share of the answer's words that are "cat"."""
    words = answer.split()
    return words.count("cat") / len(words) if words else 0.0


def _examples(prompts):
    return tuple(Example(prompt, "cat cat") for prompt in prompts)


TASK = VerifiableTask(
    "cats",
    "says cat",
    _examples([f"{x} {y}" for x in WORDS[4:12] for y in WORDS[4:8]]),
    _examples([f"{x} {y}" for x in WORDS[12:] for y in WORDS[4:12]]),
    reward,
)


def toy(seed=0, **how):
    """An untrained Llama of two blocks over `WORDS`."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="b"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(WORDS[:2])
    chat = "{% for m in messages %}{{ m['content'] }} {% if m['role'] != 'user' %}<end>{% endif %}{% endfor %}"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="b", chat_template=chat
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
            **how,
        )
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            model.lm_head.weight.mul_(10)  # so that adapters below it can move the next word
    return LanguageModel(model, tokenizer, "toy")
