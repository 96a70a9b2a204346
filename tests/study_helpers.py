"""What the tests of the study share: the files of small data sets, made at random in a folder, and labels of them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

CIFAR = {
    "CIFAR-10": ([f"data_batch_{number}.bin" for number in range(1, 6)], "test_batch.bin"),
    "CIFAR-100": (["train.bin"], "test.bin"),
}


def idx(array: np.ndarray) -> bytes:
    """An array as the bytes of an IDX file."""
    return struct.pack(f">I{array.ndim}I", 8 << 8 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_images(folder: Path, train: int = 40, test: int = 12, size: int = 8) -> None:
    """The four files of a random data set with five classes."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        labels = np.arange(n) % 5
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(rng.integers(0, 256, (n, size, size)))))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def write_cifar(folder: Path, name: str, each: int = 8) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """CIFAR's binary files with ``each`` random examples; the pixels [n, 3, 32, 32] and labels [n] of every file."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = CIFAR[name]
    written = {}
    for file in [*train, test]:
        images = rng.integers(0, 256, (each, 3, 32, 32), np.uint8)
        images[:, 1] //= 2  # each channel has a mean and a deviation of its own
        images[:, 2] //= 4
        labels = rng.integers(0, 100 if name == "CIFAR-100" else 10, each, np.uint8)
        coarse = [bytes([label // 5]) if name == "CIFAR-100" else b"" for label in labels]
        rows = zip(coarse, labels, images, strict=True)
        (folder / file).write_bytes(b"".join(c + bytes([label]) + image.tobytes() for c, label, image in rows))
        written[file] = images, labels
    return written
