"""Logit lens: which next token would each block predict if it were the last?"""

import pandas as pd
from pydantic import Field

from repscope.read.logit_lens import logit_lens
from repscope.report.charts import layers
from repscope.report.page import Figure, Page, Section
from repscope.results import Result
from repscope.studies.run.options import ModelOptions
from repscope.studies.run.study import Answer, Context, Cost, Record, Setup, Step, Study

_LONGEST_CELL = 12  #: characters of a token in the terminal


class LensOptions(ModelOptions):
    """Options of the `lens`."""

    prompt: str = Field(..., description="The text to read.")
    last: int = Field(64, ge=1, description="Number of last tokens to which the lens is applied; the model reads the whole prompt.")
    every: int = Field(1, ge=1, description="Step between the blocks shown in the terminal.")
    top: int = Field(5, ge=1, description="Number of most likely tokens per cell on the page.")


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
    """The leading tokens, and the probability of the model's own prediction by block."""
    result = record.results["lens"]
    return Page(
        title="Logit lens",
        answer=_sentence(record),
        sections=(
            Section(
                "By block and token",
                "Each block's output goes through the final norm and the unembedding. The lens uses the basis of the last "
                "block: if it shows nothing in early blocks, information may still be there.",
                (
                    Figure(layers.lens(result.side["cells"]), "Leading token in each cell", "The colour is its probability."),
                    Figure(
                        layers.by_layer(result.table, metric_title="probability of the model's own next token", token="all"),
                        "When the prediction appears",
                        "Mean over the tokens of the prompt with its 95 % bootstrap interval; control: random directions of equal "
                        "norm (range of 95 % of the draws).",
                    ),
                ),
            ),
        ),
    )


def answer(record: Record[LensOptions]) -> Answer:
    """The leading token at each block and position, followed by its probability in percent."""
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
        f"After {record.options.prompt!r}, the model's next token is {token!r} with probability {probability:.2f}. "
        f"With the logit lens, {agreeing} of {len(final)} depths rank that token first."
    )


def _cell(token: str) -> str:
    return token.replace(" ", "·").replace("\n", "↵")[:_LONGEST_CELL]


STUDY = Study(
    name="lens",
    question="Which next token would each block predict if it were the last?",
    options=LensOptions,
    steps=steps,
    page=page,
    answer=answer,
    verified=False,
    positional=("model", "prompt"),
    usage="MODEL PROMPT",
    unused=("seed", "short", "tiny", "batch_tokens"),
)
