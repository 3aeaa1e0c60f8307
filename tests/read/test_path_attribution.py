"""Parts of a Jacobian: each against the network with that component's derivative cut, and against what parts must add up to."""

import numpy as np
import pytest
import torch

from families import FORMS, build
from repscope.conditions import RANDOM
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.read.path_attribution import path_attribution
from repscope.results import ESTIMATE

PROMPTS = [[7, 8, 9, 10, 11], [5, 8, 9, 10], [9, 3, 20, 21]]
ENDS = ("resid_post.0", "resid_post.2")
AT = 1


@pytest.fixture(scope="module")
def double(tokenizer):
    return LanguageModel(build("llama").double(), tokenizer)


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, count, 32))
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))


def cut(lm, ids, site, u, v):
    """uᵀJv by torch, with the derivative of a component cut where one is named."""
    (begin,), (end,) = (lm.resolve(s) for s in ENDS)

    def of(delta):
        got = []

        def add(value):
            new = value.clone()
            new[:, AT] = new[:, AT] + delta
            return new

        hooks = [(lm.write_tap(begin), add), (lm.tap(end), lambda value: got.append(value[0, -1]))]
        if site is not None:
            hooks.append((lm.write_tap(site), lambda value: value.detach()))
        with lm.taps.hooked(hooks):
            lm.module(input_ids=torch.tensor([ids]), **lm.plain())
        return got[0]

    with torch.enable_grad():
        found = torch.autograd.functional.jacobian(of, torch.zeros(32, dtype=lm.model.dtype)).numpy()
    return np.einsum("pt,ts,ps->p", u, found, v)


@pytest.mark.parametrize(("name", "tolerance"), [("llama", 1e-7), ("gpt2", 1e-12)])  # Llama's norm computes in float32
def test_through_is_what_is_lost_when_the_component_is_cut(name, tolerance, tokenizer):
    double = LanguageModel(build(name).double(), tokenizer)
    u, v = pairs(2)
    found = path_attribution(double, PROMPTS, *ENDS, u, v, source_tokens=AT)
    assert [str(s) for s in found.sites if s.layer == 1] == ["z.1.0", "z.1.1", "z.1.2", "z.1.3", "attn_out.1", "mlp_out.1"]
    for i, ids in enumerate(PROMPTS[:2]):
        whole = cut(double, ids, None, u, v)
        np.testing.assert_allclose(found.total[i], whole, atol=tolerance)
        for j, site in enumerate(found.sites):
            lost = whole - cut(double, ids, site, u, v)
            assert np.abs(lost).max() > 1e-5
            np.testing.assert_allclose(found.through[i, :, j], lost, atol=tolerance)


@pytest.mark.parametrize("target_tokens", ["last", "mean"])
@pytest.mark.parametrize("source_tokens", [AT, "last", "all"])
def test_what_is_written_adds_up_with_the_direct_path(double, source_tokens, target_tokens):
    found = path_attribution(double, PROMPTS, *ENDS, *pairs(3), source_tokens=source_tokens, target_tokens=target_tokens)
    for part in (found, found.random):
        whole = [i for i, s in enumerate(part.sites) if s.head is None]
        np.testing.assert_allclose(part.writes[:, :, whole].sum(2) + part.direct, part.total, atol=1e-11)
        for layer in (1, 2):
            heads = [i for i, s in enumerate(part.sites) if s.layer == layer and s.head is not None]
            (attention,) = (i for i, s in enumerate(part.sites) if str(s) == f"attn_out.{layer}")
            np.testing.assert_allclose(part.writes[:, :, heads].sum(2), part.writes[:, :, attention], atol=1e-11)
    assert (np.abs(found.direct) > 1e-6).all() == (source_tokens != AT or target_tokens == "mean")


def test_it_adds_up_in_every_family_whose_stream_is_a_sum(family):
    name, lm = family
    u, v = pairs(2)
    if name == "mamba":
        with pytest.raises(UserError, match="No head and no MLP"):
            path_attribution(lm, PROMPTS, *ENDS, u, v)
        return
    found = path_attribution(lm, PROMPTS, *ENDS, u, v, source_tokens=AT, control=False)
    whole = [i for i, s in enumerate(found.sites) if s.head is None]
    if FORMS[name] == "post-norm":
        assert np.isnan(found.writes).all()
        assert not np.isnan(found.through).any()
    else:
        scale = np.abs(found.writes[:, :, whole]).sum(2).max()
        np.testing.assert_allclose(found.writes[:, :, whole].sum(2) + found.direct, found.total, atol=1e-5 * scale)


def test_other_ends(double):
    u, v = pairs(2)
    alone = path_attribution(double, PROMPTS, "resid_post.0", "resid_mid.1", u, v, source_tokens=AT)
    assert {s.kind for s in alone.sites} == {"z", "attn_out"}
    np.testing.assert_allclose(alone.writes[:, :, -1] + alone.direct, alone.total, atol=1e-12)
    added = path_attribution(double, PROMPTS, "mlp_out.0", "resid_post.2", u, v, source_tokens=AT)
    stream = path_attribution(double, PROMPTS, *ENDS, u, v, source_tokens=AT)
    np.testing.assert_allclose(added.writes, stream.writes, atol=1e-12)  # the stream takes it in unchanged
    normed = path_attribution(double, PROMPTS, "resid_post.0", "final_norm", u, v, source_tokens=AT)
    assert np.isnan(normed.writes).all()


def test_the_table_has_the_control_beside_each_estimate(double):
    u, v = pairs(2)
    found = path_attribution(double, PROMPTS, *ENDS, 3 * u, v, source_tokens=AT, seed=4)
    table = found.result().table
    counts = table.groupby(["metric", "condition"]).size()
    assert counts["through", ESTIMATE] == counts["through", RANDOM] == 2 * len(found.sites)
    assert counts["writes", ESTIMATE] == counts["writes", RANDOM] == 2 * (len(found.sites) + 1)
    assert table["row_id"].is_unique
    assert (table["lo"] <= table["value"]).all()
    one = table[(table["metric"] == "through") & (table["site"] == "mlp_out.1") & (table["item"] == "pair 1")]
    (at,) = (i for i, s in enumerate(found.sites) if str(s) == "mlp_out.1")
    np.testing.assert_allclose(one["value"], [found.through[:, 1, at].mean(), found.random.through[:, 1, at].mean()])
    again = path_attribution(double, PROMPTS, *ENDS, 3 * u, v, source_tokens=AT, seed=4)
    np.testing.assert_array_equal(again.random.total, found.random.total)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"source": "resid_post"}, "The source is 4 sites"),
        ({"source": "module:layers.0"}, "no known place"),
        ({"target": "resid_pre.1"}, "take ends further apart"),
        ({"v": np.ones((3, 32))}, "pair by pair"),
        ({"u": np.ones((2, 31))}, r"must be \(vector, 32\)"),
    ],
)
def test_mistakes_are_named(double, how, says):
    u, v = pairs(2)
    asked = {"prompts": PROMPTS, "source": ENDS[0], "target": ENDS[1], "u": u, "v": v} | how
    with pytest.raises(UserError, match=says):
        path_attribution(double, **asked)


@pytest.mark.parametrize("at", [1, "last"])
def test_a_planted_head_is_the_only_way_through(at, tokenizer):
    model, planted = build("llama").double(), 2
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            block.mlp.down_proj.weight.zero_()
            weight = block.self_attn.o_proj.weight
            kept = weight[:, 8 * planted : 8 * (planted + 1)].clone()
            weight.zero_()
            if layer == 1:
                weight[:, 8 * planted : 8 * (planted + 1)] = kept
    u, v = pairs(3)
    found = path_attribution(LanguageModel(model, tokenizer), PROMPTS, *ENDS, u, v, source_tokens=at)
    whole = found.total - found.direct
    assert (np.abs(whole) > 1e-5).all()
    for i, site in enumerate(found.sites):
        expected = whole if str(site) in (f"z.1.{planted}", "attn_out.1") else 0
        for parts in (found.through, found.writes):
            np.testing.assert_allclose(parts[:, :, i], expected, atol=1e-12)


def test_where_the_stream_is_no_sum_nothing_is_said_to_write(double, tokenizer):
    altered = build("gpt2").double()
    altered.transformer.h[1].register_forward_hook(
        lambda m, args, out: (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5
    )
    u, v = pairs(2)
    found = path_attribution(LanguageModel(altered, tokenizer), PROMPTS, *ENDS, u, v, source_tokens=AT)
    assert np.isnan(found.writes).all()
    assert np.isnan(found.direct).all()
    assert any("No writes are given" in note for note in found.result().notes)
    with double.edit(Edit.project_out("resid_post.1", np.ones(32))):
        edited = path_attribution(double, PROMPTS, *ENDS, u, v, source_tokens=AT)
    assert np.isnan(edited.writes).all()
    assert any("resid_post.1" in note for note in edited.notes)


def test_a_head_as_target_is_no_part_of_its_own_map(double):
    u, v = pairs(2)
    found = path_attribution(double, PROMPTS, "resid_post.0", "z.2.1", u[:, :8], v, source_tokens=AT)
    assert not [site for site in found.sites if site.kind == "z" and site.layer == 2]


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_heads_that_a_norm_mixes_are_told(name, tokenizer):
    u, v = pairs(1)
    found = path_attribution(LanguageModel(build(name), tokenizer), PROMPTS, *ENDS, u, v, source_tokens=AT)
    assert np.isnan(found.writes[:, :, [i for i, s in enumerate(found.sites) if s.head is not None]]).all()
    assert any("norm" in note for note in found.result().notes)


def test_a_direct_path_that_is_not_there_is_zero_without_width(double):
    u, v = pairs(1)
    table = path_attribution(double, PROMPTS, *ENDS, u, v, source_tokens=AT).result().table
    direct = table[(table["metric"] == "writes") & (table["site"] == ENDS[0]) & (table["condition"] == ESTIMATE)]
    assert direct[["value", "lo", "hi"]].to_numpy().tolist() == [[0.0, 0.0, 0.0]]
