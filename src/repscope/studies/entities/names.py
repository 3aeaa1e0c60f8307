"""Names in the tables of the `entities` study: sites, attributes and their titles."""

import pandas as pd

from repscope.results import CHOSEN, ESTIMATE, select

#: metrics of the steps that ask how the vector is built, which the figures and rules of attributes leave out
MECHANISM = (
    "accuracy lost",
    "R² lost",
    "extra loss",
    "share of single tokens",
    "share of pairs",
    "share of triples",
    "interaction at real names",
    "accuracy from parts",
    "extra accuracy",
    "conflict accuracy",
    "taken for the other name",
    "conflict gain",
    "sparse accuracy",
    "sparse gain",
    "kurtosis",
    "text feature accuracy",
)


def of_attributes(table: pd.DataFrame) -> pd.DataFrame:
    """The rows about what reads out, without those about how it is built."""
    return table[~table["metric"].isin(MECHANISM)]


def of_mechanism(table: pd.DataFrame) -> pd.DataFrame:
    """The rows about how the vector is built."""
    return table[table["metric"].isin(MECHANISM)]


def first_block(rows: pd.DataFrame, share: float) -> tuple[int, int] | None:
    """The first block whose score is a share of the largest over blocks, and the number of blocks; −1 is the embedding."""
    curve = rows[
        (rows["condition"] == ESTIMATE)
        & rows["token"].isin(["last", "mean"])
        & (rows["site"] != CHOSEN)
        & rows["metric"].isin(["accuracy", "r2"])
        & whole(rows)
        & (rows["layer"].notna() | (rows["site"] == "embed"))
    ]
    curve = curve.assign(layer=curve["layer"].astype("float64").fillna(-1)).sort_values("layer")
    if curve.empty or curve["value"].max() <= 0:
        return None
    reached = curve[curve["value"] >= share * curve["value"].max()]
    return int(reached["layer"].iloc[0]), int(curve["layer"].max()) + 1


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
