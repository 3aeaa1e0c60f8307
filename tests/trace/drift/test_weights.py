"""Drift of weights: properties, a brute-force twin in float64, a reference in numpy, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from repscope.conditions import ESTIMATE, RANDOM, ROUNDING
from repscope.errors import UserError
from repscope.trace.drift import entrywise, spectra
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.weights import (
    ALL,
    COSINE,
    ENERGY,
    HIDDEN,
    NORM,
    RANK,
    RANK_SHARE,
    UNCHANGED16,
    UNCHANGED32,
    measured,
    weight_drift,
)

SHAPES = {
    "model.embed_tokens.weight": (70, 24),
    "model.layers.0.self_attn.q_proj.weight": (24, 24),
    "model.layers.0.mlp.up_proj.weight": (40, 24),
    "model.layers.1.self_attn.q_proj.weight": (24, 24),
    "model.layers.1.mlp.down_proj.weight": (24, 40),
    "model.layers.1.input_layernorm.weight": (24,),
}


def network(seed, scale=0.05):
    g = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=g) for name, shape in SHAPES.items()}


def changed(base, seed, scale):
    g = torch.Generator().manual_seed(seed)
    return {name: value + scale * torch.randn(value.shape, generator=g) for name, value in base.items()}


def value(result, metric, item=ALL, layer=None, condition=ESTIMATE):
    rows = result.select(metric=metric, item=item, condition=condition)
    rows = rows[rows["layer"].isna() if layer is None else rows["layer"] == layer]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def brute(base, tuned, names):
    """Every number from whole tensors in float64; rounding by torch."""
    x = torch.cat([base[n].double().ravel() for n in names])
    y = torch.cat([tuned[n].double().ravel() for n in names])
    x32, y32 = (torch.cat([t[n].float().ravel() for n in names]) for t in (base, tuned))
    low = [v.bfloat16() for v in (x32, y32)]
    same32 = (x32.view(torch.int32) == y32.view(torch.int32)).double().mean()
    same16 = (low[0].view(torch.int16) == low[1].view(torch.int16)).double().mean()
    numbers = {NORM: (y - x).norm() / x.norm(), COSINE: x @ y / (x.norm() * y.norm())}
    numbers |= {UNCHANGED32: same32, UNCHANGED16: same16, HIDDEN: same16 - same32}
    return {metric: float(v) for metric, v in numbers.items()}


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("dtypes", ["float32 float32", "bfloat16 bfloat16", "float32 bfloat16", "float64 float16"])
def test_numbers_equal_the_brute_force_twin(scale, dtypes):
    base = network(0)
    tuned = changed(base, 1, scale)
    base, tuned = ({n: v.to(getattr(torch, d)) for n, v in t.items()} for t, d in zip((base, tuned), dtypes.split()))
    result = weight_drift(base, tuned, spectra=False)
    groups = {(ALL, None): list(SHAPES), ("attention query", None): [n for n in SHAPES if "q_proj" in n]}
    groups |= {("attention query", 1): ["model.layers.1.self_attn.q_proj.weight"], ("norm", 1): [list(SHAPES)[-1]]}
    for (item, layer), names in groups.items():
        for metric, expected in brute(base, tuned, names).items():
            assert value(result, metric, item, layer) == pytest.approx(expected, rel=1e-6, abs=1e-6), (item, metric)


def test_sums_of_many_parts_are_those_of_float64(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300_000, generator=g) * 0.02
    step = 1e-5 * torch.sign(torch.randn(300_000, generator=g))  # the first step of Adam: all changes of equal size
    for y in (x + step, x + 1e-5 * torch.randn(300_000, generator=g), torch.full_like(x, 0.0123)):
        (found,) = measured(Pair.of({"w": x}, {"w": y}))
        d = y.double() - x.double()
        assert found.sums.change == pytest.approx(float(d @ d), rel=5e-7)
        assert found.sums.base == pytest.approx(float(x.double() @ x.double()), rel=5e-7)
        assert found.sums.tuned == pytest.approx(float(y.double() @ y.double()), rel=5e-7)


@settings(max_examples=25)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 2**31))
def test_parts_do_not_matter(entries, part, seed):
    g = np.random.default_rng(seed)
    x = g.standard_normal(entries).astype(np.float32)
    y = np.where(g.random(entries) < 0.5, x, x * np.float32(1 + 1e-3)).astype(np.float32)
    whole = entrywise.Audit(entries).sums(x, y)
    parts, audit = entrywise.Sums(), entrywise.Audit(part)
    for first in range(0, entries, part):
        parts += audit.sums(x[first : first + part], y[first : first + part])
    assert (parts.same32, parts.same16, parts.entries) == (whole.same32, whole.same16, whole.entries)
    assert parts.change == pytest.approx(whole.change, rel=1e-6)


def test_a_model_with_itself_is_zeros():
    base = network(0)
    result = weight_drift(base, {n: v.clone() for n, v in base.items()}, rounding=True)
    estimates = result.select(condition=ESTIMATE)
    for metric in (NORM, HIDDEN, RANK, RANK_SHARE, ENERGY):
        assert (estimates[estimates["metric"] == metric]["value"] == 0).all(), metric
    for metric in (COSINE, UNCHANGED32, UNCHANGED16):
        assert (estimates[estimates["metric"] == metric]["value"] == 1).all(), metric
    assert result.select(condition=RANDOM).empty, "nothing changed, so there is nothing to compare with a random change"


@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (30, 30)])
@pytest.mark.parametrize("rank", [1, 4, 30])
def test_the_effective_rank_of_a_rank_r_change_with_equal_singular_values_is_r(shape, rank):
    g = torch.Generator().manual_seed(rank)
    u, v = (torch.linalg.qr(torch.randn(n, rank, generator=g, dtype=torch.float64))[0] for n in shape)
    base = {"w": torch.zeros(shape, dtype=torch.float64)}
    result = weight_drift(base, {"w": 0.3 * u @ v.T})
    assert value(result, RANK) == pytest.approx(rank, rel=1e-4)
    assert value(result, RANK_SHARE) == pytest.approx(rank / 30, rel=1e-4)
    assert value(result, ENERGY) == pytest.approx(min(1.0, 10 / rank), rel=1e-4)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300)])
def test_spectra_are_those_of_numpy(shape):
    rng = np.random.default_rng(0)
    d = rng.standard_normal(shape) * np.geomspace(1, 1e-3, shape[1])
    parts = [d[i : i + 17] for i in range(0, shape[0], 17)]
    expected = np.linalg.svd(d, compute_uv=False)
    found = spectra.of_matrix(iter(parts), shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * expected[0])
    p = expected / expected.sum()
    assert spectra.effective_rank(found) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert spectra.top_energy(found, 3) == pytest.approx((expected[:3] ** 2).sum() / (expected**2).sum())
    b, a = rng.standard_normal((shape[0], 5)), rng.standard_normal((5, shape[1]))
    np.testing.assert_allclose(spectra.of_product(b, a), np.linalg.svd(b @ a, compute_uv=False), atol=1e-9)


def test_the_random_control_is_that_of_full_matrices():
    rng = np.random.default_rng(0)
    full = [spectra.effective_rank(np.linalg.svd(rng.standard_normal((90, 30)), compute_uv=False)) for _ in range(20)]
    drawn = [spectra.effective_rank(spectra.of_random((90, 30), seed)) for seed in range(20)]
    assert np.mean(drawn) == pytest.approx(np.mean(full), rel=0.01)
    largest = [spectra.of_random((90, 30), seed)[0] for seed in range(40)]
    assert np.mean(largest) == pytest.approx(np.sqrt(90) + np.sqrt(30), rel=0.05)


def test_a_dense_change_has_the_rank_of_a_random_one_and_a_thin_one_has_not():
    base = network(0)
    result = weight_drift(base, changed(base, 1, 1e-2))
    assert value(result, RANK_SHARE) == pytest.approx(value(result, RANK_SHARE, condition=RANDOM), abs=0.05)
    thin = dict(base)
    name = "model.layers.0.mlp.up_proj.weight"
    thin[name] = base[name] + torch.outer(torch.ones(40), torch.ones(24))
    result = weight_drift(base, thin)
    assert value(result, RANK_SHARE) < 0.1 < 0.5 < value(result, RANK_SHARE, condition=RANDOM)


def test_small_updates_are_hidden_by_bfloat16_and_visible_in_float32():
    base = network(0, 1.0)
    tuned = {n: v * (1 + 2**-12) for n, v in base.items()}
    result = weight_drift(base, tuned, spectra=False, rounding=True)
    assert value(result, UNCHANGED32) < 0.001
    assert value(result, HIDDEN) > 0.8
    x = torch.cat([v.ravel() for v in base.values()])
    expected = float((x.bfloat16().float() - x).norm() / x.norm())
    assert value(result, NORM, condition=ROUNDING) == pytest.approx(expected, rel=1e-5)
    assert value(result, NORM) < value(result, NORM, condition=ROUNDING)
    stored = weight_drift({n: v.bfloat16() for n, v in base.items()}, {n: v.bfloat16() for n, v in tuned.items()}, spectra=False)
    assert value(stored, UNCHANGED32) == value(stored, UNCHANGED16) == pytest.approx(value(result, UNCHANGED16))


def test_cosine_of_close_weights_is_exact():
    x = {"w": torch.full((1000,), 0.5)}
    y = {"w": x["w"] + 1e-4 * torch.sign(torch.arange(1000) % 2 - 0.5)}
    a, b = x["w"].double(), y["w"].double()
    expected = float(1 - (a @ b) / (a.norm() * b.norm()))
    assert 1 - value(weight_drift(x, y), COSINE) == pytest.approx(expected, rel=1e-3)


def test_the_cosine_of_scaled_weights_is_never_above_one():
    base = {f"layers.{i}.mlp.up_proj.weight": torch.randn(300, 700, generator=torch.Generator().manual_seed(i)) for i in range(2)}
    tuned = {name: w * 1.00001 for name, w in base.items()}
    x, y = (np.concatenate([w.numpy().ravel() for w in side.values()]).astype(np.float64) for side in (base, tuned))
    away = np.square(x / np.linalg.norm(x) - y / np.linalg.norm(y)).sum() / 2
    assert 1e-16 < away < 1e-15
    assert 1 - value(weight_drift(base, tuned, spectra=False), COSINE) == pytest.approx(away, abs=2e-16)
    assert value(weight_drift(base, tuned, spectra=False), COSINE) < 1


def test_intervals_are_over_tensors_and_need_two():
    base = network(0)
    table = weight_drift(base, changed(base, 1, 1e-3)).table
    pooled = table[(table["item"] == ALL) & (table["condition"] == ESTIMATE)]
    assert (pooled["lo"] <= pooled["value"]).all()
    assert (pooled["value"] <= pooled["hi"]).all()
    assert pooled[pooled["metric"] == NORM]["lo"].iloc[0] < pooled[pooled["metric"] == NORM]["value"].iloc[0]
    assert table[table["layer"].notna()]["lo"].isna().all()


def test_weights_that_are_not_finite_are_refused():
    base = network(0)
    for bad in (float("nan"), float("inf")):
        tuned = {n: v.clone() for n, v in base.items()}
        tuned["model.embed_tokens.weight"][3, 3] = bad
        with pytest.raises(UserError, match=r"embed_tokens.weight of the tuned checkpoint holds values that are not finite"):
            weight_drift(base, tuned)
    huge = {n: v * 1e25 for n, v in base.items()}
    assert value(weight_drift(huge, {n: 1.5 * v for n, v in huge.items()}, spectra=False), NORM) == pytest.approx(0.5)


def test_negative_zero_is_another_bit_pattern():
    (found,) = measured(Pair.of({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([-0.0, 1.0])}))
    assert (found.sums.same32, found.sums.same16, found.sums.change) == (1, 1, 0.0)


def test_a_tensor_that_is_zero_in_the_base_has_no_relative_norm():
    result = weight_drift({"w": torch.zeros(4), "v": torch.ones(4)}, {"w": torch.ones(4), "v": torch.ones(4)})
    assert value(result, NORM) == pytest.approx(1.0)
    assert any("zero in the base" in note for note in result.notes)


def test_it_continues_after_the_tensors_that_are_kept(tmp_path, monkeypatch):
    base = network(0)
    tuned = changed(base, 1, 1e-3)
    whole, kept = weight_drift(base, tuned), tmp_path / "kept.jsonl"
    for _ in zip(range(3), measured(Pair.of(base, tuned), spectra=True, kept=kept)):
        pass
    kept.write_text(kept.read_text() + '\n{"name": "model.layers.1.mlp.do')  # killed while writing
    read, ran = entrywise.Audit.sums, []
    monkeypatch.setattr(entrywise.Audit, "sums", lambda self, *a, **k: ran.append(k["name"]) or read(self, *a, **k))
    continued = weight_drift(base, tuned, kept=kept)
    assert set(ran) == set(list(SHAPES)[3:])
    assert continued.table.equals(whole.table)


def test_threads_do_not_matter(tmp_path):
    base = {f"layers.{i}.weight": torch.randn(50 + i, 64, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(40)}
    save_file(base, tmp_path / "a.safetensors")
    save_file({n: v + 0.01 for n, v in base.items()}, tmp_path / "b.safetensors")
    pair = Pair.open(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    one, many = ([(t.name, t.sums) for t in measured(pair, threads=n)] for n in (1, 4))
    assert one == many
    for _ in zip(range(3), measured(pair, threads=4)):  # left in the middle: files are closed after the threads are done
        pass
    assert [(t.name, t.sums) for t in measured(pair, threads=4)] == one


def test_files_are_read_as_tensors_are(tmp_path):
    base = network(0)
    tuned = changed(base, 1, 1e-4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = ({n: v.to(dtype) for n, v in t.items()} for t in (base, tuned))
        save_file(a, tmp_path / "a.safetensors")
        save_file(b, tmp_path / "b.safetensors")
        from_files = weight_drift(Pair.open(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
        both = from_files.table.sort_values("row_id"), weight_drift(a, b).table.sort_values("row_id")
        np.testing.assert_allclose(both[0]["value"], both[1]["value"], rtol=1e-6, atol=1e-9)
