"""Recordings from files: what is read, what is counted as missing, and what is refused in one sentence."""

import datetime

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.io import savemat

from repscope.data.recordings import Recording, from_trials, human_sc_fc, images92, recording
from repscope.data.recordings.images92 import BRAINS, STIMULI
from repscope.errors import UserError

NAMES = ("img1", "img10", "img2", "img3")


def responses(repeats=2, conditions=4, channels=5, seed=0):
    return np.random.default_rng(seed).normal(size=(repeats, conditions, channels))


def write_table(path, rows):
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n")


def test_trials_become_repeats_and_what_is_left_out_is_counted():
    x = responses(1, 11, 4)[0]
    x[3, 1] = np.nan
    x[:, 2] = 7
    labels = ["b", "a", "c", "a", "b", "c", "", "a", "d", "c", "b"]
    found = from_trials({"s1": labels, "s2": labels[:8] + ["a"] * 3}, {("s1", "V1"): x, ("s2", "V1"): responses(1, 11, 3, 1)[0]})
    assert found.conditions == ("b", "a", "c"), "in the order in which they first occur"
    one = found.responses["V1"]["s1"]
    assert one.shape == (3, 3, 2)
    np.testing.assert_array_equal(one[:, 0], x[[0, 4, 10]][:, [0, 3]])
    np.testing.assert_array_equal(one[1, 2], x[5, [0, 3]])
    said = " ".join(found.notes)
    for part in (
        "1 conditions that some subject never saw",
        "1 of 11 trials of s1 have no condition",
        "1 of 4 channels of s1, V1 have missing",
        "1 of 4 channels of s1, V1 never vary",
        "beyond 2 per condition",
    ):
        assert part in said, (part, said)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_arrays_with_a_table(tmp_path, ending):
    arrays = {"s1/V1": responses(), "s1/IT": responses(2, 4, 3, 1), "s2/V1": responses(3, 4, 2, 2), "images": np.ones((4, 6, 6))}
    file = tmp_path / f"data{ending}"
    np.savez(file, **arrays) if ending == ".npz" else save_file(arrays, file)
    write_table(tmp_path / "data.tsv", [("condition", "text"), *((n, f"a picture of {n}") for n in NAMES)])
    found = recording(file)
    assert found.conditions == NAMES, "in the order of the table, not sorted as text"
    assert set(found.regions) == {"V1", "IT"}
    np.testing.assert_array_equal(found.responses["V1"]["s2"], arrays["s2/V1"])
    assert found.images.shape == (4, 6, 6, 1)
    assert found.texts[1] == "a picture of img10"


def test_a_folder_of_trials(tmp_path):
    x = responses(1, 8, 3)[0]
    (tmp_path / "stimuli").mkdir()
    for i, name in enumerate(NAMES):
        np.save(tmp_path / "stimuli" / f"{name}.npy", np.full((2, 2, 3), i))
    write_table(tmp_path / "conditions.tsv", [("trial_type", "stim_file"), *((n, f"stimuli/{n}.npy") for n in NAMES * 2)])
    np.save(tmp_path / "sub-01_roi-V1_responses.npy", x)
    write_table(tmp_path / "sub-02_roi-V1.tsv", [("a", "b"), *((f"{v[0]:.6f}", f"{v[1]:.6f}") for v in x)])
    found = recording(tmp_path)
    np.testing.assert_array_equal(found.responses["V1"]["01"], x.reshape(2, 4, 3))
    np.testing.assert_allclose(found.responses["V1"]["02"], x.reshape(2, 4, 3)[..., :2], atol=1e-6)
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    write_table(tmp_path / "conditions.tsv", [("trial_type", "stim_file"), *((n, "../secret.npy") for n in NAMES * 2)])
    np.save(tmp_path.parent / "secret.npy", np.ones((2, 2)))
    with pytest.raises(UserError, match="not below"):
        recording(tmp_path)


def test_rates_of_units_in_trials_of_an_nwb_file(tmp_path):
    import pynwb

    held = pynwb.NWBFile("a session", "id", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    held.add_trial_column("stimulus_name", "what was shown")
    for i in range(9):
        held.add_trial(start_time=float(i), stop_time=i + 0.5, stimulus_name="abc"[i % 3])
    held.add_unit_column("location", "region")
    spikes = {"VISp": [0.1, 0.2, 0.6, 3.1, 4.4, 7.2], "VISl": [1.1, 2.2, 5.3], "": [0.1]}
    for region, times in spikes.items():
        held.add_unit(spike_times=times, location=region)
    with pynwb.NWBHDF5IO(str(tmp_path / "session.nwb"), "w") as io:
        io.write(held)
    found = recording(tmp_path / "session.nwb")
    assert found.conditions == ("a", "b", "c")
    rates = found.responses["VISp"]["session"][..., 0]
    expected = [sum(i <= t < i + 0.5 for t in spikes["VISp"]) / 0.5 for i in range(9)]
    np.testing.assert_allclose(rates.ravel(), expected)
    assert "1 of 3 units have no region and were left out." in found.notes
    with pytest.raises(UserError, match="no column of conditions 'orientation'"):
        recording(tmp_path / "session.nwb", condition="orientation")
    (tmp_path / "broken.nwb").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="cannot be read as NWB"):
        recording(tmp_path / "broken.nwb")


def write_images92(folder, count=92):
    rng = np.random.default_rng(0)
    kinds = [("category", "O"), *((k, "O") for k in ("human", "face", "animal", "natural")), ("image", "O")]
    stimuli = np.zeros((1, count), kinds)
    for i in range(count):
        stimuli[0, i] = (f"kind {i % 3}", 1, 0, 1, 1, rng.integers(0, 255, (4, 4, 3)).astype(np.uint8))
    pairs = count * (count - 1) // 2
    published = np.zeros((1, 2), [("name", "O"), ("color", "O"), ("RDM", "O")])
    for i, name in enumerate(("mIT_674neurons", "hITvisStim_316vx")):
        published[0, i] = (name, [1, 0, 0], rng.random((1, pairs)))
    savemat(folder / STIMULI, {"stimuli_92objs": stimuli, "RDMs_mIT_hIT_fig1": published})
    brains = np.zeros((1, 4, 2), [("name", "O"), ("RDM", "O")])
    for s in range(4):
        for session in range(2):
            rdm = rng.random((count, count))
            rdm = (rdm + rdm.T) * (1 - np.eye(count))
            brains[0, s, session] = (f"hIT | {s} | {session}", rdm)
    savemat(folder / BRAINS, {"RDMs": brains})
    return published, brains


def test_the_92_images(tmp_path):
    published, brains = write_images92(tmp_path)
    found = recording(tmp_path)
    assert (len(found.conditions), found.images.shape) == (92, (92, 4, 4, 3))
    assert found.rdms["human IT"].shape == (4, 92, 92)
    np.testing.assert_allclose(found.rdms["human IT"][2], (brains[0, 2, 0]["RDM"] + brains[0, 2, 1]["RDM"]) / 2)
    np.testing.assert_allclose(found.rdms["monkey IT"][0][np.triu_indices(92, 1)], published[0, 0]["RDM"][0])
    (tmp_path / BRAINS).unlink()
    assert "without a noise ceiling" in " ".join(images92(tmp_path).notes)
    write_images92(tmp_path, 20)
    with pytest.raises(UserError, match="20 images in place of 92"):
        images92(tmp_path)
    (tmp_path / STIMULI).write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        images92(tmp_path)


def test_human_connectivity(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("1", "2", "3"):
        for kind in ("structural", "functional"):
            (tmp_path / "subjects" / name / kind).mkdir(parents=True)
        sc = rng.random((5, 5))
        savemat(tmp_path / f"subjects/{name}/structural/DTI_CM.mat", {"sc": sc + sc.T})
        savemat(tmp_path / f"subjects/{name}/structural/DTI_LEN.mat", {"len": sc + sc.T})
        if name != "2":
            savemat(tmp_path / f"subjects/{name}/functional/TC_rest.mat", {"tc": rng.normal(size=(5, 40))})
    found = human_sc_fc(tmp_path)
    assert found.subjects == ("1", "3")
    assert found.notes == ("Subject 2 lacks a file and was left out.",)
    np.testing.assert_allclose(np.diagonal(found.functional, axis1=1, axis2=2), 1)
    savemat(tmp_path / "subjects/3/structural/DTI_CM.mat", {"sc": np.triu(np.ones((5, 5)))})
    with pytest.raises(UserError, match="sc of subject 3 is not symmetric"):
        human_sc_fc(tmp_path)


def test_conditions_are_matched_by_name_and_never_by_place():
    x = responses()
    held = Recording(NAMES, {"V1": {"s": x}})
    found, places, notes = held.matched(["img3", "img2", "other", "img1"])
    assert found.conditions == ("img1", "img2", "img3")
    assert places == [3, 1, 0]
    np.testing.assert_array_equal(found.responses["V1"]["s"], x[:, [0, 2, 3]])
    assert [n.split(" have")[0] for n in notes] == ["1 conditions of the recording", "1 conditions of the network"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Recording(("a",), {"V1": {"s": responses(2, 1)}}), "has 1 condition; at least 3"),
        (lambda: Recording(("a", "b", "a"), {"V1": {"s": responses(2, 3)}}), "'a' occurs twice"),
        (lambda: Recording(NAMES), "no region"),
        (lambda: Recording(NAMES, {"V1": {"s": responses(2, 3)}}), r"shape \(2, 3, 5\)"),
        (lambda: Recording(NAMES, {"V1": {"s": np.full((2, 4, 5), np.nan)}}), "40 responses of s, V1 are not finite"),
        (lambda: Recording(NAMES, {"V1": {"s": np.ones((2, 4, 5))}}), "the same for every condition"),
        (lambda: Recording(NAMES, rdms={"IT": np.triu(np.ones((1, 4, 4)), 1)}), r"RDM 1 of IT is not symmetric: \(0, 1\) is 1"),
        (lambda: Recording(NAMES, rdms={"IT": np.ones((1, 4, 4))}), "diagonal other than 0"),
        (lambda: Recording(NAMES, {"V1": {"s": responses()}}).matched(["x", "y"]), "0 of the recording's 4 conditions"),
        (lambda: Recording(NAMES, {"V1": {"s": responses()}}).matched(["img1", "img1"]), "'img1' occurs twice among the network's"),
        (lambda: Recording(NAMES, {"V1": {"s": responses()}}).select(["img4"]), "no condition 'img4'"),
        (lambda: from_trials(["a", "b", "c"], {("s", "V1"): np.full((3, 2), np.nan)}), "No channel of s, V1 can be used"),
        (lambda: from_trials(["a", "b"], {("s", "V1"): np.ones((3, 2))}), "3 trials, and its table of conditions 2"),
        (lambda: from_trials([], {}), "no responses"),
        (lambda: recording("nowhere.nwb"), "no recording nowhere.nwb"),
        (lambda: recording(__file__), "is no recording"),
        (lambda: human_sc_fc("nowhere"), "has no subjects"),
        (lambda: images92("nowhere"), "give the folder of the 92-image set"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()


def test_arrays_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "data.npz", V1=responses())
    with pytest.raises(UserError, match="no table of conditions beside it"):
        recording(tmp_path / "data.npz")
    write_table(tmp_path / "data.tsv", [("condition", "text"), ("a", "x"), ("b", "y"), ("c", "z")])
    with pytest.raises(UserError, match=r"'V1' .* has shape \(2, 4, 5\) for 3 conditions"):
        recording(tmp_path / "data.npz")
    write_table(tmp_path / "data.tsv", [("name", "text"), ("a", "x"), ("b", "y"), ("c", "z")])
    with pytest.raises(UserError, match="no column condition or trial_type"):
        recording(tmp_path / "data.npz")
    np.savez(tmp_path / "data.npz", V1=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="cannot be read as arrays"):
        recording(tmp_path / "data.npz", condition="name")
