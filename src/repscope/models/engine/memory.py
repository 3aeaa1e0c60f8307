"""Memory limits: number of tokens per forward pass, from the network's sizes and free memory."""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from repscope.models.engine.hooks import linear_map, parameter

_CPU_TOKENS = 1024  #: of a pass, where memory allows: more gain nothing on a CPU
_TOKENS = 16384  #: elsewhere, and where each pass reads its weights from disk
_SHARE_OF_MEMORY = 0.25  #: of what is free, for one pass
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  #: of glibc's malloc.h
_MMAP_MOST = 32 << 20  #: the largest that glibc takes
_CGROUP = Path("/sys/fs/cgroup")


def token_flops(blocks: Sequence[nn.Module]) -> float:
    """FLOPs of the linear maps of blocks, for one token."""
    names = [(m, name) for block in blocks for m in block.modules() for name, _ in m.named_parameters(recurse=False)]
    held = [parameter(m, name) for m, name in names]
    return 2.0 * sum(p.numel() for p in held if p is not None and p.dim() == 2)


def token_bytes(block: nn.Module, element: int) -> float:
    """Estimated memory per token of a pass: twice the inputs and outputs of a block's linear maps."""
    maps = [w for m in block.modules() if (w := linear_map(m)) is not None]
    return 2.0 * element * sum(sum(w.shape) for w in maps)


def token_budget(device: str, per_token: float, *, offloaded: bool = False) -> int:
    """Token budget of one pass: the size beyond which the device gains nothing, within a quarter of its free memory.

    If weights are read from disk, each pass reads all of them, so passes are as large as possible.
    """
    most = _CPU_TOKENS if device == "cpu" and not offloaded else _TOKENS
    return int(max(64, min(most, _SHARE_OF_MEMORY * free_memory(device) / max(per_token, 1.0))))


def free_memory(device: str) -> float:
    """Bytes that are free on a device; in a container, within its limit."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0])
    free = float(psutil.virtual_memory().available)
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            bound = int((_CGROUP / limit).read_text())
            free = min(free, float(max(0, bound - int((_CGROUP / used).read_text()))))
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
    return free


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory in the process, so that repeated work reuses its pages (glibc only).

    With large temporaries, zeroing of new pages by the kernel takes up to a seventh of the time.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_MOST)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_MOST)  # what glibc comes to by itself after large arrays
        libc.malloc_trim(0)
