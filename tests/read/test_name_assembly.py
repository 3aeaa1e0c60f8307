"""How names are assembled: ablations against edits of the engine, the split of planted vectors, conflicts, bases, text features."""

from itertools import pairwise, product

import numpy as np
import pytest

from families import build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt, encode
from repscope.models.sites import Tokens
from repscope.read.name_assembly import (
    Ablation,
    basis_scores,
    conflicts,
    grids,
    name_runs,
    ranges,
    recombined,
    text_features,
    word_features,
)
from repscope.read.name_assembly.bases import mean_kurtosis
from repscope.read.probes import ProbeTask, probe
from repscope.worlds.tiny import tiny

NAMES = ["Lagos", "Paris", "Quito", "Lima", "Oslo", "Rome"]  # of five and of four bytes
PROMPTS = [Prompt.fill("A town: {name}", name=name) for name in NAMES]


@pytest.fixture(scope="module")
def lm():
    return tiny(0)


def _runs(lm, target=2, prompts=PROMPTS):
    return name_runs(lm, encode(lm.tokenizer, prompts, Tokens("all", "name"), causal=lm.causal), target)


def test_intact_vectors_are_those_of_capture(lm):
    assert np.allclose(_runs(lm).intact, lm.capture(PROMPTS, "resid_post.2", "name.last")["resid_post.2"], atol=1e-5)


@pytest.mark.parametrize("part", ["mlp_out", "attn_out"])
def test_replacing_by_the_mean_is_the_edit_of_the_engine(lm, part):
    """At each token of a name, by its place from the end, with the mean over all names; block by block."""
    found = _runs(lm).ablated(Ablation(part, "mean", 1, 2))
    edits = []
    for block in (1, 2):
        held = lm.capture(PROMPTS, f"{part}.{block}", "name.all")
        rows, offsets = held[f"{part}.{block}"], held.offsets
        last, before = rows[offsets[1:] - 1].mean(0), rows[offsets[1:] - 2].mean(0)
        early = np.concatenate([rows[a : b - 2] for a, b in pairwise(offsets)]).mean(0)
        edits += [
            Edit.replace(f"{part}.{block}", early, tokens="name"),
            Edit.replace(f"{part}.{block}", before, tokens="name.-2"),
            Edit.replace(f"{part}.{block}", last, tokens="name.last"),
        ]
    with lm.edit(*edits):
        slow = lm.capture(PROMPTS, "resid_post.2", "name.last")["resid_post.2"]
    assert np.allclose(found, slow, atol=1e-5 * np.abs(slow).max())
    assert not np.allclose(found, _runs(lm).intact, atol=1e-3)


def test_another_names_outputs_all_the_way_make_the_other_name(lm):
    """With both outputs of a name of as many tokens in all blocks, what is left of the own name is its embedding."""
    runs = _runs(lm, target=3)
    swapped = runs.ablated(Ablation("mlp_out", "resample", 0, 3))
    group = next(g for g in runs._groups if len(g.entities) == 3 and g.stop - g.start == 5)
    assert set(group.donors.tolist()) == {0, 1, 2}
    assert all(a != b for a, b in enumerate(group.donors))
    i = int(group.entities[0])
    donor = PROMPTS[int(group.entities[group.donors[0]])]
    edits = []
    for block in range(4):
        rows = lm.capture([donor], f"mlp_out.{block}", "name.all")[f"mlp_out.{block}"]
        edits += [Edit.replace(f"mlp_out.{block}", row, tokens=f"name.{token}") for token, row in enumerate(rows)]
    with lm.edit(*edits):
        slow = lm.capture([PROMPTS[i]], "resid_post.3", "name.last")["resid_post.3"][0]
    assert np.allclose(swapped[i], slow, atol=1e-5 * np.abs(slow).max())


def test_noise_has_the_energy_of_the_change(lm):
    """In the last block nothing follows: the vector moves by exactly the norm of the mean's change."""
    runs = _runs(lm)
    mean = runs.ablated(Ablation("mlp_out", "mean", 2, 2)) - runs.intact
    noise = runs.ablated(Ablation("mlp_out", "noise", 2, 2)) - runs.intact
    assert np.allclose(np.linalg.norm(mean, axis=1), np.linalg.norm(noise, axis=1), rtol=1e-4)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    assert np.abs((unit(mean) * unit(noise)).sum(1)).max() < 0.8


def test_attention_that_is_cut_in_all_blocks_leaves_a_token_alone(lm):
    """The vector of "Lagos" is then that of its last letter at the same position after any other letters."""
    prompts = [Prompt.fill("A town: {name}", name=name) for name in ("Lagos", "Milks", "Paris", "Tunis")]
    cut = _runs(lm, 3, prompts).ablated(Ablation("pattern", "cut", 0, 3))
    assert np.allclose(cut, cut[:1], atol=1e-5 * np.abs(cut).max())
    assert np.abs(cut - _runs(lm, 3, prompts).intact).max() > 1e-3
    before = _runs(lm, 3, prompts).ablated(Ablation("pattern", "cut before", 0, 3))
    assert np.abs(before - before[:1]).max() > 1e-3, "letters of the name still reach its end"


def test_an_encoder_is_cut_in_both_directions(tokenizer):
    bert = LanguageModel(build("bert"), tokenizer, "bert")
    prompts = [Prompt.fill("A town: {name}!", name=name) for name in ("San Francisco", "San Diego")]
    runs = name_runs(bert, encode(bert.tokenizer, prompts, Tokens("all", "name"), causal=False), 1)
    assert not runs.causal
    assert np.abs(runs.ablated(Ablation("pattern", "cut", 0, 1)) - runs.intact).max() > 1e-4


def test_what_has_no_meaning_is_refused(lm):
    with pytest.raises(UserError, match="attention is cut"):
        Ablation("mlp_out", "cut", 0, 1)
    with pytest.raises(UserError, match="are no range"):
        Ablation("mlp_out", "mean", 2, 1)
    with pytest.raises(UserError, match="above block 2"):
        _runs(lm).ablated(Ablation("mlp_out", "mean", 0, 3))
    with pytest.raises(UserError, match="give two or more"):
        _runs(lm, prompts=PROMPTS[:1])
    with pytest.raises(UserError, match="There is no block 9"):
        _runs(lm, target=9)


def test_ranges_cover_all_blocks_once():
    assert ranges(9, 4) == [(0, 2), (3, 5), (6, 7), (8, 9), (0, 9)]
    assert ranges(1, 4) == [(0, 0), (1, 1), (0, 1)]
    assert ranges(0, 3) == [(0, 0)]


# ---------------------------------------------------------------------------------------------- recombination


@pytest.mark.parametrize(("count", "sizes"), [(2, (4, 2)), (3, (3, 2, 1))])
def test_planted_variances_are_recovered(count, sizes):
    """Normal functions of single tokens, pairs (and triples) with known variances, over many grids."""
    rng = np.random.default_rng(0)
    n, d = 4, 300
    total = dict.fromkeys(range(1, count + 1), 0.0)
    for _ in range(60):
        x = np.zeros((*[n] * count, d))
        for order, sigma in enumerate(sizes, start=1):
            for axes in (a for a in product((0, 1), repeat=count) if sum(a) == order):
                shape = [n if on else 1 for on in axes]
                x = x + sigma * rng.standard_normal((*shape, d))
        found = recombined(x.reshape(n**count, d), n, count)
        for order, value in found.variances.items():
            total[order] += value / 60 / d
    terms = {order: len([a for a in product((0, 1), repeat=count) if sum(a) == order]) for order in total}
    for order, sigma in enumerate(sizes, start=1):
        assert total[order] == pytest.approx(terms[order] * sigma**2, rel=0.08)


def test_sums_are_predicted_from_other_combinations_exactly():
    rng = np.random.default_rng(0)
    n, d = 5, 7
    a, b, c = (rng.standard_normal((n, d)) for _ in range(3))
    pair = rng.standard_normal((n, n, d))
    singles = a[:, None, None] + b[None, :, None] + c[None, None]
    real = np.arange(n)
    only = recombined(singles.reshape(-1, d), n, 3)
    assert np.allclose(only.parts[1], a + b + c)
    assert only.variances[2] == pytest.approx(0, abs=1e-9)
    both = recombined((singles + pair[:, :, None]).reshape(-1, d), n, 3)
    assert np.allclose(both.parts[2], a + b + c + pair[real, real])
    assert not np.allclose(both.parts[1], a + b + c + pair[real, real], atol=0.1)


def test_real_names_stand_out_only_where_they_were_planted():
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((6, 6, 50))
    ratio = recombined(plain.reshape(36, 50), 6, 2)
    assert ratio.real / ratio.others == pytest.approx(1, abs=0.25)
    looked_up = plain.copy()
    looked_up[np.arange(6), np.arange(6)] += 4 * rng.standard_normal((6, 50))
    found = recombined(looked_up.reshape(36, 50), 6, 2)
    assert found.real / found.others > 3


def test_grids_repeat_no_token_and_no_name():
    tokens = [(i % 5, i % 7) for i in range(35)] + [(1, 2, 3)]
    made = grids(tokens, 2, size=4, seed=0)
    assert len(made) >= 4
    used = np.concatenate([g.entities for g in made])
    assert len(set(used.tolist())) == len(used)
    for grid in made:
        assert all(len(set(column)) == 4 for column in grid.tokens.T)
        assert grid.names.shape == (16, 2)
        assert np.array_equal(grid.names[[0, 5, 10, 15]], grid.tokens), "real names are the diagonal"
    assert grids(tokens, 3) == []
    with pytest.raises(UserError, match="choose 2 or 3"):
        grids(tokens, 4)
    with pytest.raises(UserError, match="9 combinations, not 8"):
        recombined(np.ones((8, 2)), 3, 2)
    with pytest.raises(UserError, match="same vector"):
        recombined(np.ones((9, 2)), 3, 2)


# ---------------------------------------------------------------------------------------------- shared tokens, bases, text


def test_conflicts_are_names_that_share_a_token_across_classes():
    names = [["San", " Juan"], [" san", " Remo"], ["Turin"], ["San", "tos"]]
    found = conflicts(names, np.array([0, 1, 2, 0]), 3)
    assert found.names.tolist() == [True, True, False, True]
    assert found.classes.tolist() == [[False, True, False], [True, False, False], [False] * 3, [False, True, False]]
    assert found.pairs == 2
    said = np.array([0.0, 0.0, 2.0, 1.0])
    assert found.right(said, np.array([0, 1, 2, 0])).tolist() == [1, 0, 0]
    assert found.taken_for_other(said).tolist() == [0, 1, 1]


def _task(n=120):
    return ProbeTask("kind", "class", np.arange(n) % 2, ("a", "b"))


def _folds(n=120):
    fold = np.random.default_rng(0).permutation(n) % 4
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(4)]


def test_a_privileged_basis_is_told_from_a_rotated_one():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 60))
    x[:, 7] += 4 * (np.arange(120) % 2)
    found = basis_scores(x, _task(), _folds(), (1, 4), rotations=2)
    assert found.gain(1).lo > 0.1
    q, _ = np.linalg.qr(rng.standard_normal((60, 60)))
    turned = basis_scores(x @ q, _task(), _folds(), (1,), rotations=4)
    assert turned.gain(1).hi < found.gain(1).lo
    with pytest.raises(UserError, match="No feature varies"):
        basis_scores(np.ones((120, 3)), _task(), _folds(), (1,))
    with pytest.raises(UserError, match="at least 1 random rotation"):
        basis_scores(x, _task(), _folds(), (1,), rotations=0)


def test_kurtosis_is_scipys_and_its_interval_covers_it():
    from scipy.stats import kurtosis

    x = np.random.default_rng(0).laplace(size=(400, 8))
    found = mean_kurtosis([x])
    assert found.value == pytest.approx(kurtosis(x).mean(), rel=1e-6)
    assert found.lo < found.value < found.hi
    assert found.lo < 3 + 1
    normal = mean_kurtosis([np.random.default_rng(1).standard_normal((400, 8))])
    assert normal.hi < found.lo


def test_text_features_are_binary_and_balanced():
    tokens = [" Paris", "os", "AB", "ma"] * 12
    found = {f.name: f.task.values for f in text_features(tokens)}
    assert found["last token begins with a space"].tolist() == [1, 0, 0, 0] * 12
    assert found["last token ends in a vowel"].tolist() == [0, 0, 0, 1] * 12
    assert text_features(["a"] * 40) == [], "what does not vary is no target"
    words, feature = word_features()
    assert len(words) == len(feature.task.values) == len(set(words))
    assert 0.4 < feature.task.values.mean() < 0.6


def test_a_probe_may_be_tested_on_other_features_than_it_is_fitted_on():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 5))
    x[:, 0] += 3 * (np.arange(120) % 2)
    flipped = x.copy()
    flipped[:, 0] = 3 - flipped[:, 0]
    own, other = (probe(x, [_task()], _folds(), shuffles=0, tested=t)[0].top[0].mean() for t in (None, flipped))
    assert own > 0.85
    assert other < 0.25
