"""What the tests of the tree share: the long run, shapes of priorities, the exact audit, states, statistics."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import hashlib
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chi2

from fastprio import _core
from fastprio.reference import ReferenceTree
from fastprio.tree import SumTree

Array = npt.NDArray[Any]

P_FAIL = 1e-6  # a statistic fails below this; seeds are fixed, so a test that passes once passes always
MAX_MASS = 2**31 - 1
ISAS = [isa for isa in _core.Isa if _core.isa_available(isa)]
INFINITY_BITS = 0x7F800000


def in_both(normal: int, long: int) -> pytest.MarkDecorator:
    """Gives a test its ``count``, which is another one in the long run, ``pytest -m long``."""
    return pytest.mark.parametrize("count", [normal, pytest.param(long, marks=pytest.mark.long)])


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(bits: Any) -> Array:
    """float32 from bits, without a conversion that a floating-point mode could change."""
    return np.asarray(bits, np.uint32).view(np.float32)


def random_floats(n: int, rng: np.random.Generator) -> Array:
    """All bit patterns of priorities above zero are equally likely: every exponent, subnormals too."""
    return floats(rng.integers(1, INFINITY_BITS, n, dtype=np.uint32))


def shapes(n: int, rng: np.random.Generator) -> dict[str, Array]:
    """Layouts of n priorities that have broken sum trees before, or might."""
    index = np.arange(n)
    end = np.minimum(index, n - 1 - index)
    return {
        "uniform": np.ones(n, np.float32),
        "one-hot first": (index == 0).astype(np.float32),
        "one-hot last": (index == n - 1).astype(np.float32),
        "one-hot middle": (index == n // 2).astype(np.float32),
        "alternating zeros": (index % 2 == (n - 1) % 2).astype(np.float32),
        "zeros at both ends": (end >= (n - 1) // 3).astype(np.float32),
        "zeros in the middle": ((end < max(n // 5, 1)) * rng.random(n, np.float32)).astype(np.float32),
        "eight decades": (10.0 ** rng.uniform(-4, 4, n)).astype(np.float32),
        "Zipf": (1 / (index + 1)).astype(np.float32),
        "Zipf reversed": (1 / (n - index)).astype(np.float32),
        "subnormals": floats(rng.integers(0, 1 << 23, n, dtype=np.uint32) | (index == 0)),
        "smallest subnormals": floats(rng.integers(0, 4, n, dtype=np.uint32) | (index == n - 1)),
        "largest floats": floats(np.full(n, INFINITY_BITS - 1)),
        "one giant": np.where(index == n // 3, 3e38, 1e-30).astype(np.float32),
        "few values": rng.integers(0, 4, n).astype(np.float32) + (index == 0),
        "all exponents": random_floats(n, rng),
    }


def masses_by_definition(priorities: Array, scale: int) -> Array:
    """p * 2^scale, half to even, in [1, 2^31 - 1] unless p is 0. float64 holds p * 2^scale exactly, so rint is the
    only rounding."""
    exact = np.ldexp(priorities.astype(np.float64), scale)
    rounded = np.clip(np.rint(exact), 1, MAX_MASS).astype(np.int64)
    return np.where(priorities > 0, rounded, 0)


def filled(priorities: Any, scale: int | None = None) -> SumTree:
    priorities = np.asarray(priorities, np.float32)
    tree = SumTree(priorities.size, _scale=scale)
    tree.fill(priorities)
    return tree


def reference_of(tree: SumTree) -> ReferenceTree:
    """A reference tree with the same priorities, as after refit."""
    reference = ReferenceTree(len(tree))
    reference.fill(tree.priorities.tolist())
    return reference


def levels(tree: SumTree) -> list[Array]:
    """The sums of each level, the one above the leaves first. Entry c of a node is the sum of its children before c."""
    sums, totals = [], np.array([tree.total], np.uint64)
    for k in reversed(range(tree._core.levels)):
        nodes = tree._core.level(k).reshape(-1, 16)
        totals = np.diff(nodes, append=totals[: len(nodes), None], axis=1).ravel()
        sums.append(totals)
        assert not nodes[:, 0].any()
    return sums[::-1]


def parked_leaves(tree: SumTree) -> Array:
    """The indices that scheme "epoch" has parked."""
    bits = np.frombuffer(tree.parked[4], np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


def state(tree: SumTree) -> str:
    """A hash of all that a tree is: leaves, sums, total, scale, M, what is parked."""
    core = tree._core
    h = hashlib.sha256(tree.priorities.tobytes())
    for level in levels(tree):
        h.update(level.tobytes())
    h.update(repr((core.total, core.scale, core.max_bits, tree.parked)).encode())
    return h.hexdigest()


def audit(tree: SumTree) -> int:
    """Proves P(i) = mass(i) / total without a draw; returns how many integers were looked up.

    If every node is the sum of its children, a search is monotone in r. So the first and the last integer of each
    leaf's range stand for all of them.
    """
    core = tree._core
    mass = masses_by_definition(tree.priorities, core.scale)
    mass[parked_leaves(tree)] = 0
    below = mass
    for level in levels(tree):
        blocks = np.zeros(level.size * 16, np.int64)
        blocks[: below.size] = below
        np.testing.assert_array_equal(level.astype(np.int64), blocks.reshape(-1, 16).sum(1))
        below = level.astype(np.int64)
    assert below.size <= 16
    assert core.total == sum(mass.tolist()) == sum(below.tolist())
    leaves = np.flatnonzero(mass)
    prefix = (np.cumsum(mass) - mass)[leaves]
    np.testing.assert_array_equal(tree.find(prefix), leaves)
    np.testing.assert_array_equal(tree.find(prefix + mass[leaves] - 1), leaves)
    return 2 * leaves.size


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Subnormal numbers count as zero in this thread's floating-point unit, as many training scripts ask."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert np.multiply(floats([5]), np.float32(1)).view(np.uint32)[0] == 0  # the mode is on
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def rounding(towards: str) -> Iterator[None]:
    """Another rounding mode of the floating-point unit: "up", "down" or "zero"."""
    modes = {"x86_64": (0x800, 0x400, 0xC00), "aarch64": (0x400000, 0x800000, 0xC00000)}.get(platform.machine())
    library = ctypes.util.find_library("m")
    if modes is None or library is None:
        pytest.skip("no fesetround known for this machine")
    libm = ctypes.CDLL(library)
    before = libm.fegetround()
    assert libm.fesetround(dict(zip(("up", "down", "zero"), modes, strict=True))[towards]) == 0
    try:
        one = np.ones(1)
        assert (one + 2.0**-60 > one)[0] == (towards == "up")  # the mode is on
        assert (-one - 2.0**-60 < -one)[0] == (towards == "down")
        yield
    finally:
        libm.fesetround(before)


@contextlib.contextmanager
def using(isa: _core.Isa) -> Iterator[None]:
    before = _core.isa()
    _core.use_isa(isa)
    try:
        yield
    finally:
        _core.use_isa(before)


def chi_square(observed: Array, expected: Array) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells with less than 8 expected are pooled, impossible ones checked."""
    observed, expected = np.ravel(observed).astype(float), np.ravel(expected).astype(float)
    assert abs(observed.sum() - expected.sum()) < 1e-6 * expected.sum() + 1e-6
    if observed[expected == 0].any():
        return float("inf"), 1
    small = expected < 8
    if 0 < expected[small].sum() < 8 and not small.all():
        small[np.flatnonzero(~small)[expected[~small].argmin()]] = True  # together they are no longer few
    if small.any():
        observed = np.append(observed[~small], observed[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    kept = expected > 0
    return float((((observed - expected) ** 2)[kept] / expected[kept]).sum()), int(kept.sum()) - 1


def p_value(observed: Array, expected: Array) -> float:
    """The chance of a chi-square as large as this one, if ``expected`` is the law."""
    statistic, freedom = chi_square(observed, expected)
    return float(chi2.sf(statistic, freedom)) if freedom > 0 else float(statistic == 0)
