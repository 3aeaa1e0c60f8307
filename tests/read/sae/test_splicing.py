"""Edits by an autoencoder against plain hooks, attribution against ablation, and directions against decoder vectors."""

import numpy as np
import pytest
import torch

from families import build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.read import sae

D, L = 32, 64
PROMPTS = ["A map of Paris", "do you know helium and lithium; the name", "of"]


@pytest.fixture(scope="module")
def lm(tokenizer):
    """Llama in float64: what is left of an error is an error."""
    return LanguageModel(build("llama").double(), tokenizer, "llama64")


def tensor(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(activation=None, normalization=None, site="resid_post.1", **how):
    weights = [tensor(D, L, seed=1), 0.1 * tensor(L, seed=2), tensor(L, D, seed=3) / L, tensor(D, seed=4) / D]
    return sae.SparseAutoencoder(*weights, activation or sae.TopK(6), normalization, site=site, **how)


ONES = {
    "topk": made(rescale_by_decoder_norm=True, subtract_b_dec=True),
    "jumprelu": made(sae.JumpReLU(0.2 * tensor(L, seed=5).abs()), sae.LayerNorm()),
    "batchtopk": made(sae.BatchTopK(4, 0.3), sae.ConstantNorm(), W_skip=0.1 * tensor(D, D, seed=6)),
    "gated": sae.SparseAutoencoder(
        tensor(D, L, seed=1),
        torch.zeros(L, dtype=torch.float64),
        tensor(L, D, seed=3) / L,
        tensor(D, seed=4) / D,
        sae.Gated(0.1 * tensor(L, seed=7), 0.1 * tensor(L, seed=8), 0.1 * tensor(L, seed=9)),
        sae.Scale(0.7),
        site="resid_post.1",
    ),
}


def plain(lm, hooks):
    """Logits at the last token of each prompt with plain hooks on modules: {path: function of the output (token, feature)}."""
    rows = []
    for prompt in PROMPTS:
        ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
        handles = []
        for path, f in hooks.items():

            def hook(module, args, output, f=f):
                tensor = output[0] if isinstance(output, tuple) else output
                new = f(tensor[0])[None]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handles.append(lm.model.get_submodule(path).register_forward_hook(hook))
        with torch.no_grad():
            rows.append(lm.model(ids).logits[0, -1].numpy())
        for handle in handles:
            handle.remove()
    return np.stack(rows)


@pytest.mark.parametrize("name", ONES)
def test_splice_is_what_a_plain_hook_gives(lm, name):
    one = ONES[name]
    expected = plain(lm, {"model.layers.1": one.reconstruct})
    with lm.edit(*sae.splice(one)):
        found = lm.logits(PROMPTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - lm.logits(PROMPTS)).max() > 1e-3


@pytest.mark.parametrize("name", ONES)
def test_clamp_is_a_change_of_latents_with_the_error_left(lm, name):
    one = ONES[name]
    values = {3: 2.0, 11: 0.0, 60: 0.5}

    def change(latents):
        dense = latents.dense()
        dense[:, list(values)] = torch.tensor(list(values.values()), dtype=dense.dtype)
        return sae.Latents.from_mask(dense != 0, dense, latents.statistics)

    with lm.edit(*sae.clamp(one, values)):
        found = lm.logits(PROMPTS)
    with lm.edit(*sae.splice(one, error=True, change=change)):
        np.testing.assert_allclose(lm.logits(PROMPTS), found, atol=1e-6)

    def by_hand(x):
        return x + one.decode(change(one.encode(x))) - one.decode(one.encode(x))

    np.testing.assert_allclose(plain(lm, {"model.layers.1": by_hand}), found, atol=1e-6)


def test_ablating_all_latents_leaves_error_and_bias(lm):
    one = ONES["topk"]
    with lm.edit(*sae.ablate(one, range(L))):
        found = lm.logits(PROMPTS)
    expected = plain(lm, {"model.layers.1": lambda x: x - one.reconstruct(x) + one.b_dec})
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_transcoder_reads_one_site_and_writes_another(lm):
    seen = []
    one = made(sae.ReLU(), site="resid_mid.1", site_out="mlp_out.1", transcoder=True, W_skip=0.1 * tensor(D, D, seed=6))
    handle = lm.model.get_submodule("model.layers.1.post_attention_layernorm").register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0])
    )
    try:
        expected = plain(lm, {"model.layers.1.mlp": lambda y: one.reconstruct(seen[-1])})
        clamped = plain(lm, {"model.layers.1.mlp": lambda y: y - one.activations(seen[-1], [5]) @ one.decoder_vectors([5])})
    finally:
        handle.remove()
    with lm.edit(*sae.splice(one)):
        np.testing.assert_allclose(lm.logits(PROMPTS), expected, atol=1e-6)
    with lm.edit(*sae.ablate(one, [5])):
        np.testing.assert_allclose(lm.logits(PROMPTS), clamped, atol=1e-6)
    assert np.abs(expected - clamped).max() > 1e-3
    with pytest.raises(UserError, match=r"input at resid_mid\.1 was not seen"), lm.edit(sae.splice(one)[1]):
        lm.logits(PROMPTS)


def test_splice_at_some_tokens_and_in_generation(lm):
    one = ONES["jumprelu"]
    alone = []
    for prompt in PROMPTS:
        with lm.edit(*sae.splice(one, tokens="last")):
            alone.append(lm.logits([prompt])[0])
    with lm.edit(*sae.splice(one, tokens="last")):
        np.testing.assert_allclose(lm.logits(PROMPTS), np.stack(alone), atol=1e-6)
    with lm.edit(*sae.splice(one)):
        cached = [c.text for c in lm.generate(PROMPTS, 5)]
        assert cached == [c.text for c in lm.generate(PROMPTS, 5, use_cache=False)]


@pytest.mark.parametrize("name", ["topk", "jumprelu", "gated"])
def test_attribution_is_the_slope_of_ablation(lm, name):
    """Scaling a latent at one position by 1 - ε changes the number by -ε times its attribution, to first order."""
    one = ONES[name]
    of = sae.logit_difference(lm, "a", "b")
    found = sae.attribute(one, lm, PROMPTS, of)
    np.testing.assert_allclose(found.values, np.asarray(of(torch.from_numpy(lm.logits(PROMPTS).astype(np.float64)))), atol=1e-5)
    here = found.table[found.table.prompt == 1]
    assert here.attribution.abs().is_monotonic_decreasing
    eps = 0.02  # logits are float32
    for row in here.iloc[[0, 1, 5, len(here) // 2]].itertuples():
        moved = []
        for sign in (1, -1):
            with lm.edit(*sae.clamp(one, {row.latent: row.activation * (1 - sign * eps)}, tokens=row.position)):
                moved.append(float(lm.gradient([PROMPTS[1]], of, "resid_post.2", "last")[0][0]))
        slope = (moved[1] - moved[0]) / (2 * eps)
        assert slope == pytest.approx(row.attribution, rel=0.01, abs=5e-6)


def test_attribution_agrees_with_ablation_and_adds_up(lm):
    one = ONES["topk"]
    of = sae.logit_difference(lm, "a", "b")
    found = sae.attribute(one, lm, PROMPTS[:1], of, tokens="last")
    effects, attributions = [], []
    for row in found.table.itertuples():
        with lm.edit(*sae.ablate(one, [row.latent], tokens="last")):
            effects.append(found.values[0] - float(lm.gradient(PROMPTS[:1], of, "resid_post.2", "last")[0][0]))
        attributions.append(row.attribution)
    assert len(effects) == 6
    assert np.corrcoef(effects, attributions)[0, 1] > 0.98
    assert np.sign(effects[0]) == np.sign(attributions[0])
    # g · x = latents + error + g · b_dec: nothing of the gradient is lost
    gradient = lm.gradient(PROMPTS[:1], of, "resid_post.1", "last")[1]["resid_post.1"][0]
    x = lm.capture(PROMPTS[:1], "resid_post.1", "last")["resid_post.1"][0]
    total = found.table.attribution.sum() + found.error[0] + gradient @ one.b_dec.numpy()
    assert total == pytest.approx(float(gradient @ x), rel=1e-4)
    assert found.by_latent().attribution.sum() == pytest.approx(found.table.attribution.sum())


def test_directions_are_decoder_vectors(lm):
    one = ONES["topk"]
    held = one.directions([3, 9], model=str(lm.fingerprint))
    assert held.names == ("latent 3", "latent 9")
    np.testing.assert_allclose(held["latent 9"].weights, one.decoder_vectors([9])[0], rtol=1e-6)
    assert {d.site for d in held} == {"resid_post.1"}
    with lm.edit(Edit.add(held[0].site, held[0], scale=2 * held[0].scale)):
        added = lm.logits(PROMPTS)
    expected = plain(lm, {"model.layers.1": lambda x: x + 2 * one.decoder_vectors([3])[0]})
    np.testing.assert_allclose(added, expected, atol=1e-5)


def test_logit_effects_are_the_direct_path(lm):
    one = ONES["topk"]
    found = sae.logit_effects(one, lm, [4, 7], top=3)
    w = one.decoder_vectors([7])[0]
    norm = lm.model.model.norm
    logits = (norm.weight * w / (w.pow(2).mean() + norm.variance_epsilon).sqrt()) @ lm.model.get_output_embeddings().weight.T
    logits = (logits - logits.mean()).detach().numpy()
    mine = found[found.latent == 7]
    np.testing.assert_allclose(mine[mine.sign == "promoted"].effect, np.sort(logits)[::-1][:3], rtol=1e-5)
    np.testing.assert_allclose(mine[mine.sign == "suppressed"].effect, np.sort(logits)[:3], rtol=1e-5)
    assert mine.token.iloc[0] == lm.tokenizer.decode([int(logits.argmax())])
    assert len(found) == 2 * 2 * 3


def test_nearest_directions_are_those_of_largest_cosine():
    one = ONES["topk"]
    labelled = one.directions([2, 5, 9])
    found = sae.nearest_directions(one, labelled, k=2)
    assert len(found) == 2 * L
    w, m = one.decoder_vectors().numpy(), np.stack([d.vector for d in labelled])
    cosines = w / np.linalg.norm(w, axis=1, keepdims=True) @ m.T
    best = found[found["rank"] == 0].set_index("latent")
    np.testing.assert_allclose(np.abs(best.cosine), np.abs(cosines).max(1), atol=1e-12)
    assert best.direction[5] == "latent 5"
    assert best.cosine[5] == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda lm: sae.splice(made(site=None)), "where this autoencoder is; give site="),
        (lambda lm: sae.splice(made(), error=True), "give change="),
        (lambda lm: sae.clamp(made(), {}), "No latent was given"),
        (lambda lm: sae.clamp(made(), {L: 1.0}), "no latent 64"),
        (lambda lm: sae.clamp(made(), {1: float("nan")}), "give a finite number"),
        (lambda lm: sae.logit_difference(lm, "Paris"), "is 3 tokens"),
        (lambda lm: sae.attribute(made(transcoder=True, site_out="mlp_out.1"), lm, PROMPTS, None), "a transcoder has two"),
        (lambda lm: made(sae.TopK(3)).columns([1]), "compete"),
        (lambda lm: sae.nearest_directions(made(), made().directions([1]).of()), "no labelled direction"),
        (lambda lm: lm.edit(Edit.map("resid_post.1", lambda x: x[:, :4], name="cut")), "cut at resid_post.1.* must keep the shape"),
    ],
)
def test_wrong_input_is_one_sentence(lm, call, said):
    def whole():
        with call(lm):
            lm.logits(PROMPTS)

    with pytest.raises(UserError, match=said):
        whole()


def test_observing_is_no_edit_without_effect(lm):
    seen = []
    with lm.edit(Edit.observe("resid_post.1", lambda x: seen.append(len(x))), Edit.add("resid_post.2", np.ones(D))):
        lm.logits(PROMPTS[:1])
    assert seen
