"""Throughput on this machine, and what every record states about where it was made."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def write(record: Mapping[str, Any], path: Path | None) -> None:
    """Prints a record as JSON, and writes it to ``path`` where one is given."""
    text = json.dumps(record, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n")


def stamp(command: str, others: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What every record states: the command that makes it, date (UTC), machine, versions (and those of ``others``)."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions() | dict(others or {}),
    }
