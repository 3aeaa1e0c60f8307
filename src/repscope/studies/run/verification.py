"""The engine's checks of a model, cached between runs: a study pays for them once.

A verification belongs to weights, precision, device, the libraries and all sources of the engine; it is cached under a digest of
these. Never cached: one that failed, and one of a model with hooks or a forward of its own, which its weights do not show.
"""

import hashlib
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from repscope import models
from repscope.disk import cache_home
from repscope.errors import UserError
from repscope.models.verify import checks
from repscope.models.verify.report import Verification
from repscope.results import Result
from repscope.studies.run.provenance import digest, library_versions

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


def cached_verification(lm: "LanguageModel") -> Verification:
    """The checks of this model: those of an earlier run where nothing that they depend on has changed, else made now."""
    folder = cache_home() / "verified" / _key(lm)
    unmodified = not any(_modified(lm))
    if unmodified:
        with suppress(UserError, OSError, KeyError, TypeError, ValueError):  # absent or damaged: made again
            return replace(Verification.of(Result.load(folder)), model=lm.name)
    found = checks.verify(lm)
    if unmodified and found.passed:
        with suppress(UserError, OSError):  # a cache that cannot be written costs time, not the answer
            found.result().save(folder)
    return found


@cache
def engine_digest() -> str:
    """SHA-256 of all sources of the engine."""
    root = Path(str(models.__file__)).parent
    sources = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sources.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return sources.hexdigest()


def _key(lm: "LanguageModel") -> str:
    return digest([lm.fingerprint, str(lm.model.dtype), str(lm.device), str(lm.model), library_versions(), engine_digest()])[:24]


def _modified(lm: "LanguageModel") -> list[bool]:
    """For each module whether it carries what its weights and its class do not show."""
    return [bool(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ or m.training) for m in lm.model.modules()]
