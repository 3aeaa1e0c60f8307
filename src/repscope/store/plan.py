"""Plans of harvests: what every worker must know, fixed before the first shard."""

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from repscope.errors import UserError
from repscope.store.files import Files
from repscope.store.manifest import Count, Dtype, ModelRecord, Origin, Record, SiteRecord, parsed
from repscope.store.reading import PLAN
from repscope.store.sequences import Sequences
from repscope.store.shards import Layout

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

SEQUENCES = "sequences"
_WORDS = {"sites": "other sites or another type of rows", "seed": "another seed", "asked_rows": "another number of rows"}
_WORDS |= {"shard_bytes": "another size of shards", "batch_tokens": "another number of tokens per pass"}


class HarvestPlan(Record):
    """A harvest.

    origin, sites, seed, block: as in the manifest. asked_rows: the limit of rows. batch_tokens, threads: of each forward pass.
    sequences: digest of their file. shards: sequences and rows of each. load, dtype: for `rs.load` in workers; None for a network
    that was made in memory.
    """

    format: Literal["repscope harvest 1"] = "repscope harvest 1"
    origin: Origin
    sites: Annotated[tuple[SiteRecord, ...], Field(min_length=1)]
    seed: Count
    asked_rows: Count | None
    shard_bytes: Count
    block: Annotated[int, Field(ge=1)]
    batch_tokens: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1, le=4096)]
    sequences: str
    shards: Annotated[tuple[tuple[Count, Count], ...], Field(min_length=1)]
    load: str | None
    dtype: Dtype

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(rows for _, rows in self.shards)

    @cached_property
    def model(self) -> ModelRecord:
        """The network."""
        assert self.origin.model is not None
        return self.origin.model

    def layout(self, index: int) -> Layout:
        """The layout of a shard."""
        return Layout.of(self.sites, self.shards[index][1], self.block)

    def refuse_another(self, place: str, asked: dict[str, Any]) -> None:
        """Raise a `UserError` unless a harvest is this one; says what differs."""
        mine, other = self.origin, asked["origin"]
        why = next((words for field, words in _WORDS.items() if field in asked and getattr(self, field) != asked[field]), "")
        if mine.model != other.model:
            same_name = mine.model is not None and other.model is not None and mine.model.name == other.model.name
            why = f"the model {self.model.name!r} as it was before it changed" if same_name else f"the model {self.model.name!r}"
        elif mine.corpus != other.corpus:
            why = f"another corpus ({mine.corpus.name if mine.corpus else 'none'}, or what it held then)"
        elif mine.tokenizer != other.tokenizer:
            why = "another tokenizer"
        elif (mine.length, mine.skip) != (other.length, other.skip):
            why = f"sequences of {mine.length} tokens of which {mine.skip} are skipped"
        if why:
            raise UserError(f"{place} has a harvest of {why}; repeat that one, or name a new folder.")

    def check_model(self, lm: "LanguageModel") -> None:
        """Raise a `UserError` unless a network is that of the plan."""
        if lm.fingerprint != self.model.fingerprint:
            raise UserError(
                f"{lm.name} has the fingerprint {lm.fingerprint}, and this harvest was begun with {self.model.fingerprint}; "
                "restore those weights, or harvest into a new folder."
            )

    def has_sequences(self, files: Files) -> bool:
        """Whether their file is there, as it was written."""
        name = f"{SEQUENCES}.safetensors"
        return files.size(name) is not None and digest_of(files.read(name)) == self.sequences

    def read_sequences(self, files: Files) -> Sequences:
        """The sequences of the harvest.

        Raises a `UserError` when they are damaged.
        """
        if not self.has_sequences(files):
            raise UserError(f"{files.place}/{SEQUENCES}.safetensors is damaged; harvest into a new folder.")
        return Sequences.from_bytes(files.read(f"{SEQUENCES}.safetensors"))

    def load_model(self) -> "LanguageModel":
        """The network, loaded by its name.

        Raises a `UserError` when it was made in memory, or has changed.
        """
        from repscope.models.loading.sources import load

        if self.load is None:
            raise UserError(
                f"{self.model.name} was made in memory, so a worker cannot load it; save it to a folder and harvest from it."
            )
        lm = load(self.load, revision=self.model.revision, dtype=self.dtype)
        self.check_model(lm)
        return lm


def read_plan(files: Files) -> HarvestPlan:
    """The plan of a harvest.

    Raises a `UserError` when there is none, or it is damaged.
    """
    if files.size(PLAN) is None:
        raise UserError(f"{files.place} has no harvest: there is no {PLAN}; check the path.")
    return parsed(HarvestPlan, files, PLAN, "harvest into a new folder")


def digest_of(content: bytes) -> str:
    """SHA-256, 16 digits."""
    return hashlib.sha256(content).hexdigest()[:16]
