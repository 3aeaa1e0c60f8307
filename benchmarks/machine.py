"""What a benchmark says beside its numbers (machine, versions, sgemm rate, memory), and where it writes them.

Knows torch, and neither repscope nor any peer. The same machine may be several times slower a minute later where others
share it. So every table states the sgemm rates measured in the same run, and what counts are ratios within a round.
"""

import os
import platform
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

RESULTS = Path(__file__).with_name("RESULTS.md")


def describe() -> str:
    """The machine in one line: processor, cores, instruction set that torch uses, memory, system, load."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    info = {key.strip(): value.strip() for key, _, value in lines}
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{info.get('model name', platform.processor())} (family {info.get('cpu family')}, model {info.get('model')}), "
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {gib:.0f} GiB, "
        f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f}"
    )


def versions(packages: Iterable[str]) -> str:
    """Python and the installed version of each package, in one line."""
    held = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            held.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            held.append(f"{name} not installed")
    return ", ".join(held)


def linear_shapes(block: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer inside a block."""
    return [(m.in_features, m.out_features) for m in block.modules() if isinstance(m, nn.Linear)]


def sgemm_rate(shapes: Sequence[tuple[int, int]], *, rows: int = 1024, repeats: int = 60) -> float:
    """FLOP/s of float32 matrix products at these shapes, all of them in turn as in a block. The best of `repeats`."""
    products = [(torch.randn(rows, i), torch.randn(o, i), torch.empty(rows, o)) for i, o in shapes]
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for x, w, out in products:
            torch.mm(x, w.T, out=out)
        best = min(best, time.perf_counter() - started)
    return sum(2 * rows * i * o for i, o in shapes) / best


def rss_mb(what: str = "VmRSS") -> float:
    """Resident memory of this process in MB: now (`VmRSS`) or at its highest (`VmHWM`).

    Not `ru_maxrss`: a child inherits there what its parent held at the fork, however small the child is.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {what}")


def reset_peak() -> None:
    """Make the highest resident memory (`VmHWM`) the present one: what came before, such as imports, no longer counts."""
    Path("/proc/self/clear_refs").write_text("5")


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Put text between the markers of a section of the results page; the other sections stay as they are."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    page = path.read_text() if path.exists() else "# Results\n\nEach script in this folder writes its own section.\n"
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in page and end in page:
        head, rest = page.split(begin, 1)
        page = head + section + rest.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    partial = path.with_suffix(".part")
    partial.write_text(page)
    partial.replace(path)
