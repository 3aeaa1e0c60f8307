"""Check that all tensors of a GGUF file and all parameters of the network correspond.

1. A parameter that no tensor filled is an error, except a bias that llama.cpp does not add either where the file has none.
2. A tensor that no parameter took is an error. transformers passes over such tensors in silence for most architectures; which
   these are follows from its own table of names.
3. Queries and keys of Llama's kind are stored with the two halves of each head interleaved. transformers sorts them where the file
   names both numbers of heads, and leaves them interleaved elsewhere; they are sorted here then.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from repscope.errors import UserError
from repscope.models.loading.gguf_settings import Header

_PARTS = ("gate", "up", "down")


def complete(
    model: Any, header: Header, path: Path, *, missing: Iterable[str], unexpected: Iterable[str], told: Collection[str]
) -> None:
    """Check that every tensor of the file was used and every parameter was filled; biases that the file lacks become zero.

    `missing` and `unexpected` are reported by transformers; `told` are the tensors that are expressed by the configuration. Raises
    a `UserError` that names the first tensor that is unused or missing.
    """
    kind = type(model).__name__
    lacking = set(missing)
    for name in [name for name in lacking if name.endswith(".bias") and _switched(model.config, name)]:
        model.get_parameter(name).data.zero_()
        lacking.remove(name)
    if lost := sorted(lacking):
        raise UserError(
            f"{path} lacks weights of a {kind}, {lost[0]} first ({len(lost)} in all); it is cut "
            "or of an architecture that transformers maps wrongly."
        )
    if left := sorted(name for name in _left(model, header, unexpected) if name not in told):
        raise UserError(
            f"{path} holds tensors that a {kind} does not take, {left[0]} first ({len(left)} in all), so its answers would not be "
            "those of the trained model; load the original safetensors model instead."
        )
    for block in range(int(header.keys["block_count"])):  # transformers fills with zeros what these lack
        experts = [f"blk.{block}.ffn_{part}_exps.weight" for part in _PARTS]
        if 0 < sum(name in header.shapes for name in experts) < len(experts):
            lost = [name for name in experts if name not in header.shapes]
            raise UserError(f"{path} lacks weights of a {kind}, {lost[0]} first; fetch it again.")


def _switched(config: Any, name: str) -> bool:
    """Whether a bias is there because a field of the configuration asks for all of its kind."""
    field = "mlp_bias" if ".mlp." in name else "attention_bias"
    return bool(getattr(config, field, False)) and (".mlp." in name or "attn" in name)


def _left(model: Any, header: Header, unexpected: Iterable[str]) -> set[str]:
    """Names of tensors that no parameter took; in transformers' words for architectures that its newer reader reads."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    reader: Any = modeling_gguf_pytorch_utils  # without annotations
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:  # before 5.2x there is one reader
        newer = False
    else:
        newer = is_gguf_arch_supported(header.architecture)
    if newer:
        return set(unexpected)
    processor = reader.TENSOR_PROCESSORS.get(header.architecture, reader.TensorProcessor)(config={})
    named = next(kind for kind, text in gguf.MODEL_ARCH_NAMES.items() if text == header.architecture)
    table = gguf.get_tensor_name_map(named, int(header.keys["block_count"]))
    taken: dict[str, str] = {}
    for name in map(processor.preprocess_name, model.state_dict()):
        stem, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        parts = stem.split(".")
        spelt = (table.get_name(".".join(parts[i:])) for i in range(len(parts)))  # with and without the base model's name
        if place := next((place for place in spelt if place), None):
            taken[place + dot + kind] = name
        else:
            processor.perform_fallback_tensor_mapping(taken, dot + kind, "", name)
    # One parameter for all experts has no suffix. Frequencies that older files store follow from the base.
    experts = {f"{name}.weight" for name in taken if name.endswith("_exps")}
    return {n for n in header.shapes if n not in taken and n not in experts and not n.endswith("attn_rot_embd.weight")}


def sort_halves(model: Any, header: Header) -> None:
    """Sort the rows of queries and keys of Llama's kind where transformers left them interleaved."""
    named = ("attention.head_count", "attention.head_count_kv")
    if header.architecture != "llama" or all(header.keys.get(key) is not None for key in named):
        return
    config = model.config
    numbers = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.named_parameters():
        if n := numbers.get(name.split(".")[-2]):
            pairs = value.data.reshape(n, -1, 2, *value.shape[1:])
            value.data.copy_(pairs.transpose(1, 2).reshape(value.shape))
