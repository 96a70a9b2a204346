"""Orders that need no tree: a policy's plan for an epoch, and covering what was never scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio import _core
from fastprio.policies.base import TRAIN

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio.policies.base import Plan
    from fastprio.store import ScoreStore

NOTHING = np.empty(0, np.uint8)


class Walk:
    """A keyed permutation of all examples, visited once in order, in O(1) memory; or of the few in ``among``.

    Args:
        size: of the store. seed: in [0, 2^64). number: in [0, 2^32), which permutation. purpose: what for.
        among: int64 [m], the only examples to visit.
    """

    def __init__(self, size: int, seed: int, number: int, purpose: _core.Purpose, among: Int64 | None = None) -> None:
        self.size, self.seed, self.number, self.purpose = size if among is None else len(among), seed, number, purpose
        self.position = 0
        self.all, self.among = size, among

    @property
    def over(self) -> bool:
        """Whether every position has been visited."""
        return self.position >= self.size

    def take(self, count: int, skip: Uint8) -> Int64:
        """The next ``count`` examples without those whose bit in ``skip`` is set; fewer where the walk ends."""
        out = np.empty(count, np.int64)
        of_all = skip if self.among is None else NOTHING
        taken, self.position = _core.walk(self.size, self.seed, self.number, self.purpose, self.position, of_all, out)
        if self.among is None:
            return out[:taken]
        found: Int64 = self.among[out[:taken]]
        unseen: Int64 = found[(skip[found >> 3] >> (found & 7) & 1) == 0]
        return unseen


class PlannedEpoch:
    """The examples that a plan draws, once each, in random order; begins again where more are asked for.

    Args:
        plan: of weights above zero for at least one example, or of some to be scored; ValueError otherwise.
    """

    def __init__(self, plan: Plan, size: int, seed: int, epoch: int) -> None:
        self.plan = plan
        self.chosen = size
        self._left_out = NOTHING
        if plan.codes is not None:
            left_out = (np.asarray(plan.weights) <= 0)[plan.codes]
            self.chosen = size - int(np.count_nonzero(left_out))
            self._left_out = np.packbits(left_out, bitorder="little")
        if self.chosen == 0 and not scored(plan, size).any():  # they may come back
            raise ValueError(f"the plan for epoch {epoch} leaves out every example, and scores none")
        self._size, self._seed, self._epoch = size, seed, epoch
        self.at = 0, 0

    @property
    def at(self) -> tuple[int, int]:
        """How far it has come: (passes over everything, position in this one)."""
        return self._pass, self._walk.position

    @at.setter
    def at(self, at: tuple[int, int]) -> None:
        self._pass = at[0]
        seed = (self._seed + self._pass * 0x9E3779B97F4A7C15) % (1 << 64)
        self._walk = Walk(self._size, seed, self._epoch, _core.Purpose.plan)
        self._walk.position = at[1]

    def take(self, count: int) -> Int64:
        """The next ``count`` examples. Past the end come all again, in another order."""
        parts = [self._walk.take(count, self._left_out)]
        while (left := count - sum(map(len, parts))) > 0:
            self.at = self._pass + 1, 0
            parts.append(self._walk.take(left, self._left_out))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def weights(self, indices: Int64) -> Float32 | None:
        """float32 [n]: the weights of the examples' codes, or None where there are no codes."""
        if self.plan.codes is None:
            return None
        weights: Float32 = np.asarray(self.plan.weights, np.float32)[self.plan.codes[indices]]
        return weights


def scored(plan: Plan, size: int) -> Any:
    """bool [size]: the examples whose losses the plan wants at the epoch's end."""
    if plan.codes is None:
        return np.full(size, TRAIN in plan.score)
    wanted = np.zeros(256, bool)
    wanted[list(plan.score)] = True
    return wanted[plan.codes]


class Cover:
    """Visits what was never scored first: one pass over everything, then one more over what was left.

    The second pass begins with an epoch, when nothing is in flight any more, and is the last: an example whose
    loss never comes does not come first for ever. After each pass the store gives the unseen their priority.
    """

    def __init__(self, store: ScoreStore) -> None:
        self._store = store
        self.walk: Walk | None = None  # where draws come from, while covering is under way
        self._passes = 0
        self._size = 0  # of the store when the first pass began; if it grows, covering begins anew

    @property
    def state(self) -> tuple[Any, int, int]:
        """Where covering stands: (the walk, its position, passes made)."""
        return self.walk, self.walk.position if self.walk is not None else 0, self._passes

    def go_back(self, state: tuple[Any, int, int]) -> None:
        """Goes back to an earlier state: what came after was never consumed, and is to come again."""
        self.walk, position, self._passes = state
        if self.walk is not None:
            self.walk.position = position

    def pack(self) -> list[int]:
        """All of it but the walk, as plain values."""
        return [self._size, self._passes, self.walk.position if self.walk is not None else -1]

    def restore(self, walk: Walk | None, packed: list[int]) -> None:
        """What ``pack`` gave, with the walk that was under way then or shortly before."""
        self._size, self._passes, position = packed
        self.walk = walk if position >= 0 else None
        if self.walk is not None:
            self.walk.position = position

    def begin_epoch(self, seed: int, first: bool) -> None:
        """Starts the pass that is due, if one is; without ``first`` the unseen get their priority instead, once."""
        if self.walk is not None:
            return
        if not first:
            if self._size < len(self._store):
                self._size, self._passes = len(self._store), 2
                self._store.admit_unseen()
            return
        grown = self._size < len(self._store)
        if self._store.all_seen() or not (grown or self._passes == 1):
            return
        if grown:
            self._size, self._passes = len(self._store), 0
        few = None
        if self._store.columns["seen"].any():  # to walk past many that are seen would take long
            few = self._store.few_unseen(self._size // 8 - 1)
        self.walk = Walk(self._size, seed, self._passes, _core.Purpose.cover, few)

    def take(self, count: int) -> Int64:
        """Up to ``count`` unseen examples; fewer at the end of the pass."""
        if self.walk is None:
            return np.empty(0, np.int64)
        indices = self.walk.take(count, self._store.columns["seen"])
        if self.walk.over:
            self.walk = None
            self._passes += 1
            self._store.admit_unseen()
        return indices
