"""`open` and `save`: sparse autoencoders as files, in the formats of the libraries that train them.

1. A name is a local folder or file, or a hub id ("org/name") with a folder of the repository; of that, only the files that the
   formats need are downloaded, and the cached copy serves if the hub cannot be reached.
2. The names of the files tell the format (`FORMATS`).
3. What a format cannot say, the caller gives: site, scale of the activations, threshold of BatchTopK.

Files are read without running anything in them. What cannot be represented is refused by name.
"""

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from repscope import manifest
from repscope.disk import explained, whole_folder
from repscope.errors import UserError, no_file, unknown
from repscope.models.loading.fetch import snapshot
from repscope.models.sites import Site
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.files import dictionary_learning, gemma_scope, saelens, sparsify

#: format: the files that a folder of it has
FORMATS = {
    "saelens": (saelens.SETTINGS, saelens.WEIGHTS),
    "sparsify": (sparsify.SETTINGS, sparsify.WEIGHTS),
    "dictionary_learning": (dictionary_learning.WEIGHTS,),
    "gemma_scope": (gemma_scope.WEIGHTS,),
}
_WEIGHTS = {files[-1] for files in FORMATS.values()}
_WRITERS = {"saelens": saelens.write, "sparsify": sparsify.write}
_FETCHED = [saelens.SETTINGS, saelens.WEIGHTS, saelens.SCALER, saelens.WHITENING, sparsify.WEIGHTS]
_FETCHED += [dictionary_learning.SETTINGS, dictionary_learning.WEIGHTS, gemma_scope.WEIGHTS]
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_SEARCHED = 2000  #: folders looked at for one that holds an autoencoder, to name it in an error


def open(  # shadows the builtin on purpose: it is called as `sae.open`
    name: str | Path,
    folder: str = "",
    *,
    revision: str | None = None,
    site: str | Site | None = None,
    site_out: str | Site | None = None,
    scale: float | None = None,
    threshold: float | None = None,
    dtype: str = "float32",
) -> SparseAutoencoder:
    """A published sparse autoencoder or transcoder.

    Parameters
    ----------
    name
        A folder, a file of its weights, or a hub id such as `google/gemma-scope-2b-pt-res`.
    folder
        The folder inside, such as `layer_20/width_16k/average_l0_71`.
    revision
        Branch, tag or commit of a hub repository.
    site, site_out
        Where it reads, and a transcoder writes; by default what the files say.
    scale
        Factor of the activations of a SAELens training checkpoint whose `activation_scaler.json` is lost.
    threshold
        Threshold of a BatchTopK autoencoder that was saved before training estimated one.
    dtype
        Precision of the weights and of the arithmetic, `float32` or `float64`.

    Raises
    ------
    UserError
        If there is none, if it cannot be represented, and for damaged files.
    """
    if dtype not in ("float32", "float64"):
        raise unknown("dtype", dtype, ("float32", "float64"))
    inside = PurePosixPath(folder)
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"The folder {folder!r} leaves {name}; name one inside it.")
    path = Path(name).expanduser()
    if path.exists():
        source, found = str(path / inside), path / inside
    elif isinstance(name, str) and _HUB.fullmatch(name):
        base, commit = _fetched(name, revision, str(inside))
        source, found = "/".join([name, *inside.parts]) + f"@{commit[:12]}", base / inside
    else:
        raise UserError(f"There is no folder {str(name)!r}, and a hub id has the form 'org/name'; check the name.")
    made = _read(found, source, getattr(torch, dtype), saelens.Overrides(scale, threshold))
    read_at = made.site if site is None else Site.parse(site)
    return replace(made, source=source, site=read_at, site_out=made.site_out if site_out is None else Site.parse(site_out))


def _fetched(repo: str, revision: str | None, inside: str) -> tuple[Path, str]:
    within = "" if inside == "." else f"{inside}/"
    return snapshot(repo, revision, code=False, known=list, only=[f"{within}{file}" for file in _FETCHED])


def _read(path: Path, source: str, dtype: torch.dtype, given: saelens.Overrides) -> SparseAutoencoder:
    if path.exists():
        manifest.need_sound(path)
    if path.is_dir():
        here = [name for name, files in FORMATS.items() if all((path / file).is_file() for file in files)]
        if not here:
            raise _none_here(path, source)
        if len(here) > 1:
            raise UserError(f"{source} holds files of {' and '.join(here)}; name the file of the weights.")
        file = path / FORMATS[here[0]][-1]
    elif path.is_file():
        file = path
    else:
        raise no_file(path, (p.name for p in path.parent.iterdir()) if path.parent.is_dir() else (), "folder")
    wrong = given.scale is not None and file.name != saelens.WEIGHTS
    if wrong or (given.threshold is not None and file.name in (sparsify.WEIGHTS, gemma_scope.WEIGHTS)):
        raise UserError(f"{source} has no {'scale' if wrong else 'threshold'} to be given; leave it out.")
    if file.name == saelens.WEIGHTS:
        return saelens.read(file.parent, dtype, given)
    if file.name == sparsify.WEIGHTS:
        return sparsify.read(file.parent, dtype)
    if file.suffix == ".npz":
        return gemma_scope.read(file, dtype, source)
    if file.suffix == ".pt":
        return dictionary_learning.read(file, dtype, given.threshold)
    raise UserError(
        f"{source} is no file of weights that can be read; there are {', '.join(sorted({f[-1] for f in FORMATS.values()}))}."
    )


def _none_here(path: Path, source: str) -> UserError:
    files = {FORMATS[name][-1] for name in FORMATS}
    below = (p.parent for _, p in zip(range(_SEARCHED), path.rglob("*")) if p.name in files)
    names = sorted({str(p.relative_to(path)) for p in below})
    if names:
        return UserError(
            f"{source} holds no autoencoder itself; name one of its folders, such as {', '.join(map(repr, names[:3]))}."
        )
    return UserError(
        f"{source} holds no autoencoder: there is none of {', '.join(sorted(_WEIGHTS))}; name the folder that has one."
    )


def save(sae: SparseAutoencoder, folder: str | Path, format: str = "saelens") -> Path:
    """Write an autoencoder as a new folder, `saelens` or `sparsify`; complete or not at all. Returns the folder.

    Raises
    ------
    UserError
        If the folder exists and is not empty, the disk is full, or the format cannot represent it.
    """
    if format not in _WRITERS:
        raise unknown("format that can be written", format, _WRITERS)
    path = Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; name a new folder.")
    with explained(path), whole_folder(path) as partial:
        _WRITERS[format](sae, partial)
    return path
