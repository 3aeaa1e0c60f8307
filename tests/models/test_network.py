"""Any module, in any precision, wherever its weights lie: the same capture, edit and gradient; and it is left as it was found."""

import numpy as np
import pytest
import torch
from torch import nn

from families import VISION, build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.engine.hooks import first_tensor
from repscope.models.language import LanguageModel
from repscope.models.network import Network
from repscope.models.sites import KINDS, Site
from repscope.models.variants.prompt_variants import PromptVariant, run_variants

PROMPTS = ["The place called Paris", "San Francisco", "A map that shows Lagos and Paris; the name"]


def close(a, b, tolerance=1e-6):
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=np.float64) for x in (a, b))
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), np.linalg.norm(a - b) / np.linalg.norm(b)


# ------------------------------------------------------------------------------------------------- a network of one's own


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(4, 2, 3)

    def forward(self, image):
        return self.second(self.drop(self.first(image).relu())).mean((2, 3))


@pytest.fixture
def convolutions():
    torch.manual_seed(0)
    return Convolutions().train(), torch.randn(7, 1, 8, 8)


def test_channels_of_an_image_are_edited_along_axis_1(convolutions):
    module, images = convolutions
    net = Network(module)
    with torch.no_grad():
        first = module.first(images).double().numpy()
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=4), rng.normal(size=(4, 4))
    u = v / np.linalg.norm(v)
    height = np.einsum("nchw,c->nhw", first, u)[:, None]
    formulas = [
        (Edit.add("module:first", v, scale=2.0, axis=1), first + 2 * v[:, None, None]),
        (Edit.replace("module:first", v, axis=1), np.broadcast_to(v[:, None, None], first.shape)),
        (Edit.replace("module:first", 0, axis=1), first * 0),
        (Edit.project_out("module:first", v, axis=1), first - height * u[:, None, None]),
        (Edit.affine("module:first", w, v, axis=1), np.einsum("dc,nchw->ndhw", w, first) + v[:, None, None]),
        (Edit.clamp("module:first", v, high=0.1, axis=1), first - np.maximum(height - 0.1, 0) * u[:, None, None]),
    ]
    for edit, expected in formulas:
        with net.edit(edit):
            held = net.capture(images, ["module:first", "module:second"], batch=3)
            with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
                patch.setattr(module.drop, "p", 0.0)
                close(module(images), held["module:second"].mean((2, 3)))  # a plain call acts as well
        close(held["module:first"], expected)
        with torch.no_grad():
            close(held["module:second"], module.second(torch.from_numpy(expected.copy()).float().relu()))
    many = rng.normal(size=(7, 4))
    with net.edit(Edit.add("module:first", many, axis=1, per_prompt=True)):
        close(net.capture(images, "module:first", batch=3).numpy(), first + many[:, :, None, None])


def test_gradients_are_autograds(convolutions):
    module, images = convolutions
    values, grads = Network(module).gradient(
        images, lambda out: out[:, 0] * out[:, 1], ["module:first", "module:first#in", "module:second"], batch=3
    )
    module.eval()
    images = images.clone().requires_grad_()
    first = module.first(images)
    second = module.second(first.relu())
    out = second.mean((2, 3))
    scalar = out[:, 0] * out[:, 1]
    expected = torch.autograd.grad(scalar.sum(), [first, images, second])
    close(values, scalar)
    for path, theirs in zip(("module:first", "module:first#in", "module:second"), expected):
        close(grads[path], theirs)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        out, (h, c) = self.lstm(x)
        return self.head(out) + h[-1][:, None, :3] * 0 + c.mean() * 0


def test_a_recurrent_network_whose_module_gives_a_tuple():
    torch.manual_seed(0)
    module, x = Recurrent(), torch.randn(7, 4, 5)
    net = Network(module)
    with torch.no_grad():
        out = module.lstm(x)[0]
    v = np.arange(6) / 6 - 0.3
    for tokens, at in (("all", slice(None)), ("first", slice(0, 1)), (2, slice(2, 3)), ("0", slice(0, 1))):
        changed = out.clone()
        changed[:, at] += torch.from_numpy(v).float()
        with net.edit(Edit.add("module:lstm", v, tokens=tokens)):
            acts = net.capture(x, ["module:lstm", "module:head"], batch=2)
        close(acts["module:lstm"], changed)
        close(acts["module:head"], module.head(changed))
    vectors = np.random.default_rng(0).normal(size=(7, 6))
    with net.edit(Edit.replace("module:lstm", vectors, tokens=3, per_prompt=True)):
        edited = net.capture(x, "module:lstm", batch=3).numpy()
    close(edited[:, 3], vectors)
    close(edited[:, :3], out[:, :3])
    _, grads = net.gradient(x, lambda y: y[:, -1, 1], "module:lstm#in")
    leaf = x.clone().requires_grad_()
    close(grads.numpy(), torch.autograd.grad(module(leaf)[:, -1, 1].sum(), leaf)[0])


class Named(nn.Module):
    """Keyword inputs, an inner module called by a name of its own, a mapping for output."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Bilinear(3, 4, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, *, left, right):
        return {"loss": None, "scores": self.last(self.inner(input1=left, input2=right))}


def test_keyword_inputs_are_split_together():
    torch.manual_seed(0)
    module, inputs = Named(), {"left": torch.randn(5, 3), "right": torch.randn(5, 4)}
    net = Network(module)
    with torch.no_grad():
        inner = module.inner(inputs["left"], inputs["right"])
    close(net.capture(inputs, "module:inner", batch=2).numpy(), inner)
    with net.edit(Edit.replace("module:inner", np.eye(6)[2])):
        close(net.capture(inputs, "module:last").numpy(), module.last(torch.eye(6)[2]).expand(5, -1))
    _, grads = net.gradient(inputs, lambda out: out["scores"][:, 1], "module:inner")
    close(grads.numpy(), module.last.weight[1].expand(5, -1))
    with pytest.raises(UserError, match="one number each"):
        net.gradient(inputs, lambda out: out["scores"], "module:inner")
    with pytest.raises(UserError, match=r"5 .*4"):
        net.capture(inputs | {"right": torch.randn(4, 4)}, "module:inner")
    with pytest.raises(UserError, match=r"does not depend|did not run"):
        net.gradient(inputs, lambda out: out["scores"][:, 1].detach(), "module:inner")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Edit.add("module:lstm", np.ones(6), tokens="last"), "without text knows the tokens all, first and 0, 1, 2"),
        (Edit.add("module:lstm", np.ones(6), tokens="generated"), "without text"),
        (Edit.add("module:lstm", np.ones(6), tokens="subject"), "without text"),
        (Edit.add("module:lstm", np.ones(6), tokens=99), "never reached"),
        (Edit.add("module:lstm", np.ones(5)), r"vector \(5,\)"),
        (Edit.add("module:lstm", np.ones((4, 6))), r"vector \(4, 6\)"),
        (Edit.add("module:lstm", np.ones((3, 6)), per_prompt=True), "3 vectors for 7"),
        (Edit.add("module:lstm", np.ones((9, 6)), per_prompt=True), "9 vectors for 7"),
        (Edit.add("module:lstm", np.ones(6), scale=0), "changed nothing"),
        (Edit.add("module:head", np.ones(3)), "never reached"),
        (Edit.add("module:lstn", np.ones(3)), "did you mean 'lstm'"),
        (Edit.add("resid_post.1", np.ones(3)), "use module:PATH"),
        (Edit.add("module:lstm", np.ones(6), axis=7), "axis"),
    ],
)
def test_an_edit_that_a_network_cannot_take(edit, says):
    net = Network(Recurrent())
    with pytest.raises(UserError, match=says), net.edit(edit):
        net.capture(torch.randn(7, 4, 5), "module:lstm", batch=7)
    assert not net.installed
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.module.modules())


# ------------------------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module", params=VISION)
def vision(request):
    torch.manual_seed(1)
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    module = build(request.param).double()
    return Network(module, example={"pixel_values": images[:2]}), module, images


def test_a_vision_transformers_parts_add_up(vision):
    net, module, images = vision
    assert net.anatomy.blocks == 3
    assert (net.anatomy.heads, net.anatomy.form, net.anatomy.causal) == (4, "sequential", False)
    assert {s.kind for s in net.anatomy.taps} >= set(KINDS) - {"embed"}
    acts = net.capture({"pixel_values": images}, list({s.kind for s in net.anatomy.taps}), batch=2)
    close(acts["resid_pre.1"] + acts["attn_out.1"], acts["resid_mid.1"])
    close(acts["resid_mid.1"] + acts["mlp_out.1"], acts["resid_post.1"])
    close(acts["resid_post.1"], acts["resid_pre.2"])
    close(np.einsum("nqhk,nkhf->nqhf", acts["pattern.1"], acts["v.1"]), acts["z.1"])
    bias = net.module.get_submodule(net.tap(Site("z", 1)).path).bias.detach().numpy()
    close(acts["head_out.1"].sum(2) + bias, acts["attn_out.1"])
    with torch.no_grad():
        theirs = module(images, output_hidden_states=True).hidden_states
    close(acts["resid_pre.2"], theirs[2])
    assert acts["resid_post.1"].shape == (5, 17, 32)


@pytest.mark.parametrize("given", ["by name", "by place"])
def test_the_class_token_is_the_first(vision, given):
    net, module, images = vision
    inputs = {"pixel_values": images} if given == "by name" else images
    site = net.resolve("resid_post.0")[0]
    plain = net.capture(inputs, site).numpy()
    v = np.linspace(-1, 1, 32)
    for tokens, at in (("first", 0), ("0", 0), (5, 5)):
        with net.edit(Edit.add(site, v, tokens=tokens)):
            edited = net.capture(inputs, [site, "final_norm"], batch=2)
        close(edited[site][:, at], plain[:, at] + v)
        np.testing.assert_allclose(np.delete(edited[site], at, 1), np.delete(plain, at, 1), atol=1e-12)

        def change(_, args, out, at=at):
            hidden = first_tensor(out).clone()
            hidden[:, at] += torch.from_numpy(v)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        hook = module.get_submodule(net.tap(site).path).register_forward_hook(change)
        close(edited["final_norm"], net.capture(inputs, "final_norm").numpy())
        hook.remove()


def test_gradients_of_a_vision_transformer_are_slopes(vision):
    net, _, images = vision

    def of(out):
        top = out.logits if "logits" in out else out.last_hidden_state[:, 0]
        return top[:, 1] * top[:, 3]

    kinds = [k for k in KINDS if not KINDS[k].computed and any(s.kind == k for s in net.anatomy.taps)]
    sites = [Site(k, 1 if KINDS[k].per_block else None) for k in kinds if k not in ("pattern", "embed")]
    values, grads = net.gradient({"pixel_values": images}, of, sites, batch=2)
    rng = np.random.default_rng(0)
    for site in sites:
        v = rng.normal(size=grads[site].shape[2:])
        rows = []
        for sign in (1, -1):
            with net.edit(Edit.add(site, v, scale=sign * 1e-4, tokens="first")):
                rows.append(net.gradient({"pixel_values": images}, of, "final_norm")[0])
        slope = (rows[0] - rows[1]) / 2e-4
        np.testing.assert_allclose(
            (grads[site][:, 0] * v).reshape(5, -1).sum(1), slope, rtol=1e-4, atol=1e-5 * np.abs(values).max()
        )
        assert np.abs(slope).max() > 0


def test_gradients_at_several_sites_at_once_are_those_of_each_alone(llama):
    sites = [Site(k, 1 if kind.per_block else None) for k, kind in KINDS.items() if not kind.computed and k != "pattern"]
    sites += [Site("resid_mid", 2), Site("z", 2, 1)]

    def of(logits):
        return logits[:, 7] * logits[:, 9]

    together = llama.gradient(PROMPTS, of, sites)[1]
    for site in sites:
        alone = llama.gradient(PROMPTS, of, site)[1][site]
        close(together[site], alone, 1e-5)
        assert np.abs(alone).max() > 0


# ------------------------------------------------------------------------------------------------- left as found


def state(model):
    """All that a caller could notice: modules, hooks, flags, weights, configurations, torch's own modes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    modules = [
        (path, id(m), type(m), m.training, sorted(m.__dict__), [list(getattr(m, name).items()) for name in hooks])
        for path, m in model.named_modules()
    ]
    held = [
        (name, id(p), p.data_ptr(), p._version, p.dtype, p.device, p.requires_grad, p.grad is None)
        for name, p in [*model.named_parameters(), *model.named_buffers()]
    ]
    of_torch = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        list(torch.overrides._get_current_function_mode_stack()),
        torch.random.get_rng_state().tolist(),
    )
    configured = (model.config.to_dict(), model.config._attn_implementation, id(model.generation_config))
    return modules, held, of_torch, configured, model.generation_config.to_dict()


def operations(lm):
    """Everything that runs a language model, by name."""
    ids = np.array(lm.tokenizer(PROMPTS[2])["input_ids"])
    vector = np.ones(lm.anatomy.width)
    edits = [
        Edit.add("resid_post.1", vector),
        Edit.add("q.1", 0.5),
        Edit.replace("pattern.2.1", 0.0, tokens="last"),
        Edit.replace("z.1.2", 0.0),
        Edit.add("resid_mid.2", vector),
    ]

    def edited(operation):
        with lm.edit(*edits), lm.edit(Edit.project_out("resid_post.2", vector)):
            return operation()

    plain = {
        "capture": lambda: lm.capture(PROMPTS, ["q.1", "pattern.1", "resid_post.2", "head_out.1"], "all")["pattern.1"],
        "logits": lambda: lm.logits(PROMPTS),
        "generate": lambda: np.stack([c.ids for c in lm.generate(PROMPTS, 3, temperature=0.5)]),
        "score": lambda: lm.score(PROMPTS, [" of", " x", " map"]).logprob,
        "gradient": lambda: lm.gradient(
            PROMPTS, lambda x: x[:, 3], ["q.1", "resid_mid.1"][: 2 - ("resid_mid" in lm.anatomy.refused)]
        )[0],
        "unembed": lambda: lm.unembed(vector[None].astype(np.float32)),
    }
    every = plain | {f"edited {name}": (lambda run=run: edited(run)) for name, run in plain.items() if name != "unembed"}
    forks = [PromptVariant(Site("q", 1), 3, 4, lambda x: x * 2), PromptVariant(Site("resid_post", 1), 2, 3, lambda x: -x)]
    every["forks"] = lambda: run_variants(lm, ids, forks)
    return every


@pytest.fixture(scope="module", params=["llama", "gpt2 eager"])
def watched(request, tokenizer):
    """A model in training mode with a hook of the caller's in each block, some of which may be told to throw."""
    model = build(request.param.split()[0])
    if "eager" in request.param:
        model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = None
    model.train()
    lm = LanguageModel(model, tokenizer, request.param)
    blocks = [lm.module.get_submodule(f"{lm.anatomy.prefix}.{b}") for b in range(3)]
    blocks[0].eval()
    blocks[1].requires_grad_(False)
    fuse = {}

    def throw(name):
        if fuse.get("at") == name:
            raise fuse["error"]("bang")

    blocks[0].register_forward_pre_hook(lambda *_: throw("block"))
    lm.module.get_submodule(lm.tap(Site("z", 1)).path).register_forward_pre_hook(lambda *_: throw("attention"))
    lm.module.get_submodule(lm.tap(Site("mlp_out", 1)).path).register_forward_hook(lambda *_: throw("mlp"))
    return lm, fuse


def test_whatever_runs_leaves_the_model_as_it_was(watched):
    lm, _ = watched
    before = state(lm.model)
    for name, operation in operations(lm).items():
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                was = state(lm.model)
                operation()
                assert state(lm.model) == was, name
    assert state(lm.model) == before
    assert lm.model.training
    with torch.no_grad():
        lm.model.eval()
        ids = torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])
        close(lm.logits(PROMPTS[:1], "all"), lm.model(ids).logits[0], 1e-5)
    lm.model.train()
    lm.module.get_submodule(f"{lm.anatomy.prefix}.0").eval()


@pytest.mark.parametrize(
    ("at", "error"),
    [("block", RuntimeError), ("attention", RuntimeError), ("attention", KeyboardInterrupt), ("mlp", KeyboardInterrupt)],
)
def test_what_fails_half_way_leaves_the_model_as_it_was(watched, error, at):
    lm, fuse = watched
    every = {name: run for name, run in operations(lm).items() if name != "unembed"}
    before = state(lm.model)
    for name, operation in every.items():
        expected = operation()
        fuse.update(at=at, error=error)
        try:
            with pytest.raises(error, match="bang"):
                operation()
        finally:
            fuse.clear()
        assert state(lm.model) == before, name
        assert not lm.installed
        assert lm._pass is None
        np.testing.assert_array_equal(operation(), expected)


def test_an_interrupt_inside_attention_is_forgotten_within_the_same_context(watched):
    lm, fuse = watched
    ids = torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])
    with lm.edit(Edit.add("q.1", 0.5), Edit.replace("pattern.2.1", 0.0)):
        expected = lm.logits(PROMPTS[:1], "all")
        for at in ("attention", "mlp"):
            fuse.update(at=at, error=KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt), torch.no_grad():
                lm.model(ids.expand(3, -1))
            fuse.clear()
            with torch.no_grad():
                close(lm.model.eval()(ids).logits[0], expected, 1e-5)
            lm.model.train()
    lm.module.get_submodule(f"{lm.anatomy.prefix}.0").eval()


def test_a_callers_own_function_that_fails(watched):
    lm, _ = watched
    before = state(lm.model)

    def fails(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lm.gradient(PROMPTS, fails, "q.1")
    with pytest.raises(ZeroDivisionError), lm.edit(Edit.replace("pattern.1", 0.0)):
        fails(lm.logits(PROMPTS))
    with pytest.raises(UserError), lm.edit(Edit.replace("pattern.1", 0.0), Edit.add("resid_post.99", 1)):
        pass
    with pytest.raises(UserError), lm.edit(Edit.replace("pattern.1", 0.0), Edit.add("head_out.1", 1)):
        pass
    assert state(lm.model) == before
    assert not lm.installed


# ------------------------------------------------------------------------------------------------- precision and place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_low_precision_is_near_and_edits_are_in_float32(tokenizer, name, dtype):
    full, low = (LanguageModel(build(name).to(t), tokenizer, name) for t in (torch.float32, dtype))
    assert full.anatomy.taps.keys() == low.anatomy.taps.keys()
    for tokens in ("last", "mean"):
        a, b = (lm.capture(PROMPTS, ["resid_post", "z.1", "mlp_out.1"], tokens) for lm in (full, low))
        for site in a.sites:
            assert b[site].dtype == np.float32
            close(b[site], a[site], 2e-2)
    rng = np.random.default_rng(0)
    several, site = rng.normal(size=(3, 32)), "resid_post.1"
    eps = torch.finfo(dtype).eps
    plain = low.capture(PROMPTS, site, "all")[site].astype(np.float64)
    with low.edit(Edit.project_out(site, several)):
        out = low.capture(PROMPTS, site, "all")[site]
    unit = several / np.linalg.norm(several, axis=1, keepdims=True)
    # What is left is the rounding of the result alone: half a unit in the last place of each feature, added up by the unit vector.
    assert (np.abs(out @ unit.T) <= np.abs(out) @ np.abs(unit).T * eps / 2 + 1e-6).all()
    w = rng.normal(size=(32, 32)) / 6
    with low.edit(Edit.affine(site, w, several[0])):
        mapped = low.capture(PROMPTS, site, "all")[site]
    expected = plain @ w.T + several[0]
    np.testing.assert_array_less(np.abs(mapped - expected), np.abs(expected) * eps / 2 * 1.01 + 1e-5)
    with low.edit(Edit.add(site, several[0], tokens="generated")):
        texts = low.generate(PROMPTS, 4)
        assert [len(t.ids) for t in texts] == [4, 4, 4] or any(t.stopped for t in texts)
        assert [t.ids.tolist() for t in low.generate(PROMPTS, 4, temperature=1.0)] != [t.ids.tolist() for t in texts]
    _, grads = low.gradient(PROMPTS, lambda x: x[:, 3].float(), site)
    theirs = full.gradient(PROMPTS, lambda x: x[:, 3], site)[1]
    close(grads[site], theirs[site], 6e-2)


@pytest.mark.parametrize(("name", "place"), [("llama", "cpu"), ("gpt2", "disk"), ("mamba", "cpu")])
def test_weights_that_accelerate_has_put_elsewhere(tokenizer, tmp_path, name, place):
    import accelerate

    plain, model = LanguageModel(build(name), tokenizer, name), build(name)
    model.generation_config.eos_token_id = plain.model.generation_config.eos_token_id = None
    if place == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    lm = LanguageModel(model, tokenizer, name)
    assert lm.anatomy.taps.keys() == plain.anatomy.taps.keys()
    before = {n: (p.device, type(p)) for n, p in model.named_parameters()}
    sites = list(plain.anatomy.taps) + ([Site("module", path="layers.1.mixer.in_proj")] if name == "mamba" else [])
    a, b = (m.capture(PROMPTS, sites, "all", batch_tokens=16) for m in (plain, lm))
    for site in sites:
        np.testing.assert_array_equal(a[site], b[site])
    results = []
    for m in (plain, lm):
        kind = "z.1.2" if "z" not in m.anatomy.refused else "resid_pre.1"
        with m.edit(Edit.add("resid_post.0", np.ones(32)), Edit.add(kind, 0.5, tokens="last")):
            logits, texts = m.logits(PROMPTS), [c.ids.tolist() for c in m.generate(PROMPTS, 3)]
        values, grads = m.gradient(PROMPTS, lambda x: x[:, 3], "resid_post.0")
        results.append((logits, texts, m.logits(PROMPTS), values, grads["resid_post.0"], m.score(PROMPTS, [" of"] * 3).logprob))
    for theirs, ours in zip(*results):
        np.testing.assert_array_equal(theirs, ours)
    assert {n: (p.device, type(p)) for n, p in model.named_parameters()} == before
