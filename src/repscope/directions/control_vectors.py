"""Reading and writing of control vectors in llama.cpp's GGUF layout, also used by repeng.

A tensor `direction.N` (float32, one dimension, N from 1) is added to the output of the 0-based block N, our `resid_post.N`.
llama.cpp stores it at N - 1 of a flat buffer, and block `il` reads entry `il - 1`: the two shifts cancel. So block 0 has no entry,
and llama.cpp and repscope refuse files with `direction.0`, other names, types or shapes, or several widths.
Keys: `general.architecture` = controlvector, `controlvector.model_hint`, `controlvector.layer_count` (how many
directions, as repeng counts).

1. Write: the weights (scale · vector), so that strength 1 equals `lm.edit`; or unit vectors. Our own header is in
   `repscope.directions`, a key that llama.cpp ignores.
2. Read: walk the keys first and refuse lengths that cannot be (gguf's reader believes them), then let gguf read the tensors.
   With our header the card is restored; the tensors' norms must match it.

The layout cannot specify tokens, so only directions for all tokens are written.
"""

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from repscope.directions import header
from repscope.directions.direction import Direction
from repscope.directions.header import Contents
from repscope.directions.residual import by_block
from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.untrusted import parse_json

ARCHITECTURE = "controlvector"
OURS = "repscope.directions"
LARGEST = 1 << 28  #: bytes of a file; 128 blocks of width 16,384 are 8 million
_FEW = 1 << 12  #: keys, tensors and entries of an array that such a file may have
_WHAT = "a control vector"
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a number, by its code in GGUF
_STRING, _ARRAY = 8, 9


def write(
    path: Path,
    directions: Sequence[Direction],
    *,
    unit: bool = False,
    model: str = "",
    note: str = "",
    architecture: str = "",
    blocks: int = 0,
) -> None:
    """Write a control vector.

    Raises
    ------
    UserError
        If the directions are not at `resid_post` of block 1 or later, at all tokens, one per block.
    """
    held = by_block(directions, _WHAT)
    if 0 in held:
        raise UserError(
            f"The direction {held[0].name!r} lives at resid_post.0, and llama.cpp refuses a control vector for block 0; "
            "choose directions of later blocks."
        )
    for direction in held.values():
        if direction.tokens != "all":
            raise UserError(
                f"The direction {direction.name!r} is for tokens {direction.tokens!r}, and llama.cpp adds at every "
                "token; if that is meant, set its tokens to 'all'."
            )
    from gguf import GGUFWriter

    facts = {"model": model, "note": note, "architecture": architecture, "blocks": blocks, "unit": unit}
    card = json.dumps({**facts, "directions": header.written(list(held.values()))})
    with whole_file(path) as partial:
        writer = GGUFWriter(partial, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", architecture)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(held))
            writer.add_string(OURS, card)
            for block, direction in held.items():
                vector = direction.vector.astype(np.float32) if unit else direction.weights
                writer.add_tensor(f"direction.{block}", vector)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read(path: Path) -> Contents:
    """Read a control vector from repscope or another tool.

    Raises
    ------
    UserError
        If llama.cpp would refuse it, or it is damaged.
    """
    if path.stat().st_size > LARGEST:
        raise UserError(f"{str(path)!r} is larger than {LARGEST / 1e6:.0f} MB; it is a model, not a control vector.")
    try:
        with path.open("rb") as file:
            _walk(file)
        from gguf import GGUFReader

        reader = GGUFReader(path)
        if (kind := _string(reader, "general.architecture")) != ARCHITECTURE:
            raise UserError(f"it says that it is {kind[:40]!r}, not {ARCHITECTURE!r}")
        hint = _string(reader, f"{ARCHITECTURE}.model_hint")
        tensors = dict(sorted(_tensor(tensor) for tensor in reader.tensors))
        if not tensors:
            raise UserError("it holds no direction")
        if len(widths := sorted({len(t) for t in tensors.values()})) > 1:
            raise UserError(f"its directions have {widths[0]} and {widths[-1]} features")
        card = _string(reader, OURS)
        return _ours(card, tensors) if card else _theirs(path.name, hint, tensors)
    except Exception as error:  # gguf's reader trusts its bytes, so damage raises any exception
        reason = str(error).splitlines()[0][:300].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{str(path)!r} cannot be read as a control vector ({reason}).") from error


def _tensor(tensor: Any) -> tuple[int, np.ndarray]:
    """Block and vector of one tensor, with llama.cpp's checks."""
    match = re.fullmatch(r"direction\.(\d{1,6})", tensor.name, re.ASCII)
    if not match:
        raise UserError(f"it holds a tensor {tensor.name[:40]!r}; llama.cpp takes direction.N alone")
    block = int(match[1])
    if block == 0:
        raise UserError("it holds direction.0, which llama.cpp refuses and other loaders take as different blocks")
    if str(block) != match[1] or block > header.MOST_BLOCKS:
        raise UserError(f"it holds a tensor {tensor.name!r}, which is no block's")
    if tensor.tensor_type.name != "F32" or len(tensor.shape) != 1:
        raise UserError(f"its {tensor.name} is {tensor.tensor_type.name} of {len(tensor.shape)} dimensions, not F32 of one")
    return block, np.array(tensor.data, dtype=np.float32)


def _theirs(name: str, hint: str, tensors: dict[int, np.ndarray]) -> Contents:
    found_by = f"read from {name}, a control vector{f' for {hint}' if hint else ''}"
    made = [Direction.of(w, f"resid_post.{n}", f"direction.{n}", found_by=found_by) for n, w in tensors.items()]
    return Contents(directions=made, model="", note=found_by, architecture=hint, blocks=0)


def _ours(text: str, tensors: dict[int, np.ndarray]) -> Contents:
    if len(text) > header.LONGEST:
        raise UserError("its header is too long")
    card = parse_json(text)
    texts = ("model", "note", "architecture", "directions")
    if not isinstance(card, dict) or not all(isinstance(card.get(key), str) for key in texts):
        raise UserError("its header is none of repscope's")
    rows = header.rows(card["directions"])
    if [row["site"] for row in rows] != [f"resid_post.{n}" for n in tensors]:
        raise UserError("its header tells of other directions than it holds")
    made = []
    for row, weights in zip(rows, tensors.values()):
        length = float(np.linalg.norm(weights.astype(np.float64)))
        said = 1.0 if card.get("unit") is True else row["scale"]
        if not abs(length - said) <= 1e-3 * said:
            raise UserError(f"its direction at {row['site']} has length {length:.4g} where its header says {said:.4g}")
        if card.get("unit") is True:
            made.append(Direction(vector=weights, **row))
        else:
            made.append(Direction.of(weights, **{k: v for k, v in row.items() if k != "scale"}))
    return Contents(
        directions=made,
        model=card["model"],
        note=card["note"],
        architecture=card["architecture"],
        blocks=header.block_count(card.get("blocks")),
    )


def _string(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    if field is None:
        return ""
    if [kind.name for kind in field.types] != ["STRING"]:
        raise UserError(f"its {key} is no string")
    return str(field.contents())


def _walk(file: BinaryIO) -> None:
    """Walk the keys of a GGUF file and refuse what no control vector has, before a reader allocates memory."""
    size = file.seek(0, 2)
    file.seek(4)

    def number(code: str) -> int:
        return int(struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0])

    def skip(count: int) -> None:
        if count > size - file.tell():
            raise UserError("it is cut, or tells wrong lengths")
        file.seek(count, 1)

    if (version := number("I")) not in (2, 3):
        raise UserError(f"it is GGUF of version {version if version < 1 << 16 else 'unknown (other byte order)'}, not 2 or 3")
    tensors, keys = number("Q"), number("Q")
    if max(tensors, keys) > _FEW:
        raise UserError(f"it has {tensors} tensors and {keys} keys; a control vector has few")
    for _ in range(keys):
        skip(number("Q"))  # the key's name
        kind, count = number("I"), 1
        if kind == _ARRAY:
            kind, count = number("I"), number("Q")
        if count > _FEW:
            raise UserError(f"it has an array of {count} entries; a control vector has none such")
        for _ in range(count):
            if kind != _STRING and kind not in _BYTES:
                raise UserError(f"it has a key of kind {kind}, which a control vector has not")
            skip(number("Q") if kind == _STRING else _BYTES[kind])
