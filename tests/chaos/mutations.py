"""Mutations of files: of any bytes, and of JSON in its own structure. Seeded; the same seed gives the same file."""

import copy
import json
import random
import struct

#: text that parsers stumble over
_TOKENS = [
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a lone surrogate in UTF-8
    b"\\ud800",
    b"9" * 5000,
    b"[" * 20_000,
    b'{"a":' * 3000,
    b'"',
    b"\n",
    b"\r",
    b",,,",
    b"\t",
    b"\x1b[2J",
    b"../../../x",
    b"a" * 5000,
    b"NaN",
    b"-1e999",
    "\u202e".encode(),
]
_RAW = "\0raw{}\0"  #: stands for text that `json.dumps` does not write
_RAWS = [
    "9" * 5000,
    "1e999",
    "-" + "8" * 400,
    "NaN",
    "Infinity",
    '"\\ud800"',
    "[" * 3000 + "]" * 3000,
    '{"a":' * 2000 + "1" + "}" * 2000,
]
_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**63,
    10**30,
    0.5,
    -0.0,
    "",
    "x",
    "a\0b",
    "../../x",
    "/etc/passwd",
    "y" * 5000,
    "\u202eabc\x1b[2J",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    ["x"] * 50,
]


def of_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A kind of mutation, and the mutated bytes."""
    kind = rng.choice(("bit", "bits", "cut", "empty", "hole", "double", "noise", "ones", "token", "token", "tokens"))
    held = bytearray(data)
    n = len(held)
    at, to = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
    if kind == "empty" or not n:
        return "empty", b""
    if kind == "bit":
        held[min(at, n - 1)] ^= 1 << rng.randrange(8)
    elif kind == "bits":
        for _ in range(rng.randint(2, 20)):
            held[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del held[at:]
    elif kind == "hole":
        del held[at:to]
    elif kind == "double":
        held[to:to] = held[at:to]
    elif kind == "noise":
        held[at:at] = rng.randbytes(rng.randint(1, 200))
    elif kind == "ones":
        held[at:to] = bytes([rng.choice((0, 255))]) * (to - at)
    else:
        for _ in range(1 if kind == "token" else 4):
            where = rng.randrange(len(held) + 1)
            held[where:where] = rng.choice(_TOKENS)
    return kind, bytes(held)


def of_json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """As `of_bytes`, in the structure of a JSON file: a value replaced, a key removed, renamed, added or doubled."""
    whole = json.loads(data)
    nodes = list(_nodes(whole))
    if not nodes:
        return of_bytes(data, rng)
    raws: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        parent, key = rng.choice(nodes)
        kind = rng.choice(("replace", "replace", "replace", "raw", "remove", "rename", "add", "copy"))
        try:
            if kind == "replace":
                parent[key] = copy.deepcopy(rng.choice(_VALUES))
            elif kind == "raw":
                parent[key] = _RAW.format(len(raws))
                raws.append(rng.choice(_RAWS))
            elif kind == "remove":
                del parent[key]
            elif kind == "copy":
                parent[key] = copy.deepcopy(rng.choice(nodes)[0])
            elif isinstance(parent, list):
                parent.insert(0, copy.deepcopy(rng.choice(_VALUES)))
            elif kind == "rename":
                parent[rng.choice(("", "x", "__class__", "\u202e", "z" * 3000))] = parent.pop(key)
            else:
                parent["unknown"] = copy.deepcopy(rng.choice(_VALUES))
        except (KeyError, IndexError):  # another mutation removed it
            continue
    try:
        text = json.dumps(whole)
    except (ValueError, RecursionError):  # a value within itself
        return of_bytes(data, rng)
    for i, raw in enumerate(raws):
        text = text.replace(json.dumps(_RAW.format(i)), raw)
    return "json", text.encode()


def of_safetensors(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """As `of_bytes`, in the header of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    kind, header = of_json(data[8 : 8 + size], rng)
    return f"header: {kind}", struct.pack("<Q", len(header)) + header + data[8 + size :]


def _nodes(value):
    """Every (container, key) of a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _nodes(inner)


def mutated(name: str, data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A mutation that suits a file of that name."""
    if rng.random() < 0.6:
        if name.endswith(".json"):
            return of_json(data, rng)
        if name.endswith(".safetensors"):
            return of_safetensors(data, rng)
        if name.endswith(".jsonl"):
            lines = data.splitlines()
            at = rng.randrange(len(lines))
            kind, lines[at] = of_json(lines[at], rng)
            return f"line: {kind}", b"\n".join(lines)
    return of_bytes(data, rng)
