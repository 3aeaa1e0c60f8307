"""Sites are found from structure and proved: every identity holds, and each site is the tensor that a plain hook reads."""

import pytest
import torch
from torch import nn

from families import CAUSAL, FORMS
from repscope.errors import UserError
from repscope.models.engine.hooks import first_tensor
from repscope.models.language import LanguageModel
from repscope.models.network import Network

PROMPTS = ["The place called Paris", "San Francisco", "A map that shows Lagos and Paris; the name"]


def test_the_form_of_the_block_is_recognised(family):
    name, lm = family
    assert lm.anatomy.form == FORMS[name]
    assert lm.anatomy.error <= 1e-5
    assert lm.anatomy.causal is (name in CAUSAL)


def test_parts_add_up(family):
    name, lm = family
    if FORMS[name] == "residual only":
        with pytest.raises(UserError, match="add up"):
            lm.capture(PROMPTS, "mlp_out.1")
        return
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post"] + ([] if FORMS[name] == "parallel" else ["resid_mid"])
    acts = lm.capture(PROMPTS, kinds, "all")
    for b in range(lm.blocks):
        x, a, m, y = (acts[f"{k}.{b}"] for k in kinds[:4])
        if FORMS[name] == "sequential":
            assert_close(x + a, acts[f"resid_mid.{b}"])
        if FORMS[name] != "post-norm":
            assert_close(x + a + m, y)
        else:
            norms = [m for p, m in block_of(lm, b).named_modules() if "norm" in type(m).__name__.lower()]
            mid = norms[0](torch.tensor(x + a)).detach().numpy()
            assert_close(mid, acts[f"resid_mid.{b}"])
            assert_close(norms[1](torch.tensor(mid + m)).detach().numpy(), y)
        if b:
            assert_close(x, acts[f"resid_post.{b - 1}"])


def block_of(lm, b):
    return lm.module.get_submodule(f"{lm.anatomy.prefix}.{b}")


def test_neurons_project_to_what_the_mlp_adds(llama):
    acts = llama.capture(PROMPTS, ["mlp_act.2", "mlp_out.2"])
    projected = llama.module.layers[2].mlp.down_proj(torch.tensor(acts["mlp_act.2"])).detach().numpy()
    assert_close(projected, acts["mlp_out.2"])


def test_a_captured_site_is_what_a_plain_hook_reads(family):
    _, lm = family
    modules = dict(lm.module.named_modules())
    for site in lm.anatomy.taps:
        tap, read = lm.tap(site), []
        if tap.part:
            continue  # a part of a tensor: test_families proves those
        if tap.side == "in":
            hook = modules[tap.path].register_forward_pre_hook(
                lambda _, a, k, read=read: read.append((first_tensor(a) if a else k["hidden_states"]).clone()), with_kwargs=True
            )
        else:
            hook = modules[tap.path].register_forward_hook(lambda _, a, o, read=read: read.append(first_tensor(o).clone()))
        ids = torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])
        with torch.no_grad():
            lm.model(input_ids=ids)
        hook.remove()
        assert_close(lm.capture(PROMPTS[:1], site, "all")[site], read[0].flatten(0, -2).numpy())


def test_a_parallel_block_refuses_the_middle_with_the_reason(tokenizer):
    from families import build

    lm = LanguageModel(build("gpt-neox"), tokenizer, "neox")
    with pytest.raises(UserError, match="parallel block"):
        lm.capture(PROMPTS, "resid_mid.1")
    assert any(row[0] == "resid_mid" and "refused" in row[3] for row in lm.sites())


def test_blocks_that_do_not_add_up_are_refused(tokenizer):
    from families import build

    model = build("llama")
    mlp = model.model.layers[1].mlp
    mlp.register_forward_hook(lambda m, a, out: out * 1.0)  # harmless: still adds up
    assert LanguageModel(model, tokenizer).anatomy.form == "sequential"
    model.model.layers[1].register_forward_hook(lambda m, a, out: out * 1.5)  # the block now writes something else
    lm = LanguageModel(model, tokenizer)
    with pytest.raises(UserError, match="add up"):
        lm.resolve("mlp_out.1")
    assert str(lm.resolve("mlp_out.2")[0]) == "mlp_out.2"


@pytest.mark.parametrize(
    ("at", "says"), [("resid_post.9", "blocks 0 to 3"), ("module:layers.2.mpl", "did you mean 'layers.2.mlp'"), ([], "No site")]
)
def test_sites_that_are_not_there(llama, at, says):
    with pytest.raises(UserError, match=says):
        llama.resolve(at)


def test_hugging_faces_own_paths_name_the_same_modules(llama):
    theirs = llama.capture(PROMPTS, "module:model.layers.2.mlp").numpy()
    assert_close(theirs, llama.capture(PROMPTS, "module:layers.2.mlp").numpy())
    assert_close(theirs, llama.capture(PROMPTS, "mlp_out.2").numpy())


def test_negative_blocks_count_from_the_end(llama):
    assert [str(s) for s in llama.resolve("resid_post.-1")] == ["resid_post.3"]


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(4, 2, 3)

    def forward(self, image):
        return self.second(self.drop(self.first(image).relu())).mean((2, 3))


def test_any_module_by_its_path():
    net = Convolutions().train()
    images = torch.randn(7, 1, 8, 8)
    acts = Network(net).capture({"image": images}, ["module:second", "module:second#in"], batch=3)
    assert acts["module:second"].shape == (7, 2, 4, 4)
    with torch.no_grad():
        assert_close(acts["module:second#in"], net.first(images).relu().numpy())
    assert net.training
    assert net.drop.training
    with pytest.raises(UserError, match="takes a tensor"):
        Network(net).capture([1, 2], "module:first")
    with pytest.raises(UserError, match="site of transformers"):
        Network(net).capture(images, "resid_post.0")


def assert_close(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-5)
