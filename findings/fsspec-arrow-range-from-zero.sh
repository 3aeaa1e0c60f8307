#!/usr/bin/env bash
# fsspec 2026.9.0, pyarrow 26.0.1. Ranges of files read through fsspec's wrapper of pyarrow file systems (S3, HDFS, local).
#
# Expected: cat_file(path, 0, 5) gives the first five bytes, as with every other fsspec file system.
# Seen: a range that begins at byte 0 raises OSError("only valid on seekable files"), one that begins at any other byte is read; the
#   wrapper opens the file as seekable only where start is neither None nor 0, and then seeks all the same. cat_ranges returns the
#   error in place of the bytes.
# Ground truth: the file. The remedy is cat_file(path, 0, 5, seekable=True).
# Exits 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check fsspec==2026.9.0 pyarrow==26.0.1 2>/dev/null
"$folder/venv/bin/python" - "$folder/bytes" <<'PYTHON'
import sys
from pathlib import Path

from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem

path, content = sys.argv[1], b"0123456789"
Path(path).write_bytes(content)
fs = ArrowFSWrapper(LocalFileSystem())
assert fs.cat_file(path, 2, 5) == content[2:5]
assert fs.cat_file(path, 0, 5, seekable=True) == content[:5]
assert isinstance(fs.cat_ranges([path], [0], [5])[0], OSError)
try:
    fs.cat_file(path, 0, 5)
except OSError as error:
    print(f"a range from byte 2 is read, one from byte 0 raises {error!r}")
else:
    sys.exit("a range from byte 0 is read: this has changed")
PYTHON
