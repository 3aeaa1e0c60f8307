"""Checkpoints on disk: lazily loaded tensors of safetensors files, Hugging Face folders and LoRA adapters beside their base."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from repscope import manifest
from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.models.loading.adapters import Adapter, is_adapter
from repscope.models.loading.folders import weight_files
from repscope.models.loading.gguf import first_line
from repscope.models.loading.tensor_check import derived
from repscope.untrusted import inside

Sizes = Mapping[str, tuple[int, ...]]


class Weights(Mapping[str, Tensor]):
    """Lazy, memory-mapped view of a checkpoint's tensors by name.

    Parameters
    ----------
    path
        A safetensors file, a Hugging Face folder, or a LoRA adapter's folder beside its base: tensors are those after merging.
    names
        Tensors to include; by default all trained ones.

    Raises
    ------
    UserError
        When a file is missing or damaged.
    """

    def __init__(self, path: Path, names: Collection[str] | None = None) -> None:
        self.path = path
        need_sound(path)
        self._home = {name: file for file in files_of(path) for name in _opened(file).keys()}  # noqa: SIM118
        self._home = {name: self._home[name] for name in sizes_of(path) if names is None or name in names}
        self._open: dict[Path, Any] = {}
        self._adapter = Adapter.open(path) if is_adapter(path) else None

    def __getitem__(self, name: str) -> Tensor:
        file = self._home[name]
        if file not in self._open:
            self._open[file] = _opened(file)
        found: Tensor = self._open[file].get_tensor(name)
        return found if self._adapter is None else self._adapter.merged(name, found)

    def close(self) -> None:
        """Release the mapped files; the next access maps them again."""
        self._open.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def save(path: Path, state: Mapping[str, Tensor], *, sync: bool = True) -> None:
    """Write weights as one safetensors file, atomically; `sync` as for `whole_file`."""
    from safetensors.torch import save_file

    with whole_file(path, sync=sync) as partial:
        save_file({name: value.contiguous() for name, value in state.items()}, partial, {"seal": manifest.UNSEALED})
        manifest.seal(partial)


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a folder, completed with transformers' defaults.

    Raises
    ------
    UserError
        When transformers cannot read it.
    """
    from transformers import AutoConfig

    try:
        folder = adapter_base(folder) if is_adapter(folder) else folder
        held: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
        return held
    except UserError:
        raise
    except Exception as error:  # a configuration can break transformers anywhere
        raise UserError(f"{folder / 'config.json'} cannot be read ({first_line(error)}).") from error


def files_of(path: Path) -> list[Path]:
    """The files of the full tensors: for an adapter, those of its base.

    Raises
    ------
    UserError
        When there is no checkpoint, or it is not in safetensors files.
    """
    if path.is_dir():
        home = adapter_base(path) if is_adapter(path) else path
        return weight_files(home, str(home))
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; check the path.")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a safetensors file; repscope never reads pickled weights (.bin, .pt).")
    return [path]


def need_sound(path: Path) -> None:
    """Refuse weights with other bytes than were written, where that is known: by a manifest or a seal.

    Raises
    ------
    UserError
        For such weights.
    """
    for place in (path, *([adapter_base(path)] if path.is_dir() and is_adapter(path) else [])):
        manifest.need_sound(place)
        if place.is_file():
            manifest.need_seal(place, "make or copy it again")


def adapter_base(folder: Path) -> Path:
    """The folder of an adapter's base. It lies beside the adapter: a file from a stranger names no other place of the disk.

    Raises
    ------
    UserError
        For a base that is no folder there.
    """
    adapter = Adapter.open(folder)
    base = inside(folder.resolve().parent, os.path.join(folder.resolve().name, adapter.base)) if adapter.base else None
    if base is None or base == folder.resolve() or not base.is_dir():
        named = adapter.base[:200] or "none"
        raise UserError(
            f"The adapter {folder} names the base {named}, which is no folder beside it; put the base's folder there and name it "
            "in adapter_config.json, as ../base."
        )
    return base


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error}); copy it again.") from error


def sizes_of(path: Path) -> Sizes:
    """Shapes of the trained tensors by name, from the headers.

    Raises
    ------
    UserError
        When a file is missing or damaged, or an adapter does not fit its base.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in files_of(path):
        with _opened(file) as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    trained = {name: size for name, size in found.items() if not derived(name, size)}
    if is_adapter(path):
        Adapter.open(path).check(trained, adapter_base(path))
    return trained
