"""Options of `minimal-pairs`."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from repscope.studies.run.options import ModelOptions, Sizes, TableOptions


class MinimalPairsOptions(ModelOptions, TableOptions):
    """Options of `minimal-pairs`."""

    SHORT: ClassVar[Sizes] = {"pairs": 20}
    TINY: ClassVar[Sizes] = {"pairs": 6, "convention": "minicons"}  #: that the tiny model's tokenizer allows

    file: Path | None = Field(
        None,
        description="Pairs: a .jsonl (as BLiMP's), .json, .csv, .tsv or .parquet table, or a folder of such tables; --tiny brings "
        "its own.",
    )
    revisions: tuple[str, ...] = Field((), description="Revisions of a hub id, as a series of checkpoints in this order.")
    convention: Literal["lm-eval", "plain", "minicons"] = Field(
        "lm-eval",
        description="lm-eval: BOS (else EOS) and a space before each sentence; plain: without the space; minicons: as the "
        "tokenizer gives it, the first token not scored.",
    )
    good: str | None = Field(None, description="Column of acceptable sentences; sentence_good, good … if not given.")
    bad: str | None = Field(None, description="Column of unacceptable sentences; sentence_bad, bad … if not given.")
    phenomenon: str | None = Field(None, description="Column of phenomena; UID, phenomenon …, or the file's name, if not given.")
    phenomena: tuple[str, ...] = Field((), description="Phenomena to score; all of them if not given.")
    pairs: int | None = Field(None, ge=1, description="Most pairs per phenomenon, drawn at random; all of them if not given.")
    control: bool = Field(True, description="Score the same network with random weights too.")

    @model_validator(mode="after")
    def _one_series(self) -> "MinimalPairsOptions":
        if self.revisions and self.revision is not None:
            raise ValueError("--revision names one checkpoint and --revisions a series; give one of them")
        return self

    @model_validator(mode="after")
    def _has_pairs(self) -> "MinimalPairsOptions":
        if self.tiny:
            if given := self.given("file", "revisions", "good", "bad", "phenomenon"):
                raise ValueError(f"--tiny brings its own pairs and model; omit {' and '.join(given)}")
        elif self.file is None:
            raise ValueError("no pairs were given; name a file or a folder of them after the model")
        return self

    def files(self) -> list[Path]:
        """The pairs: the file, or all files of the folder."""
        if self.file is None:
            return []
        home = self.file.expanduser()
        return sorted(p for p in home.iterdir() if p.is_file()) if home.is_dir() else [home]
