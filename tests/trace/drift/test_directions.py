"""Directions of the base network in the tuned one: read, point, act; latents of autoencoders and crosscoders."""

import numpy as np
import pytest
import torch

from repscope.data.contrasts.definition import Choice
from repscope.directions import Direction
from repscope.errors import UserError
from repscope.read import sae
from repscope.read.sae.training.crosscoder import Crosscoder
from repscope.trace.drift.directions import BASE, HALVES, REFIT, acts, directions, halved, labelled
from repscope.trace.drift.latents import _correlation, crosscoder_latents, sae_latents

from .conftest import WORDS, changed

SITE = "resid_post.1"
TEXTS = [f"{a} {word} {b}" for word in ("and", "or") for a in WORDS for b in ("x", "y")]
LABELS = [word for word in ("and", "or") for _ in range(20)]


def value(result, metric, condition="estimate", item="probe", **more):
    (row,) = result.select(metric=metric, condition=condition, item=item, **more).itertuples()
    return row


@pytest.fixture(scope="module")
def same(base):
    return directions(base, base, TEXTS, LABELS, at=[SITE], tokens="mean")


def test_in_an_equal_network_all_reads_and_points_as_in_the_base(same):
    reads = [value(same, "accuracy", c).value for c in ("estimate", BASE, REFIT)]
    assert reads[0] == reads[1] == reads[2] > 0.9
    assert value(same, "accuracy", "random direction").value < reads[0]
    pointed, floor = value(same, "direction cosine"), value(same, "direction cosine", HALVES, "probe, base")
    assert pointed.value == pytest.approx(floor.value, abs=1e-9)
    assert floor.value == pytest.approx(value(same, "direction cosine", HALVES, "probe, tuned").value)
    assert abs(value(same, "direction cosine", "random direction").value) < 0.2 < pointed.value


def test_in_an_unrelated_network_the_base_probe_fails_and_a_refit_reads(base):
    apart = directions(base, changed(base, 30.0, 5), TEXTS, LABELS, at=[SITE], tokens="mean", seed=1)
    assert value(apart, "accuracy", BASE).value > 0.9
    assert value(apart, "accuracy").value < 0.8
    assert value(apart, "accuracy", REFIT).value > value(apart, "accuracy").value
    assert value(apart, "direction cosine").value < value(apart, "direction cosine", HALVES, "probe, tuned").value


def test_given_directions_are_read_at_their_site_and_small_changes_keep_them(base, tuned):
    x = base.capture(TEXTS, SITE, "mean")[SITE]
    split = np.array(LABELS) == "and"
    good = Direction.of(x[split].mean(0) - x[~split].mean(0), SITE, "and")
    bad = Direction.of(np.random.default_rng(0).standard_normal(32), SITE, "noise")
    result = directions(base, tuned, TEXTS, LABELS, at=["resid_post.2"], tokens="mean", given=[good, bad])
    assert value(result, "accuracy", BASE, "and").value > value(result, "accuracy", BASE, "noise").value
    assert set(result.select(item="and")["site"]) == {SITE}
    assert set(result.select(item="probe")["site"]) == {"resid_post.2"}
    wrong = Direction.of(np.ones(5), SITE, "narrow")
    with pytest.raises(UserError, match="'narrow' has 5 features"):
        directions(base, tuned, TEXTS, LABELS, tokens="mean", given=[wrong])


def test_where_nothing_varies_the_most_common_class_is_said(base):
    texts = [f"{word} a" for word in WORDS]  # the last token's embedding is the same for all
    result = directions(base, base, texts, [i % 2 for i in range(10)], at=["embed"])
    assert value(result, "accuracy").value == pytest.approx(0.5, abs=0.11)
    assert value(result, "direction cosine").value == 0


def test_halves_are_disjoint_cover_all_and_have_equal_classes():
    values = np.array([0] * 7 + [1] * 9 + [2] * 4)
    one, two = halved(values, np.random.default_rng(0))
    assert sorted([*one, *two]) == list(range(20))
    assert all(abs(int((values[one] == c).sum()) - int((values[two] == c).sum())) <= 1 for c in range(3))


def test_three_classes_are_read(base, tuned):
    labels = [i % 3 for i in range(40)]
    result = directions(base, tuned, TEXTS, labels, at=[SITE], tokens="mean", halvings=3)
    assert 0 <= value(result, "accuracy").value < 0.8  # labels that mean nothing
    assert labelled(labels, 40).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"labels": LABELS[:5]}, "40 prompts and 5 labels"),
        ({"labels": ["a"] * 40}, "at least two classes"),
        ({"labels": ["a"] * 37 + ["b"] * 3}, "at least two classes"),
        ({"tokens": "all"}, "reads one vector"),
    ],
)
def test_mistakes_are_told(base, how, says):
    with pytest.raises(UserError, match=says):
        directions(base, base, TEXTS, **{"labels": LABELS, "at": [SITE]} | how)


# ---- effects

CHOICES = [Choice(f"A {w}", " good", " bad") for w in WORDS[:4]]


def test_a_direction_acts_alike_in_an_equal_network_and_not_at_all_in_one_without_that_block(base):
    d = Direction.of(3 * np.random.default_rng(1).standard_normal(32), SITE, "up")
    same = acts(base, base, [d], CHOICES, random=3)
    assert value(same, "effect", item="up").value == value(same, "effect", BASE, "up").value != 0
    assert value(same, "effect ratio", item="up").value == 1
    assert value(same, "effect", "random direction", "up").n == 3
    numb = changed(base, 0.0, 0)
    with torch.no_grad():
        numb.model.lm_head.weight.zero_()
    none = acts(base, numb, [d], CHOICES, random=2)
    assert value(none, "effect", item="up").value == value(none, "effect ratio", item="up").value == 0
    with pytest.raises(UserError, match="1 choices and 3"):
        acts(base, base, [d], CHOICES[:1], random=3)


# ---- latents


@pytest.fixture(scope="module")
def autoencoder():
    decoder = torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))
    return sae.SparseAutoencoder(decoder.T, torch.zeros(64), decoder, torch.zeros(32), sae.TopK(8), site=SITE)


def test_latents_of_an_equal_network_correlate_fully_and_less_after_changes(base, tuned, prompts, autoencoder):
    same = sae_latents(autoencoder, base, base, prompts[:24])
    assert value(same, "latent correlation", item="").value == pytest.approx(1)
    assert value(same, "latent correlation", "other prompts", "").value < 0.5
    assert value(same, "unexplained variance", item="").value == value(same, "unexplained variance", BASE, "").value > 0
    drifted = sae_latents(autoencoder, base, tuned, prompts[:24])
    assert value(drifted, "latent correlation", item="").value < 1
    assert len(drifted.side["latents"]) == 64


def test_correlations_from_sums_are_numpys():
    u, v = np.random.default_rng(0).random((2, 50, 3))
    v[:, 2] = 4.0
    found = _correlation(u.sum(0), v.sum(0), (u * u).sum(0), (v * v).sum(0), (u * v).sum(0), 50)
    np.testing.assert_allclose(found[:2], [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(2)])
    assert found[2] == 0


def test_what_is_no_such_autoencoder_is_refused(base, prompts, autoencoder):
    silent = sae.SparseAutoencoder(torch.zeros(32, 8), torch.zeros(8), torch.ones(8, 32), torch.zeros(32), site=SITE)
    with pytest.raises(UserError, match="give more prompts"):
        sae_latents(silent, base, base, prompts[:8])
    other = sae.SparseAutoencoder(torch.ones(32, 8), torch.zeros(8), torch.ones(8, 32), torch.zeros(32), transcoder=True)
    with pytest.raises(UserError, match="give an autoencoder"):
        sae_latents(other, base, base, prompts[:8])


def planted_crosscoder(n=120, d=16):
    """A third of the latents is the base's alone, a third shared, a third the tuned network's alone."""
    draw = torch.Generator().manual_seed(0)
    first = torch.nn.functional.normalize(torch.randn(n, d, generator=draw))
    second = first + 0.05 * torch.randn(n, d, generator=draw)
    first, second = first.clone(), torch.nn.functional.normalize(second)
    second[: n // 3] *= 0.01
    first[2 * n // 3 :] *= 0.01
    decoder = torch.cat([first, 2 * second], dim=1)  # the second source has twice the units, which its scale takes out
    whole = sae.SparseAutoencoder(torch.randn(2 * d, n, generator=draw), torch.zeros(n), decoder, torch.zeros(2 * d))
    return Crosscoder(whole, ("base", "tuned"), (d, d), (1.0, 0.5))


def test_shares_of_a_planted_crosscoder():
    result = crosscoder_latents(planted_crosscoder(), model="m")
    for band in ("base only", "shared", "tuned only"):
        assert value(result, band, item="").value == pytest.approx(1 / 3)
        assert value(result, band, "permuted latents", "").value != pytest.approx(1 / 3, abs=0.01)
    assert value(result, "decoder cosine", item="").value > 0.9
    assert abs(value(result, "decoder cosine", "permuted latents", "").value) < 0.2
    assert len(result.side["latents"]) == 120


def test_a_crosscoder_of_three_or_of_unequal_widths_is_refused():
    one = planted_crosscoder()
    with pytest.raises(UserError, match="has 3 sources"):
        crosscoder_latents(Crosscoder(one.autoencoder, ("a", "b", "c"), (16, 8, 8), (1.0, 1.0, 1.0)))
    with pytest.raises(UserError, match="cannot be compared"):
        crosscoder_latents(Crosscoder(one.autoencoder, ("a", "b"), (20, 12), (1.0, 1.0)))
