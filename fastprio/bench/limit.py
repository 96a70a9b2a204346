"""What the memory itself allows: the bare cost that lookups in a large array cannot be below."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from fastprio._kernels import kernel

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64


@kernel
def _read_all(array: Float32, indices: Int64) -> float:
    # Sixteen of the reads are added up apart, so that no read and no addition waits for the one before it.
    sums = np.zeros(16, np.float32)
    whole = indices.size // 16 * 16
    for first in range(0, whole, 16):
        for k in range(16):
            sums[k] += array[indices[first + k]]
    total = sums.sum()
    for j in range(whole, indices.size):
        total += array[indices[j]]
    return float(total)


def random_read_ns(n: int, reads: int = 1 << 20, repeats: int = 5, seed: int = 0) -> float:
    """Nanoseconds that one thread needs for a random 4-byte read from a float32 array [n], the median of ``repeats``.

    No read waits for another: it is the throughput of the memory, not its latency. The array is written once before,
    and lies on huge pages where the system gives them. Indices are int64, uniform, made outside the timing, fresh for
    each repeat.

    Args:
        n: length of the array, >= 1. reads: how many are timed at once, >= 1. repeats: >= 1. seed: of the indices.

    Raises: ValueError: an argument below 1.
    Cost: 4 n bytes for the array, 8 bytes a read.
    """
    if min(n, reads, repeats) < 1:
        raise ValueError(f"n = {n}, reads = {reads}, repeats = {repeats}: expected all >= 1")
    rng = np.random.default_rng(seed)
    array = np.full(n, 1.0, np.float32)  # numpy asks for huge pages for an array of this kind by itself
    _read_all(array, rng.integers(0, n, 64))  # compiles
    times = []
    for _ in range(repeats):
        indices = rng.integers(0, n, reads)
        begin = time.perf_counter()
        _read_all(array, indices)
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) / reads * 1e9
