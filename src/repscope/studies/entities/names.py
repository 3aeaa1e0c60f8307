"""Names in the tables of the `entities` study: sites, attributes and their titles."""

import pandas as pd

from repscope.results import select


def attributes(table: pd.DataFrame) -> list[str]:
    """The items that were probed, `set.attribute`, in order."""
    return list(dict.fromkeys(select(table, metric="gain")["item"]))


def attribute_of(item: str) -> str:
    """The attribute of an item: "Continent"."""
    return item.rpartition(".")[2].replace("_", " ").capitalize()


def title(item: str) -> str:
    """An item in words: "Continent of cities"; a set's name may contain dots."""
    return f"{attribute_of(item)} of {item.rpartition('.')[0]}"


def whole(table: pd.DataFrame) -> "pd.Series[bool]":
    """Rows of the study's own split: by entity, or by group."""
    return (table["split"] == "entity") | table["split"].str.startswith("group ")
