"""From a corpus to a feature: harvest, train, save, open, statistics with contexts, splice; every stage agrees with the model."""

import numpy as np
import pytest
import torch

from repscope.read import sae
from repscope.read.sae import training
from repscope.store import harvest
from repscope.worlds.tiny import tiny

TEXTS = [
    f"{a} is the capital of {b}, {c}" for a in ("Paris", "Rome", "Oslo", "Lima") for b in ("France", "Peru") for c in ("yes", "no")
]


@pytest.fixture(scope="module")
def lm():
    return tiny()


@pytest.fixture(scope="module")
def store(lm, tmp_path_factory):
    return harvest(lm, TEXTS, "resid_post.1", tmp_path_factory.mktemp("store") / "store")


def test_a_trained_autoencoder_is_saved_opened_and_used(lm, store, tmp_path):
    recipe = training.Recipe(architecture=training.TopK(k=4), latents=64, batch=128, steps=200, learning_rate=3e-3)
    trained = training.train(store, recipe, "resid_post.1").autoencoder
    opened = sae.open(sae.save(trained, tmp_path / "one"))
    rows = torch.cat([batch.rows["resid_post.1"] for batch in store.batches()])
    expected = trained.reconstruct(rows)
    assert (opened.reconstruct(rows) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert str(opened.site) == "resid_post.1"

    seen = sae.feature_statistics(opened, store.batches(rows=100, labels=True), top=3, distinct_documents=True)
    assert seen.rows == len(rows)
    assert seen.l0 == pytest.approx(4, abs=0.2)
    latent = int(seen.density.argmax())
    for rank in range(3):  # the context of a top activation gives that activation
        document, position = (int(seen.labels[name][latent, rank]) for name in ("document", "position"))
        x = lm.capture([TEXTS[document]], "resid_post.1", position)["resid_post.1"]
        assert float(opened.activations(x, [latent])) == pytest.approx(float(seen.top[latent, rank]), rel=1e-3)
        assert lm.tokens(TEXTS[document])[position] == lm.tokenizer.decode([int(seen.labels["token"][latent, rank])])

    before = lm.logits(TEXTS)
    with lm.edit(*sae.splice(opened)):
        spliced = np.abs(lm.logits(TEXTS) - before).mean()
    untrained = sae.SparseAutoencoder(
        trained.W_enc.flip(1), trained.b_enc, trained.W_dec, trained.b_dec, sae.TopK(4), site="resid_post.1"
    )
    with lm.edit(*sae.splice(untrained)):
        assert spliced < 0.7 * np.abs(lm.logits(TEXTS) - before).mean()
