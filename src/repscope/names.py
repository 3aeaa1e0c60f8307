"""Names from data as file names and as text for a terminal: no path leaves its folder, no text controls the terminal.

A relation, an attribute, a run or a model is named by whoever made the file. `file_name` keeps what is a plain file name already
and marks everything else with a digest, so that two names never share a file.
"""

import hashlib
import re
import unicodedata

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*( [A-Za-z0-9][A-Za-z0-9._-]*)*")
_MARKED = re.compile(r"-[0-9a-f]{10}$")  #: as a digest ends a name
_UNSAFE = re.compile(r"[%/\\:\x00-\x1f\x7f]")
_MOST = 80  #: characters
#: control characters except the line feed and the tab, and marks that turn the direction of writing
_CONTROLS = [c for c in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)) if c not in (9, 10)]
_ESCAPED = {c: f"\\x{c:02x}" if c < 256 else f"\\u{c:04x}" for c in _CONTROLS}


def file_name(name: str) -> str:
    """A name as the name of a file: ASCII, without separators or spaces, at most 80 characters, and different for different names.

    >>> file_name("country-capital known"), file_name("early-bias")
    ('country-capital+known', 'early-bias')
    >>> file_name("../x")
    '-x-d6b96a97d1'
    """
    if _PLAIN.fullmatch(name) and len(name) <= _MOST and not _MARKED.search(name):
        return name.replace(" ", "+")
    return f"{readable(name, _MOST - 11)}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def readable(name: str, most: int = _MOST) -> str:
    """A name as a part of a file name that a key makes unique: what is not plain becomes a hyphen; accents are left out.

    >>> readable("../São Paulo", 40)
    '-Sao-Paulo'
    """
    ascii_name = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9._-]", "-", ascii_name).lstrip(".")[:most]


def escaped(name: str) -> str:
    """A short name as a file name from which `unescaped` gets it back: separators, control characters and % are spelt out.

    >>> escaped("known-a/b"), unescaped("known-a%2Fb")
    ('known-a%2Fb', 'known-a/b')
    """
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", name)


def unescaped(name: str) -> str:
    """The name that `escaped` wrote."""
    return re.sub("%([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), name)


def printable(text: str) -> str:
    """A text for a terminal: control characters, which can clear the screen or rewrite lines, are spelt out.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return text.translate(_ESCAPED)
