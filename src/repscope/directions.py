"""Direction and DirectionSet: unit vectors with their site, the scale that works, what found them, what they do.

On disk: one safetensors file, the vectors as one array and the rest as JSON in its header, so that a stranger's file can be
read without running anything. Knows arrays and names, never a network.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.disk import whole_file
from repscope.errors import UserError, unknown

FORMAT = "repscope-directions-1"


@dataclass(frozen=True)
class Direction:
    """A direction in a network.

    vector: (feature), of length one. site: where it lives. name: what to call it. scale: the length at which it works there,
    in the site's own units. offset: added to the product with it, for a probe's score. found_by: the method and its settings.
    does: what it was seen to do, as numbers by name.
    """

    vector: Float[np.ndarray, "feature"]
    site: str
    name: str
    scale: float = 1.0
    offset: float = 0.0
    found_by: str = ""
    does: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Float[np.ndarray, "feature"], site: str, name: str, **rest: Any) -> "Direction":
        """A direction from a vector of any length; its length becomes the scale.

        Raises
        ------
        UserError
            When the vector is zero or not finite.
        """
        length = float(np.linalg.norm(weights))
        if not np.isfinite(length) or length == 0:
            raise UserError(f"The direction {name!r} has length {length}; it points nowhere.")
        return cls(np.asarray(weights, dtype=np.float32) / np.float32(length), site, name, scale=length, **rest)

    def score(self, rows: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row"]:
        """What a probe with these weights says of each row: scale × (row · vector) + offset."""
        result: np.ndarray = self.scale * (rows @ self.vector) + self.offset
        return result


@dataclass(frozen=True)
class DirectionSet:
    """Directions of one network.

    directions: in order. model: fingerprint of the network. note: what this set is.
    """

    directions: Sequence[Direction]
    model: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.directions)

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.directions)

    def __getitem__(self, name: str) -> Direction:
        """The direction of that name.

        Raises
        ------
        UserError
            When there is none; offers the nearest names.
        """
        for direction in self.directions:
            if direction.name == name:
                return direction
        raise unknown("direction", name, [d.name for d in self.directions])

    def save(self, path: str | Path) -> Path:
        """Write `path`, a safetensors file: one array a site, (direction, feature), and a JSON header."""
        from safetensors.numpy import save_file

        target = Path(path)
        sites = list(dict.fromkeys(d.site for d in self.directions))
        arrays = {s: np.stack([d.vector for d in self.directions if d.site == s]).astype(np.float32) for s in sites}
        rest = [{k: v for k, v in asdict(d).items() if k != "vector"} for d in self.directions]
        header = {"format": FORMAT, "model": self.model, "note": self.note, "directions": json.dumps(rest)}
        with whole_file(target) as partial:
            save_file(arrays, partial, metadata=header)
        return target

    @classmethod
    def load(cls, path: str | Path) -> "DirectionSet":
        """Read what `save` wrote; anybody's file is safe to read.

        Raises
        ------
        UserError
            When the file is missing or is not a set of directions.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"There is no file {str(path)!r} to read directions from.")
        try:
            with safe_open(path, "np") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if header.get("format") != FORMAT:
                raise UserError(
                    f"{str(path)!r} is no set of directions: its header says {header.get('format')!r}, not {FORMAT!r}."
                )
            rest = json.loads(header["directions"])
            taken = dict.fromkeys(arrays, 0)
            directions = []
            for fields in rest:
                site = fields["site"]
                directions.append(Direction(vector=arrays[site][taken[site]], **fields))
                taken[site] += 1
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{str(path)!r} cannot be read as a set of directions ({error}).") from error
        return cls(directions, header.get("model", ""), header.get("note", ""))
