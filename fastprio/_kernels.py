"""Numba loops over a batch's rows, and how a policy gets its own compiled."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8

F = TypeVar("F", bound=Callable[..., Any])
OK, BAD_INDEX, NOT_FINITE = 0, 1, 2
INVERSE_FACTORIALS = tuple(1.0 / math.factorial(k) for k in range(11, -1, -1))


@functools.cache
def _log_uncached(reason: str) -> None:
    logging.getLogger("fastprio").info("compiled loops are not cached between runs: %s", reason)


def kernel(function: F) -> F:
    """Compiles a loop with Numba: no GIL, cached on disk, or uncached (one log line) where no folder is writable."""
    try:
        return cast("F", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError as error:  # "cannot cache function ...: no locator available"
        _log_uncached(str(error))
        return cast("F", numba.njit(nogil=True)(function))


@kernel
def first_bad_row(indices: Int64, losses: Float32, size: int) -> tuple[int, int]:
    """What is wrong with the first bad row, and where it is: an index outside [0, size), a loss not finite."""
    for j in range(indices.size):
        if indices[j] < 0 or indices[j] >= size:
            return BAD_INDEX, j
        if not np.isfinite(losses[j]):
            return NOT_FINITE, j
    return OK, 0


@kernel
def set_bits(bits: Uint8, indices: Int64) -> None:
    """Sets bit i of a packed array (bit i is bit i & 7 of byte i >> 3) for each index."""
    for j in range(indices.size):
        i = indices[j]
        bits[i >> 3] |= np.uint8(1 << (i & 7))


@kernel
def get_bit(bits: Uint8, i: int) -> bool:
    """Bit i of a packed array."""
    return bool(bits[i >> 3] >> (i & 7) & 1)


@kernel
def power(x: float, exponent: float) -> float:
    """x ** exponent for x >= 0, the same bits on every machine (libm's pow is not).

    Only IEEE additions, multiplications and divisions, which no conforming machine rounds differently. Relative
    error below 1e-12 for |exponent| <= 50. Below 2^-1022 the result is 0. x = 0 gives 0, or 1 if exponent is 0.
    """
    if exponent == 0.0 or x == 1.0:
        return 1.0
    if x == 0.0:
        return 0.0 if exponent > 0.0 else np.inf
    # x = m * 2^e with m in [sqrt(1/2), sqrt(2)); a subnormal is first brought into the normal range.
    shift = 0
    if x < 2.2250738585072014e-308:
        x *= 18014398509481984.0  # 2^54
        shift = -54
    bits = np.float64(x).view(np.int64)
    e = (bits >> 52) - 1023 + shift
    m = np.int64((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    if m > 1.4142135623730951:
        m *= 0.5
        e += 1
    # log2(m) = 2 / ln 2 * artanh(s), s = (m - 1) / (m + 1), |s| < 0.172: eight terms leave 1e-14.
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    series = 1.0 / 15.0
    for c in (1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0):
        series = series * q + c
    y = exponent * (e + 2.8853900817779268 * s * series)
    # 2^y = 2^n * e^(f ln 2), |f| <= 1/2: twelve terms leave 1e-14.
    if y >= 1024.0:
        return np.inf
    if y < -1022.0:
        return 0.0
    n = np.floor(y + 0.5)
    z = (y - n) * 0.6931471805599453
    series = 1.0 / 479001600.0
    for c in INVERSE_FACTORIALS:
        series = series * z + c
    half = np.int64(n) >> 1  # in two factors: 2^1024 is no float64
    series *= np.int64((half + 1023) << 52).view(np.float64)
    return series * np.int64((np.int64(n) - half + 1023) << 52).view(np.float64)
