"""Connectomes: files in the layout of the public packages, aligned by name, turned the right way, what was not measured kept
apart.
"""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from repscope.data.connectomes import celegans, microns
from repscope.data.connectomes.worm import KNOWN, SignalPropagation
from repscope.errors import UserError

CELLS = ["AFDL", "AFDR", "AIYL", "AIYR", "ASEL", "AWCL", "AWCR", "RIAL", "AVAL", "AVAR", "RIML", "RIMR"]


@pytest.fixture
def files(tmp_path):
    """A folder as cect's cache, and an atlas as wormneuroatlas'; synapses of known pairs run forwards."""
    import h5py

    rng = np.random.default_rng(0)
    n = len(CELLS)
    order = rng.permutation(n)
    chemical = rng.poisson(0.5, (n, n)).astype(float)
    for a, b in KNOWN:
        if a in CELLS and b in CELLS:
            chemical[CELLS.index(a), CELLS.index(b)], chemical[CELLS.index(b), CELLS.index(a)] = 9, 1
    np.fill_diagonal(chemical, 0)
    gap = np.minimum(chemical, chemical.T) > 0
    chemical[0, 0] = 2  # a cell with itself
    contact = rng.gamma(1, 1, (n, n)) * (rng.random((n, n)) < 0.8)
    contact = contact + contact.T
    for name, kinds in (
        ("WitvlietDataReader8", {"Generic_CS": chemical, "Generic_GJ": gap.astype(float)}),
        ("Yim2024ContactomeNonNormDataReader", {"Contact": contact}),
    ):
        held = {"nodes": [CELLS[i] for i in order], "connections": {k: m[np.ix_(order, order)].tolist() for k, m in kinds.items()}}
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    names = ["AWCOF" if c == "AWCL" else "AWCON" if c == "AWCR" else c for c in CELLS]
    effect = rng.normal(0, 1, (n, n))  # [responding, stimulated]
    q = rng.random((n, n))
    q[:, 3] = np.nan  # AIYR was never stimulated
    with h5py.File(tmp_path / "funatlas.h5", "w") as out:
        out["neuron_ids"] = np.array([name.encode() for name in names])
        group = out.create_group("wt")
        group["dFF"], group["q"], group["occ1"] = effect, q, np.full((n, n), 5.0)
        every = group.create_dataset("dFF_all", (n, n), dtype=h5py.vlen_dtype(np.float64))
        for i in range(n):
            for j in range(n):
                every[i, j] = effect[i, j] + np.arange(5.0)
    return tmp_path, chemical, contact, effect, q


def test_everything_is_aligned_by_name_and_turned_to_pre_post(files):
    folder, chemical, contact, effect, q = files
    worm = celegans(cect=folder, atlas=folder / "funatlas.h5")
    i, j = CELLS.index("AWCL"), CELLS.index("AIYL")
    assert worm.synapses.at["AWCL", "AIYL"] == chemical[i, j] == 9
    assert worm.synapses.at["AFDL", "AFDL"] == 0
    assert worm.contact.at["AVAL", "RIAL"] == pytest.approx(contact[CELLS.index("AVAL"), CELLS.index("RIAL")])
    signals = worm.signals
    assert signals.effect.at["AWCL", "AIYL"] == effect[j, i], "[stimulated, responding]"
    assert signals.q.loc["AIYR"].isna().all()
    assert np.isnan(signals.effect.at["AVAL", "AVAL"])
    functional = signals.functional()
    assert functional.at["AFDL", "AVAR"] == float(q[CELLS.index("AVAR"), 0] < 0.05)
    assert functional.loc["AIYR"].isna().all(), "what was not measured is no absence of a signal"
    even, odd = signals.halves
    assert (even.at["AFDL", "AVAR"], odd.at["AFDL", "AVAR"]) == pytest.approx((effect[9, 0] + 2, effect[9, 0] + 2))
    assert any("1 connections of a cell with itself" in note for note in worm.notes)
    assert any("The atlas measured 121 of 132" in note for note in worm.notes)


def test_nothing_is_imported_from_the_packages(files):
    folder, *_ = files
    celegans(cect=folder, atlas=folder / "funatlas.h5")
    assert not {"cect", "wormneuroatlas"} & set(sys.modules)


def test_swapped_axes_are_refused(files):
    folder, *_ = files
    path = folder / "WitvlietDataReader8.json"
    held = json.loads(path.read_text())
    held["connections"] = {k: np.array(m).T.tolist() for k, m in held["connections"].items()}
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match="axes are swapped"):
        celegans(cect=folder, atlas=folder / "funatlas.h5")


def test_an_atlas_that_is_transposed_against_its_copy_is_refused(files):
    folder, _, _, effect, _ = files
    held = {"nodes": CELLS, "connections": {"Functional": effect.tolist()}}  # right would be its transpose
    (folder / "WormNeuroAtlasFuncReader.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="transpose its matrices"):
        celegans(cect=folder, atlas=folder / "funatlas.h5")
    held["connections"]["Functional"] = effect.T.tolist()
    (folder / "WormNeuroAtlasFuncReader.json").write_text(json.dumps(held))
    celegans(cect=folder, atlas=folder / "funatlas.h5")


def test_files_that_are_missing_or_damaged_are_one_sentence(files, monkeypatch):
    folder, *_ = files
    with pytest.raises(UserError, match="There is no connectome 'witvliet9'"):
        celegans("witvliet9", cect=folder)
    with pytest.raises(UserError, match=r"There is no connectome .*Cook2019"):
        celegans("cook", cect=folder, atlas=folder / "funatlas.h5")
    with pytest.raises(UserError, match="no atlas"):
        celegans(cect=folder, atlas=folder / "funatlas2.h5")
    with pytest.raises(UserError, match="no strain 'unc31'"):
        celegans(cect=folder, atlas=folder / "funatlas.h5", strain="unc31")
    (folder / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a signal propagation atlas"):
        celegans(cect=folder, atlas=folder / "broken.h5")
    (folder / "WitvlietDataReader8.json").write_text('{"nodes": ["A"], "connections": {"Generic_CS": [[0, 1]]}}')
    with pytest.raises(UserError, match="shape"):
        celegans(cect=folder, atlas=folder / "funatlas.h5")
    monkeypatch.setattr("repscope.data.connectomes.worm.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package cect, .* is not installed; install the extra repscope\[worm\]"):
        celegans()


def test_profiles_leave_out_the_two_cells_themselves():
    rng = np.random.default_rng(1)
    names = [f"c{i}" for i in range(30)]
    effect = rng.standard_normal((30, 30))
    effect[rng.random((30, 30)) < 0.15] = np.nan
    frame = pd.DataFrame(effect, index=names, columns=names)
    found = SignalPropagation(frame, frame, frame, (frame, frame), "wt").profile_similarity(least=20)
    for i, j in ((0, 1), (5, 20), (29, 3)):
        both = np.isfinite(effect[:, i]) & np.isfinite(effect[:, j])
        both[[i, j]] = False
        expected = spearmanr(effect[both, i], effect[both, j])[0] if both.sum() >= 20 else np.nan
        assert [found.iat[i, j], found.iat[j, i]] == pytest.approx([expected, expected], nan_ok=True)
    assert np.isnan(np.diag(found)).all()
    assert 0 < found.notna().to_numpy().mean() < 1


def test_tables_of_microns(tmp_path):
    pd.DataFrame(
        {"pre": [864691135000000001] * 3 + [2], "post": [2, 3, 4, 3], "n_synapses": [2, 0, 1, 1], "dend_len": [10.5, 3, None, 8]}
    ).to_csv(tmp_path / "edges.csv", index=False)
    nodes = pd.DataFrame(
        {"nucleus_id": [2, 3, 864691135000000001, 9], "r1": [1, 2, 3, 4.0], "r2": [2, 1, 3, 4], "r3": [0, 1, 5, 6]}
    )
    nodes.to_csv(tmp_path / "nodes.csv", index=False)
    found = microns(tmp_path / "edges.csv", tmp_path / "nodes.csv")
    assert found.synapses.at["864691135000000001", "2"] == 2
    assert (found.exposure.at["864691135000000001", "2"], found.exposure.at["864691135000000001", "4"]) == (10.5, 0)
    assert list(found.synapses.index) == ["2", "864691135000000001"], "an axon that was not traced has no row"
    assert found.notes[1] == "1 connected pairs have an exposure of 0."
    s = found.signal_correlation(["r1", "r2", "r3"])
    assert s.at["2", "3"] == pytest.approx(np.corrcoef([1, 2, 0], [2, 1, 1])[0, 1])
    with pytest.raises(UserError, match="no property 'r4'"):
        found.signal_correlation(["r1", "r2", "r4"])
    with pytest.raises(UserError, match="more than once"):
        microns(tmp_path / "edges.csv", pd.concat([nodes, nodes]))
    with pytest.raises(UserError, match="no column of the table of edges 'dend_len'"):
        microns(pd.DataFrame({"pre": [1], "post": [2], "n_synapses": [1]}), nodes)
