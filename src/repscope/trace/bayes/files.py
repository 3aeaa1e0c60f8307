"""Files of hidden Markov models: NumPy archives, safetensors and JSON. Nothing is unpickled, and a file's size is checked first.

1. `.npz` or `.safetensors` with the arrays start, transition and emission; several models, the concepts of a mixture, with a
   leading axis. Models of different sizes: `start.0`, `transition.0`, `emission.0`, `start.1`, ….
2. `.json` with an object of these three names, or a list of such objects.

Any other array, name or number is refused: a file of something else is not read as a model.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repscope.errors import UserError, no_file, unknown
from repscope.trace.bayes.hmm import PARTS, HiddenMarkovModel
from repscope.untrusted import parse_json

_MOST_BYTES = 1 << 29  #: of the arrays in a file; a small archive can expand to any size


def read_models(path: str | Path) -> list[HiddenMarkovModel]:
    """Hidden Markov models from a `.npz`, `.safetensors` or `.json` file: one or several, which are the concepts of a mixture.

    Raises
    ------
    UserError
        If the file is missing, of another kind, too large, damaged, or has no model; and as `HiddenMarkovModel`.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{file} is a folder; give a file of hidden Markov models ({', '.join(_READERS)}).")
    if not file.is_file():
        siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise no_file(file, siblings, "file of hidden Markov models")
    reader = _READERS.get(file.suffix)
    if reader is None:
        raise unknown("kind of file of hidden Markov models", file.suffix or file.name, _READERS)
    if (size := file.stat().st_size) > _MOST_BYTES:
        raise UserError(
            f"{file} has {size / 1e6:.0f} MB, and models of hidden Markov chains at most {_MOST_BYTES / 1e6:.0f}; check it."
        )
    found = reader(file)
    if not found:
        raise UserError(f"{file} has no model.")
    for i, one in enumerate(found):
        if not isinstance(one, Mapping) or any(n not in one for n in PARTS):
            raise UserError(f"Model {i} of {file} lacks one of {', '.join(PARTS)}.")
    return [HiddenMarkovModel(**{n: one[n] for n in PARTS}, name=f"model {i} of {file.name}") for i, one in enumerate(found)]


def _npz(file: Path) -> list[dict[str, Any]]:
    try:
        with zipfile.ZipFile(file) as archive:  # np.load takes a bare array under this suffix too, which has no names
            size = sum(part.file_size for part in archive.infolist())
        if size > _MOST_BYTES:
            raise UserError(f"The arrays of {file} need {size / 1e6:.0f} MB, more than {_MOST_BYTES / 1e6:.0f}; check the file.")
        with np.load(file, allow_pickle=False) as held:
            return _models({name: np.asarray(held[name]) for name in held.files}, file)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, MemoryError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as arrays ({_line(error)}).") from error


def _safetensors(file: Path) -> list[dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return _models(load_file(file), file)
    except UserError:
        raise
    except (SafetensorError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as safetensors of numbers ({_line(error)}).") from error


def _json(file: Path) -> list[Any]:
    try:
        parsed = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({_line(error)}).") from error
    return parsed if isinstance(parsed, list) else [parsed]


def _models(arrays: Mapping[str, np.ndarray], file: Path) -> list[dict[str, Any]]:
    """Arrays by name as models: with a leading axis, numbered names, or one model."""
    if strange := sorted(name for name in arrays if name.partition(".")[0] not in PARTS):
        raise UserError(f"{file} has an array {strange[0]!r}; a file of hidden Markov models has {', '.join(PARTS)} alone.")
    numbered = sorted({name.partition(".")[2] for name in arrays if "." in name}, key=lambda n: (len(n), n))
    if numbered:
        if numbered != [str(i) for i in range(len(numbered))] or any(n in arrays for n in PARTS):
            raise UserError(f"The arrays of {file} are numbered {', '.join(numbered[:5])}; number all of them from 0 on.")
        return [{part: arrays[f"{part}.{i}"] for part in PARTS if f"{part}.{i}" in arrays} for i in numbered]
    if arrays.get("transition", np.zeros(0)).ndim != 3:
        return [dict(arrays)]
    count = len(arrays["transition"])
    if any(len(np.atleast_1d(arrays.get(n, ()))) != count for n in PARTS):
        raise UserError(f"{file} has {count} transition matrices and another number of starts or emissions.")
    return [{n: arrays[n][i] for n in PARTS} for i in range(count)]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_READERS = {".npz": _npz, ".safetensors": _safetensors, ".json": _json}
