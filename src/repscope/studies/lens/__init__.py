"""Logit lens: which next token would each block predict, were it the last?"""

import pandas as pd
from pydantic import Field

from repscope.read.logit_lens import logit_lens
from repscope.report.charts import layers
from repscope.report.page import Figure, Page, Section
from repscope.results import Result
from repscope.studies.run.options import ModelOptions
from repscope.studies.run.provenance import page_facts
from repscope.studies.run.study import Answer, Context, Cost, Record, Setup, Step, Study

_LONGEST_CELL = 12  #: characters of a token in the terminal


class LensOptions(ModelOptions):
    """Options of the `lens`."""

    prompt: str = Field(..., description="The text to read.")
    last: int = Field(
        64, ge=1, description="Tokens at the end of the prompt to which the lens is applied; the model reads all of it."
    )
    every: int = Field(1, ge=1, description="Show every how many blocks in the terminal.")
    top: int = Field(5, ge=1, description="Tokens kept for each cell of the page.")


def steps(setup: Setup[LensOptions]) -> list[Step]:
    """The lens on one prompt."""
    o = setup.options
    plan = setup.network.plan([o.prompt], "resid_post")  # a mistake in the prompt shows here

    def compute(context: Context) -> Result:
        return logit_lens(setup.network, o.prompt, top=o.top, last=o.last)

    def cost() -> Cost:
        width = setup.network.anatomy.width if setup.network.anatomy else 1
        heads = 2.0 * width * setup.network.vocabulary * min(o.last, plan.tokens) * (setup.network.blocks + 1)
        return Cost(plan.tokens, plan.flops + heads, blocks=plan.blocks, memory_bytes=plan.working)

    return [Step("lens", compute, cost, ignores=("every",))]


def page(record: Record[LensOptions]) -> Page:
    """The cells, and when the prediction appears."""
    result = record.results["lens"]
    return Page(
        title="Logit lens",
        question=record.facts["question"],
        answer=_sentence(record),
        sections=(
            Section(
                "By block and token",
                "Each block's output goes through the final norm and the unembedding. The lens reads in the basis of the last "
                "block: that it finds nothing early does not show that nothing is there.",
                (
                    Figure(layers.lens(result.side["cells"]), "Leading token in each cell", "Colour is its probability."),
                    Figure(
                        layers.by_layer(result.table, metric_title="probability of the model's own next token", token="all"),
                        "When the prediction appears",
                        "Mean over the tokens of the prompt with its 95 % bootstrap interval; control: vectors of equal norm in "
                        "random directions (range of 95 % of the draws).",
                    ),
                ),
            ),
        ),
        notes=result.notes,
        facts=page_facts(record.facts),
    )


def answer(record: Record[LensOptions]) -> Answer:
    """The leading token at each block and position, its probability in hundredths behind it."""
    cells = record.results["lens"].side["cells"]
    last = int(cells["block"].max())
    rows = []
    for block, row in cells.groupby("block"):
        if int(str(block)) in (-1, last) or int(str(block)) % record.options.every == 0:
            ordered = row.sort_values("position")
            predicted = [f"{_cell(t)} {100 * p:.0f}" for t, p in zip(ordered["predicted"], ordered["probability"])]
            heads = [f"{position} {_cell(token)}" for position, token in zip(ordered["position"], ordered["token"])]
            rows.append({"block": "emb" if block == -1 else str(block), **dict(zip(heads, predicted))})
    return Answer([_sentence(record)], rows, "Logit lens: leading token and its probability in %")


def _sentence(record: Record[LensOptions]) -> str:
    cells = record.results["lens"].side["cells"]
    final: pd.DataFrame = cells[cells["position"] == cells["position"].max()].sort_values("block")
    token, probability = final["predicted"].iloc[-1], final["probability"].iloc[-1]
    agreeing = int((final["predicted"] == token).sum())
    return (
        f"After {record.options.prompt!r} the model's next token is {token!r} with probability {probability:.2f}; "
        f"read through the lens, {agreeing} of {len(final)} depths put that token first."
    )


def _cell(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "↵")[:_LONGEST_CELL]


STUDY = Study(
    name="lens",
    question="Which next token would each block predict, were it the last?",
    options=LensOptions,
    steps=steps,
    page=page,
    answer=answer,
    verified=False,
    positional=("model", "prompt"),
    unused=("seed", "short", "tiny", "batch_tokens"),
)
