"""The study end to end on a tiny random network, and where the truth was planted."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from families import build
from report import browser
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.results import COLUMNS, ESTIMATE
from repscope.studies.entities import STUDY as ENTITIES
from repscope.studies.entities import task
from repscope.studies.entities.options import EntitiesOptions
from repscope.studies.run.runner import Run
from repscope.studies.run.study import Setup
from repscope.worlds.tiny import tiny

CONTROLS = {
    "shuffled labels",
    "bag of token embeddings",
    "random weights",
    "first token alone",
    "character n-grams",
    "majority class",
}


@pytest.fixture(scope="module")
def run(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("entities", tmp_path_factory.mktemp("runs"))  # of cities, with a context of 2


def test_every_estimate_has_its_controls_and_intervals_over_entities(run):
    table = run.table
    assert list(table.columns) == list(COLUMNS)
    for item, rows in table[table["metric"] == "accuracy"].groupby("item"):
        assert set(rows["condition"]) >= CONTROLS, item
    scored = table[table["metric"] != "block"]
    assert (scored["lo"] <= scored["value"] + 1e-9).all()
    assert (scored["value"] <= scored["hi"] + 1e-9).all()
    assert set(scored["unit"]) == {"entity", "shuffle"}
    lost = table[table["metric"] == "accuracy lost"]
    assert {"MLP outputs replaced", "attention outputs replaced", "attention between the name's tokens cut"} <= set(
        lost["condition"]
    )
    assert set(lost["site"]) == {"blocks 0–0", "blocks 1–1", "blocks 0–1"}
    assert (scored["n"] > 0).all()
    assert table["row_id"].is_unique


def test_the_page_and_its_files(run):
    page = (run.folder / "report.html").read_text()
    assert "Continent" in page
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["fingerprint"] == run.subject.fingerprint
    assert facts["precision"] == "float32, random weights"
    assert (run.folder / "artifacts" / "cities-probes.safetensors").is_file()
    assert {p.stem for p in (run.folder / "results").glob("*.parquet")} == {
        "cities",
        "cities+random+weights",
        "cities+shared+tokens",
        "cities+context",
        "cities+summary",
        "cities+mechanism",
        "cities+recombined",
        "cities+bases",
        "verify",
    }


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as held:
        yield held


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_real_browser(run, chromium, width):
    with browser.opened(chromium, run.folder / "report.html", width) as held:
        assert not held.troubles
        assert not held.requests
        assert held.overflow() <= 0
        charts = held.page.locator(".chart")
        assert charts.count() >= 4
        for i in range(charts.count()):
            assert charts.nth(i).locator("svg path").count() > 3, "every figure is drawn"


def test_the_answer_says_only_what_the_table_says(run):
    said = " ".join(run.headline().lines)
    chosen = run.table[(run.table["site"] == "chosen on the other half") & (run.table["split"] == "entity")]
    row = chosen[(chosen["condition"] == ESTIMATE) & (chosen["item"] == "cities.continent") & (chosen["metric"] == "accuracy")]
    assert f"{row['value'].iloc[0]:.2f} [{row['lo'].iloc[0]:.2f}, {row['hi'].iloc[0]:.2f}]" in said


def planted(layer=2):
    """A tiny network in which block `layer` writes, at a name's last byte, whether its first byte is early in the alphabet:
    a fact that no bag of tokens holds, since the names below are anagrams.
    """
    lm = tiny(0)

    def write(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] < 2:  # a prompt without a name
            return output
        marked = hidden.clone()
        first = marked[:, 1:2, :4].clone()  # what the first byte of the name put into the residual stream
        marked[:, -1:, 8:12] = 30 * first
        return (marked, *output[1:]) if isinstance(output, tuple) else marked

    lm.model.model.layers[layer].register_forward_hook(write)
    return lm


def test_planted_composition_is_found_where_it_was_planted(tmp_path):
    rng = np.random.default_rng(0)
    names, kinds = [], []
    while len(names) < 120:
        letters = rng.choice(list("abcdefgh"), 6, replace=False)
        head = "AB"[len(names) % 2]
        name = head + "".join(letters) + "AB".replace(head, "") + "x"  # both A and B stand in every name
        if name not in names:
            names.append(name)
            kinds.append({"A": "early", "B": "late"}[head])
    pd.DataFrame({"name": names, "kind": kinds}).to_csv(tmp_path / "names.csv", index=False)
    options = EntitiesOptions(
        entities=(str(tmp_path / "names.csv"),),
        attribute=("kind",),
        template=("x{}",),
        short=True,
        batch_tokens=9,
        shuffles=5,
        folds=4,
        context=0,
    )
    lm = planted()
    for i in range(4):
        lm.model.model.layers[i].self_attn.register_forward_hook(lambda m, a, o: (torch.zeros_like(o[0]), *o[1:]))
    run = Run(ENTITIES, options, out=tmp_path / "runs", lm=lm)
    run.answer()
    table = run.table
    here = table[(table["token"] == "last") & (table["split"] == "entity") & (table["condition"] == ESTIMATE)]
    by_site = here[here["metric"] == "accuracy"].set_index("site")["value"]
    assert by_site["resid_post.1"] < 0.75
    assert by_site["resid_post.2"] > 0.95
    bag = table[(table["condition"] == "over bag of token embeddings")]
    assert (bag["lo"] > 0.2).all()


def test_names_of_two_tokens_are_recombined(tmp_path):
    """A network of bytes: a name of two letters is two tokens. Its vector after one block is split, beside random weights."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [
        (f"{a}{b}", "left" if i % 2 else "right")
        for i, (a, b) in enumerate(zip(letters * 2, letters[3:] + letters[:3] + letters[7:] + letters[:7]))
    ]
    pd.DataFrame(names, columns=["name", "kind"]).drop_duplicates("name").to_csv(tmp_path / "two.csv", index=False)
    options = EntitiesOptions(
        entities=(str(tmp_path / "two.csv"),), attribute=("kind",), template=("x {}",), short=True, shuffles=2, folds=3, context=0
    )
    made = Run(ENTITIES, options, out=tmp_path / "runs", lm=tiny(0))
    made.answer()
    table = made.table
    shares = table[table["metric"].isin(["share of single tokens", "share of pairs"])]
    assert set(shares["item"]) == {"two, 2 tokens"}
    assert set(shares["condition"]) == {ESTIMATE, "random weights"}
    assert np.allclose(shares.groupby("condition")["value"].sum(), 1)
    assert set(shares["unit"]) == {"grid"}
    parts = table[table["metric"] == "accuracy from parts"]
    assert set(parts["condition"]) == {ESTIMATE, "sum over single tokens"}
    assert "How much of the vector is a sum over tokens" in (made.folder / "report.html").read_text()


def test_an_encoder_is_not_given_controls_that_need_causality(tmp_path, tokenizer):
    lm = LanguageModel(build("bert"), tokenizer, "bert")
    made = Run(
        ENTITIES, EntitiesOptions(entities=("countries",), attribute=("continent",), short=True, shuffles=3), out=tmp_path, lm=lm
    )
    made.answer()
    assert "first token alone" not in set(made.table["condition"])
    assert not made.table["condition"].str.startswith("context").any()
    assert any("attends to the whole name" in note for result in made.results.values() for note in result.notes)


def test_groups_stay_on_one_side(tmp_path):
    """Names tell their group and the group tells the attribute: readable by entity, not across groups."""
    rows = [(f"{g}{i:03d}{g}", "even" if ord(g) % 2 else "odd", g) for i in range(9) for g in "abcdefghijkl"]
    pd.DataFrame(rows, columns=["name", "kind", "family"]).to_csv(tmp_path / "t.csv", index=False)
    found = {}
    for group in (None, "family"):
        options = EntitiesOptions(
            entities=(str(tmp_path / "t.csv"),), attribute=("kind",), group=group, short=True, shuffles=3, context=0, folds=4
        )
        made = Run(ENTITIES, options, out=tmp_path / "runs", lm=tiny(0))
        made.answer()
        table = made.table[(made.table["site"] == "chosen on the other half") & (made.table["metric"] == "accuracy")]
        whole = table[~table["split"].isin(["half"]) & (table["condition"] == ESTIMATE)]
        found[group] = whole["value"].iloc[0]
        assert set(whole["split"]) == {f"group {group}" if group else "entity"}
    assert found[None] > 0.95
    assert found["family"] < 0.8


def test_labelled_text(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdef" if i % 2 else "uvwxyz"), 12)) for i in range(90)]
    frame = pd.DataFrame({"said": texts, "mood": ["low" if i % 2 else "high" for i in range(90)]})
    frame.to_csv(tmp_path / "texts.csv", index=False)
    options = EntitiesOptions(
        data=tmp_path / "texts.csv", text="said", label=("mood",), tokens="mean", short=True, shuffles=4, folds=3
    )
    run = Run(ENTITIES, options, out=tmp_path / "runs", lm=tiny(0))
    run.answer()
    chosen = run.table[(run.table["site"] == "chosen on the other half") & (run.table["metric"] == "accuracy")]
    scores = chosen[chosen["split"] == "entity"].set_index("condition")["value"]
    assert scores[ESTIMATE] > 0.9
    assert scores["bag of token embeddings"] > 0.9, "and the control says that no network is needed"
    assert scores["shuffled labels"] < 0.7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name,kind\n" + "".join(f"n{i},same\n" for i in range(40)), "1 of the 2 classes"),
        ("name,kind\na,x\nb,y\nc,x\n", "classes|rows"),
        ("name,kind\n" + "".join(f" ,{i % 2}\n" for i in range(40)), "name"),
        ("name,kind\n" + "".join(f"{'long ' * 2000}{i},{i % 2}\n" for i in range(40)), "200|long"),
        ("name,kind\n" + "".join(f"n{i},{i * 1.5 if i % 2 else 'word' + str(i)}\n" for i in range(80)), "mix|number"),
        ("name,knd\na,x\n", "did you mean 'knd'"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, content, says):
    (tmp_path / "bad.csv").write_text(content)
    options = EntitiesOptions(entities=(str(tmp_path / "bad.csv"),), attribute=("kind",), short=True)
    with pytest.raises(UserError, match=says) as caught:
        Run(ENTITIES, options, out=tmp_path / "runs", lm=tiny(0)).answer()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists(), "a mistake leaves no run behind"


def test_a_typo_is_answered_with_the_nearest_names(tmp_path):
    for options, says in [
        (EntitiesOptions(entities=("citis",)), "did you mean 'cities'"),
        (EntitiesOptions(entities=("cities",), attribute=("continnet",)), "did you mean 'continent'"),
    ]:
        with pytest.raises(UserError, match=says):
            Run(ENTITIES, options, out=tmp_path / "runs", lm=tiny(0)).answer()


def test_sets_share_one_network_with_random_weights(monkeypatch):
    lm, made = tiny(), []
    monkeypatch.setattr(LanguageModel, "twin", lambda self, seed: made.append(seed) or tiny(seed + 1))
    options = EntitiesOptions(entities=("countries", "elements"))
    first, second = task.entity_tasks(Setup(options, lambda: lm))
    assert first.twin() is second.twin() is first.twin()
    assert len(made) == 1
    monkeypatch.setattr(task, "_TWIN_IN_MEMORY", 1000)
    first.twins.clear()
    assert first.twin() is not second.twin()
