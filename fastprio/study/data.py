"""Small image data sets in memory: Fashion-MNIST from its IDX files, or the digits that scikit-learn carries."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

# Where Debian's package dataset-fashion-mnist puts the files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# The only IDX element type that image and label files use: unsigned bytes.
_UNSIGNED_BYTE = 8

_T = TypeVar("_T")


class StudyError(Exception):
    """What stops a study before it starts (a file that is absent or damaged, a bad setting), in one line."""


@dataclass(frozen=True)
class Split:
    """Examples in memory. images: float32 [n, 1, height, width], normalised. labels: int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set for classification. ``classes``: labels are in [0, classes)."""

    name: str
    train: Split
    test: Split
    classes: int


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """A split as a map-style data set that hands out a whole batch by one indexing operation.

    Use it with ``collate_fn=identity``: ``__getitems__`` returns the batch as it will be used, not a list of rows.
    """

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.split.images[index], self.split.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """images float32 [B, 1, height, width] and labels int64 [B] of the examples ``indices`` (list of B)."""
        at = torch.tensor(indices)
        return self.split.images[at], self.split.labels[at]


def identity(batch: _T) -> _T:
    """A collate function for data sets that return whole batches."""
    return batch


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
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
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


def load(source: str | Path | None = None, *, examples: int | None = None, seed: int = 0) -> Data:
    """Loads a data set, normalised by mean and standard deviation of its training images.

    Args:
        source: a folder with the four IDX files of Fashion-MNIST (or of any set in the same format), or
            ``"fashion-mnist"`` for the default folder, or ``"digits"`` for scikit-learn's. None: the default
            folder if it exists, else digits.
        examples: how many training examples to keep, chosen at random; all if None or more than there are.
        seed: of that choice.

    Returns:
        The data set; ``name`` says which it was.

    Raises:
        StudyError: the folder is absent, a file is damaged, or files do not fit together.
        ModuleNotFoundError: digits are asked for and scikit-learn is not installed.
    """
    if examples is not None and examples < 1:
        raise StudyError(f"examples = {examples}: expected at least 1")
    if source is None:
        source = FASHION_MNIST if FASHION_MNIST.is_dir() else "digits"
    if source == "digits":
        name, (train, train_labels), (test, test_labels) = "digits", *_digits()
    else:
        folder = FASHION_MNIST if source == "fashion-mnist" else Path(source)
        if not folder.is_dir():
            raise StudyError(
                f"{folder}: no such folder: pass --data DIR with the IDX files of Fashion-MNIST, or --data digits"
            )
        name = "Fashion-MNIST" if "fashion" in folder.name.lower() else folder.name
        train, train_labels = _pair(folder, "train")
        test, test_labels = _pair(folder, "t10k")
        if train.shape[1:] != test.shape[1:]:
            raise StudyError(f"{folder}: training images are {train.shape[1:]}, test images {test.shape[1:]}")
    if examples is not None and examples < len(train):
        kept = np.sort(np.random.default_rng(seed).permutation(len(train))[:examples])
        train, train_labels = train[kept], train_labels[kept]
    mean, deviation = float(train.mean()), float(train.std()) or 1.0
    classes = int(max(train_labels.max(), test_labels.max())) + 1

    def split(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Split:
        pixels = torch.tensor(images).unsqueeze(1).float().sub_(mean).div_(deviation)
        return Split(pixels, torch.tensor(labels).long())

    return Data(name, split(train, train_labels), split(test, test_labels), classes)


def _pair(folder: Path, part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images and labels of one part of an IDX data set, checked against each other."""

    def find(name: str) -> Path:
        plain = folder / name
        return plain if plain.exists() else folder / f"{name}.gz"

    images = read_idx(find(f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(find(f"{part}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels) or not images.size:
        raise StudyError(f"{folder}: {part}: {len(images)} images and {len(labels)} labels: expected as many, not none")
    return images, labels


def _digits() -> tuple[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], ...]:
    """scikit-learn's 1,797 digits of 8x8, always split the same way: 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[360:], order[:360]
    return (images[train], labels[train]), (images[test], labels[test])
