"""The further parts of the brain study: whole in seconds, the user's connectome, tables, trials and recording, resume, mistakes."""

import numpy as np
import pandas as pd
import pytest

from repscope.bench import twins, wiring
from repscope.cli import run as command
from repscope.results import select
from repscope.studies.brain import parts
from repscope.studies.brain.wiring_given import GivenWiring
from repscope.studies.catalogue import study
from repscope.studies.run.runner import Run
from repscope.worlds.watching_agents import two_agents
from repscope.worlds.wired_cells import wired_cells

BRAIN = study("brain")


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("brain", tmp_path_factory.mktemp("runs"))


def ran(out, *only, **options):
    run = Run(BRAIN, BRAIN.options(tiny=True, parts=only, **options), out=out)
    run.answer()
    return run


def test_every_part_has_its_rows_and_its_controls(done):
    table = done.table
    twin = select(table, step=parts.FITTED)
    assert {"CCnorm", "CCmax", "FEVE", "centres within one pixel", "signal correlation recovered"} <= set(twin["metric"])
    assert set(select(twin, metric="CCnorm")["condition"]) == {"estimate", "LN model"}
    held = select(table, step=parts.HELD_OUT, metric="CCnorm of held-out neurons")
    assert set(held["condition"]) == {"estimate", "LN model", "untrained core"}
    assert held["split"].nunique() == 2
    like = select(table, step=parts.LIKE_TO_LIKE, metric=wiring.LIKE)
    assert set(like["condition"]) == {"estimate", "interval over cells", "pairs taken as independent"}
    shown = select(table, step=parts.LIKE_TO_LIKE, metric="like-to-like slope", item="simulated, like-to-like")
    assert {"estimate", "permuted cells", "pairs taken as independent", "no exposure offset"} <= set(shown["condition"])
    assert {"share with a signal", "difference with a synapse"} <= set(select(table, step=parts.SIGNALS)["metric"])
    assert set(select(table, step=parts.COMMON_INPUT)["condition"]) == {"estimate", "matched pairs", "matched on common input"}
    areas = select(table, step=parts.DECODED, metric="AUC across agents", item="shared")
    assert {"estimate", "within agent", "shuffled labels", "identity decoder"} <= set(areas["condition"])
    assert len(select(table, step=parts.SHARED_WIRING)) == 3


def test_the_page_has_all_parts_and_says_that_there_are_no_data_of_an_animal(done):
    page = (done.folder / "report.html").read_text()
    for said in (
        "Would the comparison find the right family?",
        "The twin against the noise ceiling",
        "performance against minutes of their data",
        "Like-to-like slope under three inferences",
        "Probability of a functional link by synapse and contact",
        "How often does a synapse seem to link two cells?",
        "Self–other matrix of simulated networks",
        "No tables of mouse cortex come with repscope",
        "No trials of animals were given",
    ):
        assert said in page, said


def test_one_part_alone_is_a_run_with_a_page(tmp_path):
    run = ran(tmp_path, "self-other")
    assert set(run.results) == {parts.DECODED, parts.SHARED_WIRING}
    assert "Self–other matrix" in (run.folder / "report.html").read_text()


@pytest.fixture
def tables(tmp_path):
    """A connectome with planted like-to-like and signals that synapses carry, as files."""
    world = wired_cells(32, slope=2.0, hidden=0.0, carried=6.0, rate=0.8, seed=1)
    for name, frame in (("synapses", world.synapses), ("similarity", world.similarity), ("signals", world.signals)):
        frame.to_csv(tmp_path / f"{name}.csv")
    world.contact.to_csv(tmp_path / "contact.tsv", sep="\t")
    return tmp_path


def test_the_users_connectome(tables):
    files = {"connectome": "synapses.csv", "functional": "similarity.csv", "signals": "signals.csv", "exposure": "contact.tsv"}
    run = ran(tables / "runs", "wiring", permutations=99, **{k: str(tables / v) for k, v in files.items()})
    slope = select(run.table, step=parts.SIMILARITY_OF, metric="like-to-like slope", condition="estimate")
    assert slope["lo"].iloc[0] > 0
    assert slope["lo"].iloc[0] < 2.0 < slope["hi"].iloc[0], "the planted slope"
    assert (slope["item"] == "your connectome").all()
    difference = select(run.table, step=parts.SIGNALS_OF, metric="difference with a synapse", condition="estimate")
    assert difference["lo"].iloc[0] > 0
    assert len(select(run.table, step=parts.INPUT_OF, metric=parts.INPUT)) == 1
    assert BRAIN.verdict(run.table).parts["Like-to-like"].reply == "Yes"
    page = (run.folder / "report.html").read_text()
    assert "Wiring and function: your connectome" in page
    assert "your connectome: synapses" in page
    assert "No tables of mouse cortex" not in page


def test_a_list_of_edges_without_exposure_is_noted(tables):
    n = pd.read_csv(tables / "synapses.csv", index_col=0)
    edges = [(a, b, n.at[a, b]) for a in n.index for b in n.columns if n.at[a, b]]
    pd.DataFrame(edges, columns=["pre", "post", "n"]).to_csv(tables / "edges.csv", index=False)
    run = ran(tables / "runs", "wiring", connectome=str(tables / "edges.csv"), functional=str(tables / "similarity.csv"))
    assert any("No exposure was given" in note for note in run.notes)
    assert parts.SIGNALS_OF not in run.results


def test_the_worm_without_its_data_names_the_extra(monkeypatch):
    monkeypatch.setattr("repscope.data.connectomes.worm.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install the extra repscope\[worm\]"):
        _ = GivenWiring(BRAIN.options(tiny=True, connectome="worm")).data


def test_the_tables_of_microns(tmp_path):
    rng = np.random.default_rng(0)
    names = np.arange(101, 117)
    pairs = [(a, b) for a in names for b in names if a != b]
    length = rng.gamma(2.0, 5.0, len(pairs)) * (rng.random(len(pairs)) < 0.7)
    edges = pd.DataFrame(pairs, columns=["pre", "post"]).assign(dend_len=length, n_synapses=rng.poisson(0.05 * length))
    edges.to_csv(tmp_path / "edges.csv", index=False)
    nodes = pd.DataFrame(rng.normal(size=(16, 5)), columns=[f"response_{i}" for i in range(5)])
    nodes.assign(nucleus_id=names, depth=rng.random(16)).to_csv(tmp_path / "nodes.csv", index=False)
    with pytest.raises(ValueError, match=r"with --properties; it has response_0, .*depth"):
        _ = GivenWiring(BRAIN.options(tiny=True, microns=str(tmp_path))).data
    run = ran(tmp_path / "runs", "wiring", microns=str(tmp_path), properties=tuple(f"response_{i}" for i in range(5)))
    assert set(select(run.table, step=parts.SIMILARITY_OF)["item"]) == {"MICrONS"}
    assert any("16 cells are in both tables" in note for note in run.notes)


def test_the_users_trials(tmp_path):
    world = two_agents("shared", trials=160, seed=2)
    frame = pd.DataFrame(world.patterns[0], columns=[f"unit {i}" for i in range(60)])
    frame = pd.concat([world.tables[0], frame], axis=1)
    frame.to_csv(tmp_path / "trials.csv", index=False)
    run = ran(tmp_path / "runs", "self-other", trials=str(tmp_path / "trials.csv"), permutations=60)
    rows = select(run.table, step=parts.TRIALS, metric="AUC across agents", condition="estimate")
    assert (rows["lo"] > 0.5).all()
    assert BRAIN.verdict(run.table).parts["Self and other"].reply in ("Yes", "Partly")
    assert "Self–other matrix of your trials" in (run.folder / "report.html").read_text()
    frame.assign(**{"unit 3": "high"}).to_csv(tmp_path / "text.csv", index=False)
    frame.drop(columns="agent").to_csv(tmp_path / "nobody.csv", index=False)
    frame.assign(reward=(frame["outcome"] == frame["outcome"].iloc[0]).astype(int)).to_csv(tmp_path / "again.csv", index=False)
    frame.iloc[:30].to_csv(tmp_path / "few.csv", index=False)
    for name, said in (
        ("text", "'unit 3' of .* text in 160 trials"),
        ("nobody", "no column agent"),
        ("again", "'reward' of .* has one value per outcome"),
        ("few", "at least 8 are needed"),
    ):
        with pytest.raises(ValueError, match=said):
            ran(tmp_path / "runs", "self-other", trials=str(tmp_path / f"{name}.csv"))


def test_a_recording_in_the_format_of_sensorium(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("data/images", "data/responses", "meta/trials"):
        (tmp_path / "mouse" / name).mkdir(parents=True)
    kernel = rng.normal(size=(5, 9, 9))
    tiers = ["train"] * 150 + ["validation"] * 30 + ["test"] * 40
    images = np.concatenate([rng.normal(size=(180, 9, 9)), np.repeat(rng.normal(size=(10, 9, 9)), 4, axis=0)])
    rates = np.exp(0.15 * np.einsum("nij,tij->tn", kernel, images)) * 4
    for i, (image, rate) in enumerate(zip(images, rates, strict=True)):
        np.save(tmp_path / "mouse/data/images" / f"{i}.npy", image[None])
        np.save(tmp_path / "mouse/data/responses" / f"{i}.npy", rng.poisson(rate).astype(float))
    np.save(tmp_path / "mouse/meta/trials/tiers.npy", np.array(tiers))
    np.save(tmp_path / "mouse/meta/trials/frame_image_id.npy", np.array([*range(180), *np.repeat(np.arange(10), 4) + 1000]))
    run = ran(tmp_path / "runs", "twin", sensorium=str(tmp_path / "mouse"))
    rows = select(run.table, step=parts.RECORDED)
    assert set(select(rows, metric="CCnorm")["condition"]) == {"estimate", "LN model"}
    assert "A twin of your recording" in (run.folder / "report.html").read_text()


def test_a_twin_that_was_killed_continues_and_ends_with_the_same_numbers(done, tmp_path, monkeypatch):
    run = Run(BRAIN, BRAIN.options(tiny=True, parts=("twin",)), out=tmp_path)
    whole = ran(tmp_path / "whole", "twin")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(twins, "receptive_fields", killed)  # after the fit
    with pytest.raises(KeyboardInterrupt):
        run.answer()
    assert list(run.folder.rglob("twin.pt")), "what was fitted stays"
    monkeypatch.undo()
    again = Run(BRAIN, BRAIN.options(tiny=True, parts=("twin",)), out=tmp_path)
    again.answer()
    for name, result in whole.results.items():
        np.testing.assert_array_equal(again.results[name].table["value"], result.table["value"])


def test_the_plan_names_all_steps(tmp_path, capsys):
    assert command(["study", "brain", "--plan", "--short", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for step in (parts.FITTED, parts.HELD_OUT, parts.LIKE_TO_LIKE, parts.SIGNALS, parts.COMMON_INPUT, parts.DECODED):
        assert step in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--functional", "s.csv"], "--functional is of your connectome"),
        (["--connectome", "w.csv", "--microns", "folder"], "two connectomes"),
        (["--properties", "r"], "tables of --microns"),
        (["--parts", "twin", "--trials", "t.csv"], "--trials is of the part self-other"),
        (["--parts", "twin", "twin"], "name each part once"),
        (["--connectome", "nowhere.csv", "--functional", "nowhere.csv"], "no similarity nowhere.csv"),
        (["--trials", "nowhere.csv"], "nowhere.csv"),
        (["--sensorium", "nowhere"], "nowhere"),
        (["--permutations", "3"], "greater than or equal to 20"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, capsys):
    assert command(["study", "brain", "--tiny", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("brain-*")), "nothing is left behind"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.rename(index=str.upper, columns=str.upper), "have the same name"),
        (lambda x: x * 0, "connectome is empty"),
        (lambda x: -x, "negative"),
        (lambda x: x + np.eye(len(x)), "a cell with itself"),
    ],
)
def test_connectomes_that_say_nothing_are_refused(tables, change, said):
    change(pd.read_csv(tables / "synapses.csv", index_col=0)).to_csv(tables / "w.csv")
    with pytest.raises(ValueError, match=said) as error:
        _ = GivenWiring(BRAIN.options(tiny=True, connectome=str(tables / "w.csv"), functional=str(tables / "similarity.csv"))).data
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="give --functional"):
        _ = GivenWiring(BRAIN.options(tiny=True, connectome=str(tables / "w.csv"))).data
