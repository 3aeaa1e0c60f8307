"""The engine's checks of a model, cached between runs: a study pays for them once.

A verification belongs to weights, precision, device, the libraries and all sources of the engine; it is cached under a digest of
these. Never cached: one that failed, and one of a model with hooks or a forward of its own, which its weights do not show.
"""

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from repscope.disk import cache_home
from repscope.errors import UserError
from repscope.models.verify import checks
from repscope.models.verify.report import Verification
from repscope.results import Result
from repscope.studies.run.proof_cache import keep_proofs, key_of, modified

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel


def cached_verification(lm: "LanguageModel") -> Verification:
    """The checks of this model: those of an earlier run where nothing that they depend on has changed, else made now."""
    folder = cache_home() / "verified" / key_of(lm)
    unmodified = not modified(lm)
    if unmodified:
        with suppress(UserError, OSError, KeyError, TypeError, ValueError):  # absent or damaged: made again
            return replace(Verification.of(Result.load(folder)), model=lm.name)
    found = checks.verify(lm)
    if unmodified and found.passed:
        with suppress(UserError, OSError):  # a cache that cannot be written costs time, not the answer
            found.result().save(folder)
        keep_proofs(lm)
    return found
