"""Trials of the engine's fast paths (`models.engine.proofs`), cached between runs as its checks are (`verification`).

A trial runs the network on prompts of fixed lengths before a fast path is taken. What it finds belongs to weights, configuration,
precision, device, libraries and the engine's sources; trials that passed are cached under a digest of these. Never cached: trials
that failed, those of a model with hooks or a forward of its own, and those that wait until they are worth their time (of long
prompts): a first and a second run of a study take the same paths.
"""

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from repscope import models
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.studies.run.provenance import digest, library_versions
from repscope.untrusted import parse_json

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


def restore_proofs(lm: "LanguageModel") -> None:
    """Take over the trials of earlier runs of this model."""
    if modified(lm):
        return
    with suppress(UserError, OSError, TypeError, ValueError):  # absent or damaged: the trials run again
        for path, level in parse_json(_file(lm).read_bytes()):
            lm.proofs.found.setdefault((str(path), int(level)), "")


def keep_proofs(lm: "LanguageModel") -> None:
    """Keep this run's trials that passed."""
    if modified(lm):
        return
    tried = (key for key, why in lm.proofs.found.items() if not why)
    passed = sorted(key for key in tried if key not in lm.proofs.wanted or key[1] == 0)
    file = _file(lm)
    with suppress(UserError, OSError):  # a cache that cannot be written costs time, not the answer
        if not file.is_file() or len(parse_json(file.read_bytes())) < len(passed):
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file, sync=False) as partial:
                partial.write_text(json.dumps(passed), encoding="utf-8")


def _file(lm: "LanguageModel") -> Path:
    return cache_home() / "proved" / f"{digest([key_of(lm), lm.model.config.to_json_string()])[:24]}.json"


@cache
def engine_digest() -> str:
    """SHA-256 of all sources of the engine."""
    root = Path(str(models.__file__)).parent
    sources = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sources.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return sources.hexdigest()


def key_of(lm: "LanguageModel") -> str:
    """A digest of what the checks of a model depend on."""
    return digest([lm.fingerprint, str(lm.model.dtype), str(lm.device), str(lm.model), library_versions(), engine_digest()])[:24]


def modified(lm: "LanguageModel") -> bool:
    """Whether a module carries what its weights and its class do not show."""
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ or m.training for m in lm.model.modules())
