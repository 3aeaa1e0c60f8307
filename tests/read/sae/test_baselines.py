"""Dictionaries without training, and the planted dictionary that they do not recover."""

import pytest
import torch
from sklearn.decomposition import PCA

from repscope.errors import UserError
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.baselines import BASELINES, baseline
from repscope.read.sae.training import BatchTopK, Recipe, TensorRows, train
from repscope.worlds.planted.dictionary import planted_dictionary


def _explained(sae, x):
    return 1 - float((sae.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def test_pca_with_all_components_active_is_sklearns():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.arange(1.0, 7)) + 2
    pca = PCA(3).fit(x.numpy())
    made = baseline("pca", x, latents=6, k=6)
    assert (made.d_sae, made.activation.k) == (6, 6)
    rebuilt = pca.inverse_transform(pca.transform(x.numpy()))
    assert made.reconstruct(x).numpy() == pytest.approx(rebuilt, abs=1e-3)
    assert baseline("pca", x, latents=100, k=2).d_sae == 12
    with pytest.raises(UserError, match="There is no baseline"):
        baseline("nmf", x, 4, 2)
    with pytest.raises(UserError, match="needs more than"):
        baseline("pca", x[:3], 12, 2)


def test_a_random_dictionary_has_the_least_squares_factor():
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(1)) + 1
    made = baseline("random", x, latents=24, k=3, seed=5)
    error = float((made.reconstruct(x) - x).square().sum())
    for factor in (0.97, 1.03):
        other = SparseAutoencoder(
            **{**made.tensors(), "W_enc": made.W_enc * factor}, activation=made.activation, subtract_b_dec=True
        )
        assert float((other.reconstruct(x) - x).square().sum()) > error
    assert int(made.encode(x).l0.max()) <= 3
    assert _explained(made, x) > 0


def test_a_trained_dictionary_recovers_what_the_baselines_do_not():
    world = planted_dictionary(0, width=16, features=32, active=2)
    x, _ = world.rows(8192)
    heldout, _ = world.rows(2048, "test")
    recipe = Recipe(BatchTopK(2), 48, steps=500, batch=512, learning_rate=5e-3, decay=100, dead_after=20_000)
    saes = {"trained": train(TensorRows({"x": x}), recipe, "x").model}
    saes |= {name: baseline(name, x, 48, 2) for name in BASELINES}
    mmcs = {name: world.recovery(sae.W_dec).mmcs.value for name, sae in saes.items()}
    explained = {name: _explained(sae, heldout) for name, sae in saes.items()}
    assert mmcs.pop("trained") > 0.9 > 0.8 > max(mmcs.values())
    assert explained.pop("trained") > 0.85 > max(explained.values())
    assert all(float(sae.encode(heldout).l0.double().mean()) == pytest.approx(2, abs=0.3) for sae in saes.values())
