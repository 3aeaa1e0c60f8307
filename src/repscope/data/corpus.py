"""Corpora: documents (texts with labels) from a file, from a folder of Arrow files, or from the documentation of installed
packages.

A `.txt` file has one document per paragraph: paragraphs are separated by blank lines. `.jsonl` and `.parquet` files have one
document
per row; so have the `.arrow` files of a folder that Hugging Face datasets wrote, which are mapped and not loaded. Documents are
in the order of the file; those without text are left out with a note.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from repscope.data.installed_docs import installed_docs
from repscope.errors import UserError, no_file, unknown
from repscope.untrusted import parse_json

INSTALLED = "installed-docs"
_KINDS = (".txt", ".jsonl", ".parquet")
_BLANK = re.compile(r"\n[ \t\r\f\v]*\n")
_AT_ONCE = 1024  #: documents made Python strings at once


class ArrowTexts(Sequence[str]):
    """A column of texts, possibly mapped from a file."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return str(self.column[index].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self.column.slice(start, _AT_ONCE).to_pylist()


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    name: of the file, or "installed-docs". texts: the documents. labels: per label a value per document. sources: packages or files
    with their versions. notes: what was left out.

    >>> corpus = Corpus("two", ("A map of Paris.", "A map of Rome."), {"place": ("Paris", "Rome")})
    >>> len(corpus), corpus.label(1)
    (2, {'place': 'Rome'})
    """

    name: str
    texts: Sequence[str]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __getitem__(self, document: int) -> str:
        return self.texts[document]

    def label(self, document: int) -> dict[str, str]:
        """The labels of a document."""
        return {name: values[document] for name, values in self.labels.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all texts and labels in their order, 16 digits."""
        whole = hashlib.sha256()
        for values in (self.texts, *chain.from_iterable(((name,), held) for name, held in self.labels.items())):
            whole.update(b"\0")
            for value in values:
                data = value.encode("utf-8", "surrogatepass")
                whole.update(len(data).to_bytes(8, "little") + data)
        return whole.hexdigest()[:16]

    def take(self, documents: Sequence[int]) -> "Corpus":
        """The chosen documents, in that order."""
        chosen = [int(i) for i in documents]
        labels = {name: tuple(values[i] for i in chosen) for name, values in self.labels.items()}
        return replace(self, texts=tuple(self.texts[i] for i in chosen), labels=labels)

    def sample(self, most: int, seed: int = 0) -> "Corpus":
        """At most so many documents, drawn at random, in the order of the corpus."""
        if most >= len(self):
            return self
        drawn = np.sort(np.random.default_rng(seed).permutation(len(self))[:most])
        note = f"{most:,} of {len(self):,} documents were drawn at random (seed {seed})."
        return replace(self.take(drawn.tolist()), notes=(*self.notes, note))


def corpus(place: str | Path = INSTALLED, *, text: str = "text", labels: Sequence[str] = ()) -> Corpus:
    """Documents from a place.

    Parameters
    ----------
    place
        A `.txt`, `.jsonl` or `.parquet` file, a folder of `.arrow` files, or "installed-docs": prose of the docstrings of numpy,
        scipy, scikit-learn, pandas, torch and transformers as they are installed.
    text
        The column of texts.
    labels
        Columns kept as labels.

    Raises
    ------
    UserError
        When the place cannot be read as such, lacks a column, or has no text.
    """
    if str(place) == INSTALLED:
        held = installed_docs()
        return Corpus(INSTALLED, held.texts, held.labels, held.versions, held.notes)
    path = Path(place).expanduser()
    if isinstance(labels, str):
        labels = (labels,)
    if not path.exists():
        raise no_file(path, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [], "corpus")
    try:
        if path.is_dir():
            return _of_table(path, _arrow_folder(path), text, labels)
        if path.suffix.lower() == ".txt":
            if labels:
                raise UserError(f"{path} has no columns, so it has no label {labels[0]!r}; use a .jsonl or .parquet file.")
            return _paragraphs(path)
        if path.suffix.lower() == ".jsonl":
            return _json_lines(path, text, labels)
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            names = pq.read_schema(path).names
            return _of_table(path, pq.read_table(path, columns=_columns(path, names, text, labels)), text, labels)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error.strerror or error).split())}); check the file.") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged or of another kind ({' '.join(str(error).split())[:200]}); check the file.") from error
    raise unknown("kind of corpus", path.suffix or path.name, _KINDS, "A folder of .arrow files can be read too.")


def _made(
    path: Path, texts: Sequence[str], labels: Mapping[str, Sequence[str]], lost: int, sources: Mapping[str, str] | None = None
) -> Corpus:
    if not len(texts):
        raise UserError(f"{path} has no text; give a file with at least one document.")
    notes = (f"{lost:,} documents without text were left out.",) if lost else ()
    return Corpus(path.name, texts, labels, sources or {path.name: f"{path.stat().st_size} bytes"}, notes)


def _paragraphs(path: Path) -> Corpus:
    content = _decoded(path, path.read_bytes())
    texts = tuple(part.strip() for part in _BLANK.split(content.replace("\r\n", "\n")) if part.strip())
    return _made(path, texts, {}, 0)


def _json_lines(path: Path, text: str, labels: Sequence[str]) -> Corpus:
    texts: list[str] = []
    held: dict[str, list[str]] = {name: [] for name in labels}
    lost = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            content = _decoded(path, line)
            try:
                row = parse_json(content)
            except ValueError as error:
                raise UserError(f"{path}, line {number}, is no JSON object; give one object per line.") from error
            if not isinstance(row, dict) or any(name not in row for name in (text, *labels)):
                names = list(row) if isinstance(row, dict) else []
                missing = next((name for name in (text, *labels) if name not in names), text)
                raise UserError(
                    f"{path}, line {number}, has no {missing!r}; name the column of texts, among {', '.join(names[:8])}."
                )
            value = row[text]
            if value is not None and not isinstance(value, str):
                raise UserError(f"{path}, line {number}: {text!r} is no text; name another column.")
            if not value or not value.strip():
                lost += 1
                continue
            texts.append(value)
            for name in labels:
                held[name].append(_label(row[name]))
    return _made(path, tuple(texts), {name: tuple(values) for name, values in held.items()}, lost)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it.") from error


def _columns(path: Path, names: Sequence[str], text: str, labels: Sequence[str]) -> list[str]:
    for name in (text, *labels):
        if name not in names:
            raise unknown(f"column in {path.name}", name, names)
    return list(dict.fromkeys((text, *labels)))


def _of_table(path: Path, table: pa.Table, text: str, labels: Sequence[str]) -> Corpus:
    import pyarrow.compute as pc

    table = table.select(_columns(path, table.column_names, text, labels))
    for name in table.column_names:
        try:
            table[name].validate(full=True)  # offsets beyond the text of a damaged file would end the process
        except pa.ArrowInvalid as error:
            said = str(error).splitlines()[0]
            raise UserError(f"The column {name!r} of {path} is damaged ({said}); save or copy it again.") from error
    column = table[text]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)):
        raise UserError(f"The column {text!r} of {path} holds {column.type}, not texts; name another with text=.")
    full = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0), False)
    lost = len(full) - int(pc.sum(full).as_py() or 0)
    if lost:
        table = table.filter(full)
    held = {name: tuple(_label(value) for value in table[name].to_pylist()) for name in labels}
    sources = None
    if path.is_dir():
        sources = {file.name: f"{file.stat().st_size} bytes" for file in _arrow_files(path)}
    return _made(path, ArrowTexts(table[text]), held, lost, sources)


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a data set in their order: as `state.json` lists them, else sorted by name.

    Raises a `UserError` for a set of splits and for one whose rows are selected by a further file.
    """
    state = folder / "state.json"
    if (folder / "dataset_dict.json").exists():
        splits = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
        raise UserError(f"{folder} has the splits {', '.join(splits)}; give the folder of one.")
    if state.exists():
        try:
            told = parse_json(state.read_text(encoding="utf-8"))
            names = [entry["filename"] for entry in told["_data_files"]]
            selected = told.get("_indices_data_files") or told.get("_indices_files")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{state} is damaged; save the data set again.") from error
        if selected:
            raise UserError(f"{folder} selects rows by a further file; save it again after `flatten_indices()`.")
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise UserError(f"{state} names files outside of its folder; save the data set again.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(f"{folder} lacks {missing[0]}, which its state.json names; copy it again.")
        return [folder / name for name in names]
    found = sorted(path for path in folder.iterdir() if path.suffix == ".arrow" and path.is_file())
    if not found:
        raise UserError(f"{folder} has no .arrow file; give a folder that Hugging Face datasets wrote, or one file.")
    return found


def _arrow_folder(folder: Path) -> pa.Table:
    """The rows of all files, mapped into memory."""
    tables = []
    for path in _arrow_files(folder):
        source = pa.memory_map(str(path))
        is_file = path.stat().st_size >= 6 and source.read(6) == b"ARROW1"
        source.seek(0)
        tables.append((pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).read_all())
    if any(table.schema.names != tables[0].schema.names for table in tables):
        raise UserError(f"The .arrow files of {folder} have different columns; give a folder of one data set.")
    return pa.concat_tables(tables)
