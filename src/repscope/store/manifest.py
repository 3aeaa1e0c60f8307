"""Manifests of stores, as JSON: what the shards hold and what they were made from.

Everything in a manifest is validated when it is read: a store may come from a stranger. Each file ends with the digest of what
stands before, so that a flipped bit in a mean or a checksum is seen; files without one (of earlier versions) are taken as they are.
"""

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from repscope.errors import UserError
from repscope.store.files import Files

MANIFEST = "manifest.json"
_DIGEST = re.compile(rb',"digest":"([0-9a-f]{32})"\}\n\Z')  #: another key at the end is refused as an unknown field
R = TypeVar("R", bound=BaseModel)
Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dtype = Literal["float16", "bfloat16", "float32", "float64"]


class Record(BaseModel):
    """A part of a manifest: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SiteRecord(Record):
    """One site. name: such as "resid_post.8". width: d. dtype: of its rows."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    width: Annotated[int, Field(ge=1, lt=2**31)]
    dtype: Dtype


class Moments(Record):
    """Mean and sum of squared deviations of each feature, in float64 over the stored values."""

    mean: tuple[Finite, ...]
    squares: tuple[Finite, ...]


class ShardRecord(Record):
    """One shard. rows: its number of rows. crc: per tensor the CRC-32 of each block of rows. moments: per site."""

    rows: Annotated[int, Field(ge=1, lt=2**40)]
    crc: dict[str, tuple[Annotated[int, Field(ge=0, lt=2**32)], ...]]
    moments: dict[str, Moments]


class ModelRecord(Record):
    """The network. name: for `rs.load`. fingerprint: of its weights. precision: of its weights. revision: hub commit."""

    name: str
    fingerprint: str
    precision: str
    revision: str | None = None


class CorpusRecord(Record):
    """The texts. name, fingerprint; documents: their number; sources: packages or files with their versions."""

    name: str
    fingerprint: str
    documents: Count
    sources: dict[str, str] = Field(default_factory=dict)


class Origin(Record):
    """What the rows were made from, as far as known. length: tokens per sequence. skip: first tokens of each that were left out."""

    model: ModelRecord | None = None
    tokenizer: str = ""
    corpus: CorpusRecord | None = None
    length: Count = 0
    skip: Count = 0


class Manifest(Record):
    """A finished store. block: rows per block, the unit of reading and of checksums. seed: of the order of rows in shards."""

    format: Literal["repscope activation store 1"] = "repscope activation store 1"
    sites: Annotated[tuple[SiteRecord, ...], Field(min_length=1)]
    block: Annotated[int, Field(ge=1, lt=2**31)]
    seed: Count
    origin: Origin
    rows: Annotated[int, Field(ge=1, lt=2**53)]
    shards: Annotated[tuple[ShardRecord, ...], Field(min_length=1)]
    mean: dict[str, tuple[Finite, ...]]
    variance: dict[str, tuple[Finite, ...]]

    @field_validator("sites")
    @classmethod
    def _names_differ(cls, sites: tuple[SiteRecord, ...]) -> tuple[SiteRecord, ...]:
        if len({site.name for site in sites}) != len(sites) or {"token", "document", "position"} & {s.name for s in sites}:
            raise ValueError("two tensors have one name")
        return sites


def written(record: BaseModel) -> bytes:
    """A record as JSON with its digest, the same bytes for the same record. Floats are exact: decimals that read back equal."""
    body = json.dumps(record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return body[:-1] + b',"digest":"' + _digest(body) + b'"}\n'


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:32].encode()


def parsed(kind: type[R], files: Files, name: str, remedy: str) -> R:
    """A record from its file.

    Raises
    ------
    UserError
        When the file is damaged or of another version; `remedy` says what to do.
    """
    content = files.read(name)
    found = _DIGEST.search(content)
    body = content if found is None else content[: found.start()] + b"}"
    if found is not None and found[1] != _digest(body):
        raise UserError(f"{files.place}/{name} is damaged (it has other bytes than were written); {remedy}.")
    try:
        return kind.model_validate_json(body)
    except (ValidationError, UnicodeDecodeError) as error:
        first: Any = error.errors()[0] if isinstance(error, ValidationError) else {"msg": "not UTF-8", "loc": ()}
        where = ".".join(str(part) for part in first["loc"][:3])
        raise UserError(f"{files.place}/{name} is damaged ({where or 'as a whole'}: {first['msg']}); {remedy}.") from error


def merged(counts: list[int], parts: list[Moments]) -> Moments:
    """Moments of the union of parts, with the counts of their rows, in order (Chan, Golub and LeVeque 1983)."""
    total, mean, squares = counts[0], list(parts[0].mean), list(parts[0].squares)
    for count, part in zip(counts[1:], parts[1:], strict=True):
        both = total + count
        for i, (m, s) in enumerate(zip(part.mean, part.squares, strict=True)):
            delta = m - mean[i]
            mean[i] += delta * count / both
            squares[i] += s + delta * delta * (total * count / both)
        total = both
    if not all(map(math.isfinite, [*mean, *squares])):
        raise UserError("The variance of a site is beyond float64; look at its activations.")
    return Moments(mean=tuple(mean), squares=tuple(squares))


def finished(sites: tuple[SiteRecord, ...], block: int, seed: int, origin: Origin, shards: list[ShardRecord]) -> Manifest:
    """The manifest of these shards. Variances are those of the population (divided by the number of rows)."""
    counts = [shard.rows for shard in shards]
    rows = sum(counts)
    whole = {site.name: merged(counts, [shard.moments[site.name] for shard in shards]) for site in sites}
    return Manifest(
        sites=sites,
        block=block,
        seed=seed,
        origin=origin,
        rows=rows,
        shards=tuple(shards),
        mean={name: moments.mean for name, moments in whole.items()},
        variance={name: tuple(s / rows for s in moments.squares) for name, moments in whole.items()},
    )
