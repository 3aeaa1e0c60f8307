"""Check of unused checkpoint tensors: which may be ignored, and which are refused.

May be ignored:

1. what the network computes from its configuration and older files store: rotary frequencies, causal masks, position ids
   (`derived`, by name and shape: an `attn.bias` with one axis is a bias, one of shape (1, 1, n, n) a mask);
2. what transformers' class ignores on purpose: layers that predict several tokens ahead, a vision tower beside a text model;
3. other heads, where the class is one of a family with several: a pooler or a next-sentence head beside a masked language
   model, any head where a network is read without one.

Any other unused tensor means that the network differs from the trained one. Adapters (LoRA and similar) have their own message.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from math import prod
from typing import Any

from repscope.errors import UserError
from repscope.models.engine.fingerprint import shape_in

Shape = tuple[int, ...]


def _mask(shape: Shape) -> bool:
    return len(shape) >= 2 and shape[-1] == shape[-2] and prod(shape[:-2]) == 1


#: name of a tensor that is computed, not trained → whether its shape is such a tensor's
_DERIVED: tuple[tuple[re.Pattern[str], Callable[[Shape], bool]], ...] = (
    (re.compile(r"(^|\.)(original_)?inv_freq$"), lambda shape: len(shape) == 1),
    (re.compile(r"(^|\.)rotary_emb\.(cos|sin)(_cached)?$"), lambda shape: len(shape) >= 2),
    (re.compile(r"(^|\.)position_ids$"), lambda shape: len(shape) <= 2),
    (re.compile(r"(^|\.)embeddings\.token_type_ids$"), lambda shape: len(shape) <= 2),
    (re.compile(r"(^|\.)(attn|attention|self_attn|self_attention|crossattention)\.(bias|causal_mask)$"), _mask),
    (re.compile(r"(^|\.)masked_bias$"), lambda shape: prod(shape) == 1),
    (re.compile(r"(^|\.)attn\.embed_positions$"), lambda shape: len(shape) == 2),
    (re.compile(r"(^|\.)embed_positions\.(weights|_float_tensor)$"), lambda shape: True),
)
#: parts of names that PEFT gives to what it adds to a layer
_ADAPTER = re.compile(
    r"(^|\.)(lora_(A|B|E|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save|ia3_l|hada_w\w+|lokr_w\w+|"
    r"oft_\w+|boft_\w+|vera_lambda_\w+|prompt_encoder|prompt_embeddings|original_module)(\.|$)"
)
_OTHER_HEAD = re.compile(
    r"(^|\.)pooler\.|^(cls|classifier|score|qa_outputs|lm_head|sop_classifier|predictions|discriminator_predictions|"
    r"generator_predictions|generator_lm_head|mask_predictions|lm_predictions|pre_classifier|vocab_\w+|v_head)\."
)


def derived(name: str, shape: Shape) -> bool:
    """Whether a tensor of this name and shape is one that networks compute and do not train."""
    return any(pattern.search(name) and fits(shape) for pattern, fits in _DERIVED)


def taken(
    model: Any, name: str, digests: Mapping[str, str], *, missing: Iterable[str], unexpected: Collection[str]
) -> dict[str, str]:
    """The part of `digests` (tensor name → dtype, shape, digest) that the network uses.

    `missing` and `unexpected` are reported by transformers. Raises a `UserError` for weights that the files lack, and for weights
    that are unused; names the first.
    """
    kind = type(model).__name__
    held = set(model.state_dict())
    if added := sorted(n for n in digests if n not in held and _ADAPTER.search(n)):
        raise UserError(
            f"{name} stores an adapter beside its weights, {added[0]} first ({len(added)} tensors in all), which a {kind} does "
            "not take; merge it with PEFT's merge_and_unload() and save the result, or load it with PEFT and hand the model to "
            "rs.load(model, tokenizer=…)."
        )
    if lost := sorted(missing):
        raise UserError(
            f"{name} lacks weights of a {kind}, {lost[0]} first ({len(lost)} in all), and would be random there; "
            "check config.json against the weights."
        )
    shapes = {n: shape_in(line) for n, line in digests.items()}
    base = f"{getattr(model, 'base_model_prefix', '')}."
    headless = not hasattr(model, base[:-1])
    left = sorted(
        n
        for n in unexpected
        if not derived(n, shapes.get(n, shapes.get(base + n, ())))
        and not _head(n, model, headless and any(other.startswith(base) for other in digests) and not n.startswith(base))
    )
    if left:
        raise UserError(
            f"{name} holds weights that a {kind} does not take, {left[0]} first ({len(left)} in all), so its answers would not be "
            "those of the trained model; check config.json against the weights, or load them with the class that saved them and "
            "hand the model to rs.load(model, tokenizer=…)."
        )
    _tied(model, name, digests)
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    copies = {target for target, source in _ties(model).items() if source in digests and digests.get(target) == digests[source]}

    def passed_over(n: str) -> bool:
        if n in held or base + n in held or n.removeprefix(base) in held:
            return n in copies
        return n in unexpected or derived(n, shapes[n]) or any(p.search(n) for p in ignored)

    return {n: line for n, line in digests.items() if not passed_over(n)}


def _head(name: str, model: Any, outside: bool) -> bool:
    """Whether a tensor belongs to another head than the one that the network was read with."""
    return outside or (not model.can_generate() and _OTHER_HEAD.search(name) is not None)


def _ties(model: Any) -> dict[str, str]:
    """Name of a tied tensor → that of the tensor that it is tied to."""
    declared = getattr(model, "_tied_weights_keys", None)
    own = dict(declared) if declared and getattr(model.config.get_text_config(), "tie_word_embeddings", False) else {}
    return own | dict(getattr(model, "all_tied_weights_keys", None) or {})


def _tied(model: Any, name: str, digests: Mapping[str, str]) -> None:
    """Refuse a file whose output matrix differs from its embedding where the network ties the two."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(end is None or not hasattr(end, "weight") for end in ends) or ends[0].weight is not ends[1].weight:
        return
    for target, source in _ties(model).items():
        if target in digests and source in digests and digests[target] != digests[source]:
            raise UserError(
                f"{name} stores a {target} that differs from {source}, and its config.json ties the two; set "
                "tie_word_embeddings to false there if the stored one is meant, or remove it from the file."
            )
