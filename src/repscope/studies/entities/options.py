"""Options of the `entities` study."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from repscope.data.entities import SETS
from repscope.studies.run.options import ModelOptions, TableOptions

MOST_SETS = 3  #: sets of the short form
MOST_ATTRIBUTES = 3  #: attributes per set of the short form, where none is named


class EntitiesOptions(ModelOptions, TableOptions):
    """Options of the `entities` study."""

    entities: tuple[str, ...] = Field(
        ("cities", "countries", "elements"),
        description="Sets of entities: cities, countries, elements, or a table (CSV, TSV, Parquet, JSON, JSONL).",
    )
    name: str | None = Field(None, description="Your file's column of names.")
    attribute: tuple[str, ...] = Field((), description="Attributes to probe; all if not given.")
    template: tuple[str, ...] = Field((), description="Prompts with {} for the name; the set's own if not given.")
    data: Path | None = Field(None, description="A table of labelled texts instead of entities.")
    text: str | None = Field(None, description="Its column of texts.")
    label: tuple[str, ...] = Field((), description="Its columns of labels.")
    tokens: Literal["last", "mean"] = Field("last", description="Where labelled texts are read: last token, or mean over tokens.")
    group: str | None = Field(
        None, description="Attribute whose values are never split between training and test, such as country."
    )
    per_class: int = Field(60, ge=2, description="Cities per continent.")
    min_count: int = Field(6, ge=2, description="Classes with fewer members are left out.")
    max_items: int = Field(20_000, ge=20, description="Maximum number of entities or texts; more are sampled at random.")
    folds: int = Field(5, ge=2, description="Cross-validation folds over entities.")
    shuffles: int = Field(20, ge=2, description="Number of label shuffles for the control.")
    context: int = Field(4, ge=0, description="Limit the context to the last 1 … this many tokens; 0 omits this test.")

    ranges: int = Field(
        4, ge=0, description="Ranges of blocks that are ablated one by one; 0 omits the tests of how names are built."
    )
    sae: Path | None = Field(None, description="A sparse autoencoder of a block's residual stream, compared with neurons.")

    @model_validator(mode="after")
    def _belongs(self) -> "EntitiesOptions":
        if self.data is not None and (self.text is None or not self.label):
            raise ValueError("--data needs --text COLUMN and --label COLUMN")
        if self.data is None and (self.text is not None or self.label):
            raise ValueError("--text and --label go with --data FILE")
        idle: tuple[str, ...] = ("entities", "name", "attribute", "template", "per_class", "context", "ranges", "sae")
        why = "a set of entities, and --data is texts"
        if self.data is None:
            idle, why = ("tokens",), "--data FILE; names are read at each of their tokens"
        if given := self.given(*idle):
            raise ValueError(f"{given[0]} goes with {why}")
        own = [name for name in self.entities if name not in SETS]
        if self.data is None and self.name is not None and not own:
            raise ValueError("--name needs a file of your own; the built-in sets have their own names")
        if self.given("per_class") and "cities" not in self.entities:
            raise ValueError("--per-class goes with --entities cities")
        if not self.entities:
            raise ValueError("No set of entities was named; give one, such as --entities cities")
        return self

    def sized(self) -> "EntitiesOptions":
        """With the smaller numbers of `tiny` and `short`, except for options that were given."""
        if self.short:
            small = self.with_sizes({"folds": 4, "shuffles": 5, "context": 2, "max_items": 240, "per_class": 40, "ranges": 3})
            return small.model_copy(update={"entities": self.entities[:MOST_SETS]})
        if not self.tiny:
            return self
        few: dict[str, Any] = {"entities": self.entities[:1], "folds": 3, "shuffles": 3, "context": 2, "max_items": 60}
        few["ranges"] = 2
        if self.data is None and set(self.with_sizes(few).entities) <= {"cities", "countries"}:
            few["attribute"] = ("continent", "latitude")
        return self.with_sizes(few)

    def files(self) -> list[Path]:
        """The user's own tables."""
        named = [Path(e) for e in self.entities if Path(e).is_file()] if self.data is None else []
        return named + [path for path in (self.data, self.sae) if path is not None and path.is_file()]
