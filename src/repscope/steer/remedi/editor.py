"""Editors: maps from the vector of an attribute in a sentence to a change of an entity's vector, and their files.

d = W a          linear
d = W a + b      affine
h_t ← h_t + d    for every token t of the entity, at one site
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from repscope.arrays import as_array
from repscope.disk import whole_file
from repscope.errors import UserError, unknown
from repscope.models.edits import Edit
from repscope.untrusted import parse_json

Kind = Literal["linear", "affine"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_HEADER = "repscope.remedi"


@dataclass(frozen=True, eq=False)
class Editor:
    """One editor.

    site: where it reads attributes and changes entities. weight: (d_model, d_model). bias: (d_model), zero for a linear one. kind:
    linear or affine. model: fingerprint of the network. notes: how it was trained.

    Raises
    ------
    UserError
        For shapes that do not fit, and numbers that are not finite.
    """

    site: str
    weight: Float[np.ndarray, "d_model d_attribute"]
    bias: Float[np.ndarray, "d_model"]
    kind: Kind = "linear"
    model: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would fail later."""
        if self.kind not in KINDS:
            raise unknown("kind of editor", self.kind, KINDS)
        if self.weight.ndim != 2 or self.weight.shape[0] != self.weight.shape[1] or self.bias.shape != self.weight.shape[:1]:
            raise UserError(
                f"An editor has a square weight and a bias of its width, not {self.weight.shape} and {self.bias.shape}."
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise UserError(f"The editor at {self.site} has weights that are not finite; train it with a smaller learning rate.")

    def __call__(self, attributes: Float[np.ndarray, "fact d_attribute"]) -> Float[np.ndarray, "fact d_model"]:
        """The change for each attribute vector.

        Raises
        ------
        UserError
            For vectors of another width than the editor's.
        """
        rows = as_array(attributes, "attribute vectors")
        if rows.ndim == 0 or rows.shape[-1] != self.weight.shape[1]:
            raise UserError(f"The attribute vectors have the shape {rows.shape}; the editor takes (fact, {self.weight.shape[1]}).")
        made: np.ndarray = rows @ self.weight.T + self.bias
        return made

    def edit(self, attributes: Float[np.ndarray, "fact d_attribute"], tokens: str = "subject") -> Edit:
        """The edit of as many prompts: each prompt's change is added at all tokens of its entity.

        A call on another number of prompts than there are attribute vectors is refused by the network.

        Raises
        ------
        UserError
            For vectors that are not (fact, d_attribute).
        """
        return Edit.add(self.site, self(as_array(attributes, "attribute vectors", "fact feature")), tokens=tokens, per_prompt=True)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with a JSON header, completely or not at all."""
        from safetensors.numpy import save

        target = Path(path)
        header = {"site": self.site, "kind": self.kind, "model": self.model, "notes": dict(self.notes)}
        arrays = {"weight": np.ascontiguousarray(self.weight, np.float32), "bias": np.ascontiguousarray(self.bias, np.float32)}
        with whole_file(target) as partial:
            partial.write_bytes(save(arrays, {_HEADER: json.dumps(header)}))
        return target

    @classmethod
    def load(cls, path: str | Path) -> "Editor":
        """Read a file that `save` wrote.

        Raises
        ------
        UserError
            For a file that is not there, or is no editor.
        """
        from safetensors import SafetensorError, safe_open

        target = Path(path)
        if not target.is_file():
            raise UserError(f"There is no file {target}; check the path.")
        try:
            with safe_open(target, framework="numpy") as file:
                header = parse_json((file.metadata() or {}).get(_HEADER, ""))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            texts = {name: header[name] for name in ("site", "kind", "model")}
            notes = header["notes"]
            if (
                set(arrays) != {"weight", "bias"}
                or not all(isinstance(t, str) for t in texts.values())
                or not isinstance(notes, dict)
            ):
                raise ValueError("it lacks a part")
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(
                f"{target} is no REMEDI editor ({str(error).splitlines()[0][:80]}); train one, or give its file."
            ) from error
        return cls(texts["site"], arrays["weight"], arrays["bias"], texts["kind"], texts["model"], notes)


def random_editor(like: Editor, seed: int) -> Editor:
    """The control: an editor with normal random weights. Its changes are to be scaled to the norm of those of `like`."""
    drawn = np.random.default_rng(seed).standard_normal(like.weight.shape).astype(np.float32)
    return Editor(
        like.site, drawn * (np.linalg.norm(like.weight) or 1.0) / np.linalg.norm(drawn), 0 * like.bias, "linear", like.model
    )
