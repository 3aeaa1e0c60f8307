"""Leases: which worker writes which shard.

A lease is a file with its owner and an end, created exclusively and renewed while its owner works. A lease that has ended, or whose
owner was a process of this machine that no longer runs, can be taken over. Leases save work and protect nothing: shards are written
whole, and two workers that write one shard write the same bytes.
"""

import json
import os
import platform
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from repscope.store.files import Files
from repscope.untrusted import parse_json

SECONDS = 120.0  #: until a lease ends that is not renewed


def lease_name(what: str) -> str:
    """The file of a lease."""
    return f"leases/{what}.json"


@dataclass
class Lease:
    """A lease of this process. what: such as "shard-00003"."""

    files: Files
    what: str
    seconds: float
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: float = 0.0

    def renew(self) -> None:
        """Extend the lease, if a third of its time has passed."""
        if time.time() - self.renewed > self.seconds / 3:
            self.renewed = time.time()
            self.files.write(lease_name(self.what), self._content())

    def release(self) -> None:
        """Give the lease back, unless another worker has taken it over."""
        if (_read(self.files, self.what) or {}).get("owner") == self.owner:
            self.files.remove(lease_name(self.what))

    def _content(self) -> bytes:
        until = time.time() + self.seconds
        told = {"owner": self.owner, "until": until, "host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}
        return json.dumps(told).encode()


def acquire(files: Files, what: str, seconds: float = SECONDS) -> Lease | None:
    """A lease, or None while another worker has it."""
    lease = Lease(files, what, seconds, renewed=time.time())
    if files.create(lease_name(what), lease._content()):
        return lease
    held = _read(files, what)
    if held is not None and not _ended(held):
        return None
    files.write(lease_name(what), lease._content())
    now = _read(files, what) or {}
    return lease if now.get("owner") == lease.owner else None


def _read(files: Files, what: str) -> dict[str, Any] | None:
    """The content of a lease; empty if it is damaged, None if there is none."""
    try:
        held = parse_json(files.read(lease_name(what)))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _ended(held: dict[str, Any]) -> bool:
    until, pid = held.get("until"), held.get("pid")
    if not isinstance(until, (int, float)) or time.time() > until:
        return True
    return held.get("host") == _host() and (not isinstance(pid, int) or _started(pid) != held.get("started"))


def _started(pid: int) -> float | None:
    """When a running process of this machine was started; None where there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _host() -> str:
    """This machine since it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{platform.node()} {boot}".strip()
