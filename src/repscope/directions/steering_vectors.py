"""Conversion from and to `SteeringVector` of the package steering-vectors: one vector per block.

Its `layer_type` names the module whose output is edited (block, attention or MLP); `_KINDS` maps it to our sites. If a norm lies
between that module and the residual stream (`_NORMED`) the two differ, and export is refused. Reading accepts any object with the
same two attributes; only export needs the package. It has no tokens, so only directions for all tokens are written: arguments of
its `apply` count from the start of each forward pass, so that with a cache they never reach generated tokens
(`findings/steering-vectors-skips-generated-tokens.sh`).
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from repscope.directions.direction import Direction
from repscope.directions.residual import by_block
from repscope.errors import UserError, unknown
from repscope.models.sites import Site

_KINDS = {"decoder_block": "resid_post", "self_attn": "attn_out", "mlp": "mlp_out"}
#: architectures with a norm after attention and MLP
_NORMED = ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "olmo2", "olmo3", "glm4", "exaone4")


def made(directions: Sequence[Direction], architecture: str = "") -> Any:
    """A `SteeringVector` that adds the weights (scale · vector) at strength 1.

    Raises
    ------
    UserError
        If the package is not installed, or they are not of one of its kinds, at all tokens, one per block.
    """
    kinds = list(dict.fromkeys(Site.parse(d.site).kind for d in directions))
    types = {kind: name for name, kind in _KINDS.items()}
    if len(kinds) > 1 or (kinds and kinds[0] not in types):
        raise UserError(f"A SteeringVector acts at one of {', '.join(types)}, and these live at {', '.join(kinds)}.")
    kind = kinds[0] if kinds else "resid_post"
    if kind != "resid_post" and architecture in _NORMED:
        raise UserError(
            f"In {architecture} a norm stands between that module and {kind}, so steering-vectors would add elsewhere; "
            "export directions at resid_post."
        )
    held = by_block(directions, "a SteeringVector", kind)
    for direction in held.values():
        if direction.tokens != "all":
            raise UserError(
                f"The direction {direction.name!r} is for tokens {direction.tokens!r}, and a SteeringVector adds at all; if that "
                "is meant, set its tokens to 'all', else use save() and lm.edit."
            )
    try:
        peer = import_module("steering_vectors")
    except ImportError as error:
        raise UserError(
            "The package steering-vectors is not installed; it wants an older transformers, so put it in an environment of its own "
            "or run: pip install --no-deps steering-vectors==0.12.2"
        ) from error
    import torch

    tensors = {block: torch.from_numpy(direction.weights) for block, direction in held.items()}
    return peer.SteeringVector(layer_activations=tensors, layer_type=types[kind])


def read(vector: Any) -> list[Direction]:
    """The directions in a `SteeringVector`, or in anything with its `layer_activations` and `layer_type`.

    Raises
    ------
    UserError
        If it is of another type, or repscope has no such site.
    """
    activations = getattr(vector, "layer_activations", None)
    if not isinstance(activations, Mapping) or not activations:
        raise UserError(f"A {type(vector).__name__} is no SteeringVector: it has no layer_activations.")
    kind = str(getattr(vector, "layer_type", ""))
    if kind not in _KINDS:
        raise unknown("layer type", kind, _KINDS)
    found = []
    for block, tensor in sorted(activations.items()):
        if not isinstance(block, int | np.integer) or block < 0:
            raise UserError(f"The SteeringVector has a block {block!r}; blocks count from 0.")
        plain = tensor.detach().cpu().double().numpy() if hasattr(tensor, "detach") else np.asarray(tensor, np.float64)
        found.append(
            Direction.of(plain.reshape(-1), f"{_KINDS[kind]}.{block}", f"block {block}", found_by="read from a SteeringVector")
        )
    return found
