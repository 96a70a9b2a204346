"""Throughput on this machine, and what every record states about where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from fastprio._version import __version__


def machine() -> str:
    """The processor, the cores this process may use, and the system, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores usable, {platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Name -> version of what a measurement depends on."""
    found = {"fastprio": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "numba")}
