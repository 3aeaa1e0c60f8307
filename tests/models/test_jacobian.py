"""Jacobians against torch's own, one prompt at a time through the whole network, and against what a derivative must obey."""

import numpy as np
import pytest
import torch

import repscope.models.jacobian as module
from families import WINDOWED, build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.linear.jacobian_passes import Prefixes
from repscope.models.network import Network
from repscope.models.prompts import Prompt

PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [5, 8, 9, 10], [9, 3, 20, 21], [4, 40, 41, 42, 43]]


def brute(lm, ids, source, target, at, read):
    """torch.autograd.functional.jacobian of the whole pass, of one prompt, attention as the model has it."""
    (begin,), (end,) = lm.resolve(source), lm.resolve(target)
    seen = []

    def plain(value):
        seen.append(value)

    with torch.no_grad(), lm.taps.hooked([(lm.write_tap(begin), plain)]):
        lm.module(input_ids=torch.tensor([ids]), **lm.plain())
    leaf = torch.zeros_like(seen[0][0, 0])

    def of(delta):
        got = []

        def add(value):
            new = value.clone()
            new[:, at] = new[:, at] + delta
            return new

        def keep(value):
            got.append(value[0, read].reshape(-1 if isinstance(read, int) else (len(value[0, read]), -1)))

        with lm.taps.hooked([(lm.write_tap(begin), add), (lm.tap(end), keep)]):
            lm.module(input_ids=torch.tensor([ids]), **lm.plain())
        return got[0] if isinstance(read, int) else got[0].mean(0)

    with torch.enable_grad():
        found = torch.autograd.functional.jacobian(of, leaf)
    return found.reshape(len(found), -1).double().numpy()


def near(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def test_every_family_agrees_with_torch(family):
    name, lm = family
    jac = lm.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens=1)
    each = jac.matrix()
    for i, ids in enumerate(PROMPTS):
        near(each[i], brute(lm, ids, "resid_post.0", "resid_post.2", 1, len(ids) - 1), 2e-5)
    v = np.random.default_rng(0).normal(size=(3, 32))
    near(jac.jvp(v), np.einsum("pts,vs->pvt", each, v), 2e-5)
    near(jac.vjp(v), np.einsum("pts,vt->pvs", each, v), 2e-5)
    assert not jac.unbatched, name


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("embed", "final_norm"),
        ("resid_pre.1", "resid_mid.2"),
        ("resid_mid.0", "mlp_out.1"),
        ("mlp_out.0", "attn_out.2"),
        ("z.1", "z.2"),
        ("z.0.2", "mlp_act.3"),
        ("v.1.1", "resid_post.1"),
        ("module:layers.1.mlp", "resid_post.2"),
    ],
)
def test_other_sites_agree_with_torch(llama, source, target):
    jac = llama.jacobian(PROMPTS[:2], source, target, source_tokens=2)
    each = jac.matrix()
    assert each.shape == (2, *jac.shape)
    for i, ids in enumerate(PROMPTS[:2]):
        near(each[i], brute(llama, ids, source, target, 2, len(ids) - 1))
    near(jac.jvp(np.eye(jac.shape[1])), each.transpose(0, 2, 1))


@pytest.mark.parametrize(("source", "target"), [("v.1.1", "resid_post.1"), ("k.1.0", "resid_post.1")])
def test_keys_and_values_are_whole_where_prefixes_are_shared(tokenizer, source, target):
    """Whether a prefix is shared depends on what was proved before, by a generation for instance."""
    lm = LanguageModel(build("llama"), tokenizer)
    assert lm.shares_prefix(64)
    jac = lm.jacobian(PROMPTS[:2], source, target, source_tokens=2)
    for each, ids in zip(jac.matrix(), PROMPTS[:2]):
        near(each, brute(lm, ids, source, target, 2, len(ids) - 1))


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_windows_of_attention_are_kept(name, tokenizer):
    """The first prompt outgrows the window of 100: what is cached of it is its last part only."""
    lm = LanguageModel(build(name), tokenizer)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 320, n).tolist() for n in (120, 60)]
    for at in (-1, -8):
        jac = lm.jacobian(prompts, "resid_post.0", "resid_post.2", source_tokens=at)
        for each, ids in zip(jac.matrix(), prompts):
            near(each, brute(lm, ids, "resid_post.0", "resid_post.2", len(ids) + at, len(ids) - 1), 2e-5)


def test_no_vectors_give_no_products(llama):
    jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens=1)
    assert jac.vjp(np.zeros((0, 32))).shape == jac.jvp(np.zeros((0, 32))).shape == (len(PROMPTS), 0, 32)


@pytest.mark.parametrize("name", ["resid_post", "resid_post.*"])
def test_a_kind_is_its_blocks_up_to_the_target(llama, name):
    assert [s.layer for s in llama.jacobian(PROMPTS, name, "resid_post.2").sources] == [0, 1]


def test_several_positions_at_either_end(llama):
    prompt = Prompt.fill("The map of {city} is here", city="San Diego")
    ids = llama.tokenizer(prompt.text)["input_ids"]
    acts = llama.capture([prompt], "resid_post.0", "city.all")
    span = slice(acts.positions[0], acts.positions[-1] + 1)
    steered = llama.jacobian([prompt], "resid_post.0", "resid_post.2", source_tokens="city", target_tokens="mean")
    near(steered.matrix()[0], brute(llama, ids, "resid_post.0", "resid_post.2", span, slice(None)))
    near(steered.point[0], acts["resid_post.0"].mean(0))
    ended = llama.jacobian([prompt], "resid_post.0", "resid_post.2", source_tokens="city.first", target_tokens="city.last")
    near(ended.matrix()[0], brute(llama, ids, "resid_post.0", "resid_post.2", int(span.start), int(span.stop) - 1))


def test_an_encoder_reaches_back(tokenizer):
    lm = LanguageModel(build("bert"), tokenizer)
    jac = lm.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens="last", target_tokens="first")
    for i, ids in enumerate(PROMPTS):
        near(jac.matrix()[i], brute(lm, ids, "resid_post.0", "resid_post.2", len(ids) - 1, 0))


def test_double_precision_is_exact(tokenizer):
    lm = LanguageModel(build("gpt2").double(), tokenizer)
    jac = lm.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens=1)
    for i, ids in enumerate(PROMPTS):
        near(jac.matrix()[i], brute(lm, ids, "resid_post.0", "resid_post.2", 1, len(ids) - 1), 1e-12)
    step, v = 1e-5, np.random.default_rng(0).normal(size=32)
    ends = []
    for sign in (1, -1):
        with lm.edit(Edit.add("resid_post.0", sign * step * v, tokens=1)):
            ends.append(lm.capture(PROMPTS, "resid_post.2", dtype="float64").numpy())
    near(jac.jvp(v[None])[:, 0], (ends[0] - ends[1]) / (2 * step), 1e-7)


def test_the_adjoint_identity_and_linearity(llama):
    jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(4, 32)), rng.normal(size=(5, 32))
    left, right = np.einsum("ut,pvt->puv", u, jac.jvp(v)), np.einsum("pus,vs->puv", jac.vjp(u), v)
    near(left, right)
    near(jac.jvp(2 * v[:1] - 3 * v[1:2]), 2 * jac.jvp(v)[:, :1] - 3 * jac.jvp(v)[:, 1:2])


def test_all_source_blocks_from_the_same_passes_are_those_one_by_one(llama):
    jac = llama.jacobian(PROMPTS, "resid_post", "resid_post.3", source_tokens=1)
    assert [str(s) for s in jac.sources] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    every = jac.matrix()
    for site in jac.sources:
        alone = llama.jacobian(PROMPTS, site, "resid_post.3", source_tokens=1)
        near(every[site], alone.matrix())
        near(jac[site].point, alone.point)
        near(jac[site].jvp(np.eye(32)[:2]), alone.jvp(np.eye(32)[:2]))
        near(jac.mean().matrix()[site], alone.matrix().mean(0))
    with pytest.raises(UserError, match="choose one, such as"):
        jac.jvp(np.eye(32))


def test_blocks_compose_where_a_prompt_has_one_token(llama):
    one = [[7], [9]]
    each = [llama.jacobian(one, f"resid_post.{i}", f"resid_post.{i + 1}").matrix() for i in range(3)]
    whole = llama.jacobian(one, "resid_post.0", "resid_post.3").matrix()
    near(whole, each[2] @ each[1] @ each[0])
    near(llama.jacobian(one, "resid_post.1", "resid_post.1").matrix(), np.stack([np.eye(32)] * 2))


def test_the_mean_is_that_of_the_prompts_and_its_triplets_those_of_numpy(llama):
    jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
    mean, each = jac.mean(), jac.matrix()
    near(mean.matrix(), each.mean(0))
    near(mean.jvp(np.eye(32)), each.mean(0).T)
    near(mean.vjp(np.eye(32)), each.mean(0))
    bias = np.mean(jac.value - np.einsum("pts,ps->pt", each, jac.point), 0)
    near(mean.bias, bias)
    found = mean.svd(5, products=64)
    values = np.linalg.svd(each.mean(0), compute_uv=False)
    np.testing.assert_allclose(found.s, values[:5], rtol=1e-3)
    for s, r in zip(found.s, found.residual):
        assert np.abs(values - s).min() <= r + 1e-5 * values[0]


def test_point_and_value_are_what_a_capture_holds(llama):
    jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
    near(jac.point, llama.capture(PROMPTS, "resid_post.0", 1).numpy())
    near(jac.value, llama.capture(PROMPTS, "resid_post.3", "last").numpy())


def test_graphs_beyond_the_budget_are_made_again(llama, monkeypatch):
    whole = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
    assert all(group.held is not None for group in whole._shared.groups)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    again = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
    assert all(group.held is None for group in again._shared.groups)
    near(again.matrix(), whole.matrix())


def test_earlier_positions_and_blocks_below_run_once(llama):
    ran = []
    hooks = [
        m.register_forward_hook(lambda m, args, out, i=i: ran.append((i, args[0].shape[1])))
        for i, m in enumerate(llama.model.model.layers)
    ]
    llama.jacobian(PROMPTS[:1], "resid_post.0", "resid_post.1", source_tokens=4)  # tries how keys can be kept apart
    ran.clear()
    jac = llama.jacobian(PROMPTS[:1], "resid_post.0", "resid_post.1", source_tokens=4, target_tokens=5)
    jac.matrix()
    jac.jvp(np.eye(32))
    for hook in hooks:
        hook.remove()
    assert ran == [(0, 4), (1, 4), (2, 4), (3, 4), (0, 2), (1, 2)]


def test_jacobians_of_the_same_prompts_share_the_positions_before(llama):
    ran, shared, ends = [], Prefixes(), ("resid_post.0", "resid_post.1")
    hooks = [m.register_forward_hook(lambda m, args, out: ran.append(args[0].shape[1])) for m in llama.model.model.layers]
    llama.jacobian(PROMPTS[:1], *ends, source_tokens=4)  # tries how keys can be kept apart
    ran.clear()
    found = []
    for at, tokens in ((4, [4] * 4 + [2, 2]), (4, [2, 2]), (5, [1] * 4 + [2, 2])):
        found.append(llama.jacobian(PROMPTS[:1], *ends, source_tokens=at, target_tokens=at + 1, prefixes=shared))
        assert ran == tokens
        ran.clear()
    for hook in hooks:
        hook.remove()
    near(found[1].matrix(), found[0].matrix())
    near(found[2].matrix(), llama.jacobian(PROMPTS[:1], *ends, source_tokens=5, target_tokens=6).matrix())
    with llama.edit(Edit.project_out("resid_post.0", np.eye(32)[:3])):  # another network
        near(*(llama.jacobian(PROMPTS[:1], *ends, source_tokens=4, prefixes=p).matrix() for p in (shared, None)))


def test_the_network_is_left_as_it_was(llama):
    before = [(p.requires_grad, p.grad) for p in llama.model.parameters()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules())
    llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1).mean().svd(2, tolerance=0.5)
    assert [(p.requires_grad, p.grad) for p in llama.model.parameters()] == before
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()) == hooks


def test_of_an_edited_network_it_is_that_networks(llama):
    edit = Edit.project_out("resid_post.1", np.eye(32)[:3])
    with llama.edit(edit):
        jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens=1)
        theirs = [brute(llama, ids, "resid_post.0", "resid_post.2", 1, len(ids) - 1) for ids in PROMPTS]
    plain = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens=1).matrix()
    near(jac.matrix(), np.stack(theirs))
    assert np.linalg.norm(jac.matrix() - plain) > 0.01 * np.linalg.norm(plain)


def test_an_edit_of_one_position_acts_there_alone(llama):
    with llama.edit(Edit.replace("mlp_out.1", 0.0, tokens="last")):
        jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.1", source_tokens=1)
        ours = jac.matrix()
    mlp = llama.jacobian(PROMPTS, "resid_post.0", "mlp_out.1", source_tokens=1).matrix()
    plain = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.1", source_tokens=1).matrix()
    near(ours, plain - mlp)


def test_an_edit_that_has_gone_is_not_forgotten(llama, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    with llama.edit(Edit.add("resid_post.1", np.ones(32))):
        jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
        llama.capture(PROMPTS, "resid_post.3")
    with pytest.raises(UserError, match="under other edits"):
        jac.matrix()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"source": "resid_post.2", "target": "resid_post.0"}, "behind the target"),
        ({"target": "resid_post"}, "is 4 sites"),
        ({"target": "pattern.1"}, "no target"),
        ({"source": "pattern.1"}, "choose z or v"),
        ({"source_tokens": "last", "target_tokens": "first"}, "behind the target at token 0"),
        ({"source_tokens": "mean"}, "an average"),
        ({"target_tokens": "all"}, "names several"),
        ({"source": "head_out.0"}, "edit z"),
        ({"source": "resid_post.99"}, "no resid_post.99"),
        ({"prompts": []}, "list is empty"),
    ],
)
def test_mistakes_are_named(llama, how, says):
    asked = {"prompts": PROMPTS, "source": "resid_post.0", "target": "resid_post.3"} | how
    with pytest.raises(UserError, match=says):
        llama.jacobian(**asked)


@pytest.mark.parametrize("u", [np.ones(32), np.ones((2, 31)), np.full((1, 32), np.nan)])
def test_vectors_that_do_not_fit_are_named(llama, u):
    jac = llama.jacobian(PROMPTS, "resid_post.0", "resid_post.3", source_tokens=1)
    for product in (jac.vjp, jac.jvp, jac.mean().vjp):
        with pytest.raises(UserError, match=r"must be \(vector, 32\)|not finite"):
            product(u)


def test_of_any_module_it_is_that_of_torch():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.GELU(), torch.nn.Conv2d(3, 2, 2), torch.nn.Flatten(), torch.nn.Linear(8, 5)
    ).double()
    images = torch.randn(5, 1, 5, 5, dtype=torch.float64)
    ours = Network(net).jacobian(images, "module:0", "module:4", batch=2)
    assert ours.shape == (5, 27)
    for i, image in enumerate(images):
        theirs = torch.autograd.functional.jacobian(net[1:], net[0](image[None]).detach())
        near(ours.matrix()[i], theirs.reshape(5, 27).numpy(), 1e-10)
    near(ours.jvp(np.eye(27)), ours.matrix().transpose(0, 2, 1), 1e-10)


def test_inputs_that_reach_one_another_have_no_jacobian():
    class Mixed(torch.nn.Module):
        def forward(self, x):
            return x + x.mean(0, keepdim=True)

    net = torch.nn.Sequential(torch.nn.Linear(3, 3), Mixed())
    with pytest.raises(UserError, match="depends on module:0 of another"):
        Network(net).jacobian(torch.ones(4, 3), "module:0", "module:1")


@pytest.mark.parametrize("how", ["in place", "data", "replaced", "loaded"])
@pytest.mark.parametrize("kept", [True, False])
def test_weights_that_changed_since_are_refused(tokenizer, how, kept):
    lm = LanguageModel(build("llama"), tokenizer)
    jac = lm.jacobian(["A map"], "resid_post.0", "resid_post.2")
    if not kept:
        for group in jac._shared.groups:
            group.held = None
    u = np.eye(32)[:2]
    before = jac.vjp(u)
    lm.capture(["Paris"], "resid_post.1")
    lm.model.train()  # neither a pass nor a flag changes a weight
    np.testing.assert_array_equal(jac.vjp(u), before)
    weight = lm.model.model.layers[1].mlp.up_proj.weight
    if how == "in place":
        with torch.no_grad():
            weight.mul_(1.1)
    elif how == "data":
        weight.data.mul_(1.1)
    elif how == "replaced":
        lm.model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(1.1 * weight.detach())
    else:
        lm.model.load_state_dict(build("llama").state_dict())
    for product in (lambda: jac.vjp(u), lambda: jac.jvp(u), jac.matrix, lambda: jac.mean().matrix(), lambda: jac.mean().bias):
        with pytest.raises(UserError, match="weights have changed since"):
            product()


def test_inputs_and_edits_that_changed_since_change_nothing():
    net = Network(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)))
    x = torch.randn(40, 3)  # more than one batch, so that passes are made again
    jac = net.jacobian(x, "module:0", "module:2", batch=16)
    want = jac.matrix()
    x.zero_()
    np.testing.assert_array_equal(jac.matrix(), want)
    with net.edit(Edit.add("module:0", np.ones(3))):
        with pytest.raises(UserError, match="under other edits"):
            jac.matrix()
        net.capture(x, "module:1")
