"""The `features` study: every number with its controls, published autoencoders, mistakes in one sentence."""

import json

import numpy as np
import pytest
import torch

from repscope.cli import run as main
from repscope.conditions import ESTIMATE, SHUFFLED_LABELS, over
from repscope.errors import UserError
from repscope.read import sae
from repscope.read.sae.quality import Losses
from repscope.read.sae.training import TensorRows, train
from repscope.results import select
from repscope.store import ActivationStore
from repscope.studies.features import STUDY, names
from repscope.studies.features.names import COMPONENTS, DENSE, DICTIONARY, NEURONS, PERMUTED, WEIGHTS, probed
from repscope.studies.features.options import FeaturesOptions
from repscope.studies.features.steps import _loss_rows
from repscope.studies.features.task import FeaturesTask, Training
from repscope.studies.features.training import recipe
from repscope.studies.run.runner import Run
from repscope.studies.run.study import Setup
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def run(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("features", tmp_path_factory.mktemp("features"))


def test_quality_has_its_controls_and_intervals_over_texts(run):
    table = run.results["quality"].table
    for metric in (names.KL, names.EXPLAINED):
        rows = select(table, metric=metric, item="k = 4")
        assert {ESTIMATE, COMPONENTS, DICTIONARY} <= set(rows["condition"])
        assert set(rows["unit"]) == {"text"}
        assert rows["lo"].notna().all()
    assert select(table, metric=names.L0, condition=ESTIMATE)["value"].iloc[0] == pytest.approx(4.0)  # TopK with k = 4
    assert set(select(table, metric=names.EXPLAINED)["condition"]) >= {WEIGHTS}


def test_a_share_of_the_loss_needs_a_loss(run):
    """Random weights predict no better than without the layer: there is nothing to recover, and the run says so."""
    quality = run.results["quality"]
    assert select(quality.table, metric=names.RECOVERED).empty
    assert any(note.startswith("CE recovered is undefined") for note in quality.notes)
    tokens = np.full(6, 10)

    def losses(each: float) -> Losses:
        return Losses(tokens * each + np.arange(6), tokens * 0.5, tokens)

    task = FeaturesTask(run.setup)
    found = {ESTIMATE: losses(2.5), COMPONENTS: losses(3.0), DICTIONARY: losses(4.0)}
    rows = {(r.metric, r.condition): r for r in _loss_rows(task, "k = 4", losses(2.0), losses(4.0), found, costly=True)}
    for condition, value in ((ESTIMATE, 0.75), (COMPONENTS, 0.5), (DICTIONARY, 0.0)):
        assert rows[names.RECOVERED, condition].value == pytest.approx(value)
        assert rows[names.KL, condition].value == pytest.approx(0.5)
    assert rows["gain", over(COMPONENTS)].value == pytest.approx(0.25)
    assert rows["gain", over(DICTIONARY)].value == pytest.approx(0.75)


def test_explained_variance_is_that_of_the_saved_autoencoder_on_plain_captures(run):
    """By hand: capture, reconstruct with the artifact, sums over all tokens but the first of each text."""
    task = FeaturesTask(run.setup)
    one = sae.open(run.folder / "artifacts" / "sae" / "k-4")
    store = ActivationStore(run.folder / "artifacts" / "activations")
    error = spread = 0.0
    for ids in task.evaluated.ragged:
        x = task.lm.capture([ids], task.site, "all")[task.site][1:].astype(np.float64)
        y = one.reconstruct(x.astype(np.float32)).detach().double().numpy()
        error += ((x - y) ** 2).sum()
        spread += ((x - store.mean(str(task.site)).double().numpy()) ** 2).sum()
    row = select(run.results["quality"].table, metric=names.EXPLAINED, condition=ESTIMATE, item="k = 4")
    assert row["value"].iloc[0] == pytest.approx(1 - error / spread, rel=1e-4)


def test_names_are_probed_beside_every_control(run):
    table = run.results["countries"].table
    for k in names.SPARSE:
        rows = table[table["item"] == probed("countries.continent", k)]
        scores = rows[rows["metric"] == "accuracy"]
        assert {ESTIMATE, DICTIONARY, NEURONS, WEIGHTS, SHUFFLED_LABELS} == set(scores["condition"])
        assert {over(c) for c in (DENSE, DICTIONARY, NEURONS, WEIGHTS)} == set(rows[rows["metric"] == "gain"]["condition"])
        assert set(rows[rows["condition"] != SHUFFLED_LABELS]["unit"]) == {"entity"}
    assert DENSE in set(table[table["item"] == "countries.continent"]["condition"])


def test_the_second_seed_has_a_null_of_its_own(run):
    rows = run.results["second seed"].table
    for metric in (names.MATCHED, names.FOUND):
        assert {ESTIMATE, PERMUTED, DICTIONARY} == set(select(rows, metric=metric)["condition"])


def test_the_page_its_cards_and_the_artifacts(run):
    page = (run.folder / "report.html").read_text()
    for text in (
        "What 16 features tell of a name",
        "Features of the network",
        "Control: features of the same network",
        'class="passage"',
    ):
        assert text in page
    assert len(ActivationStore(run.folder / "artifacts" / "activations")) > 1000
    opened = sae.open(run.folder / "artifacts" / "sae" / "k-4")
    assert opened.d_sae == 64
    assert str(opened.site) == "resid_post.1"
    passages = run.results["cards"].side["passages"]
    own = passages[passages["condition"] == ESTIMATE]
    assert own.groupby(["feature", "passage"])["shade"].max().max() == pytest.approx(1.0, abs=1e-3)


def test_a_published_autoencoder_instead_of_training(run, tmp_path, capsys):
    folder = run.folder / "artifacts" / "sae" / "k-4"
    made = Run(STUDY, FeaturesOptions(tiny=True, sae=str(folder)), out=tmp_path)
    made.answer()
    assert not [name for name in made.results if name.startswith("train")]
    ours, theirs = (
        select(r.results["quality"].table, metric=names.EXPLAINED, condition=ESTIMATE)["value"].iloc[0] for r in (run, made)
    )
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert main(["study", "features", "--tiny", "--sae", str(folder), "--k", "4", "--out", str(tmp_path)]) == 2
    assert "--sae brings a trained one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"site": "resid_post"}, "name one"),
        ({"site": "resid_post.99"}, "resid_post"),
        ({"corpus": "nowhere.txt"}, "nowhere.txt"),
        ({"entities": ("citis",)}, "cities"),
        ({"k": (1000,)}, "k=1000"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tmp_path, options, said):
    made = Run(STUDY, FeaturesOptions(tiny=True, **options), out=tmp_path)
    with pytest.raises(UserError, match=said):
        made.answer()
    assert not list(tmp_path.iterdir())


def test_own_text_and_names(tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(
            json.dumps({"body": f"The harbour of town {i} lies in the {'north' if i % 2 else 'south'}."}) + "\n" for i in range(200)
        )
    )
    table = tmp_path / "towns.csv"
    table.write_text("name,coast\n" + "".join(f"Town {i},{'north' if i % 2 else 'south'}\n" for i in range(40)))
    command = [
        "study",
        "features",
        "--tiny",
        "--corpus",
        str(texts),
        "--text",
        "body",
        "--entities",
        str(table),
        "--attribute",
        "coast",
    ]
    assert main([*command, "--out", str(tmp_path / "runs"), "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert any("Coast of towns, 16 features" in line for line in reply["answer"])
    assert reply["verdict"] is None


@pytest.mark.parametrize("name", ["topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_every_architecture_of_the_options_trains(name):
    task = FeaturesTask(Setup(FeaturesOptions(tiny=True, architecture=name).sized(), tiny))
    rows = torch.randn(400, task.width, generator=torch.Generator().manual_seed(0))
    plan = recipe(task, Training("k = 4", 4), len(rows))
    found = train(TensorRows({str(task.site): rows}), plan, task.site).autoencoder
    assert found.encode(rows).l0.float().mean() > 0


def test_a_published_autoencoder_that_does_not_fit_is_refused_at_once(tmp_path):
    def saved(name, d, site):
        both = torch.cat([torch.eye(d), -torch.eye(d)])
        one = sae.SparseAutoencoder(both.T.contiguous(), torch.zeros(2 * d), both, torch.zeros(d), site=site)
        sae.save(one, tmp_path / name)
        return str(tmp_path / name)

    def answer(**options):
        return Run(STUDY, FeaturesOptions(tiny=True, **options), out=tmp_path / "runs")

    with pytest.raises(UserError, match=r"trained at resid_post.1, not at resid_post.2"):
        answer(sae=saved("a", 32, "resid_post.1"), site="resid_post.2").answer()
    with pytest.raises(UserError, match=r"reads 48 features, and resid_post.1 has 32"):
        answer(sae=saved("b", 48, "resid_post.1")).answer()
    lossless = answer(sae=str(tmp_path / "a"))
    lossless.answer()
    quality = lossless.results["quality"]
    assert select(quality.table, metric=names.EXPLAINED, condition=ESTIMATE)["value"].iloc[0] == pytest.approx(1.0)
    assert select(quality.table, metric=names.KL, condition=ESTIMATE)["value"].iloc[0] == 0


def test_the_random_weights_are_another_draw_than_the_tiny_model(run):
    one, other = (sae.open(run.folder / "artifacts" / "sae" / name) for name in ("k-4", "random-weights"))
    assert not torch.equal(one.W_dec, other.W_dec)
