import numpy as np
import pandas as pd
import pytest

from repscope.data.entities import SETS, Attribute, EntitySet, cities, countries, elements, entity_set, labelled_text
from repscope.errors import UserError


@pytest.fixture(scope="module")
def towns():
    return cities()


@pytest.fixture
def table(tmp_path):
    frame = pd.DataFrame(
        {
            "city": [f"Town {i}" for i in range(60)],
            "country": ["A", "B", "C"] * 20,
            "people": [str(1000 + 10.5 * i) for i in range(60)],
            "rank": ["first"] + [""] * 59,
        }
    )
    frame.loc[58, "country"] = ""
    frame.loc[59, "country"] = "D"
    frame.to_csv(tmp_path / "my.csv", index=False)
    return tmp_path / "my.csv"


def toy(values, kind="class"):
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(len(values))], "a": pd.Series(values, dtype=object)})
    if kind == "number":
        frame["a"] = frame["a"].astype("float64")
    return EntitySet("toys", frame, (Attribute("a", kind),), ("A toy, {}",))


@pytest.mark.parametrize("name", SETS)
def test_built_in_sets_are_well_formed(name):
    found = entity_set(name)
    assert found.frame["name"].is_unique
    assert found.frame["name"].str.strip().eq(found.frame["name"]).all()
    assert found.frame.index.equals(pd.RangeIndex(len(found)))
    assert len(found.templates) >= 3
    for attribute in found.attributes:
        column = found.frame[attribute.name]
        if attribute.kind == "number":
            assert column.dtype == np.float64
            assert np.isfinite(column).all()
        else:
            assert column.map(lambda v: v is None or (isinstance(v, str) and v != "")).all()
    assert all(p.endswith(n) for p, n in zip(found.prompts(found.templates[0]), found.frame["name"], strict=True))


def test_cities_are_balanced_and_true(towns):
    assert towns.frame["continent"].value_counts().to_dict() == dict.fromkeys(
        ["Africa", "Asia", "Europe", "North America", "South America"], 60
    )
    london = towns.frame.set_index("name").loc["London"]
    assert london["country"] == "United Kingdom"
    assert london["currency"] == "Pound"
    assert london["hemisphere"] == "northern"
    assert london["east_west"] == "western"
    assert abs(london["latitude"] - 51.5) < 0.1
    assert 6.8 < london["log10_population"] < 7.1
    assert towns.frame["log10_population"].is_monotonic_decreasing
    southern = towns.frame["hemisphere"] == "southern"
    assert southern.equals(towns.frame["latitude"] < 0)


def test_a_city_takes_its_own_token_count():
    seen = []

    def words(text):
        seen.append(text)
        return len(text.split())

    found = cities(5, words)
    assert all(text.startswith(" ") for text in seen)
    assert found.frame["name"].str.contains(r"\s").all()
    assert len(found) == 25
    passed = len(set(seen)) - 25
    assert f"{passed} cities with names of one token were passed over." in found.notes


def test_population_bands_are_quarters_that_say_the_truth(towns):
    target = towns.target("population_band")
    people = 10 ** towns.frame["log10_population"].to_numpy()
    assert target.classes[0].startswith("under ")
    bounds = [float(c.split("–")[0]) * 1e6 for c in target.classes[1:3]] + [float(target.classes[3].split()[0]) * 1e6]
    assert np.array_equal(np.searchsorted(bounds, np.round(people), side="right"), target.values)
    assert np.bincount(target.values).min() > 0.15 * len(towns)


def test_more_cities_than_there_are_is_said():
    found = cities(4000)
    assert any("not balanced" in note and "South America" in note for note in found.notes), found.notes


def test_countries_have_the_place_of_their_capital():
    frame = countries().frame.set_index("name")
    for name, latitude, longitude in (
        ("United States", 38.9, -77.0),
        ("Mongolia", 47.9, 106.9),  # the capital is found under another spelling
        ("Kazakhstan", 51.2, 71.4),
        ("Kenya", -1.3, 36.8),
    ):
        assert abs(frame.loc[name, "latitude"] - latitude) < 0.3
        assert abs(frame.loc[name, "longitude"] - longitude) < 0.3
    assert frame.loc["Kenya", "hemisphere"] == "southern"
    assert "Serbia and Montenegro" not in frame.index
    assert "Netherlands Antilles" not in frame.index
    assert len(countries(50_000_000)) < 40
    with pytest.raises(UserError, match="lower the minimum"):
        countries(10**11)


def test_elements_are_all_there():
    found = elements()
    frame = found.frame.set_index("name")
    assert len(found) == 118
    assert frame.loc["gold", ["symbol", "group", "period", "block"]].tolist() == ["Au", "11", "6", "d"]
    assert frame.loc["gold", "atomic_number"] == 79
    assert abs(frame.loc["gold", "log10_atomic_weight"] - np.log10(196.967)) < 1e-4
    assert found.target("period").classes == ("2", "3", "4", "5", "6", "7")
    assert found.target("group", min_count=4).classes[-1] == "18"
    with pytest.raises(UserError, match=r"'symbol' of elements has 0 of the 2 classes .* of its 118, .* has 1\)"):
        found.target("symbol")


def test_a_target_leaves_out_missing_values_and_small_classes_and_says_so():
    target = toy(["b"] * 12 + [None] * 3 + ["a"] * 9 + ["rare"] * 2).target("a")
    assert target.classes == ("a", "b")
    assert target.rows.tolist() == [*range(12), *range(15, 24)]
    assert target.values.tolist() == [1] * 12 + [0] * 9
    assert target.values.dtype == np.int64
    assert target.notes == (
        "Attribute 'a' of toys: 3 of 26 entities have no value and are left out.",
        "Attribute 'a' of toys: 2 entities in 1 class of fewer than 8 are left out (rare).",
    )


def test_a_number_target():
    target = toy([0.5 * i if i % 5 else np.nan for i in range(40)], "number").target("a")
    assert target.classes == ()
    assert np.array_equal(target.values, 0.5 * target.rows)
    assert len(target.rows) == 32


@pytest.mark.parametrize(
    ("entities", "says"),
    [
        (toy(["a"] * 40), "1 of the 2 classes"),
        (toy(["a"] * 9 + ["b"] * 9), "known of 18 usable entities and a probe needs 20"),
        (toy([None] * 30), "no entity has a value"),
        (toy([1.0] * 19, "number"), "known of 19 usable entities"),
        (toy([2.5] * 30, "number"), "is 2.5 for all 30 entities"),
    ],
)
def test_targets_that_no_probe_can_learn_are_refused(entities, says):
    with pytest.raises(UserError) as error:
        entities.target("a")
    assert says in str(error.value)
    assert "'a' of toys" in str(error.value)


def test_a_typo_in_an_attribute(towns):
    with pytest.raises(UserError, match="did you mean 'continent'"):
        towns.target("contnent")


@pytest.mark.parametrize("template", ["The place", "{} and {}", "{name}", "{} {x}"])
def test_a_template_has_one_place_for_the_name(template):
    with pytest.raises(UserError, match="exactly once"):
        entity_set("elements", templates=[template])


def test_names_with_braces_go_into_prompts_as_they_are():
    found = EntitySet("odd", pd.DataFrame({"name": ["a {} b"], "k": ["x"]}), (Attribute("k", "class"),), ("Say {} now",))
    assert found.prompts("Say {} now") == ["Say a {} b now"]


def test_samples(towns):
    some = towns.sample(50, seed=1)
    assert len(some) == 50
    assert some.frame["log10_population"].is_monotonic_decreasing  # still in order
    assert some.frame.equals(towns.sample(50, seed=1).frame)
    assert not some.frame.equals(towns.sample(50, seed=2).frame)
    assert "50 of 300" in some.notes[-1]
    assert towns.sample(1000) is towns


def test_a_users_table(table):
    found = entity_set(table, name_column="city", attributes=["country", "people"])
    assert (found.name, len(found)) == ("my", 60)
    assert found.attributes == (Attribute("country", "class"), Attribute("people", "number"))
    target = found.target("country")
    assert target.classes == ("A", "B", "C")
    assert len(target.notes) == 2
    assert found.target("people").values[1] == 1010.5
    everything = entity_set(str(table), name_column="city", templates=["See {}"])
    assert [a.name for a in everything.attributes] == ["country", "people", "rank"]
    assert everything.templates == ("See {}",)


def test_a_mixed_column_fails_where_asked_for_and_is_left_out_where_not(tmp_path):
    lines = ["name,kind,size", *(f"n{i},{'ab'[i % 2]},{i}.5" for i in range(30)), "last,a,large"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"'size' mixes 30 numbers .*'large' in line 32"):
        entity_set(tmp_path / "t.csv", attributes=["size"])
    found = entity_set(tmp_path / "t.csv")
    assert [a.name for a in found.attributes] == ["kind"]
    assert "'size' mixes" in found.notes[-1]
    assert found.notes[-1].endswith("It is left out.")


def test_what_cannot_be_meant(table, tmp_path):
    with pytest.raises(UserError, match="did you mean 'cities' or 'countries'"):
        entity_set("citties")
    with pytest.raises(UserError, match=r"did you mean 'my\.csv'"):
        entity_set(tmp_path / "mi.csv")
    with pytest.raises(UserError, match=r"There is no column of my\.csv 'name'.* Say which column holds the names"):
        entity_set(table)
    with pytest.raises(UserError, match="did you mean 'country'"):
        entity_set(table, name_column="city", attributes=["contry"])
    with pytest.raises(UserError, match="must be another column"):
        entity_set(table, name_column="city", attributes=["city"])
    with pytest.raises(UserError, match="has its own names"):
        entity_set("cities", name_column="city")
    with pytest.raises(UserError, match="attribute of elements 'blok'; did you mean 'block'"):
        entity_set("elements", attributes=["blok"])
    (tmp_path / "one.csv").write_text("name\nOslo\n")
    with pytest.raises(UserError, match="only the column 'name'"):
        entity_set(tmp_path / "one.csv")


def test_three_rows_of_one_class_are_read_and_then_refused_as_a_target(tmp_path):
    (tmp_path / "t.csv").write_text("name,kind\nOslo,city\nRome,city\nBern,city\n")
    with pytest.raises(UserError, match=r"0 of the 2 classes .* 'city', has 3\)"):
        entity_set(tmp_path / "t.csv").target("kind")


def test_attributes_of_a_built_in_set_can_be_chosen():
    found = entity_set("elements", attributes=["block", "period", "block"])
    assert list(found.frame.columns) == ["name", "block", "period"]


def test_labelled_texts_are_there_once(tmp_path):
    texts = [f"text {i} " + "x" * 300 for i in range(20)]
    frame = pd.DataFrame({"text": [*texts, *texts[:3], "torn", "torn"], "label": ["p", "n"] * 10 + ["p", "n", "p", "p", "n"]})
    frame.to_parquet(tmp_path / "t.parquet")
    found = labelled_text(tmp_path / "t.parquet", "text", ["label"])
    assert found.templates == ("{}",)
    assert found.prompts("{}") == [*texts, "torn"]
    assert "4 rows of 25 dropped as copies" in found.notes[0]
    assert "Conflicting values of 'label' for 1 copied 'text'" in found.notes[1]
    assert found.frame["label"].iloc[-1] is None
    assert len(found.target("label").rows) == 20
