"""What a run is made from: everything that its result depends on, beside the machine and the versions of libraries."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from fastprio.study.examples import whole
from fastprio.study.files import StudyError
from fastprio.study.methods import Setting, find
from fastprio.study.protocol import Cell, Protocol

CODE = 2
"""Of how the study trains and measures. To be raised with every change after which a run has another result."""


def made_from(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    """protocol, cell; the method, with its policy's and selector's arguments; digests of the data; CODE: plain values.

    Raises: StudyError: an unknown method, or data that cannot be read.
    """
    classes = whole(protocol.data).classes
    return {
        "protocol": dataclasses.asdict(protocol),
        "cell": dataclasses.asdict(cell),
        "method": find(cell.method).made_from(Setting(protocol, cell, classes)),
        "data": _data(protocol.data),
        "labels": _file(cell.kind.removeprefix("file:")) if cell.kind.startswith("file:") else None,
        "code": CODE,
    }


def key_of(made: dict[str, Any]) -> str:
    """Its hash, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _data(source: str) -> str:
    digest, data = hashlib.sha256(), whole(source)
    for split in (data.train, data.test):
        digest.update(str(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()[:16]


def _file(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
