"""Options that studies share: one pydantic model gives Python arguments, command-line options, `--help` and the key of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from repscope.data.reading import HELP, How

DEFAULT_MODEL = "smollm2-135m-instruct-q4"
Sizes = dict[str, Any]
Dtype = Literal["float32", "bfloat16", "float16"]  #: as `models.loading.sources.Dtype`, which brings torch with it


class StudyOptions(BaseModel):
    """Options of every study. Subclasses add their own; each field's description is its `--help`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    SHORT: ClassVar[Sizes] = {}  #: the smaller numbers of `short`
    TINY: ClassVar[Sizes] = {}  #: those of `tiny`

    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every random choice.")
    short: bool = Field(False, description="Minutes instead of tens of minutes: fewer prompts and repetitions, for a page.")
    tiny: bool = Field(False, description="Seconds, on a tiny random model: for tests.")

    @model_validator(mode="before")
    @classmethod
    def _json_as_text(cls, given: Any) -> Any:
        """Cyclopts reads a value that is JSON as an object; a template that is {} alone is text."""
        return {key: _as_text(value) for key, value in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_size(self) -> "StudyOptions":
        if self.short and self.tiny:
            raise ValueError("--short and --tiny are two sizes of one study; give only one of them")
        return self

    def given(self, *names: str) -> list[str]:
        """Those of these options that were given, as on the command line."""
        return ["--" + name.replace("_", "-") for name in names if name in self.model_fields_set]

    def with_sizes(self, sizes: Mapping[str, Any]) -> Self:
        """The options with these values, except for options that were given."""
        return self.model_copy(update={k: v for k, v in sizes.items() if k not in self.model_fields_set})

    def sized(self) -> Self:
        """The options of the run, with the smaller numbers of `short` and `tiny` for options that were not given."""
        return self.with_sizes(self.TINY if self.tiny else self.SHORT if self.short else {})

    def files(self) -> list[Path]:
        """The user's files on which the result depends."""
        return []

    def key(self) -> dict[str, Any]:
        """The identity of a run: all options, and with `short` or `tiny` also which of them were given."""
        return self.model_dump(mode="json") | ({"given": sorted(self.model_fields_set)} if self.short or self.tiny else {})


class ModelOptions(StudyOptions):
    """Options shared by all studies of an existing model."""

    model: str = Field(DEFAULT_MODEL, description="Alias, hub id org/name, local folder or .gguf file.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    device: str | None = Field(None, description="Device; cuda if available, else cpu.")
    dtype: Dtype = Field("float32", description="Precision of the weights: float32, bfloat16 or float16.")
    batch_tokens: int = Field(1024, ge=1, description="Padded tokens per batch.")

    @model_validator(mode="after")
    def _tiny_brings_its_own(self) -> "ModelOptions":
        if self.tiny and (given := self.given("model", "revision")):
            raise ValueError(f"--tiny brings its own model, with random weights; omit {' and '.join(given)}")
        return self


class TableOptions(BaseModel):
    """Options of every study that reads the user's tables."""

    decimal: Literal[".", ","] | None = Field(None, description=HELP["decimal"])
    na: tuple[str, ...] | None = Field(None, description=HELP["na"])
    quote: bool | None = Field(None, description=HELP["quote"])

    def how(self) -> How:
        """How tables are read, as keyword arguments."""
        return How(decimal=self.decimal, na=self.na, quote=self.quote)


def files_in(*names: str | Path | None) -> list[Path]:
    """The files of these names, and all those in folders of these names; what is no file is left out."""
    paths = [Path(name).expanduser() for name in names if name is not None]
    return [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path]) if p.is_file()]


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    return type(value)(_as_text(part) for part in value) if isinstance(value, list | tuple) else value
