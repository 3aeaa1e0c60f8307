"""The `relations` study end to end on a tiny random network, where everything is there and nothing is known."""

import json

import numpy as np
import pandas as pd
import pytest

from repscope.data.relations import Relation
from repscope.directions import DirectionSet
from repscope.errors import UserError
from repscope.models.linear import merged_mlp
from repscope.read.known_facts import encode_facts
from repscope.read.relations_at_two_layers import lre_at_both
from repscope.results import CHOSEN, COLUMNS, ESTIMATE
from repscope.steer.remedi import Editor
from repscope.studies.relations import STUDY as RELATIONS
from repscope.studies.relations import costs
from repscope.studies.relations.options import RelationsOptions
from repscope.studies.relations.pooled import pooled
from repscope.studies.relations.remedi_page import _summary
from repscope.studies.run.runner import Run

MAPS = {
    ESTIMATE,
    "logit lens",
    "translation",
    "ridge map, the same examples",
    "ridge map, whole half",
    "map on another subject's vector",
    "map from the embedding",
    "majority object",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = Run(
        RELATIONS,
        RelationsOptions(tiny=True, relations=("city-continent", "country-continent")),
        out=tmp_path_factory.mktemp("runs"),
    )
    made.answer()
    return made


def test_every_estimate_has_its_controls_and_intervals_over_subjects(run):
    table = run.table
    assert list(table.columns) == list(COLUMNS)
    at = table[(table["site"] == CHOSEN) & (table["split"] == "halves")]
    for item in ("city-continent", "country-continent"):
        rows = at[at["item"] == item]
        assert set(rows[rows["metric"] == "faithfulness"]["condition"]) >= MAPS
        assert {"ridge probe", "class means", "shuffled objects"} <= set(rows[rows["metric"] == "concept accuracy"]["condition"])
        assert {"random direction", "mean vector of other subjects"} <= set(rows[rows["metric"] == "edit success"]["condition"])
    scored = table[table["unit"].fillna("") != ""]
    assert set(scored["unit"]) == {"subject"}
    assert (scored["lo"] <= scored["value"] + 1e-9).all()
    assert (scored["value"] <= scored["hi"] + 1e-9).all()
    assert table["row_id"].is_unique


def test_editors_are_tested_on_other_subjects_beside_their_baselines(run):
    table = run.table
    efficacy = table[(table["metric"] == "REMEDI efficacy") & (table["item"] == "all relations")]
    named = {ESTIMATE, "affine editor", "raw attribute vector", "sentence in the prompt", "random direction", "unedited"}
    assert set(efficacy["condition"]) == named | {"edit by the relation's map"}
    assert set(table[table["metric"] == "REMEDI gain"]["condition"]) == {f"over {c}" for c in {*named} - {ESTIMATE}} | {
        "over edit by the relation's map"
    }
    for metric in ("REMEDI generalisation", "REMEDI specificity", "REMEDI damage", "REMEDI preference"):
        assert ESTIMATE in set(table[table["metric"] == metric]["condition"]), metric
    facts = run.results["REMEDI"].side["remedi-texts"]
    for item in ("city-continent", "country-continent"):
        reported = run.results[f"{item} split 0"].arrays["reported"]
        assert len(reported)
    assert len(facts) == efficacy["n"].max()
    assert (facts["before"] != facts["target"]).all()
    editor = Editor.load(run.folder / "artifacts" / "remedi-linear.safetensors")
    assert editor.model == run.subject.fingerprint
    assert "Editing facts by REMEDI" in (run.folder / "report.html").read_text()


def test_the_n_beside_the_efficacy_is_its_own(run):
    """The AUC of inspection has rows of the same conditions over more samples."""
    here = run.table[run.table["item"] == "all relations"]
    efficacy = here[here["metric"] == "REMEDI efficacy"]
    shown = _summary(pd.concat([here, efficacy.assign(metric="REMEDI AUC", n=efficacy["n"] + 11)])).frame
    named = efficacy["condition"].replace(ESTIMATE, "linear editor")
    assert dict(zip(shown["edit"], shown["n"])) == dict(zip(named, efficacy["n"]))


def test_reported_subjects_had_no_part_in_choosing(run):
    for item in ("city-continent", "country-continent"):
        for k in (0, 1):
            arrays = run.results[f"{item} split {k}"].arrays
            known = run.results[f"{item} known"].arrays["known"]
            order = np.random.default_rng([0, k]).permutation(known)
            reported = arrays["reported"]
            assert set(reported) <= set(order)
            assert not set(reported) & set(order[: len(order) // 2])


def test_the_page_and_its_files(run):
    page = (run.folder / "report.html").read_text()
    for text in ("Faithfulness by block", "Edits by dose", "Before and after", "Every map on every relation"):
        assert text in page
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["study"] == "relations"
    kept = DirectionSet.load(run.folder / "artifacts" / "city-continent-concepts.safetensors")
    assert "Asia" in [d.name for d in kept]


def test_a_wide_network_has_maps_of_low_rank_everywhere(run, tmp_path, monkeypatch):
    """The tiny network counts as wide here: maps are factors in all steps, and a note says how far from whole."""
    monkeypatch.setattr("repscope.studies.relations.split.WIDE", 16)
    made = Run(RELATIONS, RelationsOptions(tiny=True, relations=("city-continent", "country-continent"), splits=1), out=tmp_path)
    made.answer()
    arrays = made.results["city-continent split 0"].arrays
    assert "weight" not in arrays
    assert (arrays["left"].shape, arrays["right"].shape) == ((32, 1), (1, 32))
    assert any("maps of rank 1 from 10 products in place of 32" in note for note in made.results["city-continent split 0"].notes)
    kept = set(zip(made.table["metric"], made.table["condition"], made.table["item"]))
    whole = set(zip(run.table["metric"], run.table["condition"], run.table["item"]))
    assert {c for c in whole - kept if not c[1].startswith("rank ")} == set()
    assert {c[1] for c in kept - whole} == {"rank 1"}


def test_the_plan_counts_the_products_of_the_maps(run, monkeypatch):
    """Vectors that go back through the MLP of each block at each position."""
    lm, passed = run.setup.network, []
    samples = (("Chile", "Santiago"), ("Peru", "Lima"), ("Italy", "Rome"), ("France", "Paris"))
    for name in ("times", "merged"):
        whole = getattr(merged_mlp._Weights, name)
        monkeypatch.setattr(
            merged_mlp._Weights, name, lambda self, c, forth, f=whole: (passed.append(c[..., 0].numel()), f(self, c, forth))[1]
        )
    lre_at_both(lm, encode_facts(lm, Relation("capital", ("The capital of {}",), samples)), samples[:3], "resid_post.2")
    assert sum(passed) == pytest.approx(3 * lm.blocks * costs._passes(run.setup, 2, 2) / costs._MERGED)


def test_a_second_run_computes_nothing(run):
    again = Run(RELATIONS, run.options, out=run.out)
    again.answer()
    assert not again.took


def test_own_files_and_their_mistakes(tmp_path):
    own = tmp_path / "colours.csv"
    own.write_text("subject,object\n" + "".join(f"thing {i},{'red' if i % 2 else 'blue'}\n" for i in range(24)))
    made = Run(
        RELATIONS, RelationsOptions(tiny=True, relations=(str(own),), template=("The colour of {} is",)), out=tmp_path / "runs"
    )
    made.answer()
    assert set(made.table["item"]) >= {"colours"}
    own.write_text("subject,object\na,b\nc,d\n")
    with pytest.raises(UserError, match="2 usable samples"):
        Run(RELATIONS, RelationsOptions(tiny=True, relations=(str(own),)), out=tmp_path / "few").answer()
    own.write_text("subject,object\n" + "".join(f"thing {i},red\n" for i in range(24)))
    with pytest.raises(UserError, match="one object"):
        Run(RELATIONS, RelationsOptions(tiny=True, relations=(str(own),)), out=tmp_path / "one").answer()
    with pytest.raises(UserError, match="exactly once"):
        Run(RELATIONS, RelationsOptions(tiny=True, template=("no subject",)), out=tmp_path / "no").answer()
    with pytest.raises(UserError, match="no block 9"):
        Run(RELATIONS, RelationsOptions(tiny=True, object_block=9), out=tmp_path / "b").answer()
    assert not (tmp_path / "few").exists()


def test_splits_pool_by_subject():
    parts = [
        {"reported": np.array([0, 1]), "lre|estimate|chosen": np.array([1.0, 0.0]), "lre|logit lens|chosen": np.array([0.0, 0.0])},
        {
            "reported": np.array([1, 2]),
            "lre|estimate|chosen": np.array([1.0, np.nan]),
            "lre|logit lens|chosen": np.array([0.0, 1.0]),
        },
    ]
    rows = {(r.metric, r.condition, r.split): r for r in pooled("r", parts, 0)}
    assert rows["faithfulness", ESTIMATE, "halves"].value == 0.75  # subject 0 is 1, subject 1 is ½, subject 2 was not scored
    assert rows["faithfulness", ESTIMATE, "halves"].n == 2
    assert rows["gain", "over logit lens", "halves"].value == 0.75
    assert rows["faithfulness", ESTIMATE, "split 1"].n == 1
