"""Bayes predictors: brute-force enumeration of hidden states, hmmlearn, and mistakes in one sentence."""

import itertools
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM
from safetensors.numpy import save_file

from repscope.errors import UserError
from repscope.trace import bayes
from repscope.trace.bayes.files import read_models
from repscope.trace.bayes.hmm import HiddenMarkovModel, check_mixture
from repscope.trace.bayes.mixture import Mixture, floored
from repscope.trace.bayes.prompted import mixture_of
from repscope.worlds.ginc import PUBLISHED, UNIFORM, GincSizes, GincWorld, prompts


def drawn(states, symbols, seed, certain=False):
    rng = np.random.default_rng(seed)
    emission = np.eye(symbols)[rng.integers(0, symbols, states)] if certain else rng.dirichlet(np.ones(symbols), states)
    return HiddenMarkovModel(rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), states), emission)


def enumerated(model, text):
    """p(text, next symbol) by summing over every path of hidden states that is possible."""

    def rest(state, t, p):
        if t == len(text):
            return p * model.emission[state]
        p = p * model.emission[state, text[t]]
        return sum(rest(s, t + 1, p * q) for s, q in enumerate(model.transition[state]) if p * q) if p else 0.0

    return sum(rest(s, 0, p) for s, p in enumerate(model.start) if p) + np.zeros(model.symbols)


@pytest.mark.parametrize("kind", ["shared", "own emissions", "certain", "other sizes"])
def test_equals_enumeration(kind):
    models = {
        "shared": [HiddenMarkovModel(drawn(3, 4, i).start, drawn(3, 4, i).transition, drawn(3, 4, 9).emission) for i in range(3)],
        "own emissions": [drawn(3, 4, i) for i in range(3)],
        "certain": [
            HiddenMarkovModel(*[getattr(drawn(6, 4, i), n) for n in ("start", "transition")], drawn(6, 4, 9, True).emission)
            for i in range(2)
        ],
        "other sizes": [drawn(2, 4, 1), drawn(4, 4, 2)],
    }[kind]
    texts = np.random.default_rng(0).integers(0, 4, (5, 4))
    if kind == "certain":
        texts = models[0].documents(5, 4, np.random.default_rng(0))
    found = Mixture.uniform(models).forecast(texts)
    for i, text in enumerate(texts):
        for t in range(len(text)):
            joint = np.stack([enumerated(m, text[: t + 1]) for m in models])
            np.testing.assert_allclose(found.next[i, t], joint.sum(0) / joint.sum(), atol=1e-9)
            np.testing.assert_allclose(found.posterior[i, t], joint.sum(1) / joint.sum(), atol=1e-9)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(found.log_likelihood[i], np.log(joint.sum(1)), atol=1e-9)


@pytest.mark.parametrize("certain", [False, True])
def test_equals_hmmlearn_text_by_text(certain):
    models = [drawn(5, 6, i, certain) for i in range(3)]
    texts = np.concatenate([m.documents(7, 20, np.random.default_rng(1)) for m in models])
    found = Mixture.uniform(models, floor=1e-3).log_likelihood(texts)
    for j, model in enumerate(models):
        peer = CategoricalHMM(n_components=5, n_features=6)
        peer.startprob_, peer.transmat_, peer.emissionprob_ = model.start, floored(model.transition, 1e-3), model.emission
        expected = [peer.score(text[:, None]) for text in texts]
        np.testing.assert_allclose(found[:, j], expected, rtol=1e-9, atol=1e-9)
        back = HiddenMarkovModel.of(peer)
        np.testing.assert_array_equal(back.emission, model.emission)


@pytest.mark.parametrize("delimiter", [UNIFORM, PUBLISHED])
def test_predictors_of_prompts_equal_enumeration(delimiter):
    """Concept, start slot and value of each example by brute force, on a world small enough."""
    sizes = GincSizes(concepts=2, unseen=1, values=2, slots=3, symbols=6, delimiter=delimiter)
    world = GincWorld.drawn(sizes, 4)
    held = prompts(world, 6, 2, 3, np.random.default_rng(0))
    floor = 1e-3
    transitions = floored(world.transitions, floor)
    emission = np.eye(sizes.symbols)[world.symbols]
    aware = bayes.format_aware(world, held, floor)
    mixture = bayes.pretraining(world, held, floor)
    for i, text in enumerate(held.tokens):
        examples = text.reshape(3, 4)
        weights = np.ones((2, 2))  # concept, slot − 1
        for k, example in enumerate(examples):
            joint = np.zeros((2, 2, sizes.symbols))
            for c, slot in itertools.product(range(2), (1, 2)):
                start = np.zeros(sizes.states)
                start[np.arange(2) * 3 + slot] = 0.5
                joint[c, slot - 1] = weights[c, slot - 1] * enumerated(
                    HiddenMarkovModel(start, transitions[c], emission), example[:2]
                )
            np.testing.assert_allclose(aware.answers[i, k], joint.sum((0, 1)) / joint.sum(), atol=1e-9)
            np.testing.assert_allclose(aware.truth[i, k], joint[held.concept[i]].sum() / joint.sum(), atol=1e-9)
            weights = joint[:, :, example[2]]
        models = [HiddenMarkovModel(world.starts[c], transitions[c], emission) for c in range(2)]
        joint = np.stack([enumerated(m, text[:6]) for m in models])
        np.testing.assert_allclose(mixture.answers[i, 1], joint.sum(0) / joint.sum(), atol=1e-9)
        np.testing.assert_allclose(mixture.truth[i, 1], joint[held.concept[i]].sum() / joint.sum(), atol=1e-9)
    with np.errstate(invalid="ignore"):
        start = np.zeros(sizes.states)
        start[np.arange(2) * 3 + held.slot[0]] = 0.5
        exact = enumerated(HiddenMarkovModel(start, world.transitions[held.concept[0]], emission), held.tokens[0, :2])
    np.testing.assert_allclose(bayes.oracle(held).answers[0, 0], exact / exact.sum(), atol=1e-9)


def test_answers_do_not_depend_on_chunks(monkeypatch):
    world = GincWorld.drawn(GincSizes(), 2)
    held = prompts(world, 40, 4, 3, np.random.default_rng(0))
    whole = [f(world, held, 1e-4) for f in (bayes.pretraining, bayes.format_aware)]
    monkeypatch.setattr("repscope.trace.bayes.mixture._CELLS", 1000)
    monkeypatch.setattr("repscope.trace.bayes.prompted._TEXTS", 11)
    for one, f in zip(whole, (bayes.pretraining, bayes.format_aware)):
        np.testing.assert_allclose(f(world, held, 1e-4).answers, one.answers, atol=1e-12)


def test_the_format_aware_observer_learns_from_examples():
    """Over five worlds; it knows the concept better with every example, while the mixture with a published delimiter does not."""
    right, truth, flat = [], [], []
    for seed in range(5):
        world = GincWorld.drawn(GincSizes(), seed)
        held = prompts(world, 100, 4, 3, np.random.default_rng(1))
        found = bayes.format_aware(world, held, 1e-6)
        right.append((found.answers.argmax(-1) == held.labels).mean(0))
        truth.append(found.truth.mean(0))
        world = GincWorld.drawn(GincSizes(delimiter=PUBLISHED), seed)
        held = prompts(world, 100, 4, 3, np.random.default_rng(1))
        flat.append((bayes.pretraining(world, held, 1e-6).answers.argmax(-1) == held.labels).mean(0))
    right, truth, flat = (np.mean(x, axis=0) for x in (right, truth, flat))
    assert right[4] >= 0.97 > right[0]
    assert (np.diff(truth) > 0).all()
    assert truth[4] > 0.9
    assert flat[4] < flat[0] + 0.1


def test_distances():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert bayes.kl(p, q) == pytest.approx(np.log(2))
    assert bayes.kl(p, p) == 0
    assert bayes.total_variation(p, q) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: HiddenMarkovModel([0.5, 0.6], np.eye(2), np.eye(2)), "start probabilities of the model sum to 1.1"),
        (lambda: HiddenMarkovModel([1, 0], [[1, 0], [0.2, 0.2]], np.eye(2)), "of state 1 of the model sum to 0.4"),
        (lambda: HiddenMarkovModel([2, -1], np.eye(2), np.eye(2)), "negative or not finite"),
        (lambda: HiddenMarkovModel([1.0], np.eye(2), np.eye(2)), "must be"),
        (lambda: HiddenMarkovModel("ab", np.eye(2), np.eye(2)), "not an array of numbers"),
        (lambda: HiddenMarkovModel([1 + 1j], [[1]], [[1]]), "type is complex128"),
        (lambda: HiddenMarkovModel([10**400], [[1]], [[1]]), "not an array of numbers"),
        (lambda: HiddenMarkovModel([1.0], [[1]], np.ones((1, 0))), "must be"),
        (lambda: HiddenMarkovModel([1, 0], [[0, 0], [0, 1]], np.eye(2)), "Every transition of state 0 of the model is impossible"),
        (lambda: HiddenMarkovModel([1, 0], np.eye(2), [[1, 0], [0, 0]]), "Every emission of state 1 of the model is impossible"),
        (lambda: HiddenMarkovModel.of(object()), "has no startprob_"),
        (lambda: check_mixture([drawn(2, 3, 0), drawn(2, 3, 0)]), "Models 0 and 1 are the same"),
        (lambda: check_mixture([drawn(2, 3, 0), drawn(2, 4, 0)]), "they must be the same"),
        (lambda: Mixture.uniform([drawn(2, 3, 0)]).forecast(np.array([[0, 3]])), "has the symbol 3"),
        (lambda: Mixture.uniform([drawn(2, 3, 0)]).forecast(np.array([[0, -1]])), "has the symbol -1"),
        (lambda: Mixture.uniform([drawn(2, 3, 0)]).forecast(np.array([0, 1])), "give whole numbers"),
        (lambda: Mixture.uniform([HiddenMarkovModel([1, 0], np.eye(2), np.eye(2))]).forecast(np.array([[0, 1]])), "impossible"),
        (lambda: Mixture.uniform([drawn(2, 3, 0)], floor=1.5), "probability below 1"),
    ],
)
def test_mistakes_are_one_sentence(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_models_from_files(tmp_path):
    models = [drawn(3, 4, i) for i in range(2)]
    arrays = {n: np.stack([getattr(m, n) for m in models]) for n in ("start", "transition", "emission")}
    np.savez(tmp_path / "two.npz", **arrays)
    np.savez(tmp_path / "one.npz", **{n: a[0] for n, a in arrays.items()})
    (tmp_path / "two.json").write_text(json.dumps([{n: a[i].tolist() for n, a in arrays.items()} for i in range(2)]))
    save_file({n: a.astype(np.float32) for n, a in arrays.items()}, tmp_path / "two.safetensors")
    for name, count in (("two.npz", 2), ("one.npz", 1), ("two.json", 2), ("two.safetensors", 2)):
        found = read_models(tmp_path / name)
        assert len(found) == count
        np.testing.assert_allclose(found[-1].transition, models[count - 1].transition, atol=1e-7)
        assert abs(found[-1].transition.sum(1) - 1).max() < 1e-12, "rounding to float32 is divided out"
    np.savez(tmp_path / "bad.npz", start=np.array([object()]))
    (tmp_path / "bad.json").write_text("[{]")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "x.txt").write_text("")
    for name, said in (
        ("bad.npz", "cannot be read"),
        ("bad.json", "not valid JSON"),
        ("empty.json", "no model"),
        ("x.txt", "kind of file"),
        ("none.npz", "no file"),
        ("onn.npz", "did you mean 'one.npz'"),
    ):
        with pytest.raises(UserError, match=said):
            read_models(tmp_path / name)


def test_the_mixture_of_a_world_is_that_of_its_documents():
    """Documents are drawn from what the predictor assumes: its mean surprise is below that of every single concept."""
    world = GincWorld.drawn(GincSizes(), 2)
    tokens, concept = world.documents(200, 30, np.random.default_rng(0))
    log = mixture_of(world, 1e-9).log_likelihood(tokens)
    assert (log.argmax(1) == concept).mean() > 0.95
    assert np.isfinite(log[np.arange(200), concept]).all()


@pytest.mark.parametrize("place", [-1, 2])
def test_a_place_that_does_not_exist_is_refused(place):
    """Unread places would be returned as whatever the memory held."""
    with pytest.raises(UserError, match=f"Place {place} was asked of texts of 2 symbols"):
        Mixture.uniform([drawn(2, 3, 0)]).forecast(np.array([[0, 1]]), [place])


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    model = drawn(3, 4, 0)
    np.savez(tmp_path / "whole.npz", start=model.start, transition=model.transition, emission=model.emission)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    (tmp_path / "flipped.npz").write_bytes(bytes(flipped))
    np.save(tmp_path / "array.npy", np.eye(2))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "scalar.npz", start=1.0, transition=np.ones((2, 1, 1)), emission=np.ones((2, 1, 1)))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("cut.npz", "flipped.npz", "array.npz", "scalar.npz", "deep.json"):
        with pytest.raises(UserError):
            read_models(tmp_path / name)


def test_models_that_differ_a_little_are_two():
    one = drawn(3, 4, 0)
    other = one.transition.copy()
    other[0, :2] += [-4e-6 * other[0, 0], 4e-6 * other[0, 0]]
    check_mixture([one, HiddenMarkovModel(one.start, other, one.emission)])


def test_models_of_different_sizes_in_one_archive(tmp_path):
    models = [drawn(2, 4, 0), drawn(5, 4, 1)]
    arrays = {f"{n}.{i}": getattr(m, n) for i, m in enumerate(models) for n in ("start", "transition", "emission")}
    np.savez(tmp_path / "two.npz", **arrays)
    assert [m.states for m in read_models(tmp_path / "two.npz")] == [2, 5]
    del arrays["emission.1"]
    np.savez(tmp_path / "lacks.npz", **arrays)
    np.savez(tmp_path / "skips.npz", **{n.replace(".1", ".2"): a for n, a in arrays.items()})
    for name, said in (("lacks.npz", "Model 1 of .* lacks one of"), ("skips.npz", "number all of them from 0 on")):
        with pytest.raises(UserError, match=said):
            read_models(tmp_path / name)


def test_archives_that_expand_beyond_all_bounds_are_not_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "small.npz", start=np.zeros(100_000))
    assert (tmp_path / "small.npz").stat().st_size < 2000
    monkeypatch.setattr("repscope.trace.bayes.files._MOST_BYTES", 2000)
    with pytest.raises(UserError, match="check the file"):
        read_models(tmp_path / "small.npz")
    with zipfile.ZipFile(tmp_path / "wrong.npz", "w") as archive:
        for part in ("start", "transition", "emission"):
            archive.writestr(f"{part}.npy", b"no array")
    with pytest.raises(UserError, match="not an array of numbers"):
        read_models(tmp_path / "wrong.npz")
    (tmp_path / "wrong.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_models(tmp_path / "wrong.safetensors")


def test_copies_of_a_model_are_found_by_what_they_say_about_texts():
    """With permuted states, with a state split in two, and with a state that is never reached; their arrays differ."""
    one, order = drawn(3, 5, 0), np.array([1, 2, 0])
    permuted = HiddenMarkovModel(one.start[order], one.transition[order][:, order], one.emission[order])
    into = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.3, 0.7]])  # state 2 becomes two states
    of = (into > 0).T.astype(float)
    split = HiddenMarkovModel(one.start @ into, of @ one.transition @ into, of @ one.emission)
    for copy in (permuted, split):
        with pytest.raises(UserError, match="Models 0 and 2 are the same"):
            Mixture.uniform([one, drawn(3, 5, 1), copy])
    cycle = [HiddenMarkovModel(np.eye(60)[0], np.roll(np.eye(60), 1, 1), np.eye(2)[[0] * 59 + [last]]) for last in (0, 1)]
    check_mixture(cycle)  # they differ at their 60th symbol alone


def test_memory_does_not_grow_with_the_number_of_texts(monkeypatch):
    """Beyond the answer itself: one number per text and model."""
    world = GincWorld.drawn(GincSizes(), 2)
    mixture, tokens = mixture_of(world, 1e-4), prompts(world, 2000, 4, 3, np.random.default_rng(0)).tokens
    monkeypatch.setattr("repscope.trace.bayes.mixture._CELLS", 20_000)
    mixture.log_likelihood(tokens[:10])
    peaks = []
    for count in (200, 2000):
        tracemalloc.start()
        mixture.log_likelihood(tokens[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1.2 * 1800 * mixture.models * 8


def test_counts_of_symbol_pairs_by_a_plain_loop():
    texts = np.random.default_rng(0).integers(4, size=(6, 12))
    places = np.array([0, 5, 11])
    found = bayes.pair_counts(texts, 4, places)
    for i, text in enumerate(texts):
        for j, place in enumerate(places):
            counts = [0.25] * 4
            for t in range(place):
                if text[t] == text[place]:
                    counts[text[t + 1]] += 1
            np.testing.assert_allclose(found[i, j], np.array(counts) / sum(counts), atol=1e-12)
