"""Opening and saving without the libraries: Gemma Scope, old settings, the hub's cache, and files that are damaged or hostile."""

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from repscope import manifest
from repscope.errors import UserError
from repscope.read import sae

D, L, ROWS = 6, 16, 20


def tensor(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 2 * tensor(ROWS, D, seed=9)


def made(activation=None, normalization=None, **how):
    weights = [tensor(D, L, seed=1), tensor(L, seed=2), tensor(L, D, seed=3), tensor(D, seed=4)]
    return sae.SparseAutoencoder(*weights, activation or sae.TopK(3), normalization, **how)


def same(a, b):
    for found, expected in ((a.encode(X).dense(), b.encode(X).dense()), (a.reconstruct(X), b.reconstruct(X))):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def npz(path, compressed=False, **more):
    one = made(sae.JumpReLU(tensor(L, seed=5).abs()))
    arrays = {name: t.numpy() for name, t in one.tensors().items()} | more
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return one


@pytest.mark.parametrize("compressed", [False, True])
def test_gemma_scope(tmp_path, compressed):
    folder = tmp_path / "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
    expected = npz(folder / "params.npz", compressed)
    opened = sae.open(tmp_path / "gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    same(opened, expected)
    assert (str(opened.site), opened.subtract_b_dec, opened.transcoder) == ("resid_post.20", False, False)
    same(sae.open(folder / "params.npz"), expected)
    assert str(sae.open(folder, site="mlp_out.3").site) == "mlp_out.3"


def test_what_gemma_scope_does_not_say_is_refused(tmp_path):
    npz(tmp_path / "embedding/params.npz")
    with pytest.raises(UserError, match="√d_model"):
        sae.open(tmp_path / "embedding")
    npz(tmp_path / "ones/params.npz", scaling_factor=np.ones(L, np.float32))
    sae.open(tmp_path / "ones")
    npz(tmp_path / "scaled/params.npz", scaling_factor=np.full(L, 2, np.float32))
    with pytest.raises(UserError, match="finetuning scaling factor"):
        sae.open(tmp_path / "scaled")
    npz(tmp_path / "more/params.npz", gain=np.ones(L, np.float32))
    with pytest.raises(UserError, match=r"holds 'gain', which this architecture does not have"):
        sae.open(tmp_path / "more")
    npz(tmp_path / "transcoders/params.npz")
    assert sae.open(tmp_path / "transcoders").transcoder


def test_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    """A snapshot as huggingface_hub lays it out: links to blobs, a ref to a commit; the hub itself is not asked."""
    from huggingface_hub import constants

    commit, inside = "1" * 40, "layer_3/width_1k"
    base = tmp_path / "models--google--gemma-scope-2b-pt-res"
    expected = npz(base / "blobs/one.npz")
    (base / "refs").mkdir()
    (base / "refs/main").write_text(commit)
    (base / "snapshots" / commit / inside).mkdir(parents=True)
    os.symlink("../../../../blobs/one.npz", base / "snapshots" / commit / inside / "params.npz")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    opened = sae.open("google/gemma-scope-2b-pt-res", inside)
    same(opened, expected)
    assert (str(opened.site), opened.source) == ("resid_post.3", f"google/gemma-scope-2b-pt-res/{inside}@{commit[:12]}")
    with pytest.raises(UserError, match="name one of its folders, such as 'layer_3/width_1k'"):
        sae.open("google/gemma-scope-2b-pt-res")
    with pytest.raises(UserError, match="not on this disk"):
        sae.open("google/gemma-scope-9b-pt-res", inside)


def test_settings_before_version_6(tmp_path):
    expected = sae.save(made(subtract_b_dec=True), tmp_path / "new")
    old = {"d_in": D, "d_sae": L, "hook_point": "blocks.2.hook_mlp_out", "activation_fn_str": "topk"}
    old["activation_fn_kwargs"] = {"k": 3}
    refused = [({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"), ({"normalize_activations": True}, "give scale=")]
    for i, (more, said) in enumerate([({}, None), *refused]):
        folder = tmp_path / f"old{i}"
        folder.mkdir()
        shutil.copy(expected / "sae_weights.safetensors", folder)
        (folder / "cfg.json").write_text(json.dumps(old | more))
        if said:
            with pytest.raises(UserError, match=said):
                sae.open(folder)
        else:
            opened = sae.open(folder)
            same(opened, made(subtract_b_dec=True))
            assert str(opened.site) == "mlp_out.2"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_widened(tmp_path, dtype):
    folder = edited(sae.save(made(), tmp_path / "one"))
    narrow = {name: t.to(dtype) for name, t in load_file(folder / "sae_weights.safetensors").items()}
    save_file(narrow, folder / "sae_weights.safetensors")
    opened = sae.open(folder, dtype="float64")
    assert opened.dtype == torch.float64
    assert torch.equal(opened.W_enc, narrow["W_enc"].double())
    assert sae.open(folder).dtype == torch.float32


def edited(folder):
    """As a folder of another program, or one that its user changed: without digests, which would tell first."""
    (folder / manifest.NAME).unlink()
    return folder


def break_weights(folder, change):
    held = load_file(folder / "sae_weights.safetensors")
    change(held)
    save_file(held, folder / "sae_weights.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("b_dec"), "has no tensor 'b_dec'"),
        (lambda t: t.update(W_dec=t["W_dec"].T.contiguous()), r"'W_dec' in .* is torch.float32 \(6, 16\)"),
        (lambda t: t.update(b_enc=t["b_enc"].int()), "is torch.int32"),
        (lambda t: t["W_enc"].fill_(float("nan")), "not finite"),
        (lambda t: t.update(log_gain=torch.ones(L)), "holds 'log_gain', which this architecture does not have"),
    ],
)
def test_damaged_weights_are_one_sentence(tmp_path, change, said):
    folder = edited(sae.save(made(), tmp_path / "one"))
    break_weights(folder, change)
    with pytest.raises(UserError, match=said):
        sae.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "k=0 for 16 latents"),
        ({"k": 2.5}, r"k=2\.5"),
        ({"d_sae": 17}, "says d_sae=17"),
        ({"apply_b_dec_to_input": "yes"}, "must be true or false"),
        ({"normalize_activations": "batch_norm"}, "no normalisation 'batch_norm'"),
        ({"architecture": "topkk"}, "did you mean 'topk'"),
        ({"activation_fn": "tanh-relu"}, "activation 'tanh-relu'"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, change, said):
    folder = edited(sae.save(made(), tmp_path / "one"))
    settings = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(settings | change))
    with pytest.raises(UserError, match=said):
        sae.open(folder)


def test_a_scale_without_its_normalisation_is_refused(tmp_path):
    folder = sae.save(made(), tmp_path / "one")
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.3}')
    with pytest.raises(UserError, match="they disagree"):
        sae.open(folder)


@pytest.mark.parametrize("kind", [{}, ["AutoEncoder"], 3, None])
def test_a_class_that_is_no_name_is_refused(tmp_path, kind):
    folder = pt(tmp_path / "a", {"W_enc": torch.zeros(2, 3)})
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind}}))
    with pytest.raises(UserError, match="class of dictionary_learning"):
        sae.open(folder)


class Boom:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def pt(folder, state):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    if isinstance(state, bytes):
        (folder / "ae.pt").write_bytes(state)
    else:
        torch.save(state, folder / "ae.pt")
    return folder


def compressed(state):
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(state, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"bias": Boom()}, "without running code"),
        (pickle.dumps(Boom()), "without running code"),
        ([torch.ones(3)], "something else than named tensors"),
        ({"bias": torch.ones(3).to_sparse()}, "no dense tensor"),
        ({"bias": torch.ones(1).expand(1 << 40)}, "no dense tensor with numbers of its own"),
        (compressed({"bias": torch.ones(3)}), "compressed entries"),
        (b"PK nothing", "without running code"),
        ({"bias": torch.ones(D)}, "has no tensor 'encoder.weight'"),
    ],
)
def test_no_pickle_runs(tmp_path, monkeypatch, state, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        sae.open(pt(tmp_path / "one", state))
    assert not (tmp_path / "exploded").exists()


def header(shape):
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return held.getvalue()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (header((1 << 40,)), "holds fewer numbers"),
        (header((2,)) + bytes(1 << 27), "a thousand times"),
        (b"\x93NUMPY\x09\x00", "unknown version"),
        (b"nothing", "cannot be read as arrays"),
    ],
)
def test_hostile_arrays_are_not_unpacked(tmp_path, raw, said):
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", raw)
    with pytest.raises(UserError, match=said):
        sae.open(tmp_path)


def test_arrays_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([Boom()], dtype=object))
    with pytest.raises(UserError, match="holds object"):
        sae.open(tmp_path)


def test_names_and_folders(tmp_path):
    with pytest.raises(UserError, match=r"leaves .*; name one inside"):
        sae.open(tmp_path, "../elsewhere")
    with pytest.raises(UserError, match="a hub id has the form"):
        sae.open(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no autoencoder: there is none of"):
        sae.open(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no file of weights"):
        sae.open(tmp_path / "notes.txt")
    sae.save(made(), tmp_path / "a")
    npz(tmp_path / "a/params.npz")
    with pytest.raises(UserError, match="saelens and gemma_scope"):
        sae.open(tmp_path / "a")
    sae.open(tmp_path / "a/params.npz")
    with pytest.raises(UserError, match="exists already"):
        sae.save(made(), tmp_path / "a")
    with pytest.raises(UserError, match="no threshold to be given"):
        sae.open(tmp_path / "a/params.npz", threshold=1.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/cfg.json").write_text("[1]")
    (tmp_path / "b/sae_weights.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UserError, match="holds a list"):
        sae.open(tmp_path / "b")
    (tmp_path / "b/cfg.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        sae.open(tmp_path / "b")


WHITE = torch.linalg.qr(tensor(D, D, seed=6)).Q @ torch.diag(torch.arange(1.0, D + 1))
ONES = {
    "jumprelu": made(sae.JumpReLU(tensor(L, seed=5).abs()), sae.Scale(0.3), rescale_by_decoder_norm=True),
    "batchtopk": made(sae.BatchTopK(3, 0.4), sae.LayerNorm(), rescale_by_decoder_norm=True, subtract_b_dec=True),
    "gated": replace(
        made(normalization=sae.Whitening(tensor(D, seed=7), WHITE, torch.linalg.inv(WHITE)), rescale_by_decoder_norm=True),
        activation=sae.Gated(tensor(L, seed=11), tensor(L, seed=12), tensor(L, seed=13)),
        b_enc=torch.zeros(L),
    ),
    "relu": made(sae.ReLU(), sae.Whitening(tensor(D, seed=7), WHITE, torch.linalg.inv(WHITE)), subtract_b_dec=True),
    "topk": made(sae.TopK(3), sae.ConstantNorm(), rescale_by_decoder_norm=True),
    "transcoder": made(sae.JumpReLU(tensor(L, seed=5).abs()), sae.Scale(0.3), transcoder=True, W_skip=tensor(D, D, seed=8)),
}


@pytest.mark.parametrize("name", ONES)
def test_written_and_opened_again(tmp_path, name):
    one = replace(ONES[name], site="resid_post.4", site_out="mlp_out.5" if ONES[name].transcoder else None)
    again = sae.open(sae.save(one, tmp_path / "one"))
    same(one, again)
    assert (again.site, again.site_out) == (one.site, one.site_out)
    assert json.loads((tmp_path / "one/cfg.json").read_text())["metadata"]["hook_name"] == "blocks.4.hook_resid_post"


def test_folding_changes_nothing_in_double_precision():
    for one in ONES.values():
        wide = one.to(dtype=torch.float64)
        if isinstance(wide.normalization, sae.Whitening):
            matrix = wide.normalization.matrix
            wide = replace(wide, normalization=replace(wide.normalization, inverse=torch.linalg.inv(matrix)))
        np.testing.assert_allclose(sae.fold(wide).encode(X).dense(), wide.encode(X).dense(), atol=1e-12)
        np.testing.assert_allclose(sae.fold(wide).reconstruct(X), wide.reconstruct(X), atol=1e-11)


@pytest.mark.parametrize(
    ("one", "format", "said"),
    [
        (made(sae.GroupMax(4)), "saelens", "SAELens has no GroupMax autoencoder"),
        (made(sae.TopK(3), transcoder=True), "saelens", "no TopK transcoder"),
        (made(W_skip=tensor(D, D, seed=8)), "saelens", "no TopK autoencoder with W_skip"),
        (made(sae.ReLU()), "sparsify", "cannot represent a ReLU activation"),
        (made(normalization=sae.LayerNorm()), "sparsify", "cannot represent a LayerNorm"),
        (made(), "npz", "no format that can be written 'npz'"),
    ],
)
def test_what_a_format_cannot_say_is_not_written(tmp_path, one, format, said):
    with pytest.raises(UserError, match=said):
        sae.save(one, tmp_path / "one", format)
    assert not (tmp_path / "one").exists()
