"""Losses on texts: a text's loss is its own, whatever stands beside it in a batch and whatever ran before."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from families import VOCABULARY
from repscope.trace import checkpoint_losses

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 6.0, 9.0],
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "llama": ("LlamaForCausalLM", {}),
    "longrope": ("Phi3ForCausalLM", {"original_max_position_embeddings": 16, "rope_parameters": LONG_ROPE}),
    "dynamic": (
        "LlamaForCausalLM",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mixed rows": ("LlamaForCausalLM", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_a_batch_has_the_loss_that_it_has_alone(kind):
    name, fields = KINDS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, name)
    module = made(made.config_class(**SIZES, **fields)).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(4)
    if kind == "mixed rows":
        module.model.layers[0].register_forward_hook(lambda m, a, out: out + 0.3 * out.mean(0, keepdim=True))
    rng = np.random.default_rng(0)
    rows = [rng.integers(2, VOCABULARY, n).tolist() for n in (5, 9, 14, 15, 16, 17, 30, 30, 40)]
    held = checkpoint_losses.EncodedExamples(tuple({"input_ids": row} for row in rows), 0, {"": np.arange(len(rows))}, None)
    found = checkpoint_losses.losses_by_example(held, lambda split, kind: kind)(module)["loss"][:, 0]
    for row, nats in zip(rows, found):
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = copy.deepcopy(module)(input_ids=ids).logits[0, :-1]
        assert nats == pytest.approx(float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum")), rel=1e-4)
