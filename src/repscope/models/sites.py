"""Site: a named place in a network, and the one parser of such names. Knows names only, never a model.

`resid_post.8` is the output of block 8; blocks count from 0. Each kind has one definition, one row of `KINDS`; the resolver
(`anatomy`), `repscope sites`, the docs and the tests read the same table. Hugging Face's `hidden_states` index is never used:
its entry k is the *input* of block k, and its last entry comes after the final norm.
"""

import re
from dataclasses import dataclass
from typing import Literal

from repscope.errors import UserError, unknown


@dataclass(frozen=True)
class SiteKind:
    """One kind of site: its name, whether there is one per block, its definition, and the identity that proves it."""

    name: str
    per_block: bool
    definition: str
    identity: str


_TABLE = (
    SiteKind("embed", False, "output of the input-embedding module, before positions are added", "rows of its weight"),
    SiteKind("resid_pre", True, "residual stream that enters the block", "resid_pre.l = resid_post.(l-1)"),
    SiteKind("attn_out", True, "what attention adds to the residual stream", "resid_pre + attn_out = resid_mid"),
    SiteKind("resid_mid", True, "residual stream between attention and MLP", "resid_mid + mlp_out = resid_post"),
    SiteKind("mlp_act", True, "MLP neurons: the input of the MLP's output projection", "its projection gives mlp_out"),
    SiteKind("mlp_out", True, "what the MLP adds to the residual stream", "resid_mid + mlp_out = resid_post"),
    SiteKind("resid_post", True, "residual stream that leaves the block", "resid_pre + attn_out + mlp_out"),
    SiteKind("final_norm", False, "output of the norm after the last block", "norm(resid_post of the last block)"),
)
KINDS: dict[str, SiteKind] = {kind.name: kind for kind in _TABLE}
_ORDER = {kind.name: i for i, kind in enumerate(_TABLE)}
_ADDRESS = re.compile(r"(?P<kind>[A-Za-z_]+)(?:\.(?P<layer>-?\d+))?")


@dataclass(frozen=True)
class Site:
    """A place in a network: a kind with its block, or the output (`side="in"`: input) of the module at a path.

    >>> Site.parse("resid_post.8")
    Site(kind='resid_post', layer=8, path='', side='out')
    >>> str(Site.parse("module:model.layers.3.mlp"))
    'module:model.layers.3.mlp'
    """

    kind: str
    layer: int | None = None
    path: str = ""
    side: Literal["in", "out"] = "out"

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """Read a site's name. A kind without a block (`resid_post`) stands for all its blocks; negative blocks count from the end.

        Raises
        ------
        UserError
            When the name is not a site's; it offers the nearest kinds.
        """
        if isinstance(text, Site):
            return text
        if text.startswith("module:"):
            path, _, side = text.removeprefix("module:").partition("#")
            if side not in ("", "in", "out"):
                raise UserError(f"The site {text!r} ends in #{side}; a module has #in and #out.")
            return cls("module", path=path, side="in" if side == "in" else "out")
        address = _ADDRESS.fullmatch(text.strip())
        kind = address["kind"] if address else text.split(".")[0]
        if kind not in KINDS:
            raise unknown("site kind", kind, KINDS, "Any other module is `module:` and its path.")
        if not address:
            raise UserError(f"The site {text!r} is not of the form {kind}.BLOCK, such as {kind}.8.")
        layer = None if address["layer"] is None else int(address["layer"])
        if layer is not None and not KINDS[kind].per_block:
            raise UserError(
                f"The site {text!r} names a block, and there is one {kind} for the whole network: write {kind!r}."
            )
        return cls(kind, layer)

    def __str__(self) -> str:
        if self.kind == "module":
            return f"module:{self.path}{'#in' if self.side == 'in' else ''}"
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    @property
    def single(self) -> bool:
        """Whether the name stands for one place, not for a kind in all blocks."""
        return self.kind == "module" or self.layer is not None or not KINDS[self.kind].per_block

    @property
    def depth(self) -> tuple[int, int, str]:
        """Sorts sites in the order of the forward pass."""
        if self.kind == "embed":
            return (-1, 0, "")
        if self.kind in KINDS and self.layer is not None:
            return (self.layer, _ORDER[self.kind], "")
        return (10**6, _ORDER.get(self.kind, 99), self.path)


@dataclass(frozen=True)
class Tokens:
    """Which token positions of a prompt: all of it or a named span, and what to take of that.

    >>> Tokens.parse("subject.last")
    Tokens(pick='last', span='subject')
    >>> Tokens.parse("mean").pooled
    True
    """

    pick: str
    span: str = ""

    @classmethod
    def parse(cls, text: "str | int | Tokens") -> "Tokens":
        """Read `last`, `first`, `mean`, `all`, an index such as `-2`, each also after a span's name: `subject.mean`.

        Raises
        ------
        UserError
            When the last part is none of these.
        """
        if isinstance(text, Tokens):
            return text
        span, _, pick = str(text).rpartition(".")
        if pick not in PICKS and not re.fullmatch(r"-?\d+", pick):
            raise unknown("choice of tokens", pick, PICKS, "An index such as -2 does as well.")
        return cls(pick, span)

    @property
    def pooled(self) -> bool:
        """Whether several positions become one vector."""
        return self.pick == "mean"

    @property
    def ragged(self) -> bool:
        """Whether a prompt can give several vectors."""
        return self.pick == "all"

    def __str__(self) -> str:
        return f"{self.span}.{self.pick}" if self.span else self.pick


PICKS = ("last", "first", "mean", "all")
