"""What a tensor of a checkpoint belongs to, by its name: kind of module and block.

The first row of `KINDS` that fits decides. A name that fits none is of the kind "other": nothing is guessed.
"""

import re

KINDS: tuple[tuple[str, str], ...] = (
    ("router", r"(^|\.)(router|mlp\.gate|block_sparse_moe\.gate)(\.|$)"),
    ("norm", r"norm|(^|\.)ln_?\w*\.|layer_?norm"),
    ("output head", r"^(lm_head|embed_out|cls|classifier|score|qa_outputs)\b|(^|\.)lm_head\."),
    ("position embedding", r"wpe|position_embeddings|embed_positions"),
    ("embedding", r"embed_tokens|wte|word_embeddings|embed_in|embeddings|shared\.weight|decoder\.weight$"),
    ("attention query, key, value", r"c_attn|query_key_value|qkv|(^|\.)(self_)?attn\.in_proj"),
    ("attention query", r"(^|\.)(q_proj|query|q_lin|q)\."),
    ("attention key", r"(^|\.)(k_proj|key|k_lin|k)\."),
    ("attention value", r"(^|\.)(v_proj|value|v_lin|v)\."),
    ("attention output", r"(o_proj|attn\.out_proj|attn\.c_proj|attention\.dense|attention\.output\.dense|out_lin|attention\.o)\b"),
    ("MLP gate", r"(^|\.)(gate_proj|gate_up_proj|w1)\b"),
    ("MLP output", r"(down_proj|mlp\.c_proj|dense_4h_to_h|fc2|fc_out|output\.dense|ffn\.lin2|(^|\.)w2|wo)\b"),
    ("MLP input", r"(up_proj|c_fc|dense_h_to_4h|fc1|fc_in|intermediate\.dense|ffn\.lin1|(^|\.)w3|wi(_\d)?)\b"),
)
OTHER = "other"
_COMPILED = tuple((kind, re.compile(pattern)) for kind, pattern in KINDS)
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


def kind_of(name: str) -> str:
    """The kind of module that a tensor belongs to.

    >>> kind_of("model.layers.3.self_attn.q_proj.weight"), kind_of("transformer.h.0.mlp.c_proj.bias"), kind_of("lm_head.weight")
    ('attention query', 'MLP output', 'output head')
    """
    return next((kind for kind, pattern in _COMPILED if pattern.search(name)), OTHER)


def block_of(name: str) -> int | None:
    """The block that a tensor belongs to, by the first number in its name; None outside blocks.

    >>> block_of("model.layers.12.mlp.experts.3.up_proj.weight"), block_of("model.norm.weight")
    (12, None)
    """
    found = _BLOCK.search(name)
    return int(found[1]) if found else None
