"""The closing lines answer what was asked: each attribute and relation is named, and so is why one could not be measured."""

import pandas as pd
import pytest

from families import build, build_tokenizer
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.studies.entities import STUDY as ENTITIES
from repscope.studies.entities.options import EntitiesOptions
from repscope.studies.relations import STUDY as RELATIONS
from repscope.studies.relations.options import LEAST_KNOWN, RelationsOptions
from repscope.studies.run.runner import Run
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """A table whose name holds a dot: an attribute that can be probed, a number, one of classes that are too small."""
    path = tmp_path_factory.mktemp("tables") / "my.towns.csv"
    held = {
        "name": [f"Town {i}" for i in range(40)],
        "kind": ["a", "b"] * 20,
        "size": range(40),
        "rare": [f"r{i}" for i in range(40)],
    }
    pd.DataFrame(held).to_csv(path, index=False)
    return str(path)


SMALL = {"tiny": True, "context": 0, "shuffles": 2, "folds": 2}


def answered(study, options, out, lm=None):
    made = Run(study, options, out=out, lm=lm)
    page = made.answer().read_text()
    return list(made.headline().lines), page


def test_every_attribute_that_was_asked_for_is_in_the_answer(towns, tmp_path):
    lines, page = answered(ENTITIES, EntitiesOptions(entities=(towns,), attribute=("kind", "rare", "size"), **SMALL), tmp_path)
    text = " ".join(lines)
    assert "Kind of 40 items: accuracy" in text
    assert "Size of 40 items: R²" in text
    assert "Not probed: Attribute 'rare' of my.towns has 0 of the 2 classes" in text
    assert "Not probed: Attribute &#39;rare&#39; of my.towns" in page


def test_a_set_of_which_nothing_can_be_probed_is_refused_with_the_reason(towns, tmp_path):
    with pytest.raises(UserError, match=r"No attribute of my\.towns can be probed: Attribute 'rare'"):
        Run(ENTITIES, EntitiesOptions(entities=(towns,), attribute=("rare",), **SMALL), out=tmp_path).answer()
    assert not list(tmp_path.iterdir())


def test_tiny_drops_nothing_that_was_named():
    few = EntitiesOptions(tiny=True).sized()
    assert (few.entities, few.folds, few.attribute) == (("cities",), 3, ("continent", "latitude"))
    named = EntitiesOptions(
        tiny=True, entities=("countries", "elements"), folds=4, shuffles=7, context=3, max_items=90, template=("a {}", "b {}")
    ).sized()
    assert named.entities == ("countries", "elements")
    assert (named.folds, named.shuffles, named.context, named.max_items) == (4, 7, 3, 90)
    assert named.attribute == (), "elements has no continent"
    held = ("city-country", "country-capital", "country-language")
    assert RelationsOptions(tiny=True, relations=held, splits=3, ranks=(2,)).sized().relations == held
    assert RelationsOptions(tiny=True, relations=held, splits=3, ranks=(2,)).sized().splits == 3
    assert len(RelationsOptions(tiny=True).sized().relations) == 2
    assert RelationsOptions(short=True, max_items=120).sized().max_items == 120


def test_a_template_that_was_given_is_used_in_the_small_forms_too(towns, tmp_path):
    own = EntitiesOptions(entities=(towns,), template=("one {}", "two {}"), **SMALL)
    from repscope.studies.entities.task import entity_tasks

    (subject,) = entity_tasks(Run(ENTITIES, own, out=tmp_path).setup)
    assert subject.templates == ("one {}", "two {}")


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_tiny_runs_in_the_precision_that_it_states(dtype, precision, tmp_path):
    made = Run(ENTITIES, EntitiesOptions(tiny=True, dtype=dtype, device="cpu"), out=tmp_path)
    assert next(made.setup.network.model.parameters()).dtype.__str__() == f"torch.{precision}"
    assert made.setup.network.source.precision == f"{precision}, random weights"


def short_context(length):
    model = build("llama")
    model.config.max_position_embeddings = length
    return LanguageModel(model, build_tokenizer(), "short")


def test_a_template_longer_than_the_context_is_blamed_on_the_context(towns, tmp_path):
    template = " ".join(["very"] * 40) + " {}"
    options = EntitiesOptions(entities=(towns,), template=(template,), **{**SMALL, "tiny": False})
    with pytest.raises(UserError, match=r"short takes 16 tokens, but every prompt of my\.towns has more") as told:
        Run(ENTITIES, options, out=tmp_path, lm=short_context(16)).answer()
    assert "classes" not in str(told.value)


def test_names_that_the_context_drops_are_named_where_too_few_are_left(tmp_path):
    path = tmp_path / "mixed.csv"
    names = [f"Town {i}" if i < 10 else " ".join([f"Town {i}"] * 20) for i in range(40)]
    pd.DataFrame({"name": names, "kind": ["a", "b"] * 20}).to_csv(path, index=False)
    options = EntitiesOptions(entities=(str(path),), **{**SMALL, "tiny": False})
    with pytest.raises(UserError, match=r"30 of 40 names are dropped, as short takes 32 tokens .* of the others: No attribute"):
        Run(ENTITIES, options, out=tmp_path / "runs", lm=short_context(32)).answer()


def test_a_relation_that_the_model_does_not_know_is_named_with_the_minimum(tmp_path):
    options = RelationsOptions(
        relations=("country-capital", "city-continent"), examples=2, splits=1, trials=1, max_items=20, edits=0, ranks=(2,)
    )
    lines, page = answered(RELATIONS, options, tmp_path, tiny())
    for name in options.relations:
        (said,) = [line for line in lines if line.startswith(name)]
        assert said.startswith(f"{name}: cannot be measured: tiny knows 0 of ")
        assert said.endswith(f"and a map needs {LEAST_KNOWN}, in two halves.")
        assert f"{name}: cannot be measured" in page


def test_the_minimum_of_known_facts_is_in_the_help():
    assert f"at least {LEAST_KNOWN} facts" in RelationsOptions.model_fields["relations"].description
