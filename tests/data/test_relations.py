"""Relations: what a file holds comes out as it is or is refused in a sentence."""

import json

import pytest

from repscope.data.relations import Relation, of_pairs, relation, relation_names
from repscope.errors import UserError

PAIRS = (("Chile", "Santiago"), ("Peru", "Lima"), ("Italy", "Rome"))


def written(path, **changes):
    held = {
        "name": "country capital city",
        "prompt_templates": ["The capital of {} is", "{} has the capital"],
        "samples": [{"subject": s, "object": o} for s, o in PAIRS],
    }
    path.write_text(json.dumps(held | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", relation_names())
def test_what_is_built_in_has_enough_and_clean_samples(name):
    found = relation(name)
    assert len(found) >= 80
    assert all(s == s.strip() and o == o.strip() and s and o for s, o in found.samples)
    assert len(found.objects) >= 2


def test_some_facts_of_what_is_built_in():
    assert dict(relation("country-capital").samples)["France"] == "Paris"
    assert dict(relation("country-language").samples)["Brazil"] == "Portuguese"
    assert dict(relation("element-symbol").samples)["iron"] == "Fe"
    assert dict(relation("past-tense").samples)["go"] == "went"
    assert dict(relation("comparative").samples)["good"] == "better"
    assert dict(relation("city-country").samples)["Lagos"] == "Nigeria"


def test_the_subject_is_the_span_and_the_examples_stand_before_it():
    held = Relation("r", ("The capital of {} is",), PAIRS)
    prompt = held.prompt("Rome", [("Chile", "Santiago")])
    assert prompt.text == "The capital of Chile is Santiago\nThe capital of Rome is"
    a, b = prompt.spans["subject"]
    assert prompt.text[a:b] == "Rome"
    answered = held.prompt("Peru", answer="Lima")
    a, b = answered.spans["object"]
    assert answered.text[a:b] == "Lima"
    first = Relation("r", ("{} has the capital",), PAIRS).prompt("Peru")
    assert first.spans["subject"] == (0, 4)


def test_json_of_the_dataset(tmp_path):
    found = relation(written(tmp_path / "capital.json"))
    assert found.name == "country capital city"
    assert found.templates == ("The capital of {} is", "{} has the capital")
    assert found.samples == PAIRS
    assert not found.notes


def test_double_escapes_are_repaired_and_counted(tmp_path):
    samples = [{"subject": "Paraguay", "object": "Asunci\\u00f3n"}, {"subject": "Peru", "object": "Lima"}]
    found = relation(written(tmp_path / "c.json", samples=samples))
    assert found.samples[0] == ("Paraguay", "Asunción")
    assert "1 of 2 samples were escaped twice" in found.notes[0]


def test_halves_of_a_character_make_no_broken_text():
    found = of_pairs("r", ["{} is"], [("a", "\\ud83d\\ude00"), ("b", "\\ud83d")])
    assert found.samples[0][1] == "😀"
    found.samples[1][1].encode("utf-8")


def test_copies_count_once_and_torn_subjects_go():
    found = of_pairs("r", ["{} is"], [("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("", "z"), ("c", "q" * 300)])
    assert found.samples == (("a", "x"),)
    told = " ".join(found.notes)
    assert "1 samples that are there twice" in told
    assert "1 subjects have several objects" in told
    assert "2 of 6 samples are empty or longer" in told


def test_a_table_and_its_template(tmp_path):
    (tmp_path / "colour.csv").write_text("subject,object,note\nsky,blue,x\ngrass,green,y\n")
    found = relation(tmp_path / "colour.csv")
    assert (found.name, found.samples) == ("colour", (("sky", "blue"), ("grass", "green")))
    assert "no template" in found.notes[0]
    asked = relation(tmp_path / "colour.csv", templates=["The colour of {} is"])
    assert asked.prompt("sky").text == "The colour of sky is"
    assert not asked.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": []}, "has no sample"),
        ({"samples": {"a": 1}}, '"samples"'),
        ({"samples": [{"subject": "a"}]}, "sample 0"),
        ({"samples": [{"subject": "a", "object": 3}]}, "sample 0"),
        ({"samples": ["ab"]}, "sample 0"),
        ({"prompt_templates": ["no place for it"]}, "exactly once"),
        ({"prompt_templates": ["{} and {}"]}, "exactly once"),
        ({"prompt_templates": ["{0.__class__} is {}"]}, "exactly once"),
        ({"prompt_templates": "text"}, "list of texts"),
        ({"prompt_templates": []}, "no template"),
    ],
)
def test_a_wrong_file_is_told_in_a_sentence(tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        relation(written(tmp_path / "r.json", **change))


def test_files_that_are_no_relations(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "x.csv").write_text("subject,thing\na,b\n")
    for name in ("deep.json", "list.json", "bad.json", "x.csv", "missing.json", "missing.csv"):
        with pytest.raises(UserError):
            relation(tmp_path / name)
    with pytest.raises(UserError, match="did you mean 'country-capital'"):
        relation("country-captial")
    with pytest.raises(UserError):
        relation(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("templates", "samples", "said"),
    [
        ("{} is", (("a", "b"),), "no list of texts"),
        (("{} is", 3), (("a", "b"),), "no list of texts"),
        (("{} is",), (("a", "b"), ("c", "d", "e")), "number 1.; give pairs"),
        (("{} is",), (("a", 3),), "both texts"),
        (("{} is",), ("ab",), "give pairs"),
        (("{} is",), (("", "b"),), "empty subject in sample 0"),
        (("{} is",), (("a", " "),), "empty object in sample 0"),
        (("{} is",), (("a", "b"), ("a", "c")), "has the subject 'a' 2 times"),
    ],
)
def test_what_is_no_relation_is_told_in_a_sentence(templates, samples, said):
    with pytest.raises(UserError, match=said):
        Relation("own", templates, samples)


@pytest.mark.parametrize("most", [-1, 0, 2.5, True])
def test_a_sample_has_at_least_one(most):
    with pytest.raises(UserError, match="whole number of 1 or more"):
        relation("country-capital").sample(most)


def test_a_sample_is_drawn_with_its_seed_and_told():
    held = relation("city-country")
    drawn = held.sample(50, 1)
    assert len(drawn) == 50
    assert drawn == held.sample(50, 1)
    assert drawn.samples != held.sample(50, 2).samples
    assert "50 of 400" in drawn.notes[-1]
    assert held.sample(1000) is held
