"""Folders that the libraries wrote (`peers.py`), opened here, and ours opened by them: equal latents and reconstructions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.read import sae

PEERS = Path(__file__).parents[3] / ".peers"


@pytest.fixture(scope="module")
def written(processes, tmp_path_factory):
    """A folder per library. Tests change nothing in it."""
    assert (PEERS / "sae_lens").is_dir(), "the peers' packages are missing: make .peers/.done"
    folder = tmp_path_factory.mktemp("peers")
    writing = processes.file(str(Path(__file__).with_name("peers.py")), str(folder), path=(str(PEERS),))
    writing.communicate()
    assert writing.returncode == 0
    return folder


def cases(folder):
    return sorted(p.stem for p in folder.glob("*.npz"))


def close(found, expected, what):
    off = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert off < 1e-5, (what, off)


def compare(folder, name, opened):
    held = dict(np.load(folder / f"{name}.npz"))
    density = (held["acts"] > 0).mean()
    assert 0.02 < density < 0.95, (name, density)
    x = torch.from_numpy(held["x"])
    latents = opened.encode(x)
    close(latents.dense(), held["acts"], f"{name}: latents")
    assert ((latents.dense() > 0).numpy() == (held["acts"] > 0)).all(), name
    close(opened.reconstruct(x), held["recon"].reshape(len(x), -1), f"{name}: reconstructions")
    if "acts_ours" in held:
        close(held["acts_ours"], held["acts"], f"{name}: latents of ours, read by the library")
        close(held["recon_ours"], held["recon"], f"{name}: reconstructions of ours, read by the library")
    return held


def test_saelens(written, tmp_path):
    folder = written / "saelens"
    names = cases(folder)
    assert len(names) == 22
    for name in names:
        compare(folder, name, sae.open(folder / name))
        held = compare(folder, name, sae.open(folder / f"{name}-ours"))
        assert "acts_ours" in held
    opened = sae.open(folder / "batchtopk")
    assert (type(opened.activation), opened.activation.k) == (sae.BatchTopK, 4.0)
    assert opened.activation.threshold == pytest.approx(0.7)
    assert isinstance(sae.open(folder / "batchtopk_inference").activation, sae.JumpReLU)
    assert str(opened.site) == "resid_post.3"
    assert str(sae.open(folder / "heads").site) == str(sae.open(folder / "heads-ours").site) == "z.2"
    assert opened.metadata["model_name"] == "tiny"
    with pytest.raises(UserError, match=r"no architecture that can be read 'matching_pursuit'"):
        sae.open(folder / "refused_matching_pursuit")
    with pytest.raises(UserError, match=r"no architecture that can be read 'temporal'"):
        sae.open(folder / "refused_temporal")
    with pytest.raises(UserError, match=r"threshold 0\.0, which training never set"):
        sae.open(folder / "refused_untrained")
    assert sae.open(folder / "refused_untrained", threshold=0.3).activation.threshold == 0.3
    with pytest.raises(UserError, match=r"its scale is not there \(activation_scaler.json\)"):
        sae.open(folder / "refused_scale")
    assert sae.open(folder / "refused_scale", scale=0.13).normalization == sae.Scale(0.13)
    shutil.copytree(folder / "whitened", tmp_path / "whitened")
    (tmp_path / "whitened/activation_whitening.safetensors").unlink()
    with pytest.raises(UserError, match=r"activation_whitening\.safetensors is not there"):
        sae.open(tmp_path / "whitened")
    with pytest.raises(UserError, match="A scale was given"):
        sae.open(folder / "standard", scale=2.0)


def test_sparsify(written):
    folder = written / "sparsify"
    names = cases(folder)
    assert names == ["folded", "groupmax", "skip", "skip_transcoder", "topk", "transcoder"]
    for name in names:
        theirs = folder / name
        if theirs.is_dir():
            with pytest.raises(UserError, match=r"name one of its folders, such as 'layers.5"):
                sae.open(theirs)
            inside = next(theirs.iterdir()).name
            opened = sae.open(theirs, inside)
            compare(folder, name, opened)
            assert str(opened.site_out if opened.transcoder else opened.site) == {"layers.5": "resid_post.5"}.get(
                inside, "mlp_out.5"
            )
        held = compare(folder, name, sae.open(folder / f"{name}-ours"))
        assert "acts_ours" in held
    assert sae.open(folder / "groupmax/layers.5").activation == sae.GroupMax(4)


def test_dictionary_learning(written, tmp_path):
    folder = written / "dictionary_learning"
    names = cases(folder)
    assert len(names) == 9
    for name in names:
        if name == "untrained":
            continue
        path = folder / name / "checkpoints/ae_2000.pt" if name == "checkpoint" else folder / name
        compare(folder, name, sae.open(path))
    assert str(sae.open(folder / "standard").site) == "resid_post.4"
    with pytest.raises(UserError, match="threshold -1: training sets it after 1,000 steps only"):
        sae.open(folder / "refused_untrained")
    held = compare(folder, "untrained", sae.open(folder / "refused_untrained", threshold=0.0))
    assert (held["acts"] > 0).sum(1).mean() > 8  # for k = 4: what that library makes of such a file
    shutil.copy(folder / "topk/ae.pt", tmp_path)
    with pytest.raises(UserError, match="which names its class"):
        sae.open(tmp_path)
