"""Files of image data sets: the IDX format of MNIST and Fashion-MNIST, and the binary version of CIFAR-10 and -100."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# The only IDX element type that image and label files use: unsigned bytes.
_UNSIGNED_BYTE = 8

# What each folder is called in the archive that its set comes in.
_CIFAR_FOLDERS = {"CIFAR-10": "cifar-10-batches-bin", "CIFAR-100": "cifar-100-binary"}
_CIFAR_FILES = {
    "CIFAR-10": ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]),
    "CIFAR-100": (["train.bin"], ["test.bin"]),
}
# How many classes the label bytes of a record tell apart, in their order; the last byte is the label that is used.
_CIFAR_LABELS = {"CIFAR-10": (10,), "CIFAR-100": (20, 100)}
_CIFAR_SHAPE = (3, 32, 32)


class StudyError(Exception):
    """What stops a study before it starts (a file that is absent or damaged, a bad setting), in one line."""


class Part(NamedTuple):
    """Examples as they are kept. images: uint8 or floating [n, channels, height, width]. labels: integers [n]."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]


def read_folder(folder: Path) -> tuple[str, Part, Part]:
    """Reads a data set, whichever of the formats its folder holds.

    Args:
        folder: it holds the four IDX files of MNIST or Fashion-MNIST (or of any set in that format), compressed by
            gzip or not; or the binary version of CIFAR-10 or CIFAR-100, or the folder that its archive unpacks to.

    Returns:
        The data set's name, its training and its test examples. Of CIFAR-100 the fine labels.

    Raises:
        StudyError: there is no such folder, it holds no or several such sets, a file is absent or damaged, or images
            and labels do not fit together.
    """
    if not folder.is_dir():
        raise StudyError(
            f"{folder}: no such folder: expected one with the files of MNIST, Fashion-MNIST or CIFAR-10 or -100"
        )
    here = [(name, folder) for name, (train, test) in _CIFAR_FILES.items() if _any_of(folder, [*train, *test])]
    below = [(name, folder / inner) for name, inner in _CIFAR_FOLDERS.items() if (folder / inner).is_dir()]
    has_idx = any(folder.glob("*-ubyte*"))
    found = here or ([] if has_idx else below)
    if len(found) > 1:
        raise StudyError(f"{folder}: both CIFAR-10 and CIFAR-100: expected the folder of one")
    if found:
        name, at = found[0]
        train, test = (_joined([read_cifar(at / file, name) for file in files]) for files in _CIFAR_FILES[name])
        return name, train, test
    if not has_idx:
        raise StudyError(
            f"{folder}: expected train-images-idx3-ubyte[.gz] and the other IDX files, or CIFAR's binary files "
            "(data_batch_1.bin ... or train.bin ...)"
        )
    name = folder.absolute().name
    return "Fashion-MNIST" if "fashion" in name.lower() else name, _pair(folder, "train"), _pair(folder, "t10k")


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, compressed by gzip or not.

    Args:
        path: the file; read as gzip if its name ends in ``.gz``.
        dimensions: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        uint8 array of the shape that the file's header states.

    Raises:
        StudyError: the file is absent, not gzip, cut short, or not such an IDX file.
    """
    content = _content(path)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise StudyError(f"{path}: {len(content)} bytes: expected an IDX header of {header}")
    magic = struct.unpack(">I", content[:4])[0]
    expected = _UNSIGNED_BYTE << 8 | dimensions
    if magic != expected:
        raise StudyError(f"{path}: magic number 0x{magic:08x}: expected 0x{expected:08x}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    body = np.frombuffer(content, np.uint8, offset=header)
    size = 1
    for length in shape:  # in Python integers: a damaged header must not overflow
        size *= length
    if body.size != size:
        raise StudyError(f"{path}: {body.size} bytes of data: expected {size} for shape {shape}")
    return body.reshape(shape)


def read_cifar(path: Path, name: str) -> Part:
    """Reads a file of CIFAR's binary version.

    Args:
        path: the file: records of a label byte (CIFAR-100: a coarse one, then a fine one) and 3,072 bytes of pixels,
            the red channel first, then green and blue, each row by row.
        name: "CIFAR-10" or "CIFAR-100".

    Returns:
        images uint8 [n, 3, 32, 32] and labels uint8 [n] (CIFAR-100: the fine ones), views of the file's bytes.

    Raises:
        StudyError: the file is absent, its length is no multiple of a record's, or a label is out of range.

    Source: the formats' description, https://www.cs.toronto.edu/~kriz/cifar.html
    """
    content = _content(path)
    ranges = _CIFAR_LABELS[name]
    size = len(ranges) + int(np.prod(_CIFAR_SHAPE))
    if not content or len(content) % size:
        raise StudyError(f"{path}: {len(content)} bytes: expected one or more records of {size} bytes ({name})")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    for column, classes in enumerate(ranges):
        wrong = records[:, column] >= classes
        if wrong.any():
            at = int(wrong.argmax())
            raise StudyError(
                f"{path}: record {at} has the label {records[at, column]}: expected 0 <= label < {classes} ({name})"
            )
    return Part(records[:, len(ranges) :].reshape(-1, *_CIFAR_SHAPE), records[:, len(ranges) - 1])


def _any_of(folder: Path, names: list[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _joined(parts: list[Part]) -> Part:
    return Part(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _pair(folder: Path, part: str) -> Part:
    """Images and labels of one part of an IDX data set, checked against each other."""

    def find(name: str) -> Path:
        plain = folder / name
        return plain if plain.exists() else folder / f"{name}.gz"

    images = read_idx(find(f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(find(f"{part}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels) or not images.size:
        raise StudyError(f"{folder}: {part}: {len(images)} images and {len(labels)} labels: expected as many, not none")
    return Part(images[:, np.newaxis], labels)
