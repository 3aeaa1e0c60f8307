"""Options of the `relations` study."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from repscope.studies.run.options import ModelOptions, TableOptions

LEAST_KNOWN = 12  #: facts that a model must know for two halves of them to mean something
MOST_RELATIONS = 2  #: of the short form


class RelationsOptions(ModelOptions, TableOptions):
    """Options of the `relations` study."""

    relations: tuple[str, ...] = Field(
        ("city-country", "country-capital", "country-language", "element-symbol"),
        description="Relations: names of built-in ones, or files (JSON of the LRE dataset, or a table). A map "
        f"needs at least {LEAST_KNOWN} facts that the model knows, and at least 2 × examples + 2.",
    )
    template: tuple[str, ...] = Field((), description="Template in place of all those of every relation, with {} for the subject.")
    examples: int = Field(
        5,
        ge=2,
        description="Examples used to estimate each linear map; each in turn is the query, the others are few-shot demonstrations.",
    )
    splits: int = Field(3, ge=1, description="Number of random splits of the known facts into two halves.")
    trials: int = Field(3, ge=1, description="Number of trials per sample, with different examples.")
    max_items: int = Field(150, ge=20, description="Maximum number of samples per relation; more are sampled at random.")
    object_block: int | None = Field(None, ge=0, description="Block of the concepts; at 0.9 of the depth if not given.")
    ranks: tuple[int, ...] = Field((4, 8, 16, 32, 64, 128), description="Candidate ranks of the inverse.")
    edits: int = Field(20, ge=0, description="Number of facts edited per split.")

    editors: int = Field(2, ge=0, le=3, description="Candidate blocks of REMEDI editors; 0 omits them.")
    epochs: int = Field(10, ge=1, description="Epochs of an editor at most; training stops after two without improvement.")
    new_objects: int = Field(2, ge=1, description="New objects per subject in the training of editors.")
    edit_facts: int = Field(200, ge=8, description="Maximum number of facts on which an editor is trained.")

    @model_validator(mode="after")
    def _usable(self) -> "RelationsOptions":
        if not self.relations:
            raise ValueError("No relation was named; give one, such as --relations country-capital")
        if len(self.template) > 1:
            raise ValueError(f"Each relation has one template, and --template has {len(self.template)}; give one")
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError("--ranks needs at least one rank, each 1 or more")
        return self

    def sized(self) -> "RelationsOptions":
        """With the smaller numbers of `tiny` and `short`, except for options that were given."""
        if self.tiny:
            tiny: dict[str, Any] = {"splits": 2, "trials": 1, "max_items": 30, "examples": 3, "ranks": (4, 8), "edits": 3}
            tiny |= {"editors": 1, "epochs": 1, "new_objects": 1}
            return self.with_sizes(tiny | {"relations": self.relations[:2]})
        if self.short:
            small = {"splits": 1, "trials": 2, "examples": 4, "max_items": 60, "edits": 6, "ranks": (8, 32, 128)}
            small |= {"editors": 1, "epochs": 4, "edit_facts": 48}
            small["relations"] = ("country-language",)
            made = self.with_sizes(small)
            return made.model_copy(update={"relations": made.relations[:MOST_RELATIONS]})
        return self

    @property
    def needed(self) -> int:
        """Facts that a model must know of a relation for a map of it: two halves of them must mean something."""
        o = self.sized()
        return o.examples + 4 if o.tiny else max(LEAST_KNOWN, 2 * o.examples + 2)

    def files(self) -> list[Path]:
        """The user's own relations."""
        return [Path(r) for r in self.relations if Path(r).suffix]
