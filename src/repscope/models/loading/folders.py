"""Loading of a local Hugging Face folder: the network with all of its weights, and its tokenizer.

1. Which files hold the weights: safetensors, whole or in shards; pickled weights are not read.
2. The digest of every tensor is computed, which also detects truncated files.
3. transformers loads the folder with the head that its configuration names.
4. Missing weights (transformers would fill them with random numbers) and unused weights (`tensor_check`) are errors that name the
   first.
5. The fingerprint covers the loaded weights: no tensors that the network computes itself, no stored copies of tied weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repscope import manifest
from repscope.disk import cache_home
from repscope.errors import UserError
from repscope.models.engine.fingerprint import Fingerprint, digests_of, of_digests
from repscope.models.loading import tensor_check
from repscope.models.loading.gguf import first_line
from repscope.untrusted import inside, parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPREAD = ("auto", "disk")  #: names for what accelerate places, beside torch's devices
_ADAPTER = "adapter_config.json"
#: files of which a tokenizer has at least one
_TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "*.bpe", "bpe.codes")


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files that transformers will read from a folder.

    Raises a `UserError` when it holds no model, an adapter, pickled weights only, or an index whose files are not all there.
    """
    if (folder / _ADAPTER).is_file():  # with PEFT installed, transformers would read the base model that this file names
        raise UserError(
            f"{name} holds an adapter ({_ADAPTER}), which changes a base model; merge it with PEFT's merge_and_unload() and "
            f"save_pretrained into a folder of its own, or load it with PEFT and hand the model to rs.load(model, tokenizer=…)."
        )
    if not (folder / "config.json").is_file():
        steps = sorted(inner.name for inner in folder.glob("step-*") if (inner / "config.json").is_file())
        if steps:
            raise UserError(f"{name} is a series of checkpoints; give one of them, such as {folder / steps[-1]}.")
        where = "" if str(folder) == name else f" ({folder})"
        raise UserError(f"{name} holds no config.json{where}, so it is not a transformers model.")
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    if (index := folder / "model.safetensors.index.json").is_file():
        try:
            shards = sorted({str(shard) for shard in parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} is damaged; download or copy it again.") from error
        if foreign := [shard for shard in shards if inside(folder, shard) is None]:
            raise UserError(f"{index} names {foreign[0][:200]!r}, which is no file in its folder; download or copy it again.")
        if lost := [shard for shard in shards if not (folder / shard).is_file()]:
            raise UserError(f"{name} lacks {len(lost)} of its {len(shards)} weight files, {lost[0]} first; fetch it again.")
        return [folder / shard for shard in shards]
    raise UserError(
        f"{name} holds no model.safetensors ({folder}); repscope never reads pickled weights (.bin, .pt), so convert "
        "it with `save_pretrained` or take a revision that has safetensors."
    )


def read_model(
    folder: Path, name: str, *, device: str, dtype: str, code: bool, classifiers: bool = False
) -> "tuple[PreTrainedModel, Fingerprint]":
    """The network of a folder, in evaluation mode, and the fingerprint of its weights.

    `name` is the user's name of it, for errors. `code` permits Python code from the folder. A classifier is read with its head only
    with `classifiers`. Raises a `UserError` when transformers cannot load the folder or does not use exactly its weights.
    """
    import torch
    import transformers

    manifest.need_sound(folder)
    digests = digests_of(weight_files(folder, name))
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": code}
    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **options)
            model, info = network_class(config, code, classifiers).from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                **options,
                **_placement(device, folder),
            )
        except Exception as error:  # a configuration can break transformers anywhere
            hint = " Pass trust_remote_code=True only if you have read its code." if "trust_remote_code" in str(error) else ""
            reason = first_line(error)
            raise UserError(f"transformers {transformers.__version__} cannot load {name}: {reason}.{hint}") from error
    if dtype == "float16":
        for weight, value in model.named_parameters():
            if not value.is_meta and value.dtype == torch.float16 and not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"The weight {weight} of {name} is beyond float16, which ends at 65,504; load with dtype='float32'."
                )
    taken = tensor_check.taken(model, name, digests, missing=info["missing_keys"], unexpected=info["unexpected_keys"])
    placed: Any = model.eval() if device in SPREAD else model.eval().to(device)
    return placed, of_digests(taken)


def read_tokenizer(folder: Path, name: str, *, code: bool) -> Any:
    """The tokenizer of a folder.

    Raises a `UserError` when there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise UserError(
            f"{name} holds weights but no tokenizer ({folder}); copy tokenizer.json and tokenizer_config.json of the model that "
            "it was trained from into this folder, or pass tokenizer=… to rs.load."
        )
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
        if not isinstance(tokenizer.model_max_length, int | float):
            raise TypeError(f"its model_max_length is {tokenizer.model_max_length!r}")
        empty = len(tokenizer.get_vocab()) - len(tokenizer.all_special_ids) < 2
    except BaseException as error:  # a tokenizer's files pass through Rust, whose panics are no `Exception`
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{name} has no tokenizer that can be read ({first_line(error)}); copy the files of its tokenizer again, or pass "
            "tokenizer=… to rs.load."
        ) from error
    if empty:  # transformers makes one of special tokens alone where the file with the vocabulary is missing
        raise UserError(
            f"{name} has a tokenizer without a vocabulary ({folder}); copy tokenizer.json of the model that it was trained from "
            "into this folder, or pass tokenizer=… to rs.load."
        )
    return tokenizer


def _placement(device: str, folder: Path) -> dict[str, Any]:
    """Options of accelerate's placement, for a model that is not on a single device."""
    if device == "auto":
        return {"device_map": "auto"}
    # Files of safetensors are read where they are; the folder is for weights that must be written in another precision.
    return {"device_map": {"": "disk"}, "offload_folder": cache_home() / "offload" / folder.name} if device == "disk" else {}


def network_class(config: Any, code: bool = False, classifiers: bool = False) -> Any:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable transformers' progress bar, which appears even for short loads."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
