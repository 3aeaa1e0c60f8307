"""Options of `connect`."""

from pathlib import Path

from pydantic import Field

from repscope.studies.run.options import StudyOptions, TableOptions
from repscope.trace.checkpoint_losses import LENGTH

MOST_POINTS = 60  #: the convexity gap is computed over every part of a line, for every bootstrap draw


class ConnectOptions(StudyOptions, TableOptions):
    """Options of `connect`."""

    models: tuple[str, ...] = Field(
        (), description="Two or more language models or classifiers of one architecture, or the folder of a set of checkpoints."
    )
    data: str | None = Field(
        None, description="Examples to evaluate them on: .txt with one per line, or a table. Small transformers bring their own."
    )
    text: str = Field("text", description="Column of texts.")
    pair: str | None = Field(None, description="Column of second texts, for classifiers of pairs.")
    label: str | None = Field(
        None, description="Column of labels, for classifiers: names of classes or their numbers; label if not given."
    )
    split: str | None = Field(None, description="Column of splits, such as id and ood; losses are computed for each.")
    points: int = Field(10, ge=3, le=MOST_POINTS, description="Points per line, ends included.")
    examples: int | None = Field(None, ge=1, description="Maximum number of examples per split, drawn at random; all if not given.")
    length: int = Field(LENGTH, ge=1, description="Maximum number of tokens per example.")
    controls: int = Field(3, ge=0, description="Number of lines with a random-direction control.")

    def files(self) -> list[Path]:
        """The user's examples."""
        return [Path(self.data).expanduser()] if self.data else []
