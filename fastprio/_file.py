"""A file of arrays and plain values: the safetensors layout, written whole or not at all, with a checksum.

docs/format.md specifies it.

``<header length, 8 bytes little-endian> <header, JSON> <arrays, one after another>``. The header's
``__metadata__`` has the plain values as JSON and a CRC-32 over every byte of the file, computed with the checksum's
own eight characters as zeros. Any reader of safetensors can read the arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
NAMES = {code: name for name, code in DTYPES.items()}
NO_CHECKSUM = "00000000"
MOST_HEADER = 100 << 20
PIECE = 8 << 20


def write(path: str | os.PathLike[str], arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Writes the file beside, syncs it, renames it, syncs the folder. OSError leaves the old file, or the new one.

    What a writer that was killed has left beside is taken away first.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{str(target)!r} cannot be saved: there is no folder {str(target.parent)!r}")
    header = _header(arrays, plain)
    _clear(target)
    beside = target.parent / f"{_mark(target)}{os.getpid()}.{secrets.token_hex(4)}"
    handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            checksum = 0
            for piece in _pieces(header, arrays):
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
            file.seek(8 + header.index(NO_CHECKSUM.encode()))
            file.write(f"{checksum:08x}".encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    folder = os.open(target.parent, os.O_RDONLY)  # the rename itself must survive a loss of power
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _mark(target: Path) -> str:
    """How the names of files begin that this machine's processes write beside."""
    return f".{target.name}.{platform.node()}."


def _clear(target: Path) -> None:
    """Deletes what processes of this machine that are no more have begun to write beside."""
    mark = _mark(target)
    for name in os.listdir(target.parent):
        process, _, rest = name.removeprefix(mark).partition(".")
        if name.startswith(mark) and process.isdecimal() and len(rest) == 8 and not _alive(int(process)):
            with contextlib.suppress(OSError):  # it is in the way of nothing
                os.unlink(target.parent / name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no process's number: not ours to judge
        return True
    return True


def _header(arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> bytes:
    # The checksum comes first, so that its place is that of the first eight zeros.
    header: dict[str, Any] = {"__metadata__": {"checksum": NO_CHECKSUM, "fastprio": json.dumps(plain)}}
    begin = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, begin + array.nbytes],
        }
        begin += array.nbytes
    text = json.dumps(header).encode()
    return text + b" " * (-len(text) % 8)


def _pieces(header: bytes, arrays: Mapping[str, Any]) -> Iterator[Any]:
    yield len(header).to_bytes(8, "little")
    yield header
    for array in arrays.values():
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for begin in range(0, flat.size, PIECE):
            yield flat[begin : begin + PIECE]


@dataclass(frozen=True)
class Entry:
    """What the header says of an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int


Destinations = Callable[[Any, Mapping[str, Entry]], Mapping[str, Any]]


def read(
    path: str | os.PathLike[str], destinations: Destinations | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays by name, and the plain values. ValueError says what is wrong with a damaged file.

    Args:
        destinations: called with the plain values and what the header says of the arrays, before any is read. Gives,
            by name, where some of them go, which are not returned then: a contiguous array of the same dtype and
            shape, or a function that takes one piece of the flat array after another. Only when ``read`` has
            returned is it sure that what they got is what was written.

    Raises: what ``destinations`` or such a function raises, once the checksum has shown that the file is whole.
    """
    length = os.stat(path).st_size
    with open(path, "rb") as file:
        try:
            arrays, plain, refusal = _parse(file, length, destinations)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)}: not a fastprio file, or not a whole one: {error}") from error
    if refusal is not None:
        raise refusal
    return arrays, plain


def _parse(
    file: BinaryIO, length: int, destinations: Destinations | None
) -> tuple[dict[str, Any], dict[str, Any], Exception | None]:
    prefix = file.read(8)
    size = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or size > min(MOST_HEADER, length - 8):
        raise ValueError("the header is cut short")
    raw = file.read(size)
    header = json.loads(raw, object_pairs_hook=_each_once)
    metadata = header.pop("__metadata__")
    written = metadata["checksum"]
    checksum = zlib.crc32(
        raw.replace(f'"checksum": "{written}"'.encode(), f'"checksum": "{NO_CHECKSUM}"'.encode(), 1), zlib.crc32(prefix)
    )
    entries = _entries(header, length - 8 - size)
    plain = json.loads(metadata["fastprio"], object_pairs_hook=_each_once)
    arrays: dict[str, Any] = {}
    places: Mapping[str, Any] = {}
    refusal = None
    # A caller who refuses what a damaged file says is told of the damage: so the rest is read all the same.
    if destinations is not None:
        try:
            places = destinations(plain, entries)
        except Exception as error:
            refusal = error
    buffer = np.empty(min(PIECE, max((entry.nbytes for entry in entries.values()), default=0)), np.uint8)
    for name, entry in entries.items():
        place = buffer if refusal is not None else places.get(name)
        if place is None:
            place = arrays[name] = np.empty(entry.shape, entry.dtype)
        whole = place.reshape(-1).view(np.uint8) if isinstance(place, np.ndarray) and place is not buffer else None
        for at in range(0, entry.nbytes, PIECE):
            n = min(PIECE, entry.nbytes - at)
            piece = buffer[:n] if whole is None else whole[at : at + n]
            if file.readinto(piece.data) != n:  # type: ignore[attr-defined]
                raise ValueError(f"{name}: the file ends early")
            checksum = zlib.crc32(piece.data, checksum)
            if callable(place) and refusal is None:
                try:
                    place(piece.view(entry.dtype))
                except Exception as error:
                    refusal = error
    if f"{checksum:08x}" != written:
        raise ValueError(f"the checksum is {checksum:08x}, the file says {written}")
    return arrays, plain, refusal


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of two values of one name readers would take different ones: so there may not be two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in twice if twice.count(name) > 1)!r} is there twice")
    return found


def _entries(header: Mapping[str, Any], length: int) -> dict[str, Entry]:
    """What the header says of each array, checked: they lie one after another, and take up ``length`` bytes."""
    entries, begin = {}, 0
    for name, said in header.items():
        dtype, shape = np.dtype(NAMES[said["dtype"]]), tuple(int(n) for n in said["shape"])
        nbytes = dtype.itemsize
        for n in shape:
            if n < 0:
                raise ValueError(f"{name}: a negative length")
            nbytes *= n
        if said["data_offsets"] != [begin, begin + nbytes] or begin + nbytes > length:
            raise ValueError(f"{name}: its place is not where the arrays before it end")
        entries[name] = Entry(dtype, shape, nbytes)
        begin += nbytes
    if begin != length:
        raise ValueError("bytes after the last array")
    return entries
