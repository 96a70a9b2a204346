"""Image data sets in memory: from files, from a function of the user's, or the digits that scikit-learn carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastprio.study.files import Part, StudyError, read_folder
from fastprio.study.own import read_own

# Where Debian's package dataset-fashion-mnist puts the files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Split:
    """Examples in memory. images: float32 [n, channels, height, width], normalised. labels: int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: Tensor) -> Split:
        """Some of the examples: ``at`` is int64 [m] or bool [n]."""
        return Split(self.images[at], self.labels[at])


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
        """images float32 [B, channels, height, width] and labels int64 [B] of the examples ``indices`` (list of B)."""
        at = torch.tensor(indices)
        return self.split.images[at], self.split.labels[at]


def identity(batch: _T) -> _T:
    """A collate function for data sets that return whole batches."""
    return batch


def load(source: str | Path | None = None, *, examples: int | None = None, seed: int = 0) -> Data:
    """Loads a data set, each channel normalised by its mean and standard deviation over the training images.

    Args:
        source: a folder with the IDX files of MNIST or Fashion-MNIST or the binary version of CIFAR-10 or CIFAR-100
            (``files.read_folder``); or "module:callable", which returns two map-style data sets (``own.read_own``;
            modules of the current folder are found after ``fastprio.cli.look_here()``); or "fashion-mnist" for its
            default folder; or "digits" for scikit-learn's. None: the default folder if it exists, else digits.
        examples: how many training examples to keep, chosen at random; all if None or more than there are.
        seed: of that choice.

    Returns:
        The data set; ``name`` says which it was. A channel that is the same everywhere becomes 0.

    Raises:
        StudyError: the folder or the module is absent, a file is damaged, or images do not fit together.
        ModuleNotFoundError: digits are asked for and scikit-learn is not installed.

    Cost: four bytes a pixel for the result; beside it, while loading, what was read and eight bytes a pixel of one
    channel of the training images.
    """
    if examples is not None and examples < 1:
        raise StudyError(f"examples = {examples}: expected at least 1")
    if source is None:
        source = FASHION_MNIST if FASHION_MNIST.is_dir() else "digits"
    name, train, test = _read(source)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise StudyError(f"{source}: training images are {train.images.shape[1:]}, test images {test.images.shape[1:]}")
    if examples is not None and examples < len(train.labels):
        kept = np.sort(np.random.default_rng(seed).permutation(len(train.labels))[:examples])
        train = Part(train.images[kept], train.labels[kept])
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    # In float64, whatever the images are, and before they are converted, which may be in place.
    scales = [
        (float(channel.mean(dtype=np.float64)), float(channel.std(dtype=np.float64)) or 1.0)
        for channel in train.images.swapaxes(0, 1)
    ]
    return Data(name, _split(train, scales), _split(test, scales), classes)


def _split(part: Part, scales: list[tuple[float, float]]) -> Split:
    """Normalises by (mean, deviation) of each channel; in place if the images are float32."""
    images = torch.from_numpy(part.images.astype(np.float32, copy=False))
    for channel, (mean, deviation) in enumerate(scales):
        images[:, channel].sub_(mean).div_(deviation)
    return Split(images, torch.from_numpy(part.labels.astype(np.int64)))


def _read(source: str | Path) -> tuple[str, Part, Part]:
    """The data set's name, its training and its test examples, in arrays of their own."""
    if source == "digits":
        return "digits", *_digits()
    if source == "fashion-mnist":
        return read_folder(FASHION_MNIST)
    if isinstance(source, str) and ":" in source and not Path(source).is_dir():
        return source, *read_own(source)
    return read_folder(Path(source))


def _digits() -> tuple[Part, Part]:
    """scikit-learn's 1,797 digits of 8x8, always split the same way: 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[:, np.newaxis], digits.target
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[360:], order[:360]
    return Part(images[train], labels[train]), Part(images[test], labels[test])
