"""Every family: attention's parts prove themselves, an edit at any site is what a plain hook would do, gradients are the slope."""

from pathlib import Path

import numpy as np
import pytest
import torch

from families import EXPERTS, build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.sites import KINDS, Site
from repscope.models.variants.prompt_variants import PromptVariant, run_variants, variants_refused

PROMPTS = ["The place called Paris", "San Francisco", "A map that shows Lagos and Paris; the name"]
WRITABLE = [name for name, kind in KINDS.items() if not kind.computed]


def held(lm, kinds):
    return [k for k in kinds if any(s.kind == k for s in lm.anatomy.taps)]


def site_of(lm, kind, layer=1):
    return Site(kind, layer if KINDS[kind].per_block else None)


def close(a, b, tolerance=1e-5):
    a, b = (torch.as_tensor(np.asarray(x)).double() for x in (a, b))
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm()), float((a - b).norm() / b.norm())


def test_what_heads_gather_is_the_pattern_times_the_values(family):
    _, lm = family
    if "z" in lm.anatomy.refused:
        pytest.skip(lm.anatomy.refused["z"])
    acts = lm.capture(PROMPTS, ["z.1", "v.1", "pattern.1", "k.1", "q.1"], "all")
    heads, groups = lm.anatomy.heads, lm.anatomy.kv_heads
    assert acts["q.1"].shape[1] == heads
    assert acts["k.1"].shape[1] == groups
    for a, b in zip(acts.offsets[:-1], acts.offsets[1:]):
        pattern = acts["pattern.1"][a:b, :, : b - a]
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
        values = np.repeat(acts["v.1"][a:b], heads // groups, axis=1)
        close(np.einsum("qhk,khf->qhf", pattern, values), acts["z.1"][a:b])
        if lm.causal:
            assert not np.triu(pattern.transpose(1, 0, 2), 1).any()


def test_the_pattern_is_a_softmax_of_queries_and_keys(llama):
    acts = llama.capture(PROMPTS[:1], ["q.2", "k.2", "pattern.2"], "all")
    q, k = torch.tensor(acts["q.2"]), torch.tensor(acts["k.2"]).repeat_interleave(2, dim=1)
    scores = torch.einsum("qhf,khf->hqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    close(scores.softmax(-1).transpose(0, 1), acts["pattern.2"])


def test_heads_add_up_to_attention(family):
    _, lm = family
    if "head_out" in lm.anatomy.refused:
        with pytest.raises(UserError, match="head_out"):
            lm.capture(PROMPTS, "head_out.1")
        return
    acts = lm.capture(PROMPTS, ["head_out.1", "attn_out.1", "z.1"], "all")
    projection = lm.module.get_submodule(lm.tap(Site("z", 1)).path)
    bias = getattr(projection, "bias", None)
    total = acts["head_out.1"].sum(1) + (0 if bias is None else bias.detach().numpy())
    close(total, acts["attn_out.1"])
    close(lm.capture(PROMPTS, "head_out.1.2", "all")["head_out.1.2"], acts["head_out.1"][:, 2])


def test_reading_an_edited_site_gives_what_was_put_there(family):
    _, lm = family
    for kind in held(lm, WRITABLE):
        site = site_of(lm, kind)
        plain = lm.capture(PROMPTS, site, "all")
        if kind == "pattern":
            with lm.edit(Edit.replace(site, 0.25)):
                np.testing.assert_allclose(lm.capture(PROMPTS, site, "all")[site][:, :, 0], 0.25)
            continue
        shift = np.linspace(-1, 1, plain[site][0].size, dtype=np.float32).reshape(plain[site][0].shape)
        with lm.edit(Edit.add(site, shift, scale=2.0)):
            close(lm.capture(PROMPTS, site, "all")[site], plain[site] + 2 * shift)
        with lm.edit(Edit.replace(site, shift, tokens="last")):
            edited = lm.capture(PROMPTS, site, "all")
        for a, b in zip(plain.offsets[:-1], plain.offsets[1:]):
            close(edited[site][b - 1], shift)
            close(edited[site][a : b - 1], plain[site][a : b - 1])
        np.testing.assert_array_equal(lm.capture(PROMPTS, site, "all")[site], plain[site])


def test_one_head_is_edited_alone(family):
    _, lm = family
    if "z" in lm.anatomy.refused:
        pytest.skip(lm.anatomy.refused["z"])
    plain = lm.capture(PROMPTS, "z.1", "all")["z.1"]
    with lm.edit(Edit.replace("z.1.2", 0.0)):
        edited = lm.capture(PROMPTS, "z.1", "all")["z.1"]
    assert not edited[:, 2].any()
    close(np.delete(edited, 2, axis=1), np.delete(plain, 2, axis=1))  # edited prompts are padded, plain ones packed


def test_the_same_change_of_the_stream_by_any_way(family):
    _, lm = family
    ways = held(lm, ["attn_out", "resid_mid", "mlp_out", "resid_post"])
    if lm.anatomy.form == "post-norm":
        ways = [w for w in ways if w != "resid_mid"][:1]
    if lm.anatomy.form == "parallel":
        ways = ["mlp_out", "resid_post", "attn_out"]
    after_attention = [w for w in ways if w in ("attn_out", "resid_mid")]
    after_mlp = [w for w in ways if w in ("mlp_out", "resid_post")]
    if lm.anatomy.form == "parallel":
        after_mlp, after_attention = ways, []
    vector = np.linspace(-1, 1, lm.anatomy.width)
    for same in (after_attention, after_mlp):
        rows = []
        for kind in same:
            with lm.edit(Edit.add(site_of(lm, kind), vector)):
                rows.append(lm.capture(PROMPTS, "resid_post.2", "all")["resid_post.2"])
        for row in rows[1:]:
            close(row, rows[0])


def test_forks_equal_one_forward_a_fork(family):
    name, lm = family
    ids = np.array(lm.tokenizer(PROMPTS[2])["input_ids"])
    if not lm.causal:
        with pytest.raises(UserError, match="not causal"):
            run_variants(lm, ids, [PromptVariant(Site("resid_post", 0), 0, 1, lambda x: x)])
        return

    def change(x):
        return x.flip(-1) if x.shape[-1] == x.shape[0] else x * 0.5 + 0.1

    cells = [
        PromptVariant(site_of(lm, kind, layer), at, at + 1, change)
        for kind in held(lm, WRITABLE)
        if kind != "final_norm"
        for layer in (0, lm.blocks - 1)
        for at in (0, 3, len(ids) - 1)
    ]
    ours = run_variants(lm, ids, cells)
    assert bool(variants_refused(lm, len(ids))) is (name in ("bloom", "mamba"))
    for cell, row in zip(cells, ours):
        close(row, slow_fork(lm, ids, cell))


def slow_fork(lm, ids, cell):
    """The whole prompt in one plain forward, changed by a hook."""
    seen = []

    def change(value):
        new = value.clone()
        new[:, cell.start : cell.stop] = cell.value(value[:, cell.start : cell.stop])
        return new

    hooks = [(lm.write_tap(cell.site), change), (lm.tap(lm.last), lambda x: seen.append(x[0, -1].clone()))]
    with torch.no_grad(), lm.taps.hooked(hooks):
        lm.model(input_ids=torch.tensor(ids)[None])
    return seen[0]


def test_gradients_are_slopes(family):
    name, lm = family
    # Norms are computed in float32 in many families, whatever the weights; experts know no float64 at all.
    double = lm if name in EXPERTS else LanguageModel(build(name).double(), lm.tokenizer, name)
    # A step small enough for the kinks of routers and ReLUs, large enough for the rounding of what is computed in float32.
    step = 1e-3 if name in EXPERTS else 1e-5 if name.startswith("opt") else 1e-3

    def of(hidden):
        return hidden[:, 3] * hidden[:, 5]

    last = str(double.last)
    for kind in held(double, WRITABLE):
        if kind in ("final_norm", "pattern"):
            continue
        site = site_of(double, kind)
        values, grads = double.gradient(PROMPTS, of, site, "last", of_at=last)
        direction = np.cos(np.arange(grads[site][0].size)).reshape(grads[site][0].shape)
        rows = []
        for sign in (1, -1):
            with double.edit(Edit.add(site, direction, scale=sign * step, tokens="last")):
                acts = double.capture(PROMPTS, last, dtype="float64").numpy()
                rows.append(acts[:, 3] * acts[:, 5])
        slope = (rows[0] - rows[1]) / (2 * step)
        ours = (grads[site].astype(np.float64) * direction).reshape(len(PROMPTS), -1).sum(1)
        noise = 1e-6 * np.abs(values).max() / step if step == 1e-3 else 0.0
        np.testing.assert_allclose(ours, slope, rtol=3e-3, atol=3e-3 * np.abs(slope).max() + noise)
        assert np.abs(slope).max() > 0


def test_gradient_at_the_pattern(llama):
    values, grads = llama.gradient(PROMPTS[:1], lambda logits: logits[:, 7], "pattern.2", "last")
    longest = grads["pattern.2"].shape[-1]
    assert grads["pattern.2"].shape == (1, llama.anatomy.heads, longest)
    plain = llama.capture(PROMPTS[:1], "pattern.2")["pattern.2"][0]
    with llama.edit(Edit.replace("pattern.2", plain * 0.99 + 0.01 / longest, tokens="last")):
        moved = llama.logits(PROMPTS[:1])[:, 7]
    change = (grads["pattern.2"][0] * (0.01 / longest - 0.01 * plain)).sum()
    np.testing.assert_allclose(moved - values, change, rtol=0.05)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt-neox", "bert"])
def test_fused_and_eager_attention_hold_the_same(name, tokenizer):
    both = []
    for implementation in ("sdpa", "eager"):
        model = build(name)
        model.set_attn_implementation(implementation)
        both.append(LanguageModel(model, tokenizer, name))
    kinds = ["q.1", "k.1", "v.1", "pattern.1", "z.1", "head_out.1"]
    fused, eager = (lm.capture(PROMPTS, kinds, "all") for lm in both)
    for kind in kinds:
        close(fused[kind], eager[kind])
    rows = []
    for lm in both:
        with lm.edit(Edit.replace("pattern.1.2", 0.1), Edit.add("k.1", np.ones(fused["k.1"].shape[1:]), tokens="first")):
            rows.append(lm.capture(PROMPTS, "resid_post.2", "all")["resid_post.2"])
    close(rows[0], rows[1])


def test_the_table_of_kinds_is_what_the_docs_say():
    page = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()
    for kind in KINDS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.name}") and line.count("|") == 5)
        for text in (kind.definition, kind.identity, kind.absent):
            assert f"| {text} |" in row


def test_every_kind_is_there_or_refused_with_a_reason(family):
    _, lm = family
    for name, kind in KINDS.items():
        if any(s.kind == name for s in lm.anatomy.taps):
            continue
        with pytest.raises(UserError, match="has no"):
            lm.resolve(name)
        assert lm.anatomy.refused[name]
        assert kind.absent
