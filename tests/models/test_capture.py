"""Captures: whatever the planner does, the result is that of one prompt at a time, and the module is left as it was."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from families import build
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.network import Network
from repscope.models.prompts import Encoded, Prompt, Ragged
from repscope.models.sites import Tokens

WORDS = ["Paris", "San Diego", "Lagos", "the", "called", "São Paulo", "hydrogen", "map", "of"]


def alone(lm, prompt, site, tokens):
    """The slow twin: one prompt, the whole model, a plain hook, the tokens picked by hand."""
    read = []
    tap = lm.tap(lm.resolve(site)[0])
    hook = dict(lm.module.named_modules())[tap.path].register_forward_hook(
        lambda m, a, out: read.append(out[0] if isinstance(out, tuple) else out)
    )
    ids = lm.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([ids]))
    hook.remove()
    hidden = read[0][0].double().numpy()
    return {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0), "all": hidden, "-2": hidden[-2]}[tokens]


def assert_near(ours, theirs, tolerance=1e-5):
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize("tokens", ["last", "first", "mean", "all", "-2"])
def test_batched_equals_alone(family, tokens):
    _, lm = family
    rng = np.random.default_rng(0)
    prompts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(23)]
    acts = lm.capture(prompts, "resid_post.1", tokens, batch_tokens=64)
    for i, prompt in enumerate(prompts):
        rows = acts["resid_post.1"][acts.offsets[i] : acts.offsets[i + 1]]
        assert_near(rows if tokens == "all" else rows[0], alone(lm, prompt, "resid_post.1", tokens))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shared_prefixes_and_repeats_change_nothing(llama, data):
    prefix = data.draw(st.lists(st.integers(0, 319), min_size=0, max_size=30))
    tails = data.draw(st.lists(st.lists(st.integers(0, 319), min_size=2, max_size=6), min_size=2, max_size=8))
    prompts = [prefix + tail for tail in tails] + [prefix + tails[0]]
    tokens = data.draw(st.sampled_from(["last", "mean", "all", "first"]))
    acts = llama.capture(prompts, "resid_post.2", tokens, batch_tokens=data.draw(st.integers(1, 90)))
    for i, prompt in enumerate(prompts):
        rows = acts["resid_post.2"][acts.offsets[i] : acts.offsets[i + 1]]
        assert_near(rows if tokens == "all" else rows[0], alone(llama, prompt, "resid_post.2", tokens), 3e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_a_long_shared_prefix_runs_once_where_prompts_are_not_packed(tokenizer, name):
    lm = LanguageModel(build(name), tokenizer)
    prompts = [[5] * 40 + [i, i + 1] for i in range(20)]
    planned = lm.planned(Ragged.of(prompts), 1024, pack=False)
    assert planned.prefix == 40
    assert planned.tokens < 100
    held = {}

    def sink(site, at, rows):
        held.setdefault(site, {}).update(zip(at.tolist(), rows.numpy()))

    sites, ends = lm.resolve(["resid_pre.2", "mlp_out.1"]), np.full(20, 42)
    lm.run(sites, Encoded(Ragged.of(prompts), ends - 1, ends), planned, Tokens.parse("last"), sink)
    for i in (0, 7, 19):
        assert_near(held[lm.resolve("mlp_out.1")[0]][i], alone(lm, prompts[i], "mlp_out.1", "last"))


def test_an_encoder_shares_no_prefix(tokenizer):
    lm = LanguageModel(build("bert"), tokenizer)
    prompts = [[5] * 2 + [i] * (1 + 3 * (i % 20)) for i in range(80)]
    assert lm.plan(prompts).plan.prefix == 0
    assert lm.plan(prompts, batch_tokens=128).tokens == sum(map(len, prompts)), "a pack is within its context of 128"


def test_only_the_blocks_below_the_last_site_run(llama):
    ran = []
    hooks = [m.register_forward_hook(lambda m, a, o, n=n: ran.append(n)) for n, m in llama.model.named_modules() if n]
    llama.capture(["Paris is"], "resid_post.1")
    for hook in hooks:
        hook.remove()
    assert "model.layers.1.mlp" in ran
    assert not any(n.startswith(("model.layers.2", "model.norm", "lm_head")) for n in ran)


@pytest.mark.parametrize("fail", [None, RuntimeError, KeyboardInterrupt])
def test_the_module_is_left_as_it_was(tokenizer, fail):
    model = build("llama").train()
    model.model.layers[1].eval()
    model.model.layers[2].requires_grad_(False)
    lm = LanguageModel(model, tokenizer)
    calls = []
    mine = model.model.layers[0].register_forward_hook(lambda m, a, o: calls.append(1))

    def state():
        return [
            (n, type(m), m.training, list(m._forward_hooks), list(m._forward_pre_hooks), [p.requires_grad for p in m.parameters()])
            for n, m in model.named_modules()
        ]

    before, attention, grad = state(), model.config._attn_implementation, torch.is_grad_enabled()
    if fail:
        bomb = model.model.layers[1].mlp.register_forward_hook(lambda m, a, o: (_ for _ in ()).throw(fail("bang")))
        with pytest.raises(fail, match="bang"):
            lm.capture(["Paris is", "a map of Lagos"], "resid_post.2")
        bomb.remove()
    else:
        lm.capture(["Paris is", "a map of Lagos"], "resid_post.2")
    assert state() == before
    assert model.config._attn_implementation == attention
    assert torch.is_grad_enabled() is grad
    assert calls
    mine.remove()


def test_spans_of_several_tokens_anywhere(llama):
    texts = ["{} lies north", "The place called {} is", "The place called {}"]
    for template in texts:
        for name in ["San Francisco", "São Paulo", "Zürich"]:
            prompt = Prompt.fill(template, subject=name)
            ids = llama.tokenizer(prompt.text)["input_ids"]
            acts = llama.capture([prompt], "resid_post.0", "subject.all")
            said = llama.tokenizer.decode([ids[p] for p in acts.positions])
            assert name in said
            assert said.strip(" ").startswith(name[:2])
            mean = llama.capture([prompt], "resid_post.0", "subject.mean").numpy()[0]
            assert_near(mean, acts["resid_post.0"].mean(0))
            last = llama.capture([prompt], "resid_post.0", "subject.last").numpy()[0]
            assert_near(last, acts["resid_post.0"][-1])


def test_spans_move_into_the_chat_template(llama):
    prompt = llama.chat(Prompt.fill("Tell me of {} now", subject="San Diego"), system="Be brief.")
    assert prompt.text.startswith("[system] Be brief.")
    acts = llama.capture([prompt], "resid_post.0", "subject.all")
    ids = llama.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert llama.tokenizer.decode([ids[p] for p in acts.positions]).strip() == "San Diego"


def test_rows_on_disk_equal_rows_in_memory_and_nothing_is_left_of_a_failure(llama, tmp_path):
    prompts = [" ".join(WORDS[: 2 + i % 5]) for i in range(40)]
    held = llama.capture(prompts, "resid_post", "all")
    disk = llama.capture(prompts, "resid_post", "all", out=tmp_path / "acts")
    for site in held.sites:
        assert isinstance(disk[site], np.memmap)
        np.testing.assert_array_equal(disk[site], held[site])
    with pytest.raises(UserError, match="not an empty folder"):
        llama.capture(prompts, "resid_post", "all", out=tmp_path / "acts")
    bomb = llama.model.model.layers[1].register_forward_hook(lambda m, a, o: (_ for _ in ()).throw(RuntimeError("bang")))
    with pytest.raises(RuntimeError, match="bang"):
        llama.capture(prompts, "resid_post", "all", out=tmp_path / "other")
    bomb.remove()
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]


def test_arrays_have_the_axes_that_were_asked_for(llama):
    prompts = ["Paris is", "Lagos is"]
    assert llama.capture(prompts, "resid_post.1").numpy().shape == (2, 32)
    assert llama.capture(prompts, "resid_post").numpy().shape == (2, 4, 32)
    ragged = llama.capture(["Paris", "a map of Lagos and Paris"], "resid_post.1", "all")
    with pytest.raises(UserError, match="do not form one array"):
        ragged.numpy()
    with pytest.raises(UserError, match=r"these activations have resid_post.1"):
        ragged["resid_post.2"]


@pytest.mark.parametrize(
    ("prompts", "tokens", "says"),
    [
        ([], "last", "list is empty"),
        (["Paris", ""], "last", "Prompt 1 is empty"),
        (["x " * 300], "last", "takes 128"),
        (["Paris"], "subject.last", "span in prompt 0"),
        (["a b"], "-99", "no token -99"),
        ([[1, 2], [5, 9999]], "last", "Prompt 1 holds a token id"),
    ],
)
def test_bad_prompts_are_named(llama, prompts, tokens, says):
    with pytest.raises(UserError, match=says):
        llama.capture(prompts, "resid_post.0", tokens)


def test_a_single_text_is_not_its_letters(llama):
    calls = [
        lambda p: llama.capture(p, "resid_post.0"),
        llama.plan,
        llama.generate,
        lambda p: llama.jacobian(p, "resid_post.0", "resid_post.1"),
    ]
    for call in calls:
        for prompt in ("Paris", Prompt("Paris")):
            with pytest.raises(UserError, match="'Paris' is one prompt"):
                call(prompt)


def test_templates_are_checked():
    for template, values, says in [
        ("no place", {"subject": "Paris"}, "no place {subject}"),
        ("{subject} and {subject}", {"subject": "Paris"}, "twice"),
        ("of {}", {"subject": " "}, "is empty"),
    ]:
        with pytest.raises(UserError, match=says):
            Prompt.fill(template, **values)
    both = Prompt.fill("{a} is in {b}", b="{a}", a="x{b}")
    assert both.text == "x{b} is in {a}", "values are never read as templates"


def test_logits_run_the_head_at_the_positions_asked_for_only(llama):
    prompts = ["Paris is", "a map of Lagos"]
    logits = llama.logits(prompts)
    for row, prompt in zip(logits, prompts):
        with torch.no_grad():
            theirs = llama.model(torch.tensor([llama.tokenizer(prompt)["input_ids"]])).logits[0, -1].numpy()
        assert_near(row, theirs)


def test_an_encoder_without_a_final_norm_says_so(tokenizer):
    with pytest.raises(UserError, match=r"more than a map of resid_post\.2"):
        LanguageModel(build("bert"), tokenizer, "bert").logits(["Paris"])


def test_the_twin_has_other_weights_and_the_same_shape(llama):
    state = torch.random.get_rng_state()
    a, b, c = llama.twin(1), llama.twin(1), llama.twin(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert a.fingerprint == b.fingerprint != c.fingerprint != llama.fingerprint
    assert a.anatomy.blocks == llama.anatomy.blocks


def test_half_precision_reads_as_float32(tokenizer):
    lm = LanguageModel(build("llama").to(torch.bfloat16), tokenizer)
    full = LanguageModel(build("llama"), tokenizer)
    ours, theirs = (m.capture(["Paris is a map"], "resid_post.2", "mean").numpy() for m in (lm, full))
    assert ours.dtype == np.float32
    assert_near(ours, theirs, 5e-2)


def test_a_module_that_never_runs_is_named(tokenizer):
    model = build("llama")
    model.model.unused = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="did not run"):
        LanguageModel(model, tokenizer).capture(["Paris"], "module:unused")
    with pytest.raises(UserError, match="cannot be split"):
        Network(torch.nn.Sequential(torch.nn.Flatten(0))).capture(torch.ones(4, 3), "module:0")


def test_what_a_tokenizer_returns_is_no_list_of_prompts(llama):
    """Its keys would be read as texts."""
    for held in (llama.tokenizer(["a", "b"]), {"input_ids": [[1, 2]]}):
        with pytest.raises(UserError, match="a mapping was given"):
            llama.capture(held, "resid_post.1")
