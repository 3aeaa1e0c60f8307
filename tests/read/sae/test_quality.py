"""Quality of autoencoders, k-sparse probes and matching, against plain computations and known truths."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from repscope.read.probes import ProbeTask, probe
from repscope.read.sae.matching import matched_features
from repscope.read.sae.quality import HeldOut, principal_components
from repscope.read.sae.sparse_probes import cross_fitted_share, rank_features, sparse_probe
from repscope.worlds.tiny import tiny

TEXTS = [np.arange(5, 5 + n) for n in (12, 7, 20)]


@pytest.fixture(scope="module")
def held():
    lm = tiny()
    mean = torch.from_numpy(np.concatenate([lm.capture([t], "resid_post.1", "all")["resid_post.1"] for t in TEXTS]).mean(0))
    return HeldOut(lm, "resid_post.1", TEXTS, mean)


def _plain(lm, ids, replace=None):
    """Cross-entropy and log-probabilities of each next token by transformers alone, block 1's output replaced by a function."""

    def hook(_, __, out):
        hidden = out[0] if isinstance(out, tuple) else out
        new = hidden.clone()
        new[:, 1:] = replace(hidden[0, 1:])
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = lm.model.model.layers[1].register_forward_hook(hook) if replace else None
    with torch.no_grad():
        logp = lm.model(torch.from_numpy(ids)[None], use_cache=False).logits[0].double().log_softmax(-1)
    if handle:
        handle.remove()
    return -logp[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])], logp[:-1]


def test_losses_are_those_of_plain_passes_with_a_hook(held):
    def halved(x):
        return 0.5 * x

    own, changed = held.losses(), held.losses(halved)
    for i, ids in enumerate(TEXTS):
        nats, logp = _plain(held.lm, ids)
        after, logp_after = _plain(held.lm, ids, halved)
        assert own.nats[i] == pytest.approx(float(nats.sum()), rel=1e-5)
        assert changed.nats[i] == pytest.approx(float(after.sum()), rel=1e-5)
        assert changed.kl[i] == pytest.approx(float((logp.exp() * (logp - logp_after)).sum()), rel=1e-3, abs=1e-6)
        assert own.tokens[i] == len(ids) - 1
    assert not own.kl.any()


def test_errors_leave_out_first_tokens(held):
    errors = held.errors(held.constant)
    np.testing.assert_allclose(errors.squared, errors.spread, rtol=1e-6)  # the mean explains nothing
    rows = held.lm.capture([TEXTS[1]], "resid_post.1", "all")["resid_post.1"][1:].astype(np.float64)
    assert errors.spread[1] == pytest.approx(((rows - held.mean.double().numpy()) ** 2).sum(), rel=1e-5)
    assert held.errors(lambda x: x).squared.max() == 0


def test_principal_components_are_sklearns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    pca = PCA(5, svd_solver="full").fit(x.numpy())
    ours = principal_components(x, x.mean(0), 5)(x)
    np.testing.assert_allclose(ours.numpy(), pca.inverse_transform(pca.transform(x.numpy())), atol=1e-3)


def _planted(n=160, d=300, seed=0):
    """Feature 7 tells the class, features 20 and 21 the number; all others are noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    label = rng.integers(0, 2, n)
    x[:, 7] += 4 * label
    tasks = (ProbeTask("class", "class", label, ("a", "b")), ProbeTask("number", "number", x[:, 20] + x[:, 21]))
    index = rng.permutation(n)
    folds = [(np.setdiff1d(index, part), part) for part in np.array_split(index, 4)]
    return x, tasks, folds


def test_few_features_are_enough_where_few_carry_it_and_chance_stays_chance():
    x, tasks, folds = _planted()
    found = sparse_probe(x, tasks, folds, (1, 2, 16), shuffles=5)
    assert found[1][0].estimate().value > 0.95
    assert found[1][1].estimate().value < 0.8 < found[2][1].estimate().value
    for scores in found[16]:
        null = scores.shuffled()
        assert null.hi < (0.65 if scores.task.kind == "class" else 0.2)  # choosing among 300 features sees no test entity


def test_all_features_give_the_dense_probe():
    x, tasks, folds = _planted(d=24)
    found = sparse_probe(x, tasks, folds, (24, 99))
    dense = probe(x, tasks, folds, shuffles=0)
    for k in (24, 99):
        for ours, theirs in zip(found[k], dense):
            np.testing.assert_allclose(ours.top[0], theirs.top[0], atol=1e-8)


def test_the_order_for_two_classes_is_that_of_the_standardised_difference():
    x, tasks, _ = _planted(d=40)
    y = tasks[0].values.astype(bool)
    t = np.abs(x[y].mean(0) - x[~y].mean(0)) / x.std(0)
    assert rank_features(x, tasks[0], np.arange(len(x)))[:5].tolist() == np.argsort(-t)[:5].tolist()


def test_token_share_is_one_for_a_token_feature_and_not_above_zero_for_noise():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 30, 4000)
    values = np.stack([codes % 3 * 1.0, rng.standard_normal(4000), (codes % 3) + rng.standard_normal(4000), np.zeros(4000)], axis=1)
    share = cross_fitted_share(values, codes, np.arange(4000) % 2)
    assert share[0] == pytest.approx(1.0)
    assert share[1] < 0.01
    assert share[2] == pytest.approx((2 / 3) / (2 / 3 + 1), abs=0.05)
    assert np.isnan(share[3])


def test_matching_finds_a_permuted_copy_and_its_null_does_not():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 24, generator=generator)
    order = torch.randperm(60, generator=generator)
    found = matched_features(a, 3.0 * a[order])
    assert (order[torch.from_numpy(found.partner)] == torch.arange(60)).all()
    assert found.cosine.min() > 0.9999
    assert found.null.mean() < 0.7
    with pytest.raises(Exception, match="same width"):
        matched_features(a, a[:, :10])
