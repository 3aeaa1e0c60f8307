"""`SparseAutoencoder` against a dense numpy reference in float64, written row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.read.sae import (
    BatchTopK,
    ConstantNorm,
    Gated,
    GroupMax,
    JumpReLU,
    LayerNorm,
    ReLU,
    Scale,
    SparseAutoencoder,
    TopK,
    Whitening,
)
from repscope.read.sae import autoencoder as module

D, L, ROWS = 6, 20, 17


def tensor(*shape, seed, positive=False):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.abs() if positive else drawn


def made(activation=None, d_out=D, **given):
    return SparseAutoencoder(
        tensor(D, L, seed=1),
        torch.zeros(L, dtype=torch.float64) if isinstance(activation, Gated) else tensor(L, seed=2),
        tensor(L, d_out, seed=3),
        tensor(d_out, seed=4),
        activation or ReLU(),
        **given,
    )


X = 3 * tensor(ROWS, D, seed=5) + 1
MATRIX = torch.linalg.qr(tensor(D, D, seed=6)).Q @ torch.diag(torch.arange(1.0, D + 1, dtype=torch.float64))
ACTIVATIONS = {
    "relu": ReLU(),
    "topk": TopK(3),
    "groupmax": GroupMax(4),
    "batchtopk": BatchTopK(3, 1.5),
    "jumprelu": JumpReLU(tensor(L, seed=7)),
    "gated": Gated(tensor(L, seed=8), tensor(L, seed=9), 0.3 * tensor(L, seed=10)),
}
NORMALIZATIONS = {
    "none": None,
    "scale": Scale(0.4),
    "constant": ConstantNorm(),
    "layer": LayerNorm(),
    "whitening": Whitening(tensor(D, seed=11), MATRIX, torch.linalg.inv(MATRIX)),
}


def reference(sae, x):
    """Latents and reconstruction of one row, with loops."""
    w_enc, b_enc, w_dec, b_dec = (getattr(sae, n).numpy() for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
    n, z, back = sae.normalization, x, lambda y: y
    if isinstance(n, Scale):
        z, back = x * n.factor, lambda y: y / n.factor
    elif isinstance(n, ConstantNorm):
        f = np.sqrt(D) / np.sqrt((x**2).sum())
        z, back = x * f, lambda y: y / f
    elif isinstance(n, LayerNorm):
        m, s = x.mean(), x.std(ddof=1)
        z, back = (x - m) / (s + 1e-5), lambda y: y * s + m
    elif isinstance(n, Whitening):
        z = (x - n.mean.numpy()) @ n.matrix.numpy()
        back = lambda y: y @ n.inverse.numpy() + n.mean.numpy()  # noqa: E731
    if sae.subtract_b_dec:
        z = z - b_dec
    h = z @ w_enc + b_enc
    norms = np.linalg.norm(w_dec, axis=1)
    if sae.rescale_by_decoder_norm:
        h = h * norms
    a, act = np.zeros(L), sae.activation
    for i in range(L):
        if isinstance(act, TopK):
            active = h[i] > 0 and (h > h[i]).sum() < act.k
        elif isinstance(act, GroupMax):
            size = L // act.k
            active = h[i] > 0 and h[i] == h[i // size * size : (i // size + 1) * size].max()
        elif isinstance(act, BatchTopK):
            active = h[i] > act.threshold
        elif isinstance(act, JumpReLU):
            active = h[i] > max(0, float(act.threshold[i]))
        elif isinstance(act, Gated):
            value = h[i] * np.exp(float(act.r_mag[i])) + float(act.b_mag[i])
            a[i] = value if h[i] + float(act.b_gate[i]) > 0 and value > 0 else 0
            continue
        else:
            active = h[i] > 0
        a[i] = h[i] if active else 0
    y = b_dec.copy()
    for i in range(L):
        y = y + (a[i] / norms[i] if sae.rescale_by_decoder_norm else a[i]) * w_dec[i]
    y = y if sae.transcoder else back(y)
    return a, y if sae.W_skip is None else y + x @ sae.W_skip.numpy()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_dense_reference(activation, normalization, rescale, monkeypatch):
    sae = made(
        ACTIVATIONS[activation],
        normalization=NORMALIZATIONS[normalization],
        rescale_by_decoder_norm=rescale,
        subtract_b_dec=rescale,
        W_skip=tensor(D, D, seed=12),
    )
    expected = [reference(sae, x) for x in X.numpy()]
    assert 0 < np.mean([(a > 0).mean() for a, _ in expected]) < 0.9
    monkeypatch.setattr(module, "_CHUNK", 4 * L)  # chunks of 4 rows, the last of 1
    latents = sae.encode(X)
    np.testing.assert_allclose(latents.dense(), np.stack([a for a, _ in expected]), atol=1e-11)
    np.testing.assert_allclose(sae.reconstruct(X), np.stack([y for _, y in expected]), atol=1e-10)
    sae.encode(X.flip(0))  # the statistics belong to the latents, so another encoding in between changes nothing
    np.testing.assert_allclose(sae.decode(latents) + X @ sae.W_skip, sae.reconstruct(X), atol=1e-10)
    chosen = [7, 0, 7, L - 1]
    np.testing.assert_allclose(sae.activations(X, chosen), latents.dense()[:, chosen], atol=1e-12)
    np.testing.assert_allclose(latents.select(chosen), latents.dense()[:, chosen], atol=0)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_decoder_vectors_are_what_a_latent_adds(normalization):
    sae = made(TopK(5), normalization=NORMALIZATIONS[normalization], rescale_by_decoder_norm=True)
    latents = sae.encode(X)
    more = sae.decode(latents.with_values(latents.values + (latents.indices == 3)))
    rows = latents.select([3])[:, 0] > 0
    assert 0 < int(rows.sum()) < ROWS
    scale = sae.row_scale(latents)
    added = sae.decoder_vectors([3]) * (1 if scale is None else scale)
    expected = torch.where(rows[:, None], added.expand(ROWS, D), 0)
    np.testing.assert_allclose(more - sae.decode(latents), expected, atol=1e-11)


def test_a_transcoder_reads_one_width_and_writes_another():
    sae = made(JumpReLU(tensor(L, seed=7)), d_out=4, transcoder=True, normalization=LayerNorm(), W_skip=tensor(D, 4, seed=12))
    assert sae.reconstruct(X).shape == (ROWS, 4)
    np.testing.assert_allclose(sae.reconstruct(X), np.stack([reference(sae, x)[1] for x in X.numpy()]), atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "topk", "gated"])
def test_gradients_are_those_of_finite_differences(activation):
    sae = made(ACTIVATIONS[activation], normalization=LayerNorm(), subtract_b_dec=True)
    x = X[:3].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(sae.reconstruct, (x,), eps=1e-6, atol=1e-5)


def test_latents_are_sorted_and_counted():
    latents = made(TopK(3)).encode(X)
    for i in range(ROWS):
        row = latents.indices[latents.starts[i] : latents.starts[i + 1]]
        assert row.tolist() == sorted(row.tolist())
        assert len(row) == latents.l0[i] <= 3
    assert len(made().encode(X[:0])) == 0
    assert made().reconstruct(X[:0]).shape == (0, D)


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_dense_and_sparse_decoding_agree(normalization, monkeypatch):
    sae = made(ReLU(), normalization=NORMALIZATIONS[normalization], rescale_by_decoder_norm=True)
    latents = sae.encode(X)
    monkeypatch.setattr(module, "_CHUNK", 5 * L)
    monkeypatch.setattr(module, "_DENSE", 0.0)
    dense = sae.decode(latents)
    monkeypatch.setattr(module, "_DENSE", 1.0)
    np.testing.assert_allclose(dense, sae.decode(latents), atol=1e-12)
    parts = list(latents.split(5))
    assert [len(part) for part in parts] == [5, 5, 5, 2]
    np.testing.assert_array_equal(torch.cat([part.dense() for part in parts]), latents.dense())
    np.testing.assert_allclose(torch.cat([sae.decode(part) for part in parts]), dense, atol=1e-12)


def test_heads_are_flattened_and_numpy_is_read():
    sae = made()
    np.testing.assert_array_equal(sae.encode(X.reshape(ROWS, 2, 3)).dense(), sae.encode(X.numpy()).dense())


def test_moving_keeps_everything():
    sae = made(ACTIVATIONS["gated"], normalization=NORMALIZATIONS["whitening"], site="resid_post.3")
    back = sae.to(dtype=torch.float32).to(dtype=torch.float64)
    assert str(back.site) == "resid_post.3"
    np.testing.assert_allclose(back.reconstruct(X), sae.reconstruct(X), atol=1e-4)
    assert sae.to("cpu") is sae


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b_enc": torch.zeros(3, dtype=torch.float64)}, r"b_enc has the shape \(3,\)"),
        ({"b_dec": torch.zeros(D)}, "b_dec is torch.float32"),
        ({"activation": GroupMax(3)}, "do not divide 20"),
        ({"activation": TopK(L + 1)}, "there are only 20"),
        ({"b_dec": torch.full((D,), torch.nan, dtype=torch.float64)}, "b_dec has entries that are not finite"),
        ({"activation": ACTIVATIONS["gated"]}, "b_enc must be zero"),
        ({"activation": JumpReLU(torch.zeros(L - 1, dtype=torch.float64))}, "threshold has the shape"),
        ({"transcoder": True, "subtract_b_dec": True}, "cannot be subtracted"),
        ({"W_dec": tensor(L, 4, seed=3), "b_dec": tensor(4, seed=4)}, "only a transcoder may"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        replace(made(), **change)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: TopK(0), "k must be a whole number"),
        (lambda: BatchTopK(3, -1.0), "not estimated in training"),
        (lambda: Scale(0.0), "must be a positive number"),
        (lambda: made().encode(X[:, :4]), r"must be \(row, 6\)"),
        (lambda: made().encode(X * torch.nan), "not finite"),
        (lambda: made().activations(X, [L]), "no latent 20"),
        (lambda: made(normalization=ConstantNorm()).encode(X * 0), "17 of 17 rows are zero"),
        (lambda: replace(made(), W_enc=tensor(D, 5, seed=0), b_enc=tensor(5, seed=0)), "W_dec has the shape"),
    ],
)
def test_wrong_input_is_one_sentence(call, said):
    with pytest.raises(UserError, match=said):
        call()
