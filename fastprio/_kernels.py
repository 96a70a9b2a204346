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

ODD_RECIPROCALS = (1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
INVERSE_FACTORIALS = tuple(1.0 / math.factorial(k) for k in range(11, -1, -1))


@functools.cache
def _log_uncached(reason: str) -> None:
    logging.getLogger("fastprio").info("compiled loops are not cached between runs: %s", reason)


def kernel(function: F, inline: bool = False) -> F:
    """Compiles a loop with Numba: no GIL, cached on disk, or uncached (one log line) where no folder is writable.

    Division is numpy's (1 / 0 is infinite): a check for zero would keep loops from becoming vector code. ``inline``
    puts the function into the loops that call it, for the same reason; a kernel that others call needs it.
    """
    compiler: Any = functools.partial(
        numba.njit, nogil=True, error_model="numpy", inline="always" if inline else "never"
    )
    try:
        return cast("F", compiler(cache=True)(function))
    except RuntimeError as error:  # "cannot cache function ...: no locator available"
        _log_uncached(str(error))
        return cast("F", compiler()(function))


inlined = functools.partial(kernel, inline=True)
"""The same for what other kernels call. Not only for speed: FFCV changes Numba's type of uint8 arrays in place, and
Numba then no longer finds a compiled function of such arrays where another one that calls it is compiled."""


@kernel
def any_bad(indices: Int64, losses: Float32, size: int, least: float) -> bool:
    """Whether a row has an index outside [0, size), or a loss that is not finite or below ``least``."""
    bad = False
    for j in range(indices.size):
        bad |= (indices[j] < 0) | (indices[j] >= size) | (not np.isfinite(losses[j])) | (losses[j] < least)
    return bad


@inlined
def mark(seen: Uint8, fresh: Uint8, indices: Int64) -> None:
    """Sets bit i of two packed arrays (bit i is bit i & 7 of byte i >> 3) for each index."""
    for j in range(indices.size):
        i = indices[j]
        bit = np.uint8(1 << (i & 7))
        seen[i >> 3] |= bit
        fresh[i >> 3] |= bit


@kernel
def note(seen: Uint8, fresh: Uint8, learnt: Int64, shift: int, step: int, indices: Int64) -> None:
    """``mark``, and for every 2^shift-th example, at which step."""
    for j in range(indices.size):
        i = indices[j]
        bit = np.uint8(1 << (i & 7))
        seen[i >> 3] |= bit
        fresh[i >> 3] |= bit
        if i & ((1 << shift) - 1) == 0:
            learnt[i >> shift] = step


@inlined
def get_bit(bits: Uint8, i: int) -> bool:
    """Bit i of a packed array."""
    return bool(bits[i >> 3] >> (i & 7) & 1)


@inlined
def put_bit(bits: Uint8, i: int, value: bool) -> None:
    """Sets or clears bit i of a packed array."""
    bit = np.uint8(1 << (i & 7))
    if value:
        bits[i >> 3] |= bit
    else:
        bits[i >> 3] &= ~bit


def _power(x: float, exponent: float) -> float:
    """x ** exponent for finite x >= 0, the same bits on every machine (libm's pow is not).

    Only IEEE additions, multiplications and divisions, which no conforming machine rounds differently, and no
    branches, so that a compiled loop over it becomes vector code: 2 ns a call there. Relative error below 1e-12 for
    |exponent| <= 50. Below 2^-1022 the result is 0. x = 0 gives 0 (infinity for exponent < 0), or 1 if exponent is 0.
    """
    # x = m * 2^e with m in [sqrt(1/2), sqrt(2)); a subnormal is first brought into the normal range by 2^54.
    subnormal = x < 2.2250738585072014e-308
    bits = np.float64(x * 18014398509481984.0 if subnormal else x).view(np.int64)
    m = np.int64((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).view(np.float64)
    upper = m > 1.4142135623730951
    m = 0.5 * m if upper else m
    # An integer k in [0, 2^52) becomes a float as the last bits of 2^52 + k: few machines convert vectors of them.
    e = np.int64((bits >> 52) | 0x4330000000000000).view(np.float64) - (4503599627370496.0 + 1023.0)
    e += (1.0 if upper else 0.0) - (54.0 if subnormal else 0.0)
    # log2(m) = 2 / ln 2 * artanh(s), s = (m - 1) / (m + 1), |s| < 0.172: eight terms leave 1e-14.
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    series = 1.0 / 15.0
    for c in ODD_RECIPROCALS:
        series = series * q + c
    y = exponent * (e + 2.8853900817779268 * s * series)
    # 2^y = 2^n * e^(z), n = y rounded (the last bits of 1.5 * 2^52 + y), |z| <= ln 2 / 2: twelve terms leave 1e-14.
    within = min(max(y, -1023.0), 1023.9999999999999)
    rounding = within + 6755399441055744.0
    n = rounding - 6755399441055744.0
    z = (within - n) * 0.6931471805599453
    series = 1.0 / 479001600.0
    for c in INVERSE_FACTORIALS:
        series = series * z + c
    half = 1 if n > 0.0 else 0  # in two factors: 2^1024 is no float64
    k = np.float64(rounding).view(np.int64) - 0x4338000000000000 - half
    series = series * np.int64((k + 1023) << 52).view(np.float64) * (2.0 if n > 0.0 else 1.0)
    series = np.inf if y >= 1024.0 else series
    series = 0.0 if y < -1022.0 else series
    series = (0.0 if exponent > 0.0 else np.inf) if x == 0.0 else series
    return 1.0 if (exponent == 0.0) | (x == 1.0) else series


power = inlined(_power)
