"""The logit lens as a page and in the terminal."""

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from repscope.report.charts import layers
from repscope.report.page import Figure, Page, Section, write
from repscope.results import Result

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


def write_lens(lm: "LanguageModel", prompt: str, result: Result, out: Path) -> Path:
    """Write the page and return its path."""
    said = _last(result)
    settled = said[said["predicted"] == said["predicted"].iloc[-1]]["block"]
    token, probability = said["predicted"].iloc[-1], said["probability"].iloc[-1]
    answer = (
        f"After {prompt!r} the model's next token is {token!r} with probability {probability:.2f}; "
        f"read through the lens, {len(settled)} of {len(said)} places in depth put that token first."
    )
    page = Page(
        title="Logit lens",
        question="Which next token would each block predict, were it the last?",
        answer=answer,
        sections=(
            Section(
                "By block and token",
                "Each block's output goes through the final norm and the head. The lens reads in the basis of the last block: "
                "that it finds nothing early does not show that nothing is there.",
                (
                    Figure(layers.lens(result.side["cells"]), "Leading token at each place", "Colour is its probability."),
                    Figure(
                        layers.by_layer(result.table, metric_title="probability of the model's own next token", token="all"),
                        "When the prediction appears",
                        "Mean over the tokens of the prompt with its 95 % bootstrap interval, against vectors of equal length in "
                        "random directions (range of 95 % of the draws).",
                    ),
                ),
            ),
        ),
        verdicts=(),
        notes=result.notes,
        facts={"Model": f"{lm.name} ({lm.source.precision})", "Fingerprint of the weights": lm.fingerprint, "Prompt": prompt},
    )
    cells = len(result.side["cells"])
    key = hashlib.sha256(f"{lm.fingerprint}\x1f{prompt}\x1f{cells}".encode()).hexdigest()[:10]
    return write(page, out / f"lens-{key}" / "report.html")


def print_lens(result: Result, every: int) -> None:
    """The leading token at each block and position as a table, probability in hundredths behind it."""
    from rich.console import Console
    from rich.table import Table

    cells = result.side["cells"]
    tokens = cells[cells["block"] == -1].sort_values("position")["token"]
    table = Table(title="logit lens: leading token and its probability in %", title_justify="left", box=None)
    table.add_column("block", justify="right")
    for token in tokens:
        table.add_column(_shown(token), no_wrap=True)
    last = int(cells["block"].max())
    for block, row in cells.groupby("block"):
        if int(str(block)) in (-1, last) or int(str(block)) % max(1, every) == 0:
            held = row.sort_values("position")
            said = [f"{_shown(t)} {100 * p:.0f}" for t, p in zip(held["predicted"], held["probability"])]
            table.add_row("emb" if block == -1 else str(block), *said)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def _last(result: Result) -> pd.DataFrame:
    cells = result.side["cells"]
    at_end: pd.DataFrame = cells[cells["position"] == cells["position"].max()].sort_values("block")
    return at_end


def _shown(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "↵")[:12]
