"""`.pt` files with one float32 tensor (block, feature), as in hotwire-vllm and hidden-directions.

Row L is added to the output of block L, our `resid_post.L`; a row of zeros is a block without a direction. A tensor (feature) is
one direction of an unspecified block. Written by torch; read without unpickling (`pickled`). The file has no names, no scales
except the norms, and no tokens.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repscope.directions.direction import Direction
from repscope.directions.header import MOST_BLOCKS, Contents
from repscope.directions.pickled import read_tensor
from repscope.directions.residual import by_block
from repscope.disk import whole_file
from repscope.errors import UserError


def write(path: Path, directions: Sequence[Direction], blocks: int) -> None:
    """Write the weights (scale · vector) of directions at `resid_post`, one per block, as a matrix of `blocks` rows.

    Raises
    ------
    UserError
        For other sites or tokens, two directions at one block, or an unknown or too small number of blocks.
    """
    held = by_block(directions, "a .pt matrix")
    if placed := [d for d in directions if d.tokens != "all"]:
        raise UserError(
            f"The direction {placed[0].name!r} is for tokens {placed[0].tokens!r}, and a .pt matrix cannot say so; if all tokens "
            "are meant, set its tokens to 'all'."
        )
    if not 0 < blocks <= MOST_BLOCKS:
        raise UserError(f"A .pt matrix has one row per block, and the number of blocks is {blocks}; give it as blocks=.")
    if (last := max(held)) >= blocks:
        raise UserError(
            f"The direction {held[last].name!r} lives at resid_post.{last}, and there are {blocks} blocks, counted from 0."
        )
    import torch

    rows = np.zeros((blocks, held[last].width), np.float32)
    for block, direction in held.items():
        rows[block] = direction.weights
    made = io.BytesIO()  # a file's own name would become part of its bytes
    torch.save(torch.from_numpy(rows), made)
    with whole_file(path) as partial:
        partial.write_bytes(made.getvalue())


def read(path: Path, block: int | None = None) -> Contents:
    """Read a matrix, or with `block` one direction.

    Raises
    ------
    UserError
        If it is neither, or all zeros.
    """
    held = read_tensor(path)
    if held.ndim == 1:
        if block is None or not 0 <= block < MOST_BLOCKS:
            raise UserError(f"{str(path)!r} holds one vector and not its block; give it as block=, counted from 0.")
        rows, blocks = {block: held}, 0
    elif block is not None:
        raise UserError(f"{str(path)!r} holds {len(held)} blocks already; leave block={block} out.")
    else:
        rows, blocks = {i: row for i, row in enumerate(held) if row.any()}, len(held)
    if not rows or blocks > MOST_BLOCKS:
        raise UserError(f"{str(path)!r} holds {blocks} rows and no direction that can be read.")
    found_by = f"read from {path.name}"
    made = [Direction.of(row, f"resid_post.{i}", f"block {i}", found_by=found_by) for i, row in rows.items()]
    return Contents(directions=made, model="", note=found_by, architecture="", blocks=blocks)
