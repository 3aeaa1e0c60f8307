"""Planted networks and their benchmark: nothing leaks, controls stand where they must, methods come apart as in the pilot."""

import numpy as np
import pytest
import torch

from repscope.bench.discovery import SCALES, SOUGHT, dct_synthetic, planted_mlp, violations
from repscope.bench.methods import BENCH_METHODS, BENCH_METRICS
from repscope.discovery import SOLVERS, FunctionSubject, SolverOptions, discover, magnitude, metrics, solvers
from repscope.discovery.generators.comparison import IMAGE_METRICS
from repscope.errors import UserError
from repscope.results import Result, Row
from repscope.worlds.planted.functions import FUNCTION_KINDS, drawn_from, exp_mlp, planted, seed_for


@pytest.fixture(scope="module")
def table():
    """Exponential features, two seeds, the rows that are quick."""
    quick = [m for m in BENCH_METHODS if m.name in ("random", "oracle", "DCT, 10 iterations", "L2 + soft-orthogonal", "Jacobian")]
    return planted_mlp(["exp"], 2, methods=quick)


def _value(result, item, metric):
    return float(result.select(item=item, metric=metric)["value"].iloc[0])


def test_the_function_is_the_formula_in_float64():
    for kind in FUNCTION_KINDS:
        net, rng = planted(kind, 1), np.random.default_rng(0)
        h = rng.normal(size=net.truth.shape[1])
        a = net.truth.double().numpy() @ h
        act = {"exp": np.expm1(a), "relu": np.maximum(a - 1, 0), "linear": a}[kind]
        expected = h + net.background.double().numpy() @ h + net.out.double().numpy().T @ (net.gains.double().numpy() * act)
        found = net(torch.from_numpy(h).float()[None])[0]
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert np.allclose(net.truth.norm(dim=1), 1, atol=1e-5)


def test_random_directions_recover_what_independent_ones_do():
    """The random row's match with the truth, over networks, against vectors from another library's generator."""
    ours, theirs = [], []
    for seed in range(40):
        net = planted("exp", seed)
        found = discover(FunctionSubject(net), net.states(), solver="random", n=SOUGHT, scale=1.0, seed=seed_for("random", seed, 0))
        other = np.random.default_rng(10_000 + seed).normal(size=(SOUGHT, net.truth.shape[1]))
        ours.append(metrics.recovery(found.vectors, net.truth.numpy()).mmcs)
        theirs.append(metrics.recovery(other, net.truth.numpy()).mmcs)
    assert max(ours) < 0.5
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * np.std(theirs) / np.sqrt(len(theirs))


def test_no_generator_draws_what_another_drew():
    """The same seed given to network, states and methods: no two of the vectors drawn are alike."""
    net = planted("exp", 0)
    drawn = [net.truth, net.out, net.background, net.states(), net.states(16, "held out")]
    for method in BENCH_METHODS:
        seed = seed_for(method.name, 0, 0)
        drawn.append(torch.randn(SOUGHT, 64, generator=torch.Generator().manual_seed(seed)))
    drawn.append(torch.randn(SOUGHT, 64, generator=torch.Generator().manual_seed(0)))
    unit = metrics.unit(torch.cat(drawn).numpy())
    cos = np.abs(unit @ unit.T) - np.eye(len(unit))
    assert cos.max() < 0.7
    assert drawn_from("a", 1).initial_seed() != drawn_from("a", 11).initial_seed()


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s != "weights"])
def test_a_method_sees_the_function_and_nothing_else(solver):
    """Behind a plain function, with nothing planted to be read off it, every method finds the same."""
    net = planted("exp", 2)
    found = [discover(FunctionSubject(f), net.states(), "l2", solver, 4, scale=3.0, steps=3) for f in (net, lambda h: net(h))]
    assert np.array_equal(found[0].vectors, found[1].vectors)


def test_controls_stand_where_they_must(table):
    of_images = {name for name, says in IMAGE_METRICS.items() if BENCH_METRICS[name] == says}
    assert violations(table) == []
    assert _value(table, "random", "recovered") == 0
    assert _value(table, "oracle", "recovered") == 1
    assert _value(table, "oracle", "false") == 0
    assert set(table.table["metric"]) == set(BENCH_METRICS) - {"kl", "elicits", "gain", "best gain"} - of_images
    assert set(table.table["unit"]) == {"seed"}


def test_methods_come_apart_as_in_the_pilot(table):
    assert _value(table, "L2 + soft-orthogonal", "recovered") > 0.9
    assert _value(table, "DCT, 10 iterations", "mmcs") > 0.8
    assert _value(table, "Jacobian", "recovered") == 0
    assert _value(table, "Jacobian", "mmcs") > _value(table, "random", "mmcs") + 0.1
    assert _value(table, "L2 + soft-orthogonal", "overlap") < 0.1


def test_contrastive_alone_is_met_by_the_skip_path():
    """In a residual network it finds nothing; with a term for size, most of what is planted."""
    rows = [m for m in BENCH_METHODS if m.name in ("contrastive", "L2 + contrastive")]
    found = planted_mlp(["exp"], 1, methods=rows)
    assert _value(found, "contrastive", "recovered") < 0.2
    assert _value(found, "L2 + contrastive", "recovered") > 0.8


def test_a_broken_benchmark_is_told():
    rows = [
        Row(metric="recovered", condition="random direction", value=0.5, model="planted exp"),
        Row(metric="recovered", condition="oracle", value=0.9, model="planted exp"),
        Row(metric="recovered", condition="estimate", value=0.1),
    ]
    said = violations(Result.of(rows))
    assert len(said) == 2
    assert "leaks" in said[0]


def test_every_kind_has_a_scale_and_every_solver_a_row():
    assert set(SCALES) == set(FUNCTION_KINDS)
    assert {m.solver for m in BENCH_METHODS if m.solver} == set(SOLVERS)
    with pytest.raises(UserError, match="no kind of planted network"):
        planted("cubic")
    with pytest.raises(UserError, match="at least 1"):
        planted_mlp(["exp"], 0)


def test_the_synthetic_setting_of_dct_in_small():
    found = dct_synthetic(1, width=256, features=8, sought=32)
    for how in ("as published", "ours"):
        assert _value(found, f"from random, 100 iterations, {how}", "mmcs") > 0.8


def test_dct_as_published_is_an_independent_statement_of_it():
    """Ten steps in float64 in this test's own words. Fewer directions than features: beyond, QR gives rounding's own vectors."""
    net = exp_mlp(1, width=64, features=8)
    found = discover(
        FunctionSubject(net),
        torch.zeros(1, 64),
        solver="dct",
        n=5,
        scale=1.0,
        steps=10,
        seed=3,
        options=SolverOptions(start="random", published=True),
    )
    a, b = net.truth.double().numpy(), net.out.double().numpy()
    v, u = (
        torch.nn.functional.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(s)), dim=1).double().numpy()
        for s in (3, 5)
    )
    for _ in range(10):
        q, _ = np.linalg.qr(v.T)
        act = q.T @ a.T
        u, v = np.expm1(act) @ b, (np.exp(act) * (u @ b.T)) @ a
        u, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    cos = metrics.unit(found.vectors) @ v.T
    assert np.allclose(cos.max(1), 1, atol=1e-4)


def test_the_published_start_holds_some_of_each_singular_vector():
    """Columns of the full right factor R of J = L S R: J's own columns are L S times their first entries."""
    net = exp_mlp(1, width=48, features=6)
    subject = FunctionSubject(net)
    task = solvers.SolverTask(
        subject, subject.context(torch.zeros(1, 48)), magnitude(), 20, 1.0, 1, seed=0, options=SolverOptions(published=True)
    )
    columns, none = solvers._published(task)
    assert none is None
    assert torch.allclose(columns @ columns.T, torch.eye(20), atol=1e-5)
    rows = solvers._gradients(task)
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    assert torch.allclose(left @ torch.diag(sizes) @ columns[:, : len(sizes)].T, rows[:, :20], atol=1e-5)


def test_the_network_of_dcts_synthetic_setting():
    net = exp_mlp(0, width=32, features=4)
    assert torch.equal(net(torch.zeros(1, 32)), torch.zeros(1, 32))
