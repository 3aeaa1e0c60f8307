"""The brain study: whole in seconds on tiny networks, numbers by hand from the saved weights, the user's recording, mistakes."""

import numpy as np
import pytest

from repscope.align import compare_rdms, crossvalidated_rdm, rdm
from repscope.align.network_scores import halves
from repscope.cli import run as command
from repscope.conditions import (
    ESTIMATE,
    LOWER_CEILING,
    OTHER_FAMILY,
    PIXELS,
    RANDOM_RECORDING,
    UNTRAINED,
    UNTRAINED_RECORDING,
    over,
)
from repscope.results import select
from repscope.studies.brain import names
from repscope.studies.brain.given import GivenTask, as_digits, given_result
from repscope.studies.brain.options import BrainOptions
from repscope.studies.brain.task import TRUTHS, BrainTask, stacked
from repscope.studies.catalogue import study
from repscope.studies.run.runner import Run
from repscope.studies.run.study import Context
from repscope.worlds.brain import FAMILIES, Simulation, digits, initial, loss_of, simulate, simulate_unrelated
from repscope.worlds.brain.networks import Shape
from repscope.worlds.small_lm import Training, train_by


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("brain", tmp_path_factory.mktemp("runs"))


def test_every_recording_has_all_families_its_ceiling_and_its_controls(done):
    table = done.table
    for region in names.REGIONS:
        for truth in TRUTHS:
            rows = select(table, metric=names.SIMILARITY, split=region, step=names.RSA)
            rows = rows[[names.parts(item)[:2] == (names.RSA, truth) for item in rows["item"]]]
            assert {names.parts(item)[2] for item in rows["item"]} == {*FAMILIES, ""}
            assert (rows["unit"] == "recording").all()
        found = select(table, metric=names.FOUND, item="RSA, all families", split=region)
        assert dict(zip(found["condition"], found["n"])) == {ESTIMATE: 6, RANDOM_RECORDING: 2, UNTRAINED_RECORDING: 2}
        gains = select(table, metric=names.GAIN, item="RSA, contrastive", split=region)
        assert set(gains["condition"]) == {over(OTHER_FAMILY), over(UNTRAINED)}


def test_a_similarity_is_that_of_the_saved_weights_by_hand(done):
    """One recording simulated again, RDMs and the choice of a layer by a plain loop."""
    task = BrainTask(done.setup.options)
    states = task.states(done.results)
    values = []
    for recording in range(task.options.recordings):
        images = digits().stimuli[task.stimuli(recording)]
        layers = stacked({"supervised": task.candidates(states)["supervised"]}, images)
        recorded = task.recorded("contrastive", names.LATE, recording, states)
        one, other = halves(task.options.conditions, recording)
        for i in range(task.options.networks):
            for report, choose in ((one, other), (other, one)):
                scores = [
                    [
                        compare_rdms(rdm(x[i][at]), np.stack([crossvalidated_rdm(r[:, at]) for r in recorded]), "pearson").mean()
                        for at in (choose, report)
                    ]
                    for x in layers
                ]
                values.append(max(scores)[1])
    row = select(done.table, metric=names.SIMILARITY, item="RSA, contrastive: supervised", split=names.LATE)
    assert row["value"].iloc[0] == pytest.approx(np.mean(values), abs=1e-9)
    assert row["condition"].iloc[0] == OTHER_FAMILY


def test_generating_networks_are_not_among_those_compared():
    task = BrainTask(BrainOptions(tiny=True).sized())
    weights = task.initial("supervised")["layer.0.weight"].flatten(1).numpy()
    assert len(np.unique(weights, axis=0)) == task.options.networks + task.options.recordings
    assert len(task.candidates({"supervised": task.initial("supervised")})["supervised"]["head.bias"]) == task.options.networks


@pytest.mark.parametrize("family", names.TRAINED)
def test_training_lowers_the_loss_of_each_family(family):
    start = initial(Shape(16, 8), family, [0, 1])
    loss = loss_of(family, 32, 0)
    found = train_by(loss, start, Training(60, 1e-2, warm_up=5))
    assert (found.losses[-5:].mean(0) < found.losses[:5].mean(0)).all()
    assert found.losses[0].tolist() == pytest.approx(loss(start, 0).tolist())


def test_simulated_recordings_are_their_formula():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6))
    clean = simulate(features, Simulation(2, 2, 5, own=0, noise=0), rng)
    np.testing.assert_allclose(clean.std(2), 1)
    np.testing.assert_allclose(clean[:, 0], clean[:, 1])
    fit = np.linalg.lstsq(np.c_[features, np.ones(50)], clean[0, 0], rcond=None)
    np.testing.assert_allclose(fit[1], 0, atol=1e-18)
    noisy = simulate(features, Simulation(1, 2000, 1, own=0.5, noise=2.0), rng)[0, :, :, 0]
    assert noisy.std(0).mean() == pytest.approx(2, rel=0.05)
    shared = simulate_unrelated(30, 8, Simulation(3, 2, 60), rng)
    subjects = np.stack([crossvalidated_rdm(one) for one in shared])
    assert compare_rdms(subjects, subjects, "pearson")[np.triu_indices(3, 1)].min() > 0.2, "subjects agree"


def test_a_killed_run_goes_on(done, tmp_path, monkeypatch):
    found = study("brain")
    options = found.options(tiny=True, parts=("representation",), methods=("RSA",))  # further parts: test_brain_parts
    run = Run(found, options, out=tmp_path)

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(BrainTask, "compared", killed)
    with pytest.raises(KeyboardInterrupt):
        run.answer()
    monkeypatch.undo()
    again = Run(found, options, out=tmp_path)
    again.answer()
    assert names.RSA in again.results
    for name, result in ((name, done.results[name]) for name in again.results):
        np.testing.assert_array_equal(again.results[name].table["value"], result.table["value"])
        np.testing.assert_array_equal(again.results[name].table["lo"], result.table["lo"])


def test_the_page_and_the_plan(done, tmp_path, capsys):
    page = (done.folder / "report.html").read_text()
    for said in ("Would the comparison find the right family?", "random signals", "Noise ceilings", "Digits read out"):
        assert said in page
    assert command(["study", "brain", "--plan", "--short", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "train contrastive" in shown
    assert "encoding" in shown


@pytest.fixture
def recorded(tmp_path):
    """A recording whose images are digits, and activations of two families, one of which generated a region."""
    rng = np.random.default_rng(0)
    images = digits().stimuli[:40] + digits().mean
    shared = np.tanh(images @ rng.normal(size=(64, 20)))
    arrays = {f"s{s}/V1": (shared @ rng.normal(size=(20, 30)))[None] + rng.normal(size=(3, 40, 30)) for s in range(3)}
    np.savez(tmp_path / "data.npz", images=images.reshape(40, 8, 8), **arrays)
    (tmp_path / "data.tsv").write_text("condition\n" + "\n".join(f"digit {i}" for i in range(40)) + "\n")
    for i in range(3):
        np.savez(tmp_path / f"right-{i}.npz", last=shared + 0.2 * rng.normal(size=shared.shape))
        np.savez(tmp_path / f"untrained-{i}.npz", last=rng.normal(size=shared.shape))
    return tmp_path


def test_the_users_recording_with_networks_trained_here(recorded):
    found = study("brain")
    options = found.options(tiny=True, parts=("representation",), methods=("RSA",), recording=str(recorded / "data.npz"))
    run = Run(found, options, out=recorded / "runs")
    run.answer()
    rows = select(run.table, step=names.GIVEN, metric=names.SIMILARITY)
    known = {names.parts(item)[2] for item in rows["item"]}
    assert known == {*FAMILIES, PIXELS, ""}
    assert len(select(rows, condition=LOWER_CEILING, item="RSA, V1")) == 1
    assert set(select(run.table, step=names.GIVEN, metric=names.GAIN, item="RSA, V1: supervised")["condition"]) == {
        over(UNTRAINED),
        over(PIXELS),
        over(OTHER_FAMILY),
    }
    assert "Similarity of families to your recording" in (run.folder / "report.html").read_text()


def test_encoding_models_of_the_users_recording(done, recorded):
    """The step alone, on the networks of the finished run."""
    options = BrainOptions(tiny=True, methods=(names.ENCODING,), recording=str(recorded / "data.npz")).sized()
    found = given_result(GivenTask(BrainTask(options)), Context(done.results, recorded, recorded, recorded))
    rows = select(found.table, metric=names.SIMILARITY)
    assert {names.parts(item) for item in rows["item"]} == {(names.ENCODING, "V1", name) for name in (*FAMILIES, PIXELS)}
    assert set(select(found.table, metric=names.GAIN)["condition"]) == {over(UNTRAINED), over(PIXELS), over(OTHER_FAMILY)}


def test_the_users_activations(recorded):
    files = tuple(str(recorded / f"{family}-{i}.npz") for family in ("right", "untrained") for i in range(3))
    found = study("brain")
    options = found.options(
        tiny=True, methods=("RSA",), parts=("representation",), recording=str(recorded / "data.npz"), activations=files
    )
    run = Run(found, options, out=recorded / "runs")
    run.answer()
    row = select(run.table, step=names.GIVEN, metric=names.GAIN, item="RSA, V1: right", condition=over(UNTRAINED))
    assert row["lo"].iloc[0] > 0
    verdict = found.verdict(run.table)
    assert next(iter(verdict.parts)) == "V1"
    assert verdict.parts["V1"].reply in ("Yes", "Partly")


def test_images_become_inputs_of_the_networks():
    image = np.zeros((3, 20, 24, 3))
    image[1, :10] = 0.5
    found = as_digits(image) + digits().mean
    assert found.shape == (3, 64)
    assert found[1].reshape(8, 8)[0].mean() == pytest.approx(1)
    np.testing.assert_allclose(found[[0, 2]], 0, atol=1e-7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regions", "V1"], "--regions is of your recording"),
        (["--recording", "nowhere.npz"], "no recording nowhere.npz"),
        (["--methods", "RSA", "RSA"], "name each method once"),
        (["--conditions", "5"], "greater than or equal to 20"),
        (["--noise", "nan"], "noise"),
        (["--measure", "cka"], "measure"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, capsys):
    assert command(["study", "brain", "--tiny", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("brain-*")), "nothing is left behind"


def test_without_himalaya_rsa_remains_and_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("repscope.studies.brain.task.find_spec", lambda name: None)
    task = BrainTask(BrainOptions(tiny=True).sized())
    assert task.methods == (names.RSA,)
    assert "repscope[brain]" in task.notes[0]
    with pytest.raises(ValueError, match=r"repscope\[brain\]"):
        _ = BrainTask(BrainOptions(tiny=True, methods=("encoding",))).methods
