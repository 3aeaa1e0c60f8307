"""Sprites: drawn by hand pixel by pixel, factors that move what they name; trainings that go on where they were killed."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.worlds.sprites import (
    FACTORS,
    SIDE,
    FactorRegressor,
    agreement,
    cached,
    coverage,
    drawn_factors,
    explained,
    sprites,
    train_regressor,
    training_state,
)
from repscope.worlds.sprites import diffusion as diffusion_world
from repscope.worlds.sprites import gan as gan_world
from repscope.worlds.sprites.diffusion import LEVELS, WORDS, DiffusionSizes, captions, train_diffusion
from repscope.worlds.sprites.gan import GanSizes, train_gan
from repscope.worlds.sprites.regressor import r2

GAN = GanSizes(latent=3, width=6, channels=2, batch=4, steps=9, keep=4)
DIFFUSION = DiffusionSizes(channels=(8, 8), words=8, timesteps=10, batch=2, steps=3, keep=2)


def by_hand(factors, across, down):
    """One pixel in plain numbers: distance to the nearest edge of the shape, blurred over a pixel."""
    x, y, size, rotation, shape, brightness = factors
    right, up = (across + 0.5) / 8 - 1 - 0.35 * x, 1 - (down + 0.5) / 8 - 0.35 * y
    angle = np.pi / 3 * rotation
    u, v = np.cos(angle) * right + np.sin(angle) * up, -np.sin(angle) * right + np.cos(angle) * up
    half, taper = 0.3 + 0.15 * (size + 1), (shape + 1) / 2
    width = half / 2 * (1 - taper * (v / half + 1) / 2)
    lean = np.hypot(1, taper / 4)
    inside = min((width - abs(u)) / lean, half - abs(v))
    return (0.4 + 0.3 * (brightness + 1)) * min(max(8 * inside + 0.5, 0), 1)


def test_every_pixel_is_that_of_the_formula():
    factors = drawn_factors(3, torch.Generator().manual_seed(0)).double()
    images = sprites(factors).reshape(3, SIDE, SIDE)
    for i, own in enumerate(factors.tolist()):
        for down in range(SIDE):
            for across in range(SIDE):
                assert images[i, down, across] == pytest.approx(by_hand(own, across, down), abs=1e-12)


def test_factors_move_what_they_name():
    def with_(**given):
        return sprites(torch.tensor([[given.get(f, 0.0) for f in FACTORS]])).reshape(SIDE, SIDE)

    def centre(image, axis):
        return float((image.sum(1 - axis) * torch.arange(SIDE)).sum() / image.sum())

    plain = with_()
    assert centre(with_(x=1.0), 1) == pytest.approx(centre(plain, 1) + 0.35 * 8, abs=0.05)
    assert centre(with_(y=1.0), 0) == pytest.approx(centre(plain, 0) - 0.35 * 8, abs=0.05)
    assert float(with_(size=1.0).sum()) > 1.3 * float(plain.sum())
    assert float(with_(brightness=1.0).max()) == pytest.approx(1)
    assert float(with_(brightness=-1.0).max()) == pytest.approx(0.4)
    turned = with_(rotation=0.5, shape=-1.0)
    torch.testing.assert_close(turned.flip(1), with_(rotation=-0.5, shape=-1.0), atol=1e-5, rtol=0)
    widths = with_(shape=1.0).sum(1)
    assert float(widths[:6].sum()) < 0.8 * float(widths[10:].sum()), "a triangle is narrow at its top"


@pytest.mark.parametrize(
    ("factors", "says"), [(torch.zeros(2, 5), "give \\(image, 6\\)"), (torch.full((1, 6), np.nan), "not finite")]
)
def test_factors_that_are_none(factors, says):
    with pytest.raises(UserError, match=says):
        sprites(factors)


def test_a_regressor_reads_factors_and_says_how_well():
    found = train_regressor(0, 60)
    held = drawn_factors(500, torch.Generator().manual_seed(99))
    read = found(sprites(held)).numpy()
    slow = [1 - ((held[:, j].numpy() - read[:, j]) ** 2).mean() / held[:, j].numpy().var() for j in range(6)]
    np.testing.assert_allclose(r2(held.numpy(), read), slow, rtol=1e-5)
    np.testing.assert_allclose(found.r2, slow, atol=0.1)
    assert found.r2[FACTORS.index("brightness")] > 0.5
    assert min(found.r2[:2]) > 0.5, "positions are easy"
    with pytest.raises(UserError, match="give \\(image, 256\\)"):
        found(torch.zeros(2, 64))
    with pytest.raises(UserError, match="not finite"):
        found(torch.full((1, 256), np.inf))
    with pytest.raises(UserError, match="at least 1"):
        train_regressor(0, 0)


class Oracle(FactorRegressor):
    """Reads sprites that it was told of."""

    def __call__(self, images):
        return self.r2


def test_explained_is_one_for_sprites_and_none_for_what_are_no_sprites():
    factors = drawn_factors(40, torch.Generator().manual_seed(0))
    images = sprites(factors)
    assert explained(images, Oracle({}, factors)) == pytest.approx(1)
    assert explained(images[:, torch.randperm(256)], Oracle({}, factors)) < 0.3
    with pytest.raises(UserError, match="All images are the same"):
        explained(images[:1].expand(4, -1), Oracle({}, factors[:1].expand(4, -1)))
    np.testing.assert_allclose(agreement(images, Oracle({}, factors), Oracle({}, factors)), 1)
    with pytest.raises(UserError, match="the same in all images"):
        r2(np.zeros((3, 6)), np.zeros((3, 6)))


def test_coverage_counts_bins():
    even = np.repeat(np.linspace(-0.95, 0.95, 10), 10)[:, None]
    assert coverage(even)[0] == 1
    assert coverage(np.clip(even, -1, 0))[0] == 0.6, "five bins below 0, and the first above it"
    assert coverage(np.full((100, 1), 5.0))[0] == 0.1, "what lies outside counts to the last bin"


def test_patches_are_undone():
    images = sprites(drawn_factors(3, torch.Generator().manual_seed(0)))
    held = diffusion_world.patches(images).reshape(3, *diffusion_world.SHAPE)
    assert float(held[1, 3, 2, 5]) == pytest.approx(2 * float(images[1].reshape(SIDE, SIDE)[5, 11]) - 1)
    torch.testing.assert_close(diffusion_world.from_patches(held.flatten(1)), images)


def test_words_of_captions_are_true_and_some_are_left_out():
    factors = drawn_factors(400, torch.Generator().manual_seed(0))
    found = captions(factors, torch.Generator().manual_seed(1))
    for own, words in zip(factors.tolist(), found.tolist()):
        for word in (WORDS[w] for w in words if w):
            level, factor = word.split(" ")
            value = own[FACTORS.index(factor)]
            assert level == LEVELS[min(int((value + 1) / 2 * 3), 2)]
    empty = (found == 0).all(1).float().mean()
    assert 0.24 < float(empty) < 0.44, "0.3 + 0.7 · 0.2²"
    assert len(set(found.flatten().tolist())) == len(WORDS)


@pytest.mark.parametrize(
    "world", [(train_gan, GAN, gan_world, "sprite_batch", 6), (train_diffusion, DIFFUSION, diffusion_world, "captions", 2)]
)
def test_a_killed_training_ends_with_the_same_weights(world, tmp_path, monkeypatch):
    train, sizes, *_, at = world
    whole = train(sizes)
    saved, step = tmp_path / "state.safetensors", training_state.average_weights

    calls = []

    def killed(*given):
        calls.append(0)
        if len(calls) > at:
            raise KeyboardInterrupt
        step(*given)

    monkeypatch.setattr(training_state, "average_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        train(sizes, saved=saved)
    assert saved.is_file()
    monkeypatch.setattr(training_state, "average_weights", lambda *given: (calls.append(1), step(*given)))
    again = train(sizes, saved=saved)
    assert calls.count(1) == sizes.steps - sizes.keep * (at // sizes.keep), "it went on where it was saved"
    assert not saved.exists()
    own = "generator" if train is train_gan else "network"
    for (name, a), b in zip(getattr(whole, own).state_dict().items(), getattr(again, own).state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    np.testing.assert_array_equal(whole.losses, again.losses)


def test_the_cache_gives_the_same_network_and_mends_a_damaged_file(tmp_path, monkeypatch):
    first = cached.cached_gan(GAN, tmp_path)
    (file,) = tmp_path.glob("gan-*.safetensors")
    monkeypatch.setattr(cached, "train_gan", lambda *a, **k: pytest.fail("it was there"))
    again = cached.cached_gan(GAN, tmp_path)
    z = torch.ones(2, 3)
    torch.testing.assert_close(again.generator(z), first.generator(z), rtol=0, atol=0)
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:-3] + b"xyz")
    torch.testing.assert_close(cached.cached_gan(GAN, tmp_path).generator(z), first.generator(z), rtol=0, atol=0)
    found = cached.cached_diffusion(DIFFUSION, tmp_path)
    assert cached.diffusion_generator(found).width("conditioning") == 8
    assert cached.latent_generator(first, GAN).projection().shape == (6, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GanSizes(steps=0),
        lambda: GanSizes(rate=0),
        lambda: DiffusionSizes(channels=()),
        lambda: DiffusionSizes(channels=(12,)),
        lambda: DiffusionSizes(prediction="sample"),
    ],
)
def test_sizes_that_train_nothing(make):
    with pytest.raises(UserError):
        make()
