"""Options of the `features` study."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from repscope.data.entities import SETS
from repscope.studies.run.options import ModelOptions, Sizes, TableOptions, files_in

TINY_CORPUS = "contrast texts"  #: those of a built-in contrast, which take no time to read
MOST_ATTRIBUTES = 3  #: attributes per set of the short form, where none is named


class FeaturesOptions(ModelOptions, TableOptions):
    """Options of the `features` study."""

    SHORT: ClassVar[Sizes] = {"k": (32,), "expansion": 4, "tokens": 25_000, "evaluated": 12, "cards": 8, "folds": 4}
    SHORT |= {"entities": ("countries",)}
    TINY: ClassVar[Sizes] = {"corpus": TINY_CORPUS, "k": (4,), "expansion": 2, "tokens": 2000, "epochs": 1, "context": 32}
    TINY |= {"evaluated": 6, "cards": 3, "entities": ("countries",), "attribute": ("continent",), "folds": 3}

    corpus: str = Field(
        "installed-docs",
        description="Text: installed-docs (docstrings of installed packages), a file (.txt, .jsonl, .parquet) or an Arrow folder.",
    )
    text: str = Field("text", description="Column of the texts, where the corpus is a table.")
    site: str | None = Field(
        None, description="Where features are sought; the output of the block at a third of the depth if not given."
    )
    sae: str | None = Field(None, description="A published sparse autoencoder, a folder or hub id, instead of training one.")
    architecture: Literal["topk", "batchtopk", "jumprelu", "gated", "matryoshka"] = Field(
        "topk", description="Architecture of the sparse autoencoders that are trained."
    )
    expansion: int = Field(8, ge=1, description="Latents per feature of the site.")
    k: tuple[int, ...] = Field(
        (16, 32, 64), description="Active latents per token, one autoencoder each; cards and names use the middle one."
    )
    tokens: int = Field(250_000, ge=1000, description="Tokens of activations that are stored for training.")
    epochs: int = Field(4, ge=1, description="Passes over them.")
    context: int = Field(128, ge=8, description="Tokens per text; longer documents are cut into several.")
    evaluated: int = Field(96, ge=4, description="Held-out texts on which autoencoders are evaluated.")
    cards: int = Field(24, ge=1, description="Features that have a card.")
    entities: tuple[str, ...] = Field(
        ("countries", "cities", "elements"),
        description="Sets of entities: cities, countries, elements, or a table (CSV, TSV, Parquet, JSON, JSONL).",
    )
    name: str | None = Field(None, description="Your file's column of names.")
    attribute: tuple[str, ...] = Field((), description="Attributes to probe; all if not given.")
    folds: int = Field(5, ge=2, description="Cross-validation folds over entities.")

    @model_validator(mode="after")
    def _belongs(self) -> "FeaturesOptions":
        if self.sae is not None and (given := self.given("architecture", "expansion", "k", "epochs")):
            raise ValueError(f"{given[0]} is for training, and --sae brings a trained one")
        if self.given("text") and not Path(self.corpus).is_dir() and Path(self.corpus).suffix.lower() not in (".jsonl", ".parquet"):
            raise ValueError(f"--text names a column of a table, and the corpus {self.corpus} has none")
        if not self.k or len(set(self.k)) < len(self.k) or min(self.k) < 1:
            raise ValueError("--k needs different numbers of active latents, each at least 1")
        if self.name is not None and not [e for e in self.entities if e not in SETS]:
            raise ValueError("--name needs a file of your own; the built-in sets have their own names")
        return self

    @property
    def main(self) -> int:
        """The k of cards and names: the middle one."""
        return sorted(self.k)[len(self.k) // 2]

    def files(self) -> list[Path]:
        """The user's own text, tables and autoencoder."""
        return files_in(self.corpus, *self.entities, self.sae)
