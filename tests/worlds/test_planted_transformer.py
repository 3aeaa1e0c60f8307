"""Planted transformers: neurons write what they were planted to write, methods know nothing of it, the oracle reaches all."""

import numpy as np
import pytest
import torch

from repscope.bench.discovery import difference_of_means, planted_transformers, violations
from repscope.bench.methods import BENCH_METHODS
from repscope.discovery import LanguageSubject, discover, metrics
from repscope.errors import UserError
from repscope.worlds.planted.functions import seed_for
from repscope.worlds.planted.transformer import NEURON_KINDS, PLANTED, SCALE, SOURCE, TARGET, WIDTH, planted_transformer, readers


@pytest.fixture(scope="module", params=list(NEURON_KINDS))
def net(request):
    return planted_transformer(request.param, 3)


def _rows(*names):
    return [m for m in BENCH_METHODS if m.name in names]


def test_a_planted_neuron_is_the_formula_in_float64(net):
    """What the MLP adds when the states are pushed along v_j, against the docstring's table."""
    mlp, rng = net.lm.model.model.layers[PLANTED].mlp, np.random.default_rng(0)
    x = rng.normal(size=(5, WIDTH))
    a = x @ net.truth.double().numpy().T
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    act = {"threshold": silu(2 * (a - 2)), "product": silu(a) * a}[net.kind]
    gains = np.linspace(1.5, 0.7, len(net.truth))
    with torch.no_grad():
        whole = mlp(torch.from_numpy(x).float())
        mlp.down_proj.weight[:, : len(net.truth)] = 0
        rest = mlp(torch.from_numpy(x).float())
        mlp.down_proj.weight[:, : len(net.truth)] = (torch.from_numpy(gains).float()[:, None] * net.out).T
    assert np.allclose((whole - rest).numpy(), (gains * act) @ net.out.double().numpy(), rtol=1e-4, atol=1e-4)


def test_the_truth_moves_the_target_along_what_is_planted_and_its_negative_does_not(net):
    subject = LanguageSubject(net.lm, net.source, net.target, target_tokens="mean")
    context = subject.context(net.prompts("held out"))
    assert context.why == ""
    moved = {sign: subject.effect(context, sign * SCALE * net.truth).mean(1) - sign * SCALE * net.truth for sign in (1, -1)}
    cos = metrics.unit(moved[1].numpy()) @ net.out.numpy().T
    assert np.diag(cos).min() > 0.9
    assert (moved[1].norm(dim=1) > 2 * moved[-1].norm(dim=1)).all()


def test_the_jacobian_hardly_sees_a_threshold():
    net = planted_transformer("threshold", 3)
    subject = LanguageSubject(net.lm, net.source, net.target, target_tokens="mean")
    found = discover(subject, net.prompts(), "l2", "jacobian", 12, scale=SCALE, steps=8)
    assert metrics.recovery(found.vectors, net.truth.numpy()).mmcs < 0.4


def test_random_directions_recover_what_independent_ones_do():
    """Leak test: over networks, the random row's match with the truth against vectors of another library's generator."""
    ours, theirs = [], []
    for seed in range(12):
        net = planted_transformer("threshold", seed)
        subject = LanguageSubject(net.lm, net.source, net.target, target_tokens="mean")
        found = discover(subject, net.prompts(), solver="random", n=12, scale=SCALE, seed=seed_for("random", seed, 0))
        ours.append(metrics.recovery(found.vectors, net.truth.numpy()).mmcs)
        for again in range(10):
            other = np.random.default_rng([seed, again]).normal(size=(12, WIDTH))
            theirs.append(metrics.recovery(other, net.truth.numpy()).mmcs)
    assert max(ours) < 0.45
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * np.std(theirs) / np.sqrt(len(ours))


def test_nothing_that_is_drawn_repeats_what_was_planted(net):
    drawn = [net.lm.model.model.embed_tokens.weight.detach(), net.out]
    drawn += [
        torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(s)) for s in (net.seed, seed_for("random", net.seed, 0))
    ]
    cos = np.abs(metrics.unit(torch.cat(drawn).numpy()) @ net.truth.numpy().T)
    assert cos.max() < 0.7
    train, held = ([p.tolist() for p in net.prompts(split)] for split in ("train", "held out"))
    assert not any(p in held for p in train)
    assert len({len(p) for p in train}) > 1


def test_readers_hold_the_planted_rows_and_a_network_is_drawn_again_the_same(net):
    cos = metrics.unit(readers(net.lm, SOURCE, TARGET).numpy()) @ net.truth.numpy().T
    assert cos.max(0).min() > 0.999
    again = planted_transformer(net.kind, net.seed)
    assert again.lm.fingerprint == net.lm.fingerprint
    assert planted_transformer(net.kind, net.seed + 1).lm.fingerprint != net.lm.fingerprint


def test_controls_stand_and_a_good_method_recovers():
    found = planted_transformers(["product"], 1, methods=_rows("random", "oracle", "difference of means", "L2 + soft-orthogonal"))
    value = lambda item, metric: float(found.select(item=item, metric=metric)["value"].iloc[0])  # noqa: E731
    assert violations(found) == []
    assert value("random", "recovered") == 0
    assert value("oracle", "recovered") == value("oracle", "reached") == 1
    assert value("L2 + soft-orthogonal", "mmcs") > 0.8
    assert 0 < value("oracle", "kl") < 10
    assert value("difference of means", "mmcs") > 0.8


def test_the_difference_of_means_is_that():
    states, truth = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), torch.eye(6)[:2]
    found = difference_of_means(states, truth)
    along = states[:, 1]
    expected = states[along > along.median()].mean(0) - states[along <= along.median()].mean(0)
    assert torch.allclose(found[1], expected, atol=1e-5)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="no kind of planted transformer"):
        planted_transformer("cubic")
