"""Recordings in the format of the Sensorium competition, made here: repeats, units, what is left out, a twin, mistakes."""

import shutil

import numpy as np
import pytest

from repscope.align.twin import CoreShape, LinearNonlinear, TwinNetwork, fit_twin, receptive_fields, score_twin, sensorium_recording
from repscope.errors import UserError
from repscope.worlds.cortex_patch import noise_images, visual_cortex

SIZE, NEURONS, TRAIN, VALIDATION, IMAGES, REPEATS = 12, 8, 500, 80, 20, 6


@pytest.fixture(scope="module")
def cortex():
    return visual_cortex(NEURONS, size=SIZE, rate=4.0, complex_share=0.2, seed=4)


@pytest.fixture(scope="module")
def folder(cortex, tmp_path_factory):
    """Trials in random order, grey values as bytes would be, one silent neuron, one test image shown once."""
    home = tmp_path_factory.mktemp("static1-2-3")
    rng = np.random.default_rng(0)
    train, test = noise_images(TRAIN + VALIDATION, SIZE, seed=5), noise_images(IMAGES + 1, SIZE, seed=6)
    shown = np.concatenate([np.arange(TRAIN + VALIDATION), 10_000 + np.repeat(np.arange(IMAGES), REPEATS), [10_000 + IMAGES]])
    images = np.concatenate([train, np.repeat(test[:IMAGES], REPEATS, axis=0), test[IMAGES:]])
    tiers = np.array(["train"] * TRAIN + ["validation"] * VALIDATION + ["test"] * (IMAGES * REPEATS + 1))
    speed = rng.normal(0, 1, len(images))
    responses = rng.poisson(cortex.rates(images)).astype(float)
    order = rng.permutation(len(images))
    for name in ("data/images", "data/responses", "data/behavior", "meta/trials"):
        (home / name).mkdir(parents=True)
    for i, trial in enumerate(order):
        np.save(home / "data/images" / f"{i}.npy", (120 + 30 * images[trial])[None])
        np.save(home / "data/responses" / f"{i}.npy", np.append(5 * responses[trial], 0.0))
        np.save(home / "data/behavior" / f"{i}.npy", np.array([speed[trial], 7.0]))
    np.save(home / "meta/trials/tiers.npy", tiers[order])
    np.save(home / "meta/trials/frame_image_id.npy", shown[order])
    return home


def test_repeats_are_grouped_by_image_and_everything_has_its_unit(folder, cortex):
    held = sensorium_recording(folder, behaviour=True)
    assert held.repeats.shape == (REPEATS, IMAGES, NEURONS)
    assert held.test.shape == (IMAGES, 1, SIZE, SIZE)
    assert len(held.train) == TRAIN
    assert float(held.train.stimuli.std()) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(held.train.responses.numpy().std(0, ddof=1), 1, rtol=1e-4)
    assert held.behaviour.shape == (REPEATS, IMAGES, 2)
    assert "1 of 9 neurons" in held.notes[1]
    assert "1 other test trials" in held.notes[0]
    expected = cortex.rates(held.test[:, 0])
    found = [np.corrcoef(held.repeats[:, :, n].mean(0), expected[:, n])[0, 1] for n in range(NEURONS)]
    assert np.mean(found) > 0.8, "responses are those of the image they are grouped with"


def test_a_twin_of_the_folder_predicts_its_repeats(folder, cortex):
    held = sensorium_recording(folder)
    twin = fit_twin(TwinNetwork(NEURONS, CoreShape((8, 8))), held.train, held.validation, epochs=10)
    linear = fit_twin(LinearNonlinear(NEURONS, SIZE**2), held.train, held.validation, epochs=10, penalty=0.1, rate=0.003)
    ours, theirs = (score_twin(model.predict(held.test), held.repeats).mean("cc_norm").value for model in (twin, linear))
    assert ours > 0.7
    assert ours > theirs
    distance = np.abs(receptive_fields(twin.model, held.test).centres - cortex.centres).max(1)
    assert np.median(distance) <= 1


def test_mistakes_are_one_sentence(folder, tmp_path):
    home = tmp_path / "copy"
    shutil.copytree(folder, home)
    tiers = np.load(folder / "meta/trials/tiers.npy")
    numbers = np.arange(len(tiers))
    for name, value, said in (
        ("meta/trials/tiers.npy", None, "no array"),
        ("data/images/3.npy", None, "no array"),
        ("data/responses/4.npy", np.array([{}], dtype=object), "without pickle"),
        ("data/responses/5.npy", np.ones(3), "different shapes"),
        ("meta/trials/frame_image_id.npy", numbers, "0 test images with 2 repeats"),
        ("meta/trials/frame_image_id.npy", numbers[:-1], "one per trial"),
        (
            "meta/trials/tiers.npy",
            np.where(tiers == "validation", "train", tiers),
            "0 trials of the tier 'validation'; it has test, train",
        ),
    ):
        before = (home / name).read_bytes()
        (home / name).unlink()
        if value is not None:
            np.save(home / name, value, allow_pickle=True)
        with pytest.raises(UserError, match=said) as error:
            sensorium_recording(home)
        assert "\n" not in str(error.value)
        (home / name).write_bytes(before)
    sensorium_recording(home)
    (home / "data" / "videos").mkdir()
    with pytest.raises(UserError, match="has videos"):
        sensorium_recording(home)
    with pytest.raises(UserError, match="no folder of a recording"):
        sensorium_recording(tmp_path / "nowhere")
