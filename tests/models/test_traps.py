"""The traps that shared/STYLE.md lists, each on a model where it bites."""

import numpy as np
import pytest
import torch
import transformers

from families import build
from repscope.models.engine.hooks import first_tensor
from repscope.models.language import LanguageModel

PROMPT = "The place called San Diego"


def test_the_last_block_is_read_before_the_final_norm(llama):
    ids = torch.tensor([llama.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        states = llama.model(ids, output_hidden_states=True).hidden_states
    last = llama.capture([PROMPT], "resid_post.-1", "all").numpy()[0]
    assert np.linalg.norm(last - states[-1][0].numpy()) > 0.1 * np.linalg.norm(last)
    np.testing.assert_allclose(llama.capture([PROMPT], "final_norm", "all").numpy()[0], states[-1][0], atol=1e-5)


def test_hidden_states_k_is_the_input_of_block_k(llama):
    ids = torch.tensor([llama.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        states = llama.model(ids, output_hidden_states=True).hidden_states
    for k in range(llama.blocks):
        np.testing.assert_allclose(llama.capture([PROMPT], f"resid_pre.{k}", "all").numpy()[0], states[k][0], atol=1e-5)


def test_tuples_and_tensors_read_alike():
    x = torch.ones(2)
    for given in (x, (x, None), [x], {"hidden": x}, (None, x)):
        assert first_tensor(given) is x
    assert first_tensor((None, "text")) is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_changes_nothing(tokenizer, side):
    lm = LanguageModel(build("llama"), tokenizer)
    before, lm.tokenizer.padding_side = lm.tokenizer.padding_side, side
    try:
        batched = lm.capture([PROMPT, "Lagos"], "resid_post.3").numpy()
    finally:
        lm.tokenizer.padding_side = before
    np.testing.assert_allclose(batched[1], lm.capture(["Lagos"], "resid_post.3").numpy()[0], atol=1e-5)


def test_no_token_is_added_that_the_tokenizer_does_not_add(llama):
    assert llama.tokens(PROMPT) == [llama.tokenizer.decode([i]) for i in llama.tokenizer(PROMPT)["input_ids"]]
    ids = llama.tokenizer(PROMPT)["input_ids"]
    assert llama.capture([PROMPT], "embed", "all").offsets.tolist() == [0, len(ids)]


def test_mlp_out_is_what_is_added_on_a_model_with_a_norm_after_the_mlp(tokenizer):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    lm = LanguageModel(transformers.Gemma2ForCausalLM(config).eval(), tokenizer)
    acts = lm.capture([PROMPT], ["resid_mid.1", "mlp_out.1", "resid_post.1", "module:layers.1.mlp"], "all")
    np.testing.assert_allclose(acts["resid_mid.1"] + acts["mlp_out.1"], acts["resid_post.1"], atol=1e-5)
    assert np.abs(acts["mlp_out.1"] - acts["module:layers.1.mlp"]).max() > 1e-3


def test_a_capture_holds_what_was_asked_for_and_no_more(llama):
    acts = llama.capture([PROMPT] * 3, "resid_post.1")
    assert [r.nbytes for r in acts.rows.values()] == [3 * 32 * 4]


def test_the_prefix_cache_is_not_changed_by_the_passes_that_use_it(llama):
    prompts = [[7] * 30 + [i, 3, i] for i in range(12)]
    once = llama.capture(prompts, "resid_post.3", batch_tokens=6).numpy()  # many batches from one cache
    np.testing.assert_allclose(once, llama.capture(prompts, "resid_post.3", batch_tokens=600).numpy(), rtol=1e-4, atol=1e-5)
