"""Classifiers of digits: trained on halves, measured on test digits; what tells digits from other images; a GAN of digits."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.worlds import digit_classifier as world
from repscope.worlds.digit_classifier import (
    CLASS_NAMES,
    DigitClassifier,
    class_accuracy,
    digit_batch,
    explained_by_digits,
    held_out_digits,
    same_class,
    train_classifier,
)
from repscope.worlds.digits import digits
from repscope.worlds.sprites import cached
from repscope.worlds.sprites.gan import GanSizes, train_gan

GAN = GanSizes(latent=3, width=6, channels=2, batch=4, steps=9, keep=4)


@pytest.fixture(scope="module")
def two():
    return train_classifier(0, 60), train_classifier(1, 60)


def test_a_classifier_reads_test_digits_and_says_how_well(two):
    held = digits()
    labels = held.labels[held.test].numpy()
    read = two[0](held.inputs[held.test])
    torch.testing.assert_close(read.sum(1), torch.ones(len(read)))
    for c in range(10):
        assert two[0].accuracy[c] == pytest.approx((read.argmax(1).numpy()[labels == c] == c).mean())
    assert two[0].accuracy.mean() > 0.8
    assert len(CLASS_NAMES) == len(two[0].accuracy)


def test_two_classifiers_learn_from_different_halves(monkeypatch):
    seen = []
    real = world._varied
    monkeypatch.setattr(world, "_varied", lambda images, generator: seen.append(images) or real(images, generator))
    for seed in (0, 1):
        train_classifier(seed, 3)
    first, second = ({tuple(row.tolist()) for some in part for row in some} for part in (seen[:3], seen[3:]))
    assert not first & second
    held = digits()
    test = {tuple(row.tolist()) for row in held.inputs[held.test]}
    assert not (first | second) & test


def test_the_generator_is_trained_on_training_digits_alone():
    held = digits()
    train = {tuple(row.tolist()) for row in held.inputs[held.train]}
    assert {tuple(row.tolist()) for row in digit_batch(50, 3)} <= train
    test = held_out_digits(40, 0)
    assert len({tuple(row.tolist()) for row in test}) == 40, "each once"
    assert not {tuple(row.tolist()) for row in test} & train
    assert len(held_out_digits(10_000, 0)) == 597


def test_digits_are_told_from_what_are_none(two):
    real = held_out_digits(200, 0)
    permuted = real[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert same_class(real, *two).mean() > same_class(permuted, *two).mean() + 0.2
    assert explained_by_digits(digit_batch(60, 0)) == pytest.approx(1, abs=1e-5)
    assert explained_by_digits(real) > explained_by_digits(permuted) + 0.3
    held = digits()
    train = held.inputs[held.train].double().numpy()
    some = real[:20].double().numpy()
    nearest = sum(min(((x - y) ** 2).sum() for y in train) for x in some)
    assert explained_by_digits(real[:20]) == pytest.approx(1 - nearest / ((some - some.mean(0)) ** 2).sum(), abs=1e-4)
    with pytest.raises(UserError, match="All images are the same"):
        explained_by_digits(real[:1].expand(4, -1))


def test_images_that_cannot_be_read(two):
    with pytest.raises(UserError, match="give \\(image, 64\\)"):
        two[0](torch.zeros(2, 256))
    with pytest.raises(UserError, match="not finite"):
        two[0](torch.full((1, 64), np.nan))
    with pytest.raises(UserError, match="at least 1"):
        train_classifier(0, 0)
    with pytest.raises(UserError, match="of the class 3"):
        class_accuracy(np.arange(10), np.where(np.arange(10) == 3, 0, np.arange(10)))


def test_a_gan_of_digits_and_its_cache(tmp_path, monkeypatch):
    made = cached.cached_gan(GAN, tmp_path, cached.DIGITS)
    assert made.generator(torch.zeros(2, 3)).shape == (2, 64)
    alone = train_gan(GAN, images=cached.DIGITS)
    np.testing.assert_array_equal(made.losses, alone.losses)
    monkeypatch.setattr(cached, "train_gan", lambda *a, **k: pytest.fail("it was there"))
    z = torch.ones(2, 3)
    torch.testing.assert_close(cached.cached_gan(GAN, tmp_path, cached.DIGITS).generator(z), made.generator(z), rtol=0, atol=0)
    first = cached.cached_classifier(0, 2, tmp_path)
    monkeypatch.setattr(world, "train_classifier", lambda *a: pytest.fail("it was there"))
    again = cached.cached_classifier(0, 2, tmp_path)
    assert isinstance(again, DigitClassifier)
    np.testing.assert_array_equal(first.accuracy, again.accuracy)


def test_a_file_of_other_settings_under_this_name_is_not_read(tmp_path):
    sprites = cached.cached_gan(GAN, tmp_path)
    (file,) = tmp_path.glob("gan-*.safetensors")
    made = cached.cached_gan(GAN, tmp_path, cached.DIGITS)
    (other,) = tmp_path.glob("gan-of-digits-*.safetensors")
    file.write_bytes(other.read_bytes())
    z = torch.ones(2, 3)
    torch.testing.assert_close(cached.cached_gan(GAN, tmp_path).generator(z), sprites.generator(z), rtol=0, atol=0)
    assert made.generator(z).shape == (2, 64)


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path):
    """A file stands where the folder would be: neither states of the training nor the network can be saved."""
    (tmp_path / "cache").write_text("")
    made = cached.cached_gan(GAN, tmp_path / "cache" / "sprites", cached.DIGITS)
    np.testing.assert_array_equal(made.losses, train_gan(GAN, images=cached.DIGITS).losses)
