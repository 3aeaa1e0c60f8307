"""Families × operations: what the engine does with every causal family of the installed transformers, on tiny random models.

    python benchmarks/families.py [--write] [NAME …]

1. Every class that `AutoModelForCausalLM` knows is built with a tiny configuration: fields that its configuration has are made
   small, nothing is looked up by family but the few in `_MORE`.
2. Every operation runs on prompts of several lengths, on both sides of every length at which the configuration changes its
   behaviour, and is compared with plain torch: one prompt at a time, no cache, no engine.
3. The cell says how it ran: "proved" in fast passes that were proved on the network, "alone" one prompt at a time, "no cache" for
   generation that runs the whole text at each step, or "–" where it is refused; a refusal's reason stands below the table. A result
   that is not that of plain torch is WRONG, and the script then fails.

`--write` puts the table into docs/engine.md.
"""

import copy
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import repscope as rs
from repscope.models.prompts import Ragged
from repscope.worlds.tiny import byte_tokenizer

VOCABULARY = 320
SMALL = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **{"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "is_decoder": True, "use_mamba_kernels": False},
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), 256),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "embedding_size", "lru_width"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_attention_heads", "encoder_layers", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "mamba_expand", "expand"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size", "window_size"), 16),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "num_mem_blocks"), 1),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "query_pre_attn_scalar", "index_topk"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_chunk_size", "chunk_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "conv_kernel", "rotary_dim", "laurel_rank"), 4),
    **{"mamba_n_groups": 1, "n_groups": 1, "num_kv_shared_layers": 0, "type_vocab_size": 1, "qk_head_dim": 16},
    **{"index_n_heads": 16, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
}
_LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 6.0, 9.0],
    "factor": 4.0,
    "original_max_position_embeddings": 24,
}
_DYNAMIC = {"max_position_embeddings": 24, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
#: What some classes want beyond small sizes, and variants under names of their own.
_MORE = {
    "bamba": {"attn_layer_indices": [1, 3], "layers_block_type": None, "layer_types": None},
    "falcon_h1": {"layers_block_type": None, "layer_types": None},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "layer_types": None,
        "layers_block_type": ["mamba", "hybrid"] * 2,
    },
    "zamba": {
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "layer_types": None,
        "layers_block_type": ["mamba", "hybrid"] * 2,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "layers_block_type": None, "layer_types": None},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "zaya": {"num_experts_per_tok": 1},
    "phi3, longrope": {"original_max_position_embeddings": 24, "rope_parameters": _LONG_ROPE},
    "llama, dynamic rope": _DYNAMIC,
}
LENGTHS = (3, 9, 15, 17, 23, 25, 40)
OPERATIONS = ("capture", "batch", "packed", "prefix", "generate", "gradient", "Jacobian", "edits")


def build(name):
    """A tiny random model of a family.

    Raises whatever the class raises for a configuration that does not suit it, and ValueError for one that is not small.
    """
    kind = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name.split(",")[0]])
    made = kind.config_class

    def fixed(field):
        held = getattr(made, field, None)
        return isinstance(held, property) and held.fset is None

    plain = made()
    fields = {k: v for k, v in SMALL.items() if hasattr(plain, k) and not fixed(k)}
    if "kv_lora_rank" in fields:  # latent attention expands its keys to all heads
        fields["num_key_value_heads"] = 4
    for field in ("layer_types", "layers_block_type"):
        if (types := getattr(plain, field, None)) and not fixed(field):
            fields[field] = (list(dict.fromkeys(types)) * 4)[:4]
    fields |= _MORE.get(name, {})
    fields = {k: v for k, v in fields.items() if v is not None}
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(made(**fields)).parameters())
    if size > 4_000_000:
        raise ValueError(f"{size / 1e6:.0f} M parameters with small sizes")
    torch.manual_seed(0)
    model = kind(made(**fields)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model


class Plain:
    """The same network by plain torch: a fresh copy for each prompt, so that nothing of an earlier pass is left in it."""

    def __init__(self, model, lm):
        self.model, self.lm = model, lm

    def run(self, row, change=None):
        """Logits of every token; `change` maps a block's path to what its output becomes."""
        model = copy.deepcopy(self.model)
        body = model.base_model
        for number, function in (change or {}).items():
            block = body.get_submodule(f"{self.lm.anatomy.prefix}.{number}")
            block.register_forward_hook(lambda m, a, out, f=function: _replaced(out, f))
        return model(input_ids=torch.tensor([row]), **self.lm.plain()).logits[0]

    def greedy(self, row, steps):
        """The likeliest new tokens, the whole text run again for each."""
        row = list(row)
        for _ in range(steps):
            row.append(int(self.run(row)[-1].argmax()))
        return row[-steps:]


def _replaced(out, function):
    if isinstance(out, torch.Tensor):
        return function(out)
    first = next(i for i, x in enumerate(out) if isinstance(x, torch.Tensor))
    new = [function(x) if i == first else x for i, x in enumerate(out)]
    return type(out)(*new) if hasattr(out, "_fields") else type(out)(new)


def near(a, b, tolerance=2e-4):
    a, b = (torch.as_tensor(np.asarray(x)).double() for x in (a, b))
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * float(b.norm().clamp_min(1e-12))


def cells(lm, model):
    """How each operation runs, by its name; a reason behind a dash where it is refused."""
    plain = Plain(model, lm)
    rng = np.random.default_rng(0)
    rows = [rng.integers(2, 200, n).tolist() for n in LENGTHS]
    longest, out = max(LENGTHS), {}

    def asked(name, function):
        try:
            out[name] = function()
        except rs.UserError as error:
            out[name] = f"– {error}"

    @torch.no_grad()
    def capture():
        target, block = lm.resolve("resid_post.-1")[0], lm.blocks - 1
        ours = lm.capture(rows, target, "last")[target]
        for row, mine in zip(rows, ours):
            seen = []
            plain.run(row, {block: lambda x, seen=seen: seen.append(x) or x})
            if not near(mine, seen[0][0, -1]):
                return "WRONG"
        return "proved"

    def batch():
        _, why = lm.batched_below(longest)
        return "alone" if why else "proved"

    def packed():
        return f"– {why}" if (why := lm.unpackable(Ragged.of([np.array(r) for r in rows]), [])) else "proved"

    def prefix():
        if why := lm.prefix_refused(longest):
            return f"– {why}"
        whole = [rows[-1][:20] + row for row in rows[:4]]
        try:
            ours = lm.logits(whole)
        except rs.UserError:  # a head that is not read; hidden states were compared above
            return "proved"
        return "proved" if all(near(a, plain.run(r)[-1].detach()) for a, r in zip(ours, whole)) else "WRONG"

    def generate():
        some = [rows[i] for i in (0, 2, 4)]
        texts = lm.generate(some, 3)
        with torch.no_grad():
            for row, text in zip(some, texts):
                want = plain.greedy(row, 3)
                if text.ids.tolist() != want[: len(text.ids)]:
                    return "WRONG"
        way = lm.generation(longest)
        return "proved" if way.batch else "alone" if way.cache else "no cache"

    weights = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0))

    def truth(row, vector):
        """The gradient at the first block's output of the last one's, along a vector, at the last token."""
        leaf, seen = [], []

        def cut(x):
            leaf.append(x.detach().requires_grad_())
            return leaf[0]

        plain.run(row, {0: cut, lm.blocks - 1: lambda x: seen.append(x) or x})
        return torch.autograd.grad(seen[0][0, -1] @ vector, leaf[0])[0][0, -1]

    def gradient():
        target = lm.resolve("resid_post.-1")[0]
        _, grads = lm.gradient(rows, lambda z: z @ weights[: z.shape[-1]], at="resid_post.0", tokens="last", of_at=str(target))
        ours = grads[grads.sites[0]]
        return (
            ("alone" if out["batch"] == "alone" else "proved")
            if all(near(a, truth(r, weights[: len(a)]), 1e-3) for a, r in zip(ours, rows))
            else "WRONG"
        )

    def jacobian():
        lm.resolve("resid_post.0")
        vector = torch.randn(lm.anatomy.width, generator=torch.Generator().manual_seed(1))
        some = [rows[1], rows[2], rows[-1]]
        jac = lm.jacobian(some, "resid_post.0", f"resid_post.{lm.blocks - 1}", source_tokens="last")
        ours = np.asarray(jac.vjp(vector[None].numpy())).reshape(len(some), -1)
        return "proved" if all(near(a, truth(r, vector), 1e-3) for a, r in zip(ours, some)) else "WRONG"

    @torch.no_grad()
    def edits():
        lm.resolve("resid_post.0")
        vector = torch.randn(lm.anatomy.width, generator=torch.Generator().manual_seed(2))
        target = lm.resolve("resid_post.-1")[0]
        with lm.edit(rs.Edit.add("resid_post.0", vector)):
            ours = lm.capture(rows, target, "last")[target]
        theirs = []
        for row in rows:
            plain.run(row, {0: lambda x: x + vector, lm.blocks - 1: lambda x: theirs.append(x[0, -1]) or x})
        right = all(near(a, b) for a, b in zip(ours, theirs, strict=True))
        return ("alone" if out["batch"] == "alone" else "proved") if right else "WRONG"

    for name, function in zip(OPERATIONS, (capture, batch, packed, prefix, generate, gradient, jacobian, edits)):
        asked(name, function)
    return out


def measured(names):
    """(family, cells or why it is not loaded, seconds) of each family that can be built."""
    rows, unbuilt = [], []
    for name in names:
        try:
            model = build(name)
            with torch.no_grad():
                for length in LENGTHS:
                    copy.deepcopy(model)(input_ids=torch.arange(length)[None] + 5, use_cache=False)
        except Exception as error:  # whatever a class raises for a configuration that is not its own
            unbuilt.append((name, f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"))
            continue
        started = time.perf_counter()
        try:
            lm = rs.load(copy.deepcopy(model), tokenizer=byte_tokenizer())
            found = cells(lm, model)
        except rs.UserError as error:
            found = {"load": f"– {error}"}
        except Exception as error:
            found = {"load": f"WRONG {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        rows.append((name, found, time.perf_counter() - started))
        print(name, found, f"{rows[-1][2]:.1f} s", flush=True)
    return rows, unbuilt


def table(rows):
    """The rows as Markdown, with the reasons of refusals numbered below."""
    reasons: dict[str, int] = {}

    def shown(cell):
        if not cell.startswith("–"):
            return cell
        why = re.sub(r"\b[A-Z]\w*(For|LMHead|Model)\w*", "it", cell[2:]).removesuffix(".")
        return f"– [{reasons.setdefault(why, len(reasons) + 1)}]"

    lines = ["| family | " + " | ".join(OPERATIONS) + " |", "|---" * (len(OPERATIONS) + 1) + "|"]
    for name, found, _ in rows:
        said = [shown(found[op]) if op in found else shown(found.get("load", "–")) for op in OPERATIONS]
        lines.append(f"| {name} | " + " | ".join(said) + " |")
    notes = [f"{number}. {why}" for why, number in reasons.items()]
    return "\n".join(lines) + "\n\n" + "\n".join(notes)


def main(arguments):
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    write = "--write" in arguments
    named = [a for a in arguments if not a.startswith("--")]
    known = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *(n for n in _MORE if "," in n)})
    rows, unbuilt = measured(named or known)
    wrong = [(name, cell) for name, found, _ in rows for cell in found.items() if cell[1].startswith("WRONG")]
    text = table(rows)
    print(text)
    for name, why in unbuilt:
        print(f"not built: {name}: {why}")
    slow = max(rows, key=lambda row: row[2], default=("", {}, 0.0))
    print(f"{len(rows)} families, {len(wrong)} wrong, the slowest {slow[0]} in {slow[2]:.1f} s")
    for one in wrong:
        print("WRONG", one)
    if write:
        path = Path(__file__).parents[1] / "docs" / "engine.md"
        which = "oldest" if transformers.__version__.startswith("5.0.") else "newest"
        begin, end = (f"<!-- families, {which} transformers: {edge} -->" for edge in ("begin", "end"))
        head, _, rest = path.read_text().partition(begin)
        said = f"{len(rows)} families of transformers {transformers.__version__}, tiny random models, float32 on a CPU."
        path.write_text(f"{head}{begin}\n{said}\n\n{text}\n{end}{rest.partition(end)[2]}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
