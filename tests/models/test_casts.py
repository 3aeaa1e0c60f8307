"""Casts: what a type cannot hold is refused and never stored; what the network itself gives is told apart."""

import warnings

import numpy as np
import pytest
import torch

from families import build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.engine.row_writer import cast
from repscope.models.language import LanguageModel
from repscope.models.network import Network

TEXTS = ["A map that shows", "Paris"]


def scaled(tokenizer, factor, dtype=torch.float32):
    """A network whose residual stream is so many times as large."""
    model = build("llama").to(dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(factor)
    return LanguageModel(model, tokenizer, "scaled")


@pytest.mark.parametrize("tokens", ["last", "all", "mean"])
@pytest.mark.parametrize("disk", [False, True])
def test_rows_beyond_float16_are_refused(tokenizer, tmp_path, tokens, disk):
    lm = scaled(tokenizer, 3e6)
    out = tmp_path / "rows" if disk else None
    with pytest.raises(UserError, match=r"resid_post.1: \d+ of \d+ values, up to .* beyond float16.*dtype='float32'"):
        lm.capture(TEXTS, "resid_post.1", tokens, dtype="float16", out=out)
    assert not disk or not out.exists()
    assert np.isfinite(lm.capture(TEXTS, "resid_post.1", tokens)["resid_post.1"]).all()


def test_rows_below_float16_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"2 of 2 rows, .* too small for float16"):
        scaled(tokenizer, 1e-9).capture(TEXTS, "embed", dtype="float16")


@pytest.mark.parametrize("factor", [1e-2, 1.0, 1e3])
def test_rows_that_fit_are_rounded(tokenizer, factor):
    lm = scaled(tokenizer, factor)
    whole, half = (lm.capture(TEXTS, "embed", "all", dtype=d)["embed"] for d in ("float32", "float16"))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_float64_rows_are_whole_on_disk_as_in_memory(tokenizer, tmp_path):
    lm = scaled(tokenizer, 1.0, torch.float64)
    held = [lm.capture(TEXTS, "resid_post.1", dtype="float64", out=out)["resid_post.1"] for out in (None, tmp_path / "rows")]
    assert held[1].dtype == np.float64
    np.testing.assert_array_equal(*held)
    assert (held[0] != held[0].astype(np.float32)).any()
    with pytest.raises(UserError, match=r"beyond float32.*dtype='float64'"):
        scaled(tokenizer, 1e42, torch.float64).capture(TEXTS, "embed")


def test_what_the_network_itself_gives_is_told_apart(tokenizer):
    lm = scaled(tokenizer, 1e4, torch.float32)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight[0] = torch.inf
    for dtype in ("float32", "float16"):
        with pytest.warns(UserWarning, match=r"network itself gives values at resid_post.0 that are not finite \(in float32\)"):
            acts = lm.capture(TEXTS, "resid_post.0", dtype=dtype)
        assert not np.isfinite(acts.numpy()).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.capture(TEXTS, "embed")


def test_edits_beyond_float16_are_refused(tokenizer):
    lm = scaled(tokenizer, 1.0, torch.float16)
    for edit in (
        Edit.add("resid_post.1", np.full(32, 1e5)),
        Edit.replace("resid_post.1", 7e4, tokens="last"),
        Edit.affine("resid_post.1", 1e7 * np.eye(32)),
    ):
        with pytest.raises(UserError, match=r"beyond float16 \(at most 65,504\); load the model"), lm.edit(edit):
            lm.capture(TEXTS, "resid_post.2")
    with lm.edit(Edit.add("resid_post.1", np.full(32, 10.0))):
        assert np.isfinite(lm.capture(TEXTS, "resid_post.2").numpy()).all()


def test_edits_beyond_float32_are_refused(tokenizer):
    lm = scaled(tokenizer, 1.0)
    with pytest.raises(UserError, match="exceeds float32"), lm.edit(Edit.add("resid_post.1", np.full(32, 1e300))):
        lm.capture(TEXTS, "resid_post.2")
    with lm.edit(Edit.clamp("resid_post.1", np.arange(32.0), low=0.5)):  # whose other bound is infinite
        lm.capture(TEXTS, "resid_post.1")


def test_vectors_to_unembed_fit_the_model(tokenizer):
    lm = scaled(tokenizer, 1.0, torch.float16)
    with pytest.raises(UserError, match=r"The vectors to unembed: 64 of 64 values.*beyond float16"):
        lm.unembed(np.full((2, 32), 1e5))
    rows = np.random.default_rng(0).normal(size=(2, 32))
    for given in (rows, torch.from_numpy(rows), rows.tolist(), rows.astype(np.float32)):
        assert np.isfinite(lm.unembed(given)).all()
    for given, says in ((np.ones((2, 5)), r"\(row, 32\)"), (np.ones(32), r"\(row, 32\)"), (None, "are None"), ([["a"]], "a list")):
        with pytest.raises(UserError, match=says):
            lm.unembed(given)


@pytest.mark.parametrize(
    ("values", "dtype", "says"),
    [
        (torch.tensor([[2**24 + 1]]), torch.float32, "whole numbers"),
        (torch.tensor([[1 + 1j]]), torch.float32, "complex"),
        (torch.tensor([[1e39]], dtype=torch.float64), torch.float32, "beyond float32"),
        (torch.tensor([[1e-60]], dtype=torch.float64), torch.float32, "too small for float32"),
        (torch.tensor([[1e5]], dtype=torch.bfloat16), torch.float16, "beyond float16"),
        (torch.tensor([[1.0], [1e-8]]), torch.float16, "1 of 2 rows"),
    ],
)
def test_a_cast_that_loses_is_refused(values, dtype, says):
    with pytest.raises(UserError, match=says):
        cast(values, dtype, "it", "do that")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (torch.tensor([[1.0, 1e-8]]), torch.float16),
        (torch.tensor([[torch.inf, torch.nan, 1.0]]), torch.float16),
        (torch.zeros(2, 3), torch.float16),
        (torch.zeros(0, 3), torch.float16),
        (torch.zeros(2, 0), torch.float16),
        (torch.tensor([[65504.0]]), torch.float16),
        (torch.tensor([[1e5]]), torch.bfloat16),
        (torch.tensor([[7, 2**24]]), torch.float32),
        (torch.tensor([[True]]), torch.float32),
        (torch.randn(3, 4, 5), torch.bfloat16),
        (torch.tensor([1.5, 2.5]), torch.float16),
    ],
)
def test_a_cast_that_only_rounds_is_torch_s(values, dtype):
    made = cast(values, dtype, "it", "do that")
    assert torch.equal(made.nan_to_num(7), values.to(dtype).nan_to_num(7))


def test_complex_outputs_are_refused():
    class Fourier(torch.nn.Module):
        def forward(self, x):
            return torch.fft.fft(x)

    net = Network(torch.nn.Sequential(torch.nn.Linear(3, 3), Fourier()))
    with pytest.raises(UserError, match="complex"):
        net.capture(torch.ones(2, 3), "module:1")
