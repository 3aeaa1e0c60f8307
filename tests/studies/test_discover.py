"""The `discover` study end to end on a tiny random network: every method beside chance, on prompts that none has seen."""

import json

import numpy as np
import pytest
import torch

from repscope.cli import run as command_line
from repscope.conditions import ESTIMATE, RANDOM
from repscope.data.requests import requests
from repscope.directions import DirectionSet
from repscope.discovery import LanguageSubject, comparison
from repscope.discovery.comparison import DISCOVERY_METHODS, DISCOVERY_METRICS, RANDOM_METHOD, clusters
from repscope.errors import UserError
from repscope.steer.effects import nats_per_token, texts
from repscope.studies.discover import STUDY as DISCOVER
from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.discover.steps import _dosed
from repscope.studies.run.runner import Run
from repscope.worlds.tiny import tiny

TINY = {"tiny": True, "vectors": 4, "steps": 2, "new_tokens": 2}


@pytest.fixture(scope="module")
def run(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("discover", tmp_path_factory.mktemp("runs"))


def test_every_method_has_every_number_and_chance_beside_it(run):
    table = run.results["summary"].table
    for item in (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian"):
        rows = table[(table["item"] == item) & (table["metric"] != "gain")]
        assert set(rows["metric"]) == {*DISCOVERY_METRICS, "stability"}
        assert set(rows["condition"]) == {RANDOM if item == RANDOM_METHOD else ESTIMATE}
        assert (rows["n"] == 2).all()
    gains = table[table["metric"] == "gain"]
    assert set(gains["condition"]) == {"over L2"}
    assert "L2 + contrastive: overlap" in set(gains["item"])
    a, b = (
        [float(run.results[f"{name} seed {s}"].select(metric="overlap")["value"].iloc[0]) for s in (0, 1)]
        for name in ("L2 + contrastive", "L2")
    )
    paired = gains[gains["item"] == "L2 + contrastive: overlap"]["value"].iloc[0]
    assert paired == pytest.approx(np.mean(a) - np.mean(b))
    assert run.table["row_id"].is_unique


def test_judging_sees_other_prompts_than_the_search():
    seen, held, _ = requests()
    assert not set(seen) & set(held)


def test_the_page_and_the_directions(run):
    page = (run.folder / "report.html").read_text()
    for text in ("Objectives and solvers compared", "Behaviours", "KL by dose", "Stability", "Key numbers"):
        assert text in page
    kept = DirectionSet.load(run.folder / "artifacts" / "L2.safetensors")
    assert len(kept) == 4
    assert kept.model == run.subject.fingerprint
    assert kept[0].scale == pytest.approx(float(run.results["scale"].arrays["scale"][0]))
    assert {"kl", "consistency", "cluster", "size"} <= set(kept[0].does)
    np.testing.assert_allclose(kept[1].vector, run.results["L2 seed 0"].arrays["vectors"][1], atol=1e-6)
    assert json.loads((run.folder / "run.json").read_text())["study"] == "discover"
    assert run.headline().lines


def test_a_further_seed_leaves_the_cells_that_are_there(run, tmp_path):
    import shutil

    more = Run(DISCOVER, DiscoverOptions(tiny=True, seeds=3), out=tmp_path)
    shutil.copytree(run.folder / ".steps", more.folder / ".steps")
    more.answer()
    assert more.folder != run.folder  # 3 is what is taken when nobody says, but tiny takes 2 then
    assert set(more.took) == {f"{m} seed 2" for m in (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")} | {
        "summary",
        "clusters",
    }
    again = Run(DISCOVER, more.options, out=tmp_path)
    again.answer()
    assert not again.took


def test_clusters_count_what_hangs_together():
    a = np.eye(3)
    groups = clusters({"x": a, "y": np.stack([a[0] * 5, -a[1]])})
    assert groups["x"][0] == groups["y"][0]
    assert groups["x"][1] == groups["y"][1]
    assert len({*groups["x"].tolist()}) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": 3, "target": 2}, "not below the target"),
        ({"source": 9}, "blocks 0 to 3"),
        ({"methods": ("L3",)}, "no method 'L3'"),
        ({"prompts": "none.txt"}, "cannot be read"),
        ({"prompts": "none.pdf"}, "kind of prompts file"),
        ({"vectors": 64}, "has 32 features"),
        ({"tokens": "wrong"}, "no choice of tokens 'wrong'"),
        ({"tokens": "last 0"}, "did you mean 'last 3'"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(options, says, tmp_path):
    with pytest.raises(UserError, match=says):
        Run(DISCOVER, DiscoverOptions(**(TINY | options)), out=tmp_path / "runs").answer()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_scale_that_is_no_length_is_one_sentence_at_the_command_line(value, tmp_path, capsys):
    command = ["study", "discover", "--tiny", "--scale", str(value), "--out", str(tmp_path / "runs")]
    assert command_line(command) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("repscope: --scale ")
    assert "should be" in said[0]
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_a_number_leaves_no_run_and_keeps_what_was_there(tmp_path):
    """An empty prompts file and a loss that is not a number: nothing is left; a run that was there before stays."""
    options = DiscoverOptions(**TINY, scale=1e30)
    with pytest.raises(UserError, match="not a number"):
        Run(DISCOVER, options, out=tmp_path).answer()
    assert not list(tmp_path.iterdir())
    again = Run(DISCOVER, options, out=tmp_path)
    again.folder.mkdir()
    (again.folder / "mine").touch()
    with pytest.raises(UserError, match="not a number"):
        again.answer()
    assert (again.folder / "mine").is_file()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="holds 0 different prompts"):
        Run(DISCOVER, DiscoverOptions(**TINY, prompts=str(tmp_path / "empty.txt")), out=tmp_path / "runs").answer()
    assert not (tmp_path / "runs").exists()


def test_prompts_of_the_users(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("One.\n\nTwo.\nThree.\nFour.\nOne.\n")
    assert requests(file)[:2] == (("One.", "Three."), ("Two.", "Four."))
    file.write_text("One.\n")
    with pytest.raises(UserError, match="1 different prompts"):
        requests(file)


def test_the_table_of_methods_names_solvers_that_are_there():
    from repscope.discovery import SOLVERS

    assert {m.solver for m in DISCOVERY_METHODS.values()} <= set(SOLVERS)


def test_seeds_in_one_batch_are_those_of_searches_alone():
    """And their numbers, those of texts included; doses of all methods together are those of each."""
    lm = tiny()
    seen, held = ["The place called Lagos", "A map that shows Paris", "Zürich has it"], ["The place called Paris", "A map of Lagos"]
    ground = comparison.TestBed(LanguageSubject(lm, target_tokens="last 2"), seen, held, 3.0, new_tokens=3)
    assert ground.seeds_at_once(4) > 2
    plain = texts(lm, held, [], new_tokens=3)
    for name in ("L2 + contrastive", "Jacobian"):
        method = DISCOVERY_METHODS[name]
        together = ground.found_all(method, 4, 3, [5, 6])
        alone = [ground.found(method, 4, 3, seed) for seed in (5, 6)]
        for one, other in zip(together, alone):
            assert (one.seed, one.cost) == (other.seed, other.cost)
            np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-4)
        for (numbers, arrays), other in zip(ground.judged_all(alone), alone):
            wanted, more = ground.judged(other)
            assert numbers == pytest.approx(wanted, rel=1e-4, abs=1e-6)
            for key, values in arrays.items():
                np.testing.assert_allclose(values, more[key], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ground._plain_nats, nats_per_token(lm, held, plain), rtol=1e-5)
    cells = {"a": ground.judged(alone[0])[1], "b": ground.judged(alone[1])[1]}
    found = _dosed(ground, cells, (0.5, 1.0))
    assert found["method"].tolist() == ["a"] * 4 + ["b"] * 4
    bare = {name: {"vectors": cell["vectors"]} for name, cell in cells.items()}  # of an earlier version, which kept no norms
    again = _dosed(ground, bare, (0.5, 1.0))
    np.testing.assert_allclose(found["value"], again["value"], rtol=1e-4)
    half = ground.subject.effect(ground.apart, 0.5 * 3.0 * torch.from_numpy(cells["b"]["vectors"]))
    size = found[(found["method"] == "b") & (found["dose"] == 0.5) & (found["metric"] == "size")]["value"].iloc[0]
    assert size == pytest.approx(float(half.norm(dim=-1).mean()) / ground.length, rel=1e-4)
