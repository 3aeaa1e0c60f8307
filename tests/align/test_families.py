"""Scores of networks at layers that other conditions choose, and families of networks: formulas, coverage, winners, mistakes."""

import numpy as np
import pytest

from repscope.align import compare_families, compare_rdms, crossvalidated_rdm, encode, encoding_scores, rdm, rsa_scores
from repscope.align.network_scores import halves
from repscope.errors import UserError


def simulated(seed, *, networks=4, conditions=40, unrelated=False):
    """Two families of random networks, and three subjects who mix one network of the first family, or random signals."""
    fixed, rng = np.random.default_rng(5), np.random.default_rng(seed)
    means = fixed.normal(size=(2, 5, 12))
    generator, mixing = means[0] + 0.3 * fixed.normal(size=(5, 12)), fixed.normal(size=(3, 12, 15))
    x = rng.normal(size=(conditions, 5))
    units = [np.tanh(x @ (own + 0.3 * rng.normal(size=own.shape))) for own in means for _ in range(networks)]
    signal = (rng.normal(size=(conditions, 12)) if unrelated else np.tanh(x @ generator)) @ mixing
    recorded = signal[:, None] + 1.5 * rng.normal(size=(3, 2, conditions, 15))
    return units, np.stack([crossvalidated_rdm(one) for one in recorded]), ["first"] * networks + ["second"] * networks


def compared(seed, **sizes):
    units, subjects, labels = simulated(seed, **sizes)
    return compare_families(rsa_scores([rdm(u)[None] for u in units], subjects, draws=100, seed=seed), labels)


def test_a_layer_is_chosen_on_one_half_and_reported_on_the_other():
    units, subjects, _ = simulated(0)
    rng = np.random.default_rng(1)
    networks = [np.stack([rdm(rng.normal(size=u.shape)), rdm(u), rdm(u**2)]) for u in units]
    found = rsa_scores(networks, subjects, "pearson", draws=50)
    full = np.zeros((2, len(units)))
    for h, (report, choose) in enumerate((halves(40, 0), halves(40, 0)[::-1])):

        def part(rdms, at):
            i, j = np.triu_indices(40, 1)
            return rdms[..., np.isin(i, at) & np.isin(j, at)]

        for k, layers in enumerate(networks):
            best = compare_rdms(part(layers, choose), part(subjects, choose), "pearson").mean(1).argmax()
            assert found.layers[h, k] == best
            full[h, k] = compare_rdms(part(layers[best], report), part(subjects, report), "pearson").mean()
    np.testing.assert_allclose(found.value, full.mean(0))
    assert set(halves(40, 0)[0]) | set(halves(40, 0)[1]) == set(range(40))
    assert found.lower < found.upper


def test_choosing_on_the_reported_half_would_be_too_good():
    rng = np.random.default_rng(0)
    subjects = np.stack([rdm(rng.normal(size=(20, 30))) for _ in range(3)])
    networks = [np.stack([rdm(rng.normal(size=(20, 30))) for _ in range(20)]) for _ in range(20)]
    assert abs(rsa_scores(networks, subjects, draws=2).value.mean()) < 0.03, "random layers have no similarity"
    best = np.mean([compare_rdms(layers, subjects, "pearson").mean(1).max() for layers in networks])
    assert best > 0.08, "the best of 20 random layers would"


def test_variance_of_pairs_is_not_counted_three_times():
    """Noise of single pairs alone: the bootstrap over conditions triples its variance, the reported one does not."""
    rng = np.random.default_rng(0)
    model, values, reported, bootstrap = rdm(rng.normal(size=(40, 6))), [], [], []
    for seed in range(60):
        found = rsa_scores([model[None]], rng.normal(size=(1, len(model))), draws=200, seed=seed)
        values.append(found.value[0])
        reported.append(found.variance(np.ones(1)))
        bootstrap.append(found.draws.var())
    truth = 1 / (2 * 190)  # two halves of 190 pairs, whose similarities are averaged
    assert np.var(values) == pytest.approx(truth, rel=0.5)
    assert 0.9 < np.mean(reported) / truth < 2.1
    assert np.mean(bootstrap) / truth > 2.5


def test_intervals_of_families_cover_the_truth_and_the_generating_family_wins():
    found = [compared(seed) for seed in range(80)]
    for of in (lambda c: c.similarity["first"], lambda c: c.difference("first", "second")):
        truth = np.mean([of(c).value for c in found[40:]])
        assert np.mean([of(c).lo <= truth <= of(c).hi for c in found[:40]]) >= 0.86, "nominal .95, of 40 draws"
    wins = [c.winner for c in found]
    assert wins.count("first") > 0.95 * len(wins)
    assert "second" not in wins
    noise = [compared(seed, unrelated=True).winner for seed in range(40)]
    assert sum(winner is not None for winner in noise) <= 4, "about a twentieth at most, of 40 recordings"


def test_a_family_that_is_no_population_varies_over_conditions_alone():
    units, subjects, labels = simulated(0)
    scores = rsa_scores([rdm(u)[None] for u in [*units, np.random.default_rng(3).normal(size=(40, 9))]], subjects)
    found = compare_families(scores, [*labels, "pixels"], fixed=["pixels"])
    assert found.similarity["pixels"].value == pytest.approx(scores.value[-1])
    assert found.similarity["pixels"].hi - found.similarity["pixels"].value > 0
    assert found.winner == "first"
    assert scores.difference(0, 1).value == pytest.approx(scores.value[0] - scores.value[1])


def test_encoding_scores_are_means_over_halves_at_chosen_layers():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    y = good @ rng.normal(size=(8, 5)) + 0.5 * rng.normal(size=(60, 5))
    found = encoding_scores([[encode(bad, y), encode(good, y)], [encode(bad, y)] * 2], draws=50)
    assert found.layers[:, 0].tolist() == [1, 1]
    assert found.value[0] == pytest.approx(encode(good, y).r().mean(), abs=0.03)
    assert found.estimate(0).lo > 0.5
    assert abs(found.value[1]) < 0.3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda s: compare_families(s, ["a"] * 3), "3 labels for 8 networks"),
        (lambda s: compare_families(s, ["a"] * 8), "All networks are of one family"),
        (lambda s: compare_families(s, ["a"] * 7 + ["b"]), "Family 'b' has one network"),
        (lambda s: compare_families(s, ["a"] * 4 + ["b"] * 4).difference("a", "c"), "no family 'c'"),
        (lambda s: rsa_scores([np.ones((1, 780))], simulated(0)[1]), "represents all conditions in the same way"),
        (lambda s: rsa_scores([np.random.rand(1, 28)], np.random.rand(2, 28)), "8 conditions are too few"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, says):
    units, subjects, _ = simulated(0)
    scores = rsa_scores([rdm(u)[None] for u in units], subjects, draws=10)
    with pytest.raises(UserError, match=says):
        wrong(scores)
