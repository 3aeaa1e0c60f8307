"""Names of sites (places in a network where activations are read and edited) and their parser.

`resid_post.8` is the output of block 8, `z.8.3` is head 3 of block 8 before the output projection; blocks and heads count from 0.
`KINDS` defines every kind; the resolver (`anatomy`), `repscope sites`, the docs and the tests use this table. Hugging Face's
`hidden_states` index is not used: its entry k is the *input* of block k, and its last entry follows the final norm. Names from
TransformerLens and nnsight are translated to the site with the same tensor. Works on names only, without a model.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

import numpy as np

from repscope.errors import UserError, unknown
from repscope.models.inputs.text_spans import described

T = TypeVar("T")


@dataclass(frozen=True)
class SiteKind:
    """One kind of site.

    per_block: whether each block has one. identity: the equation that verifies it. absent: architectures without it, and why.
    heads: whether its features are (head, …), so that `.BLOCK.HEAD` names one head. computed: if it is read-only, the reason and
    what to edit instead.
    """

    name: str
    per_block: bool
    definition: str
    identity: str
    absent: str
    heads: bool = False
    computed: str = ""


_NO_ATTENTION = "blocks without attention (Mamba), and attention in a fused kernel (load with attn_implementation='sdpa')"
_UNKNOWN = "blocks whose parts do not add up (Mamba, a block altered by hand)"
_TABLE = (
    SiteKind(
        "embed",
        False,
        "output of the input-embedding module, before positions are added",
        "rows of its weight",
        "networks without an embedding module",
    ),
    SiteKind(
        "resid_pre",
        True,
        "residual stream that enters the block",
        "resid_pre.l = resid_post.(l-1)",
        "blocks that do not map one hidden state to another",
    ),
    SiteKind(
        "q",
        True,
        "queries as they enter attention, after norm and rotation (head, d_head)",
        "pattern = softmax(scale q·k + mask)",
        _NO_ATTENTION,
        heads=True,
    ),
    SiteKind(
        "k",
        True,
        "keys as they enter attention, after norm and rotation (key-value head, d_head)",
        "pattern = softmax(scale q·k + mask)",
        _NO_ATTENTION,
        heads=True,
    ),
    SiteKind("v", True, "values (key-value head, d_head)", "pattern · v = z", _NO_ATTENTION, heads=True),
    SiteKind(
        "pattern",
        True,
        "attention weights over the keys (head, key), zero beyond the prompt",
        "pattern · v = z",
        _NO_ATTENTION,
        heads=True,
    ),
    SiteKind(
        "z", True, "output of each head before the output projection (head, d_head)", "pattern · v = z", _NO_ATTENTION, heads=True
    ),
    SiteKind(
        "head_out",
        True,
        "contribution of each head to the residual stream (head, d_model)",
        "sum over heads + bias = attn_out",
        "a norm between attention and the residual stream (Gemma 2 and 3, OLMo 2), which mixes the heads",
        heads=True,
        computed="it is computed from z by the output projection: edit z, or add to attn_out",
    ),
    SiteKind("attn_out", True, "what attention adds to the residual stream", "resid_pre + attn_out = resid_mid", _UNKNOWN),
    SiteKind(
        "resid_mid",
        True,
        "residual stream between attention and MLP",
        "resid_mid + mlp_out = resid_post",
        "parallel blocks (GPT-J, GPT-NeoX, Phi, Falcon): attention and MLP both read resid_pre",
    ),
    SiteKind(
        "mlp_act",
        True,
        "MLP neurons: the input of the MLP's output projection",
        "its projection gives mlp_out",
        "mixtures of experts (Mixtral, OLMoE), where each expert has neurons of its own",
    ),
    SiteKind("mlp_out", True, "what the MLP adds to the residual stream", "resid_mid + mlp_out = resid_post", _UNKNOWN),
    SiteKind(
        "resid_post",
        True,
        "residual stream that leaves the block",
        "resid_pre + attn_out + mlp_out",
        "blocks that do not map one hidden state to another",
    ),
    SiteKind(
        "final_norm",
        False,
        "output of the norm after the last block",
        "norm(resid_post of the last block)",
        "networks that end with their last block (BERT)",
    ),
)
KINDS: dict[str, SiteKind] = {kind.name: kind for kind in _TABLE}
_ORDER = {kind.name: i for i, kind in enumerate(_TABLE)}
_ADDRESS = re.compile(r"(?P<kind>[A-Za-z_]+)(?:\.(?P<layer>-?\d+)(?:\.(?P<head>-?\d+))?)?")

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp_act",
    "attn.hook_rot_q": "q",
    "attn.hook_rot_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_pattern": "pattern",
    "attn.hook_result": "head_out",
}
_TRANSFORMER_LENS_WHOLE = {"hook_embed": "embed", "ln_final.hook_normalized": "final_norm"}
_NNTERP = {"layers_input": "resid_pre", "layers_output": "resid_post"}


@dataclass(frozen=True)
class Site:
    """A place in a network: a kind with block and head, or the output (`side="in"`: input) of the module at a path.

    >>> Site.parse("resid_post.8")
    Site(kind='resid_post', layer=8, head=None, path='', side='out')
    >>> str(Site.parse("blocks.8.attn.hook_z"))
    'z.8'
    >>> str(Site.parse("model.layers[3].mlp.output"))
    'module:model.layers.3.mlp'
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    path: str = ""
    side: Literal["in", "out"] = "out"

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """Parse a site name. A kind without a block (`resid_post`) means all blocks; negative blocks count from the end.

        TransformerLens's `blocks.8.hook_resid_post` and nnsight's `model.layers[8].output` are accepted.

        Raises
        ------
        UserError
            For an unknown name; the message suggests the nearest kinds.
        """
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise UserError(f"{described(text)} is not a site name; write one such as 'resid_post.8'.")
        text = _translated(text.strip())
        if text.endswith(".*") and text[:-2] in KINDS:  # all blocks, as the kind alone
            text = text[:-2]
        if text.startswith("module:"):
            path, _, side = text.removeprefix("module:").partition("#")
            if side not in ("", "in", "out"):
                raise UserError(f"The site {text!r} ends in #{side}; a module has #in and #out.")
            return cls("module", path=path, side="in" if side == "in" else "out")
        address = _ADDRESS.fullmatch(text)
        kind = address["kind"] if address else text.split(".")[0]
        if kind not in KINDS:
            raise unknown("site kind", kind, KINDS, "Any other module is `module:` and its path.")
        if not address:
            raise UserError(f"The site {text!r} is not of the form {kind}.BLOCK, such as {kind}.8.")
        layer, head = (None if address[part] is None else int(address[part]) for part in ("layer", "head"))
        if layer is not None and not KINDS[kind].per_block:
            raise UserError(f"The site {text!r} names a block, but the network has only one {kind}: write {kind!r}.")
        if head is not None and not KINDS[kind].heads:
            raise UserError(f"The site {text!r} names a head, but {kind} has none: write {kind}.{layer}.")
        return cls(kind, layer, head)

    def __str__(self) -> str:
        if self.kind == "module":
            return f"module:{self.path}{'#in' if self.side == 'in' else ''}"
        return ".".join([self.kind, *(str(n) for n in (self.layer, self.head) if n is not None)])

    @property
    def single(self) -> bool:
        """Whether the name means one place, not a kind in all blocks."""
        return self.kind == "module" or self.layer is not None or not KINDS[self.kind].per_block

    @property
    def depth(self) -> tuple[int, int, int, str]:
        """Sort key: the order of sites in the forward pass."""
        if self.kind == "embed":
            return (-1, 0, 0, "")
        if self.kind in KINDS and self.layer is not None:
            return (self.layer, _ORDER[self.kind], -1 if self.head is None else self.head, "")
        return (10**6, _ORDER.get(self.kind, 99), 0, self.path)


def _translated(text: str) -> str:
    """Translate a name from TransformerLens or nnsight; return any other text unchanged.

    Raises
    ------
    UserError
        For TransformerLens's `hook_q` and `hook_k`: these tensors precede the rotation and correspond to no site.
    """
    if text in _TRANSFORMER_LENS_WHOLE:
        return _TRANSFORMER_LENS_WHOLE[text]
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", text):
        layer, name = block.groups()
        if name in _TRANSFORMER_LENS:
            return f"{_TRANSFORMER_LENS[name]}.{layer}"
        if name in ("attn.hook_q", "attn.hook_k"):
            kind = name[-1]
            raise UserError(
                f"{text!r} precedes the rotary embedding; use {kind}.{layer} (TransformerLens's hook_rot_{kind}), which "
                f"enters attention, or a `module:` path for the raw projection."
            )
        raise unknown("TransformerLens hook", name, _TRANSFORMER_LENS)
    if nnterp := re.fullmatch(r"(\w+)\[(-?\d+)\]", text):
        if nnterp[1] in _NNTERP:
            return f"{_NNTERP[nnterp[1]]}.{nnterp[2]}"
        if nnterp[1] in KINDS:
            raise UserError(f"{text!r} is written {nnterp[1]}.{nnterp[2]} here.")
        raise unknown("nnterp accessor", nnterp[1], _NNTERP, "Its other names are raw modules: use `module:` and the path.")
    if accessor := re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+|\[\d+\])+)\.(output|input)(?:\[0\])*", text):
        path = re.sub(r"\[(\d+)\]", r".\1", accessor[1])
        return f"module:{path}{'#in' if accessor[2] == 'input' else ''}"
    if "[" in text:
        raise UserError(
            f"{text!r} is not read; of a module there are `.output` and `.input` as nnsight writes them, with blocks from 0, or "
            "`module:` and its path."
        )
    return text


def names_one(at: object) -> bool:
    """Whether a request is a single name for one place: not a list, a kind in all blocks, or a wildcard."""
    if not isinstance(at, (str, Site)):
        return False
    return not str(at).strip().endswith("*") and ".*." not in str(at) and Site.parse(at).single


class PerSite(dict[Site, T]):
    """Mapping from sites to values; keys can also be site names."""

    def __missing__(self, site: Any) -> T:
        named = Site.parse(site)
        if isinstance(site, Site) or named not in self:
            raise UserError(f"There is nothing for {named}; there is {', '.join(map(str, self))}.")
        found: T = super().__getitem__(named)
        return found

    def __contains__(self, site: object) -> bool:
        return super().__contains__(Site.parse(site) if isinstance(site, str) else site)

    def get(self, site: Any, default: Any = None) -> Any:
        """As `[]`, with a default for absent sites."""
        return super().get(Site.parse(site), default)


@dataclass(frozen=True)
class Tokens:
    """Selection of token positions within a prompt or one of its named spans.

    >>> Tokens.parse("subject.last")
    Tokens(pick='last', span='subject')
    >>> Tokens.parse("mean").pooled
    True
    """

    pick: str
    span: str = ""

    @classmethod
    def parse(cls, text: "str | int | Tokens") -> "Tokens":
        """Parse `last`, `first`, `mean`, `all` or an index such as `-2`, optionally after a span name: `subject.mean`.

        Raises
        ------
        UserError
            When the last part is none of these.
        """
        if isinstance(text, Tokens):
            return text
        _see_choice(text)
        span, _, pick = str(text).rpartition(".")
        if pick not in PICKS and not re.fullmatch(r"-?\d+", pick):
            raise _no_choice(str(text), pick)
        return cls(pick, span)

    @classmethod
    def spanning(cls, text: "str | int | Tokens") -> "Tokens":
        """As `parse`; a span name alone means the whole span.

        >>> Tokens.spanning("subject")
        Tokens(pick='all', span='subject')
        """
        _see_choice(text)
        last = str(text).rpartition(".")[2]
        known = isinstance(text, Tokens) or not last or last in PICKS or last.lstrip("-").isdigit()
        return cls.parse(text if known else f"{text}.all")

    @property
    def pooled(self) -> bool:
        """Whether several positions are averaged to one vector."""
        return self.pick == "mean"

    @property
    def ragged(self) -> bool:
        """Whether a prompt can give several vectors."""
        return self.pick == "all"

    def __str__(self) -> str:
        return f"{self.span}.{self.pick}" if self.span else self.pick


PICKS = ("last", "first", "mean", "all")


def _see_choice(given: object) -> None:
    """Check that a choice of tokens is a name or an integer."""
    if not isinstance(given, (str, int, np.integer, Tokens)) or isinstance(given, bool):
        raise unknown("choice of tokens", given, PICKS, "An index such as -2 does as well.")


def _no_choice(text: str, pick: str) -> UserError:
    """The error for an invalid choice of tokens: suggests the nearest one, or the syntax for a span of that name."""
    if not re.fullmatch(r"\w[\w.]*", text) or not pick or get_close_matches(pick.casefold(), PICKS, n=1, cutoff=0.55):
        return unknown("choice of tokens", pick, PICKS, "An index such as -2 does as well.")
    if text in ("prompt", "generated"):
        return UserError(f"{text!r} is a choice of tokens for edits only; here use {', '.join(PICKS)} or an index such as -2.")
    return UserError(
        f"There is no choice of tokens {text!r}; for a span so named write {text}.last, {text}.first, {text}.mean or {text}.all, "
        f"and without a span {', '.join(PICKS)} or an index such as -2."
    )
