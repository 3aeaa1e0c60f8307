"""A tiny untrained language model with a byte-level tokenizer, for tests and `--tiny`."""

from typing import TYPE_CHECKING, Any

from repscope.errors import UserError, unknown
from repscope.models.engine.fingerprint import WeightSource, of_module

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


def byte_tokenizer() -> Any:
    """One token per byte, 256 in all, without special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)  # type: ignore[no-untyped-call]


def untrained_llama(seed: int, **sizes: Any) -> Any:
    """A Llama with four heads and random weights from a seed, without special tokens, in evaluation mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, bos_token_id=None, eos_token_id=None, **sizes)).eval()  # type: ignore[no-untyped-call]


def tiny(seed: int = 0, *, device: str = "cpu", dtype: str = "float32", end: str | None = None) -> "LanguageModel":
    """Untrained Llama of four blocks of width 32 over bytes.

    device: a torch device. dtype: as for `load`; the weights are drawn in float32 and converted. end: a character that ends
    answers; by default none does.

    Raises
    ------
    UserError
        For an unknown device or dtype.
    """
    import torch

    from repscope.models.language import LanguageModel
    from repscope.models.loading.folders import SPREAD
    from repscope.models.loading.sources import DTYPES, device_named

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if device in SPREAD:
        raise UserError(f"The tiny model fits one device, and {device!r} spreads a model; give cpu or cuda.")
    where = device_named(device)
    tokenizer = byte_tokenizer()
    model = untrained_llama(
        seed,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    if end is not None:
        tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(tokenizer(end)["input_ids"])[0]})
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(where, getattr(torch, dtype))
    source = WeightSource("tiny", of_module(model), f"{dtype}, random weights", None, None)
    return LanguageModel(model, tokenizer, "tiny", source)
