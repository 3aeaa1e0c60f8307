"""`DirectionSet`: ordered directions of one network, with geometry, files and model checks.

1. Geometry: pairwise cosines, nearest directions, Gram-Schmidt in order, coordinates of rows, removal of their span.
2. Files: our own (`native`), llama.cpp's control vectors, a matrix in a `.pt` file; `load` detects the format by the first bytes.
3. `fits`: whether a network is the one they were made for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from repscope import notebook
from repscope.arrays import as_array
from repscope.directions import control_vectors, matrix, native, steering_vectors
from repscope.directions.architectures import agree
from repscope.directions.direction import Direction
from repscope.errors import UserError, unknown
from repscope.models.sites import Site

if TYPE_CHECKING:
    import altair as alt

#: kinds of site as wide as the residual stream
_STREAM = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_norm")


@dataclass(frozen=True, eq=False)
class DirectionSet:
    """Directions of one network.

    directions: in order. model: fingerprint of the network. note: description. architecture: the network's `model_type` in
    transformers, such as `llama`. blocks: their number, 0 if unknown.
    """

    directions: Sequence[Direction]
    model: str = ""
    note: str = ""
    architecture: str = ""
    blocks: int = 0

    def __post_init__(self) -> None:
        """Record the network in each direction, so that a single one is checked as well."""
        if self.model:
            of = str(self.model)
            known = tuple(d if d.model else replace(d, model=of) for d in self.directions)
            object.__setattr__(self, "directions", known)

    @classmethod
    def of(cls, *directions: Direction, model: str = "", note: str = "", architecture: str = "", blocks: int = 0) -> "DirectionSet":
        """A set of these directions."""
        return cls(directions, model, note, architecture, blocks)

    def __len__(self) -> int:
        return len(self.directions)

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __getitem__(self, name: str | int) -> Direction:
        """The direction of a name or an index.

        Raises
        ------
        UserError
            If there is none; suggests the nearest names.
        """
        if not isinstance(name, str):
            try:
                return self.directions[name]
            except IndexError:
                raise UserError(f"There is no direction {name}; this set holds {len(self)}, counted from 0.") from None
        for direction in self.directions:
            if direction.name == name:
                return direction
        raise unknown("direction", name, self.names)

    def __repr__(self) -> str:
        return f"DirectionSet({len(self)} directions{f' of {self.model}' if self.model else ''})"

    def __str__(self) -> str:
        return self.card()

    def figure(self) -> "alt.TopLevelMixin":
        """Absolute cosines between all directions.

        Raises
        ------
        UserError
            When their widths differ.
        """
        return notebook.figure(self)

    def _repr_html_(self) -> str:
        return notebook.html(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(d.name for d in self.directions)

    def card(self) -> str:
        """Summary of the set and of each direction, for readers."""
        of = ", ".join(text for text in (self.architecture, self.model, f"{self.blocks} blocks" if self.blocks else "") if text)
        head = f"{len(self)} direction{'s' * (len(self) != 1)}{f' of {of}' if of else ''}"
        return "\n".join([head, *([self.note] if self.note else []), *(d.card() for d in self.directions)])

    def cosines(self) -> Float[np.ndarray, "direction direction"]:
        """Pairwise cosines.

        Raises
        ------
        UserError
            When their widths differ.
        """
        vectors = self._matrix()
        return np.asarray(np.clip(vectors @ vectors.T, -1, 1))

    def nearest(self, direction: Direction, k: int = 5) -> list[tuple[str, float]]:
        """The k with the largest absolute cosine with `direction`: (name, cosine), largest first, the cosine with its sign.

        Raises
        ------
        UserError
            When widths differ.
        """
        found = [(d.name, d.cosine(direction)) for d in self.directions]
        return sorted(found, key=lambda pair: -abs(pair[1]))[:k]

    def orthogonalised(self) -> "DirectionSet":
        """Gram-Schmidt in order; names are unchanged.

        Raises
        ------
        UserError
            If widths differ, or one is in the span of those before it.
        """
        self._matrix()
        made = [replace(d.without(*self.directions[:i]), name=d.name) for i, d in enumerate(self.directions)]
        return replace(self, directions=made)

    def coordinates(
        self, rows: Float[np.ndarray, "row feature"], site: str | Site | None = None
    ) -> Float[np.ndarray, "row direction"]:
        """Projection of each row onto each direction (at `site`, or all), in the rows' units.

        Raises
        ------
        UserError
            If there is no direction at the site, or widths differ.
        """
        given = as_array(rows, "rows")
        result: np.ndarray = given @ self._matrix(site, given).T
        return result

    def project_out(
        self, rows: Float[np.ndarray, "row feature"], site: str | Site | None = None
    ) -> Float[np.ndarray, "row feature"]:
        """Rows with the span of the directions (at `site`, or all) removed.

        Raises
        ------
        UserError
            If there is no direction at the site, or widths differ.
        """
        given = as_array(rows, "rows")
        _, lengths, basis = np.linalg.svd(self._matrix(site, given), full_matrices=False)
        basis = basis[lengths > lengths.max() * 1e-7]  # as `Edit.project_out` does
        result: np.ndarray = given - (given @ basis.T) @ basis
        return result

    def fits(self, model: str, widths: Mapping[str, int] | int, blocks: int, architecture: str = "") -> None:
        """Refuse a network that is not the one these directions were made for.

        Parameters
        ----------
        model
            Its fingerprint; not compared if either is unknown (empty), or only one was sampled (of a model passed from memory).
        widths
            Features by site or by kind of site; a number is the width of the residual stream.
        blocks
            Number of blocks.
        architecture
            Its `model_type`; not compared if either is unknown; llama.cpp's names match transformers' (`architectures`).

        Raises
        ------
        UserError
            If fingerprint, architecture, width or number of blocks differ, or a site's block is missing.
        """
        self.belongs(model, blocks, architecture)
        stream = widths if isinstance(widths, int) else None
        by_name: Mapping[str, int] = {} if isinstance(widths, int) else widths
        for d in self.directions:
            site = Site.parse(d.site)
            if site.layer is not None and not -blocks <= site.layer < blocks:
                raise UserError(f"The direction {d.name!r} lives at {d.site}, and this model has {blocks} blocks, counted from 0.")
            held = by_name.get(d.site, by_name.get(site.kind, stream if site.kind in _STREAM else None))
            if held is not None and held != d.width:
                raise UserError(f"The direction {d.name!r} has {d.width} features, and {d.site} of this model has {held}.")

    def belongs(self, model: str, blocks: int, architecture: str = "") -> None:
        """The checks of `fits` that concern the model, not the sites.

        Raises
        ------
        UserError
            If fingerprint, architecture or number of blocks differ.
        """
        given = str(model)
        for of in dict.fromkeys([str(self.model), *(str(d.model) for d in self.directions)]):
            if of and given and given.startswith("sampled:") == of.startswith("sampled:") and of != given:
                raise UserError(
                    f"These directions were made for the model with fingerprint {of}, and this is {given}; load that model."
                )
        if self.architecture and architecture and not agree(self.architecture, architecture):
            raise UserError(
                f"These directions were made for a {self.architecture}, and this model is a {architecture}; load a "
                "model of that kind."
            )
        if self.blocks and self.blocks != blocks:
            raise UserError(f"These directions were made for a model of {self.blocks} blocks, and this one has {blocks}.")

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file: one array (direction, feature) per site, and a JSON header."""
        native.write(Path(path), self.directions, **self._facts())
        return Path(path)

    def to_gguf(self, path: str | Path, unit: bool = False) -> Path:
        """Write a control vector for llama.cpp; `--control-vector PATH` adds it at its scale.

        Parameters
        ----------
        path
            The file.
        unit
            Write unit vectors instead; the strength is then set by `--control-vector-scaled PATH SCALE`.

        Raises
        ------
        UserError
            If a direction is not at `resid_post` of block 1 or later, at all tokens, or two are at one block.
        """
        control_vectors.write(Path(path), self.directions, unit=unit, **self._facts())
        return Path(path)

    def to_pt(self, path: str | Path, blocks: int | None = None) -> Path:
        """Write a `.pt` matrix (block, feature) to add to block outputs, zeros for blocks without a direction.

        Raises
        ------
        UserError
            If one is not at `resid_post`, two are at one block, or the number of blocks is unknown.
        """
        matrix.write(Path(path), self.directions, self.blocks if blocks is None else blocks)
        return Path(path)

    def to_steering_vectors(self) -> Any:
        """A `SteeringVector` of the package steering-vectors that adds these at strength 1.

        Raises
        ------
        UserError
            If the package is not installed, or it does not support these sites (one kind, one per block) or these tokens (all).
        """
        return steering_vectors.made(self.directions, self.architecture)

    @classmethod
    def from_steering_vectors(cls, vector: Any, *, model: str = "", architecture: str = "", note: str = "") -> "DirectionSet":
        """The directions in a `SteeringVector` of the package steering-vectors, which need not be installed.

        Raises
        ------
        UserError
            If it is of another type, or repscope has no such site.
        """
        return cls(steering_vectors.read(vector), model, note, architecture)

    @classmethod
    def load(cls, path: str | Path, block: int | None = None) -> "DirectionSet":
        """Read a file of `save`, a control vector of llama.cpp, or a `.pt` matrix; untrusted files are safe.

        Parameters
        ----------
        path
            The file; its first bytes determine the format.
        block
            For a `.pt` file with one vector: the block to whose output it is added.

        Raises
        ------
        UserError
            If the file is missing or of another format.
        """
        source = Path(path)
        if not source.is_file():
            raise UserError(f"There is no file {str(path)!r} to read directions from.")
        with source.open("rb") as file:
            magic = file.read(9)
        if magic[:4] == b"GGUF":
            return cls(**control_vectors.read(source))
        if magic[:2] == b"PK":
            return cls(**matrix.read(source, block))
        if magic[8:] == b"{":  # after the header's length
            return cls(**native.read(source))
        raise UserError(f"{str(path)!r} cannot be read as a set of directions: it is no safetensors, GGUF or zipped .pt file.")

    def _facts(self) -> dict[str, Any]:
        return {"model": str(self.model), "note": self.note, "architecture": self.architecture, "blocks": self.blocks}

    def _matrix(self, site: str | Site | None = None, rows: np.ndarray | None = None) -> Float[np.ndarray, "direction feature"]:
        """Unit vectors at `site`, or all, of the rows' width."""
        wanted = None if site is None else str(Site.parse(site))
        chosen = [d for d in self.directions if wanted in (None, d.site)]
        if not chosen:
            sites = ", ".join(dict.fromkeys(d.site for d in self.directions)) or "nothing"
            raise UserError(f"This set has no direction{f' at {wanted}; it holds {sites}' if wanted else ''}.")
        if len(widths := sorted({d.width for d in chosen})) > 1:
            raise UserError(f"These directions have {widths[0]} to {widths[-1]} features; choose those of one site.")
        if rows is not None and rows.shape[-1:] != (widths[0],):
            raise UserError(f"The rows have shape {rows.shape}, and these directions have {widths[0]} features.")
        return np.stack([d.vector for d in chosen])
