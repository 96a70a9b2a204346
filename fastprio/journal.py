"""The journal: which draws were issued, which of them have been consumed, and which are in flight."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._locks import fork_safe_lock

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64

DEPTH = 1 << 20
"""How many draws are kept for a loop that never steps: 20 to 60 MB."""


class Draws:
    """What was drawn together: a batch, or a stretch of single draws. Arrays are global, over all ranks.

    Args:
        number: of the batch in its epoch. first: number of the first draw in its epoch.
        indices: int64 [n]. probabilities: float64 [n]. weights: float32 [n], or None for all one.
        mine: this rank's slice of them. whole: whether they are one batch.
        cover: where covering stood before, to go back to if these are never consumed.

    Of single draws only those that the loader has already taken count as issued.
    """

    __slots__ = (
        "_stack",
        "consumed",
        "cover",
        "first",
        "indices",
        "mine",
        "number",
        "probabilities",
        "weights",
        "whole",
    )

    def __init__(
        self,
        number: int,
        first: int,
        indices: Int64,
        probabilities: Float64,
        weights: Float32 | None,
        *,
        mine: slice,
        whole: bool,
        cover: Any = None,
    ) -> None:
        self.number, self.first, self.mine, self.whole, self.cover = number, first, mine, whole, cover
        self.indices, self.probabilities, self.weights = indices, probabilities, weights
        self.consumed = 0  # of this rank's
        self._stack: list[int] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def listed(self) -> list[int]:
        """This rank's indices, a fresh list."""
        mine = self.indices if self.mine.step == 1 else self.indices[self.mine]
        return mine.tolist()  # type: ignore[no-any-return]

    def singly(self) -> Iterator[int]:
        """This rank's indices one by one, then IndexError.

        They are popped off a stack: a pop is atomic, so that a thread that cuts the rest off counts exactly what
        another one has taken.
        """
        self._stack = self.listed()[::-1]
        return iter(self._stack.pop, None)

    @property
    def taken_singly(self) -> bool:
        """Whether the loader takes them one by one and makes batches of them by itself."""
        return self._stack is not None

    @property
    def issued(self) -> int:
        """How many of this rank's draws the loader has taken."""
        return len(self.indices[self.mine]) - (0 if self._stack is None else len(self._stack))

    def cut(self) -> None:
        """Takes back the single draws that the loader has not taken yet."""
        if self._stack is None:
            return
        taken_back = 0
        with contextlib.suppress(IndexError):
            while True:
                self._stack.pop()
                taken_back += 1
        kept = (len(self.indices[self.mine]) - taken_back) * (self.mine.step or 1)
        self.indices, self.probabilities = self.indices[:kept], self.probabilities[:kept]
        self.weights = None if self.weights is None else self.weights[:kept]

    def part(self, begin: int, end: int) -> Taken:
        """This rank's draws number ``begin`` to ``end``."""
        weights = None if self.weights is None else self.weights[self.mine][begin:end]
        return Taken(self.number, self.indices[self.mine][begin:end], self.probabilities[self.mine][begin:end], weights)


class Taken:
    """Draws as a step consumes them: of which batch, int64 indices, float64 probabilities, float32 weights or None."""

    __slots__ = ("indices", "number", "probabilities", "weights")

    def __init__(self, number: int, indices: Int64, probabilities: Float64, weights: Float32 | None) -> None:
        self.number, self.indices, self.probabilities, self.weights = number, indices, probabilities, weights


class Journal:
    """The draws of an epoch from the oldest not consumed to the newest issued.

    A loop that never steps (it may update the store itself) loses the oldest beyond ``DEPTH`` draws; stepping then
    is an error. Thread safety: every method takes the journal's lock.
    """

    def __init__(self) -> None:
        self._entries: deque[Draws] = deque()
        self._lock = fork_safe_lock(self, "_lock")
        self.clear()

    def clear(self) -> None:
        """Forgets everything: a new epoch begins, what was not consumed never will be."""
        with self._lock:
            for draws in self._entries:
                draws.cut()  # an iterator of the last epoch that is still held finds nothing more
            self._entries.clear()
            self._kept = 0
            self._forgotten = False
            self.consumed_batches = 0
            self.issuer = 0

    def append(self, draws: Draws) -> None:
        """Notes what is about to be issued."""
        with self._lock:
            self._entries.append(draws)
            self._kept += len(draws)
            self.issuer = threading.get_ident()
            while self._kept > max(DEPTH, 64 * len(draws)):
                self._kept -= len(self._entries.popleft())
                self._forgotten = True

    def cut(self, draws: Draws) -> int:
        """Takes back what the loader has not taken of single draws; returns how many remain."""
        with self._lock:
            before = len(draws)
            draws.cut()
            self._kept -= before - len(draws)
            return len(draws)

    @property
    def outstanding(self) -> int:
        """How many of this rank's draws have been issued and not consumed."""
        with self._lock:
            return sum(draws.issued - draws.consumed for draws in self._entries)

    def oldest(self) -> Draws | None:
        """The oldest draws that are not all consumed, or None."""
        with self._lock:
            return next((draws for draws in self._entries if draws.consumed < len(draws.indices[draws.mine])), None)

    def take(self, count: int | None, consume: bool = True) -> Taken:
        """The next draws not consumed: ``count`` of them, or the rest of the batch (of single draws: all issued).

        Args:
            count: how many. consume: False only looks.

        Raises: RuntimeError if nothing is outstanding. ValueError if ``count`` is neither the batch nor an equal part
            of it, or more than is outstanding. Nothing is consumed then.
        """
        with self._lock:
            if self._forgotten:
                raise RuntimeError(
                    f"more than {DEPTH} draws were issued and not consumed, the oldest are forgotten: step(losses) or "
                    "skip() every batch, or update the store yourself and never step"
                )
            entries = [draws for draws in self._entries if draws.issued > draws.consumed]
            if not entries:
                raise RuntimeError(
                    "nothing is outstanding: step(losses) or skip() once for every batch, after it was drawn"
                )
            if entries[0].whole:
                return self._take_whole(entries[0], count, consume)
            return self._take_singly(entries, count, consume)

    def find(self, indices: Int64, consume: bool = True) -> Taken:
        """The outstanding batch with just these indices, wherever it stands. ValueError if there is none."""
        with self._lock:
            for draws in self._entries:
                if draws.whole and draws.consumed == 0 and np.array_equal(draws.indices[draws.mine], indices):
                    return self._take_whole(draws, None, consume)
        raise ValueError(
            "indices: no outstanding batch has these indices in this order (single draws have no batches: give the "
            "sampler a batch_size)"
        )

    def _take_whole(self, draws: Draws, count: int | None, consume: bool) -> Taken:
        size = len(draws.indices[draws.mine])
        left = size - draws.consumed
        count = left if count is None else count
        parts = draws.taken_singly and 1 < count < left and size % count == 0
        if count != left and not parts:
            hint = f"; give the loader the sampler's batch_size, {size}" if draws.taken_singly else ""
            raise ValueError(
                f"losses: expected {left} of them, one an example of batch {draws.number}, got {count}{hint}"
            )
        taken = draws.part(draws.consumed, draws.consumed + count)
        if consume:
            draws.consumed += count
            if draws.consumed == size:
                self._entries.remove(draws)
                self._kept -= len(draws)
                self.consumed_batches += 1
        return taken

    def _take_singly(self, entries: list[Draws], count: int | None, consume: bool) -> Taken:
        issued = sum(draws.issued - draws.consumed for draws in entries)
        count = issued if count is None else count
        if count == 0 or count > issued:
            raise ValueError(f"losses: {count} of them, but {issued} draws are outstanding")
        parts, left = [], count
        for draws in entries:
            end = min(draws.issued, draws.consumed + left)
            parts.append(draws.part(draws.consumed, end))
            left -= end - draws.consumed
            if consume:
                draws.consumed = end
                if end == len(draws.indices[draws.mine]) and draws is not self._entries[-1]:
                    self._entries.remove(draws)
                    self._kept -= len(draws)
            if left == 0:
                break
        if consume:
            self.consumed_batches += 1
        weights = [np.ones(len(p.indices), np.float32) if p.weights is None else p.weights for p in parts]
        return Taken(
            parts[0].number,
            np.concatenate([p.indices for p in parts]),
            np.concatenate([p.probabilities for p in parts]),
            np.concatenate(weights),
        )
