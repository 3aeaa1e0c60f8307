"""Digital twins: planted receptive fields and tuning are recovered, ceilings are those of their papers, fits resume, files are
safe.
"""

import numpy as np
import pytest
import torch

from repscope.align.twin import (
    CoreShape,
    LinearNonlinear,
    Recording,
    TwinNetwork,
    fit_twin,
    grating_tuning,
    open_sensorium,
    receptive_fields,
    score_twin,
    signal_correlation,
    transfer,
)
from repscope.errors import UserError
from repscope.worlds.cortex_patch import noise_images, noise_videos, visual_cortex

NEURONS, HELD_OUT, TRIALS, SIZE = 24, 8, 1200, 12


@pytest.fixture(scope="module")
def recorded():
    """A patch of cortex, its recording with training and validation trials, and repeated test images."""
    cortex = visual_cortex(NEURONS + HELD_OUT, size=SIZE, seed=0, rate=3.0, complex_share=0.2)
    rng = np.random.default_rng(1)
    images = noise_images(TRIALS + 200, SIZE, seed=2)
    whole = Recording.of(images, rng.poisson(cortex.rates(images)))
    test = noise_images(60, SIZE, seed=3)
    repeats = rng.poisson(np.tile(cortex.rates(test), (8, 1, 1))).astype(float)
    return cortex, whole.of_trials(np.arange(TRIALS)), whole.of_trials(np.arange(TRIALS, TRIALS + 200)), test, repeats


@pytest.fixture(scope="module")
def fitted(recorded):
    _, train, validation, *_ = recorded
    some = np.arange(NEURONS)
    return fit_twin(TwinNetwork(NEURONS), train.of_neurons(some), validation.of_neurons(some), epochs=14)


def test_a_twin_recovers_what_was_planted(recorded, fitted):
    cortex, _, _, test, repeats = recorded
    predicted = fitted.predict(test)
    scores = score_twin(predicted, repeats[..., :NEURONS])
    assert scores.mean("cc_norm").value > 0.9
    assert scores.counted.sum() >= NEURONS - 2
    fields = receptive_fields(fitted.model, test[:30])
    distance = np.abs(fields.centres - cortex.centres[:NEURONS]).max(1)
    assert (distance <= 1).mean() >= 0.95
    tuning = grating_tuning(fitted, (SIZE, SIZE))
    off = np.abs((tuning.preferred - cortex.orientations[:NEURONS] + np.pi / 2) % np.pi - np.pi / 2)
    assert np.degrees(np.median(off)) < 6
    above = np.triu_indices(NEURONS, 1)
    truth = signal_correlation(cortex.rates(test))[:NEURONS, :NEURONS]
    assert np.corrcoef(signal_correlation(predicted)[above], truth[above])[0, 1] > 0.9


def test_the_core_of_other_neurons_helps_where_data_are_few(recorded, fitted):
    _, train, validation, test, repeats = recorded
    others = np.arange(NEURONS, NEURONS + HELD_OUT)
    parts = train.of_neurons(others), validation.of_neurons(others)
    found = transfer(fitted.model, *parts, test, repeats[..., others], trials=(150, 1200), epochs=12)
    at = {name: [s.mean().value for s in by] for name, by in found.scores.items()}
    assert at["estimate"][1] > at["estimate"][0], "more data, better predictions"
    assert at["estimate"][0] > at["LN model"][0]
    assert found.over("LN model", 150).value > 0.1
    assert {r.split for r in found.rows()} == {"2.5 min", "20 min"}


def test_ceilings_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 1, (300, 40))
    y = signal + rng.normal(0, 1.5, (10, 300, 40))
    scores = score_twin(signal, y)
    assert scores.mean("cc_norm").value == pytest.approx(1.0, abs=0.03)
    assert scores.mean("cc_max").value == pytest.approx(np.sqrt(1 / (1 + 1.5**2 / 10)), abs=0.02)
    assert scores.mean("feve").value == pytest.approx(1.0, abs=0.05)
    assert scores.mean("fev").value == pytest.approx(1 / (1 + 1.5**2), abs=0.03)
    assert scores.mean("oracle").value < scores.mean("cc_max").value
    n = 3
    one, ybar = y[..., n], y[..., n].mean(0)
    tp, var = one.var(1, ddof=1).mean(), ybar.var(ddof=1)
    assert scores.cc_max[n] == pytest.approx(np.sqrt((10 * var - tp) / 9 / var))
    by_hand = np.corrcoef(np.concatenate([(one.sum(0) - r) / 9 for r in one]), one.ravel())[0, 1]
    assert scores.oracle[n] == pytest.approx(by_hand)
    noise = score_twin(signal, rng.normal(0, 1, (4, 300, 40)))
    assert noise.counted.mean() < 0.1
    with pytest.raises(UserError, match="no noise ceiling"):
        score_twin(signal, y[:1])
    with pytest.raises(UserError, match="do not fit"):
        score_twin(signal[:, 0], y)


def test_an_interrupted_fit_ends_with_the_same_weights(recorded, tmp_path):
    _, train, validation, *_ = recorded
    train, validation = train.of_trials(np.arange(200)), validation.of_trials(np.arange(50))
    network = TwinNetwork(NEURONS + HELD_OUT, CoreShape((4,), kernel=5))
    whole = fit_twin(network, train, validation, epochs=5)
    path = tmp_path / "folder" / "fit.pt"
    fit_twin(network, train, validation, epochs=2, checkpoint=path)
    again = fit_twin(network, train, validation, epochs=5, checkpoint=path)
    assert again.validation == whole.validation
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    with pytest.raises(UserError, match="no checkpoint of this fit"):
        fit_twin(TwinNetwork(NEURONS + HELD_OUT, CoreShape((3,), kernel=5)), train, validation, epochs=2, checkpoint=path)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="no checkpoint of this fit"):
        fit_twin(network, train, validation, epochs=2, checkpoint=path)


def test_behaviour_multiplies_rates():
    cortex = visual_cortex(6, size=SIZE, rate=4.0, complex_share=0.0)
    rng = np.random.default_rng(0)
    images, speed = noise_images(900, SIZE), rng.normal(0, 1, 900)
    whole = Recording.of(images, rng.poisson(cortex.rates(images, 2 * speed)), speed[:, None])
    parts = whole.of_trials(np.arange(750)), whole.of_trials(np.arange(750, 900))
    fit = fit_twin(TwinNetwork(6, CoreShape((8,)), behaviour=1), *parts, epochs=12)
    gains = fit.model.gain.detach().numpy()[:, 0]
    assert np.corrcoef(gains, 2 * cortex.running)[0, 1] > 0.95
    with pytest.raises(UserError, match="made for behaviour"):
        fit.predict(images[:3])


def test_a_twin_of_videos_sees_the_past_alone():
    cortex = visual_cortex(6, size=SIZE, rate=3.0, complex_share=0.0)
    videos = noise_videos(60, 12, SIZE)
    rng = np.random.default_rng(0)
    whole = Recording.of(videos[:, None], rng.poisson(cortex.video_rates(videos)))
    parts = whole.of_trials(np.arange(48)), whole.of_trials(np.arange(48, 60))
    fit = fit_twin(TwinNetwork(6, CoreShape((8,), frames=3)), *parts, epochs=10, batch=8)
    assert fit.best > 0.5
    changed = videos[:2].copy()
    changed[:, 8:] += 3
    before, after = (fit.predict(v[:, None]) for v in (videos[:2], changed))
    assert np.allclose(before[:, :8], after[:, :8], atol=1e-5)
    assert not np.allclose(before[:, 8:], after[:, 8:], atol=1e-2)


def _checkpoint(path, *, neurons=5, channels=4, mlp=True):
    torch.manual_seed(0)
    first = {"conv.weight": torch.randn(channels, 1, 3, 3)}
    later = {
        "ds_conv.in_depth_conv.weight": torch.randn(channels, channels, 1, 1),
        "ds_conv.spatial_conv.weight": torch.randn(channels, 1, 5, 5),
        "ds_conv.out_depth_conv.weight": torch.randn(channels, channels, 1, 1),
    }
    norm = {"norm.running_mean": torch.randn(channels), "norm.running_var": torch.rand(channels) + 0.5}
    norm |= {"norm.weight": torch.rand(channels), "norm.bias": torch.randn(channels)}
    held = {f"core.features.layer{i}.{k}": v for i, part in enumerate((first, later)) for k, v in {**part, **norm}.items()}
    readout = {"_features": torch.randn(1, channels, 1, neurons), "bias": torch.randn(neurons)}
    if mlp:
        readout |= {
            "source_grid": torch.randn(neurons, 2),
            "mu_transform.0.weight": torch.randn(7, 2),
            "mu_transform.0.bias": torch.randn(7),
        }
        readout |= {"mu_transform.2.weight": torch.randn(2, 7), "mu_transform.2.bias": torch.randn(2)}
    else:
        readout["_mu"] = torch.rand(1, neurons, 1, 2) - 0.5
    held |= {f"readout.mouse.{k}": v for k, v in readout.items()}
    torch.save(held, path)
    return held


@pytest.mark.parametrize("mlp", [True, False])
def test_a_published_checkpoint_gives_the_rates_of_its_layers(tmp_path, mlp):
    w = _checkpoint(tmp_path / "m.pth", mlp=mlp)
    twin = open_sensorium(tmp_path / "m.pth")
    assert (twin.recordings, twin.layers) == (("mouse",), 2)
    image = torch.randn(2, 1, 9, 11)

    def layer(i, x):
        norm = torch.nn.BatchNorm2d(4).eval()
        norm.load_state_dict(
            {k: w[f"core.features.layer{i}.norm.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}, strict=False
        )
        return torch.nn.functional.elu(norm(x))

    with torch.no_grad():
        x = layer(0, torch.nn.functional.conv2d(image, w["core.features.layer0.conv.weight"]))
        p = "core.features.layer1.ds_conv."
        x = torch.nn.functional.conv2d(x, w[p + "in_depth_conv.weight"])
        x = torch.nn.functional.conv2d(x, w[p + "spatial_conv.weight"], padding=2, groups=4)
        x = layer(1, torch.nn.functional.conv2d(x, w[p + "out_depth_conv.weight"]))
        at = twin.positions()
        sampled = torch.nn.functional.grid_sample(x, at.view(1, 5, 1, 2).repeat(2, 1, 1, 1), align_corners=True)[..., 0]
        rates = torch.nn.functional.elu((sampled * w["readout.mouse._features"][0, :, 0]).sum(1) + w["readout.mouse.bias"]) + 1
    assert np.allclose(twin.predict(image), rates.numpy(), atol=1e-5)
    assert np.allclose(twin.features(image), x.numpy(), atol=1e-5)
    assert (twin.cortex() is None) != mlp
    with pytest.raises(UserError, match="no recording 'cat'"):
        twin.predict(image, "cat")


def test_files_that_are_no_checkpoint_are_refused_and_run_nothing(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"core": Harmful()}, tmp_path / "harmful.pth")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name, message in (
        ("harmful", "cannot be read as weights"),
        ("other", "has no readout|no checkpoint"),
        ("text", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            open_sensorium(tmp_path / f"{name}.pth")
    assert not (tmp_path / "written").exists()
    with pytest.raises(UserError, match="There is no checkpoint"):
        open_sensorium(tmp_path / "mouse.pth")


def test_mistakes_are_one_sentence():
    images, y = noise_images(20, SIZE), np.random.default_rng(0).poisson(2, (20, 3)).astype(float)
    for given, message in (
        ((images, y[:-1]), "20 stimuli and 19 trials of responses"),
        ((images, -y), "negative"),
        ((images, y * [1, 1, 0]), "1 neurons have the same response in all trials"),
        ((images, y[:, 0]), "do not fit"),
        ((np.where(np.arange(20)[:, None, None] == 3, np.nan, images), y), "stimuli are not all finite"),
    ):
        with pytest.raises(UserError, match=message):
            Recording.of(*given)
    held = Recording.of(images, y)
    with pytest.raises(UserError, match="at least two validation trials"):
        fit_twin(TwinNetwork(3), held, held.of_trials(np.arange(1)))
    with pytest.raises(UserError, match="odd sizes"):
        TwinNetwork(3, CoreShape(kernel=4))
    with pytest.raises(UserError, match="no parameter named"):
        fit_twin(LinearNonlinear(3, SIZE**2), held, held, only=("position",))
    with pytest.raises(UserError, match="Amounts of data"):
        transfer(TwinNetwork(2), held, held, images, y[None], trials=(50,))
