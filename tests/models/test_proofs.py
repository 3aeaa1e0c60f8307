"""Fast paths are proved or not taken: every way to run a network gives what plain torch gives for one prompt alone."""

import copy

import numpy as np
import pytest
import torch
import transformers

import repscope as rs
from families import VOCABULARY
from repscope.models.engine.proofs import Proofs, switch_lengths
from repscope.models.prompts import Ragged
from repscope.models.verify.checks import verify

IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
WIDE = IDS | {
    "max_position_embeddings": 256,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 3.0, 6.0, 9.0],
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
HYBRID = WIDE | {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
GEMMA3N = WIDE | {
    "head_dim": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "num_kv_shared_layers": 2,
    "sliding_window": 16,
    "activation_sparsity_pattern": [0.0] * 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
JAMBA = WIDE | {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
GRIFFIN = WIDE | {"lru_width": 32, "attention_window_size": 16, "head_dim": 8, "block_types": ["recurrent", "attention"]}
#: case → class, factor on the weights, configuration
NETWORKS = {
    "longrope": ("Phi3ForCausalLM", 4, WIDE | {"original_max_position_embeddings": 64, "rope_parameters": LONG_ROPE}),
    "dynamic rope": (
        "LlamaForCausalLM",
        4,
        WIDE | {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "window": ("MistralForCausalLM", 4, WIDE | {"sliding_window": 16}),
    "recurrent": ("RecurrentGemmaForCausalLM", 2, GRIFFIN),
    "two kinds of blocks": ("JambaForCausalLM", 2, JAMBA),
    "router beside linear attention": (
        "Qwen3NextForCausalLM",
        2,
        HYBRID | {"layer_types": ["linear_attention", "full_attention"] * 2},
    ),
    "parallel streams": ("Gemma3nForCausalLM", 4, GEMMA3N),
}
LENGTHS = (3, 9, 15, 17, 60, 63, 64, 65, 70)


def net(kind, factor, fields):
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    made = made(made.config_class(**fields)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(factor) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return made


def ids(n, seed):
    return np.random.default_rng(seed).integers(2, VOCABULARY, n).tolist()


@torch.no_grad()
def alone(model, row):
    """Next-token logits of a fresh copy: no earlier pass has left anything in it."""
    return copy.deepcopy(model)(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].numpy()


def greedy(model, row, steps):
    row = list(row)
    for _ in range(steps):
        row.append(int(alone(model, row).argmax()))
    return row[-steps:]


def near(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-4 * np.linalg.norm(b)


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request, tokenizer):
    model = net(*NETWORKS[request.param])
    return request.param, model, rs.load(copy.deepcopy(model), tokenizer=tokenizer)


def test_a_prompt_comes_out_alone_in_a_batch_and_behind_a_shared_prefix(case):
    name, model, lm = case
    rows = [ids(n, n) for n in LENGTHS] + [ids(45, 99) + ids(n, n + 1) for n in (3, 14, 18, 19, 20, 30)]
    if name == "recurrent":  # its head is more than a map of the final norm
        ours = [row @ model.lm_head.weight.detach().numpy().T for row in lm.capture(rows, "final_norm")["final_norm"]]
        theirs = [np.arctanh(alone(model, row) / 30) * 30 for row in rows]
    else:
        ours, theirs = lm.logits(rows), [alone(model, row) for row in rows]
    for row, a, b in zip(rows, ours, theirs):
        assert near(a, b), f"{name}: the prompt of {len(row)} tokens depends on its neighbours"


def test_a_prompt_is_continued_alike_alone_and_in_a_batch(case):
    name, model, lm = case
    rows = [ids(n, n) for n in LENGTHS]
    for text, row in zip(lm.generate(rows, 4), rows):
        want = greedy(model, row, 4)
        assert text.ids.tolist() == want[: len(text.ids)], f"{name}: {len(row)} tokens"


def test_gradients_and_edits_are_those_of_each_prompt_alone(case):
    name, _, lm = case
    if name == "parallel streams":
        for call in (lambda: lm.capture([ids(9, 1)], "resid_post.1"), lambda: lm.capture([ids(9, 1)] * 2, "module:layers.1")):
            with pytest.raises(rs.UserError, match=r"2 × "):
                call()
        return
    rows = [ids(60, 1), ids(70, 2), ids(9, 3)]
    at = {"at": "resid_post.1", "of_at": "resid_post.3"}
    together, _ = lm.gradient(rows, lambda z: z[:, 5], **at)
    singly = [lm.gradient([row], lambda z: z[:, 5], **at)[0][0] for row in rows]
    np.testing.assert_allclose(together, singly, rtol=1e-4)
    with lm.edit(rs.Edit.add("resid_post.0", np.ones(32), tokens="last")):
        together = lm.capture(rows, "resid_post.3").numpy()
        singly = np.concatenate([lm.capture([row], "resid_post.3").numpy() for row in rows])
    assert near(together, singly)
    together = lm.jacobian(rows, "resid_post.1", "resid_post.3").matrix()
    singly = np.concatenate([lm.jacobian([row], "resid_post.1", "resid_post.3").matrix() for row in rows])
    assert near(together, singly)


def test_verify_passes_and_leaves_no_false_alarm(case):
    name, _, lm = case
    found = verify(lm)
    assert found.passed, (name, found)


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("padded batch", "padded batch"),
        ("shared prefix", "shared prefix"),
        ("packed", "packed prompts"),
        ("generation, in a batch with a cache", "cached generation"),
    ],
)
def test_verify_fails_where_a_proof_lies(tokenizer, path, check):
    """Each fast path is declared proved, on a network on which it is wrong."""
    lm = rs.load(net(*NETWORKS["longrope"]), tokenizer=tokenizer)
    if path == "packed":
        lm.proofs.found |= {("packed prompts", 1 << n): "" for n in range(5, 9)}
    else:
        lm.proofs.found |= {(path, level): "" for level in range(3)}
    found = verify(lm)
    assert check in {c.name for c in found.failed}, found


def test_frequencies_of_an_earlier_longer_prompt_are_not_kept(tokenizer):
    """transformers keeps what the longest prompt so far needed; here a pass begins as the first one did."""
    model = net(*NETWORKS["dynamic rope"])
    lm = rs.load(copy.deepcopy(model), tokenizer=tokenizer)
    state = {name: value.clone() for name, value in lm.model.named_buffers()}
    row = ids(80, 1)
    before = lm.logits([row])
    lm.logits([ids(200, 2)])
    np.testing.assert_array_equal(lm.logits([row]), before)
    assert near(before[0], alone(model, row))
    for name, value in lm.model.named_buffers():
        assert torch.equal(value, state[name]), f"{name} is left as a pass has made it"


def test_a_model_that_the_user_moves_or_changes_stays_so(tokenizer):
    lm = rs.load(net(*NETWORKS["longrope"]), tokenizer=tokenizer)
    before = lm.logits([ids(9, 1)])
    lm.model.to(torch.float64)
    assert lm.logits([ids(9, 1)]).dtype == np.float64
    lm.model.to(torch.float32)
    assert near(lm.logits([ids(9, 1)]), before)
    lm.model.register_buffer("mine", torch.ones(3))
    lm.logits([ids(9, 1)])
    lm.model.mine.add_(1)
    lm.logits([ids(9, 1)])
    assert lm.model.mine.tolist() == [2, 2, 2]


def test_a_neighbours_row_sends_prompts_through_alone(tokenizer):
    """A network whose blocks mix the rows of a batch, in general: nothing of it is known in advance."""
    model = net("LlamaForCausalLM", 4, WIDE)
    model.model.layers[1].register_forward_hook(lambda m, a, out: out + 0.01 * out.mean(0, keepdim=True))
    lm = rs.load(model, tokenizer=tokenizer)
    rows = [ids(n, n) for n in (3, 9, 9, 12)]
    for row, ours in zip(rows, lm.logits(rows)):
        with torch.no_grad():
            assert near(ours, model(input_ids=torch.tensor([row])).logits[0, -1])
    from repscope.models.prompts import Encoded
    from repscope.models.sites import Site
    from repscope.models.variants.block_replay import block_replay
    from repscope.models.variants.prompt_variants import PromptVariant, run_variants

    push = torch.ones(32)
    forks = [PromptVariant(Site("resid_post", layer), at, at + 1, lambda x: x + push) for layer, at in ((0, 2), (2, 4))]
    for fork, ours in zip(forks, run_variants(lm, np.array(rows[1]), forks)):
        with lm.edit(rs.Edit.add(fork.site, push, tokens=fork.start)):
            assert near(ours, lm.capture([rows[1]], lm.last).numpy()[0])
    ends = Encoded(Ragged.of([np.array(rows[1])]), np.array([8]), np.array([9]))
    moved = block_replay(lm, ends, "resid_post.0", "resid_post.3", pooled=True).parts[0].run(torch.stack([push, -push]))
    before = lm.capture([rows[1]], "resid_post.3").numpy()[0]
    for sign, ours in zip((1, -1), moved):
        with lm.edit(rs.Edit.add("resid_post.0", sign * push, tokens="all")):
            after = lm.capture([rows[1]], "resid_post.3").numpy()[0]
        assert near(ours[0].detach(), after - before)
    plan = lm.plan(rows, "resid_post.3").plan
    assert [len(batch) for batch in plan.batches] == [1] * 3
    assert "one at a time" in plan.why


def test_blocks_are_those_that_the_probe_runs_through(tokenizer):
    """A vision tower with more parameters than the text model, which no text reaches."""
    text = transformers.LlamaConfig(**WIDE)
    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=VOCABULARY - 1)
    ).eval()
    lm = rs.load(model, tokenizer=tokenizer)
    assert (lm.blocks, lm.anatomy.width, lm.context) == (4, 32, 256)
    rows = [ids(n, n) % np.array(300) for n in (5, 9)]
    for row, ours in zip(rows, lm.logits([r.tolist() for r in rows])):
        with torch.no_grad():
            assert near(ours, model(input_ids=torch.tensor(row)[None]).logits[0, -1])
    assert verify(lm).passed


@pytest.mark.parametrize("kind", ["XLMWithLMHeadModel", "AlbertForMaskedLM"])
def test_lists_that_are_no_blocks_are_none(tokenizer, kind):
    """XLM keeps attention and MLPs in two lists; ALBERT runs one block again and again."""
    config = getattr(transformers, kind).config_class
    sizes = (
        {"emb_dim": 32, "n_layers": 3, "n_heads": 4}
        if kind.startswith("XLM")
        else {"embedding_size": 32, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    )
    lm = rs.load(getattr(transformers, kind)(config(vocab_size=VOCABULARY, **sizes)), tokenizer=tokenizer)
    with pytest.raises(rs.UserError, match=r"does not take what|runs 3 times|none was found"):
        lm.capture([ids(5, 1)], "resid_post.0")


def test_the_options_beside_the_weights_are_never_set(tokenizer):
    model = net("LlamaForCausalLM", 4, WIDE)
    model.generation_config.repetition_penalty = 5.0
    options = model.generation_config
    seen = []
    model.model.layers[0].register_forward_hook(lambda m, a, out: seen.append(model.generation_config is options))
    lm = rs.load(model, tokenizer=tokenizer)
    row = ids(9, 1)
    assert lm.generate([row], 4)[0].ids.tolist() == greedy(model, row, 4), "options that nobody stated are not used"
    assert all(seen), "the user's options were replaced for a moment"


def test_switch_lengths_are_read_wherever_a_configuration_has_them():
    config = {
        "sliding_window": 512,
        "attention_chunk_size": 128,
        "rope_parameters": {"full": {"original_max_position_embeddings": 64}},
        "local_attention": 100,
        "hidden_size": 32,
        "max_position_embeddings": 4096,
        "window_size": None,
        "conv_kernel": 4,
        "max_window_layers": 28,
        "sliding_window_pattern": 6,
    }
    assert switch_lengths(config, 4096) == (4, 50, 64, 100, 128, 512)
    assert switch_lengths(config, 100) == (4, 50, 64)
    assert switch_lengths({"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 64}, 256) == (64,)
    assert Proofs((16, 64), 256).level(15) == 0
    assert Proofs((16, 64), 256).level(64) == 2


def test_a_proof_waits_until_it_is_worth_its_tokens():
    proofs, asked = Proofs((100,), None), []
    trial = lambda lengths: asked.append(lengths) or ""  # noqa: E731
    assert "longer than it saves" in proofs.refused("batch", 150, trial, 300.0)
    assert len(asked) == 1, "short prompts are tried at once"
    for _ in range(6):
        why = proofs.refused("batch", 150, trial, 300.0)
    assert not why
    assert len(asked) == 2
    assert max(asked[1]) > 100 > min(asked[1])


def test_packs_hold_prompts_on_both_sides_of_a_switch(tokenizer):
    lm = rs.load(net(*NETWORKS["longrope"]), tokenizer=tokenizer)
    assert not lm.unpackable(Ragged.of([np.arange(5), np.arange(30)]), [])
    assert "come out otherwise" in lm.unpackable(Ragged.of([np.arange(60), np.arange(70)]), [])


def test_a_hook_of_the_users_makes_all_proofs_anew(tokenizer):
    """A hook at the last position of a batch, hung on after the first use: a padded row's last position is not the prompt's."""
    lm = rs.load(net("LlamaForCausalLM", 4, WIDE), tokenizer=tokenizer)
    rows = [ids(n, n) for n in (3, 9, 14)]
    lm.logits(rows)

    def last(module, args, output):
        output = output.clone()
        output[:, -1] += 3
        return output

    handle = lm.model.model.layers[1].register_forward_hook(last)
    for row, ours in zip(rows, lm.logits(rows)):
        with torch.no_grad():
            assert near(ours, lm.model(input_ids=torch.tensor([row])).logits[0, -1])
    handle.remove()
    assert not lm.batched_below(14)[1]
