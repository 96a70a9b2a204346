"""Counter-based random numbers for policies and selectors, from the core's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio import _core

if TYPE_CHECKING:
    from fastprio._arrays import Float64, Int64

USES = {"observe": 0, "draw": 1, "plan": 2, "select": 3}


class Rng:
    """The random numbers of one use at one step: the same on every machine, before or after a resume.

    Args:
        seed: in [0, 2^64). epoch: in [0, 2^32). step: in [0, 2^34), the number of the draw or update.
        use: "observe", "draw", "plan" or "select"; two uses never share bits.

    Successive calls go on where the last one ended; up to 2^28 numbers an object. ``seed``, ``epoch`` and ``step`` can
    be read.
    """

    def __init__(self, seed: int, epoch: int, step: int, use: str) -> None:
        self.seed, self.epoch, self.step = seed, epoch, step
        self._next = (step << 2 | USES[use]) << 28

    def integers(self, bound: int, count: int) -> Int64:
        """int64 [count], each uniform in [0, bound), unbiased. bound is in [1, 2^63]."""
        out = np.empty(count, np.uint64)
        _core.integers(bound, self.seed, self.epoch, _core.Purpose.policy, self._next, out)
        self._next += count
        return out.view(np.int64)

    def random(self, count: int) -> Float64:
        """float64 [count], each one of the 2^53 multiples of 2^-53 in [0, 1), equally likely."""
        return self.integers(1 << 53, count).astype(np.float64) * 2.0**-53

    def choose(self, n: int, count: int) -> Int64:
        """int64 [min(count, n)]: different integers of [0, n), in random order. n is in [1, 2^32]."""
        return self.permutation(n, 0, count)

    def permutation(self, n: int, begin: int, count: int) -> Int64:
        """int64 [min(count, n - begin)]: what stands from ``begin`` on in a random order of [0, n).

        n is in [1, 2^32], begin in [0, n]. The same numbers (the first call of objects made alike) give parts of the
        same order.
        """
        if n <= 1 << 16:  # of the permutations of few, a keyed one reaches too few; a sort is uniform
            return np.argsort(self.integers(1 << 62, n), kind="stable")[begin : begin + count]
        key = _core.word(self.seed, self.epoch, _core.Purpose.policy, self._next, 0)
        self._next += 1
        out = np.empty(min(count, n - begin), np.int64)
        _core.walk(n, key, self.epoch, _core.Purpose.policy, begin, np.empty(0, np.uint8), out)
        return out
