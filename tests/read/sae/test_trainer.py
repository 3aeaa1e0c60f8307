"""Training: optimizer, schedules, exact resume, folding, crosscoders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from repscope.errors import UserError
from repscope.read.sae.training import (
    BatchTopK,
    Crosscoder,
    Gated,
    JumpReLU,
    Matryoshka,
    Recipe,
    ReLU,
    TensorRows,
    TopK,
    Trainer,
    train,
)
from repscope.read.sae.training import checkpoint as checkpoints
from repscope.read.sae.training.layout import Layout

ARCHITECTURES = [
    TopK(3),
    BatchTopK(3),
    Matryoshka(3, prefixes=(8, 16)),
    JumpReLU(0.5, 0.2, 0.05, target_l0=4.0),
    Gated(0.3),
    ReLU(0.3),
]


def _data(rows=512, d=8, seed=0, features=12):
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, d, generator=g), dim=1)
    z = torch.rand(rows, features, generator=g) * (torch.rand(rows, features, generator=g) < 0.15)
    return 5 * z @ directions + 0.7


def _source():
    return TensorRows({"resid_post.1": _data(), "resid_post.2": _data(seed=1, d=6), "other": _data(seed=2)})


def _recipe(architecture, **how):
    return Recipe(architecture, 24, **{"steps": 12, "batch": 64, "learning_rate": 3e-3, "dead_after": 300, **how})


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_training_lowers_the_loss_and_gives_an_autoencoder_of_raw_rows(architecture):
    recipe = _recipe(architecture, steps=150, warmup=5, decay=20)
    found = train(_source(), recipe, "resid_post.1", log_every=50)
    first, last = found.log[0], found.log[-1]
    assert last["squared_error"] < 0.6 * first["squared_error"] or last["variance_explained"] > 0.9
    x = _data()
    rebuilt = found.model.reconstruct(x)
    explained = 1 - (rebuilt - x).square().sum() / (x - x.mean(0)).square().sum()
    assert explained == pytest.approx(last["variance_explained"], abs=0.15)
    assert found.model.W_dec.norm(dim=1) == pytest.approx(1.0, abs=1e-4) or architecture.decoder_norm == "free"
    assert str(found.model.site) == "resid_post.1"
    json.dumps(dict(found.model.metadata))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_a_resumed_run_ends_with_the_same_bytes(architecture, tmp_path):
    recipe = _recipe(architecture, warmup=3, decay=4)
    train(_source(), recipe, "resid_post.1", out=tmp_path / "whole", checkpoint_every=5)
    stopped = Stop(_source(), 7)
    with pytest.raises(Interrupted):
        train(stopped, recipe, "resid_post.1", out=tmp_path / "parts", checkpoint_every=5)
    assert checkpoints.read(tmp_path / "parts" / checkpoints.NAME)[1]["step"] == 5
    train(_source(), recipe, "resid_post.1", out=tmp_path / "parts", checkpoint_every=5)
    assert (tmp_path / "whole" / checkpoints.NAME).read_bytes() == (tmp_path / "parts" / checkpoints.NAME).read_bytes()
    finished = train(Stop(_source(), 0), recipe, "resid_post.1", out=tmp_path / "parts")
    assert finished.log[-1]["step"] == 12


class Interrupted(Exception):
    pass


class Stop:
    """A source that raises after a number of batches; the first ones, for calibration, are free."""

    def __init__(self, source, after):
        self.source, self.after, self.calls = source, after, 0

    def batches(self, sites, **how):
        calibration = "start" not in how
        for i, batch in enumerate(self.source.batches(sites, **how)):
            if not calibration and i == self.after:
                raise Interrupted
            yield batch


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_trainer import _killable
_killable({out!r}, lambda row: print(int(row["step"]), flush=True))
"""


def _killable(out, on_log=None):
    recipe = _recipe(Matryoshka(3, prefixes=(8,)), steps=60)
    train(_source(), recipe, "resid_post.1", out=out, checkpoint_every=4, log_every=2, on_log=on_log)


def test_killed_at_any_moment_the_files_end_equal(processes, tmp_path):
    """One kill while files are written; `benchmarks/kill_training.py` does 50."""
    _killable(tmp_path / "whole")
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    run = processes.code(code)
    while int(run.output.readline()) < 24:
        pass
    run.kill()
    (tmp_path / "killed" / f".{checkpoints.NAME}.x.part").touch()  # as a kill within a write leaves it
    assert 20 <= checkpoints.read(tmp_path / "killed" / checkpoints.NAME)[1]["step"] < 60
    _killable(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.part"))
    assert (tmp_path / "whole" / checkpoints.NAME).read_bytes() == (tmp_path / "killed" / checkpoints.NAME).read_bytes()


def test_the_optimizer_is_adam_with_clipping_and_unit_rows():
    recipe = _recipe(TopK(3), clip=0.01, learning_rate=1e-2)
    source = _source()
    batches = [b.rows for b, _ in zip(source.batches(["other"], rows=64, epochs=None), range(4))]
    trainer = Trainer.begin(recipe, Layout.of("other", None), batches, torch.float64)
    p = {n: torch.nn.Parameter(v.clone()) for n, v in trainer.parameters.items()}
    plain = torch.optim.Adam(p.values(), lr=1e-2)
    for batch in batches:
        x, _ = trainer.layout.scaled(batch, torch.float64)
        h = (x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]
        top = h.topk(3, dim=1)
        z = torch.zeros_like(h).scatter(1, top.indices, top.values.relu())
        (x - z @ p["decoder"] - p["b_dec"]).square().sum(1).mean().backward()
        d = p["decoder"]
        d.grad -= (d.grad * d).sum(1, keepdim=True) * d.detach()
        torch.nn.utils.clip_grad_norm_(p.values(), 0.01)
        plain.step()
        plain.zero_grad()
        with torch.no_grad():
            d /= d.norm(dim=1, keepdim=True)
        trainer.step(batch)
    for name, value in trainer.parameters.items():
        torch.testing.assert_close(value, p[name].detach(), rtol=1e-5, atol=1e-7)


def test_the_rate_warms_up_and_decays():
    recipe = _recipe(TopK(3), steps=10, warmup=4, decay=5, learning_rate=1.0)
    assert [recipe.rate(s) for s in range(10)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert Recipe(TopK(3), 2**14, steps=1).rate(0) == pytest.approx(2e-4)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_dead_latents_are_counted_and_learn_from_the_residual():
    """Twelve favoured latents win every selection. The others are dead after 600 rows, and only AuxK gives them a gradient."""
    x = _data(2048, d=32, features=40)
    for aux in (0.0, 1.0):
        recipe = Recipe(TopK(4, aux=aux, aux_k=4), 48, steps=1, batch=128, learning_rate=3e-3, dead_after=600)
        batches = TensorRows({"a": x}).batches(["a"], rows=128, epochs=None)
        trainer = Trainer.begin(recipe, Layout.of("a", None), [next(batches).rows])
        trainer.parameters["b_enc"][:12] = 8.0
        before = trainer.parameters["decoder"][12:].clone()
        results = [trainer.step(next(batches).rows) for _ in range(80)]
        assert trainer.dead.tolist() == list(range(12, 48))
        assert [("aux" in r.losses) for r in results] == [aux > 0 and i >= 5 for i in range(80)]
        if aux:
            left = [r.losses["aux"] / r.losses["squared_error"] for r in results[5:]]
            assert left[-1] < 0.85 * left[0]
        else:
            torch.testing.assert_close(trainer.parameters["decoder"][12:], before)


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_maps_one_site_to_another(skip):
    x = _data(1024)
    y = torch.relu(x @ torch.randn(8, 6, generator=torch.Generator().manual_seed(5))) + 3
    source = TensorRows({"resid_pre.1": x, "resid_post.1": y})
    recipe = Recipe(TopK(4), 64, steps=250, batch=128, learning_rate=5e-3, skip=skip)
    found = train(source, recipe, "resid_pre.1", sites_out="resid_post.1")
    assert found.model.transcoder
    assert (found.model.d_in, found.model.d_out) == (8, 6)
    assert (str(found.model.site), str(found.model.site_out)) == ("resid_pre.1", "resid_post.1")
    explained = 1 - (found.model.reconstruct(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert explained > 0.8
    assert explained == pytest.approx(found.log[-1]["variance_explained"], abs=0.08)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_folding_keeps_the_function(architecture):
    """The autoencoder of raw rows reconstructs what the scaled parameters reconstruct."""
    recipe = _recipe(architecture, decoder_norm="rescale" if isinstance(architecture, TopK) else None)
    source = TensorRows({"a": 40 * _data()})
    batches = [b.rows for b, _ in zip(source.batches(["a"], rows=64, epochs=None), range(4))]
    trainer = Trainer.begin(recipe, Layout.of("a", None), batches, torch.float64)
    for batch in batches:
        result = trainer.step(batch)
    assert trainer.layout.scales_in[0] < 0.1
    p = trainer.parameters
    x, _ = trainer.layout.scaled(batches[0], torch.float64)
    if isinstance(architecture, BatchTopK):
        return _check_threshold(trainer, x, result)
    sae = trainer.model()
    raw = sae.reconstruct(batches[0]["a"].double())
    h = (x - p["b_dec"]) @ p["encoder"].T
    if isinstance(architecture, TopK):
        h = h + p["b_enc"]
        top = (h * p["decoder"].norm(dim=1)).topk(3, dim=1).indices
        z = torch.zeros_like(h).scatter(1, top, h.gather(1, top).relu())
    elif isinstance(architecture, JumpReLU):
        h = h + p["b_enc"]
        z = h * (h > p["log_threshold"].exp())
    elif isinstance(architecture, Gated):
        z = (h + p["b_gate"] > 0) * (h * p["r_mag"].exp() + p["b_mag"]).relu()
    else:
        z = (h + p["b_enc"]).relu()
    expected = (z @ p["decoder"] + p["b_dec"]) / trainer.layout.scales_out[0]
    torch.testing.assert_close(raw, expected)
    return None


def _check_threshold(trainer, x, result):
    """The threshold gives about k latents per row, in raw units too."""
    sae = trainer.model()
    rows = x / trainer.layout.scales_in[0]
    assert float(sae.encode(rows).l0.double().mean()) == pytest.approx(3, abs=1)
    assert sae.activation.threshold == pytest.approx(result.smallest / trainer.layout.scales_in[0], rel=0.5)


def test_a_crosscoder_parts_shared_latents_from_those_of_one_source():
    g = torch.Generator().manual_seed(0)
    shared, only = (torch.nn.functional.normalize(torch.randn(8, 16, generator=g), dim=1) for _ in range(2))
    turned = torch.nn.functional.normalize(torch.randn(8, 16, generator=g), dim=1)
    z = torch.rand(4096, 16, generator=g) * (torch.rand(4096, 16, generator=g) < 0.08)
    base = 5 * z[:, :8] @ shared
    tuned = 100 * (z[:, :8] @ turned + z[:, 8:] @ only)
    source = TensorRows({"base": base, "tuned": tuned})
    recipe = Recipe(BatchTopK(2), 32, steps=600, batch=256, learning_rate=5e-3, dead_after=20_000)
    found = train(source, recipe, ["base", "tuned"]).model
    assert isinstance(found, Crosscoder)
    rebuilt = found.reconstruct({"base": base[:100], "tuned": tuned[:100]})
    assert {n: tuple(r.shape) for n, r in rebuilt.items()} == {"base": (100, 16), "tuned": (100, 16)}
    for name, rows in (("base", base), ("tuned", tuned)):
        assert 1 - (rebuilt[name] - rows[:100]).square().sum() / rows[:100].square().sum() > 0.85
    best = (torch.nn.functional.normalize(found.decoder("tuned"), dim=1) @ torch.cat([turned, only]).T).max(0)
    assert best.values.min() > 0.8
    both, one = found.relative_norms[best.indices[:8]], found.relative_norms[best.indices[8:]]
    assert both.max() < 0.75 < one.min()
    with pytest.raises(UserError, match="tuned is missing"):
        found.encode({"base": base})
    with pytest.raises(UserError, match="no source"):
        found.decoder("other")


def test_what_does_not_fit_is_refused(tmp_path):
    source, recipe = _source(), _recipe(TopK(3))
    train(source, recipe, "other", out=tmp_path)
    with pytest.raises(UserError, match=r"another recipe \(steps 12 → 13\)"):
        train(source, _recipe(TopK(3), steps=13), "other", out=tmp_path)
    with pytest.raises(UserError, match=r"a training of other, not of resid_post\.1"):
        train(source, recipe, "resid_post.1", out=tmp_path)
    (tmp_path / checkpoints.NAME).write_bytes((tmp_path / checkpoints.NAME).read_bytes()[:-40])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is damaged: .*; remove it and train again"):
        train(source, recipe, "other", out=tmp_path)
    with pytest.raises(UserError, match="no rows of"):
        train(source, recipe, "resid_post.9")
    with pytest.raises(UserError, match="maps one site"):
        train(source, recipe, ["other", "resid_post.1"], sites_out="resid_post.2")
    with pytest.raises(UserError, match="Only a transcoder"):
        train(source, _recipe(TopK(3), skip=True), "other")
    with pytest.raises(UserError, match="not all 0"):
        train(TensorRows({"a": torch.zeros(64, 4)}), recipe, "a")
    with pytest.raises(UserError, match="k=30"):
        _recipe(TopK(30))
    with pytest.raises(UserError, match="for the TopK family"):
        _recipe(Gated(1.0), decoder_norm="rescale")
    with pytest.raises(UserError, match="ascending"):
        Matryoshka(3, prefixes=(8, 8))
    with pytest.raises(UserError, match="sparsity=-1"):
        ReLU(-1)
    bad = _data()
    bad[:, 0] = 1e19
    with pytest.raises(UserError, match=r"loss of step \d is (inf|nan)"):
        train(TensorRows({"a": torch.cat([_data(), bad])}), _recipe(TopK(3), calibration=1, normalize=False, clip=None), "a")


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="Another process is training"):
        train(_source(), _recipe(TopK(3)), "other", out=tmp_path)


def test_a_checkpoint_is_plain_safetensors(tmp_path):
    train(_source(), _recipe(TopK(3)), "other", out=tmp_path)
    tensors = load_file(tmp_path / checkpoints.NAME)
    assert tensors["parameter.encoder"].shape == (24, 8)
    assert float(tensors["adam.step.encoder"]) == 12
