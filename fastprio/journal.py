"""The journal: which draws were issued, which of them have been consumed, and which are in flight."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64

DEPTH = 1 << 20
"""How many draws are kept for a loop that never steps; 20 MB."""


class Draws:
    """What was issued together: a batch, or a stretch of single draws.

    Args:
        number: of the batch in its epoch. first: number of the first draw in its epoch.
        indices: int64 [n]. probabilities: float64 [n]. weights: float32 [n], or None for all one.
        whole: whether it is one batch, so that only all of it can be consumed at once.

    Of single draws only those that the loader has already taken count as issued.
    """

    __slots__ = ("_iterator", "_list", "consumed", "first", "indices", "number", "probabilities", "weights", "whole")

    def __init__(
        self, number: int, first: int, indices: Int64, probabilities: Float64, weights: Float32 | None, whole: bool
    ) -> None:
        self.number, self.first, self.whole = number, first, whole
        self.indices, self.probabilities, self.weights = indices, probabilities, weights
        self.consumed = 0
        self._list: list[int] | None = None
        self._iterator: Iterator[int] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def singly(self) -> Iterator[int]:
        """The indices one by one. A list's iterator knows how many are left, so counting them costs nothing."""
        self._list = self.indices.tolist()
        self._iterator = iter(self._list)
        return self._iterator

    @property
    def issued(self) -> int:
        """How many of these draws the loader has taken."""
        if self._list is None or self._iterator is None:
            return len(self)
        return len(self._list) - self._iterator.__length_hint__()  # type: ignore[attr-defined, no-any-return]

    def cut(self) -> int:
        """Takes back the draws that the loader has not taken yet; returns how many remain."""
        kept = self.issued
        if self._list is not None:
            del self._list[kept:]  # its iterator ends there
        self.indices, self.probabilities = self.indices[:kept], self.probabilities[:kept]
        self.weights = None if self.weights is None else self.weights[:kept]
        return kept


class Taken:
    """Draws as a step consumes them: ``indices``, ``weights`` (or None), and the number of their batch."""

    __slots__ = ("indices", "number", "weights")

    def __init__(self, number: int, indices: Int64, weights: Float32 | None) -> None:
        self.number, self.indices, self.weights = number, indices, weights


class Journal:
    """The draws of an epoch from the oldest not consumed to the newest issued.

    A loop that never steps (it may update the store itself) loses the oldest beyond ``DEPTH`` draws; stepping then
    is an error. Thread safety: appending and taking hold the journal's lock.
    """

    def __init__(self) -> None:
        self._entries: deque[Draws] = deque()
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forgets everything: a new epoch begins, what was not consumed never will be."""
        with self._lock:
            self._entries.clear()
            self._kept = 0
            self.forgotten = False
            self.consumed_batches = 0
            self.first_unconsumed = 0
            self.issuer = 0

    def append(self, draws: Draws) -> None:
        """Notes what is about to be issued."""
        with self._lock:
            self._entries.append(draws)
            self._kept += len(draws)
            self.issuer = threading.get_ident()
            while self._kept > DEPTH and len(self._entries) > 1:
                self._kept -= len(self._entries.popleft())
                self.forgotten = True

    @property
    def outstanding(self) -> int:
        """How many draws have been issued and not consumed."""
        with self._lock:
            return sum(draws.issued - draws.consumed for draws in self._entries)

    def take(self, count: int | None, stride: slice = slice(None), consume: bool = True) -> Taken:
        """The next draws not consumed: ``count`` of them, or the whole next batch.

        Args:
            count: how many (of those that ``stride`` leaves); None: what is left of the oldest entry.
            stride: a rank's slice of each entry.
            consume: False only looks.

        Raises: RuntimeError if nothing is outstanding. ValueError if ``count`` is neither the batch nor an equal part
            of it. Nothing is consumed then.
        """
        with self._lock:
            if self.forgotten:
                raise RuntimeError(
                    f"more than {DEPTH} draws were issued and not consumed, the oldest are forgotten: step(losses) or "
                    "skip() every batch, or update the store yourself and never step"
                )
            entries = [draws for draws in self._entries if draws.issued > draws.consumed]
            if not entries:
                raise RuntimeError(
                    "nothing is outstanding: step(losses) and skip() follow a batch drawn by this sampler"
                )
            head = entries[0]
            if head.whole:
                return self._take_whole(head, count, stride, consume)
            return self._take_singly(entries, count, consume)

    def find(self, indices: Int64, stride: slice, consume: bool = True) -> Taken:
        """Takes the outstanding batch with just these indices, wherever it stands. ValueError if there is none."""
        with self._lock:
            for draws in self._entries:
                if draws.consumed == 0 and np.array_equal(draws.indices[stride], indices):
                    return self._take_whole(draws, None, stride, consume)
        raise ValueError("indices: no outstanding batch has these indices in this order")

    def _take_whole(self, draws: Draws, count: int | None, stride: slice, consume: bool) -> Taken:
        indices = draws.indices[stride]
        begin = draws.consumed
        left = len(indices) - begin
        count = left if count is None else count
        if count != left and (count == 0 or count > left or len(indices) % count):
            raise ValueError(
                f"losses: expected {left} of them, one for each example of batch {draws.number}, got {count}"
            )
        taken = slice(begin, begin + count)
        weights = None if draws.weights is None else draws.weights[stride][taken]
        if consume:
            draws.consumed += count
            if draws.consumed == len(indices):
                self._entries.remove(draws)
                self._kept -= len(draws)
                self.consumed_batches += 1
        return Taken(draws.number, indices[taken], weights)

    def _take_singly(self, entries: list[Draws], count: int | None, consume: bool) -> Taken:
        issued = sum(draws.issued - draws.consumed for draws in entries)
        count = issued if count is None else count
        if count == 0 or count > issued:
            raise ValueError(f"losses: {count} of them, but {issued} draws are outstanding")
        indices, weights, left = [], [], count
        for draws in entries:
            part = slice(draws.consumed, min(draws.issued, draws.consumed + left))
            indices.append(draws.indices[part])
            weights.append(
                np.ones(part.stop - part.start, np.float32) if draws.weights is None else draws.weights[part]
            )
            left -= part.stop - part.start
            if consume:
                draws.consumed = part.stop
                if draws.consumed == len(draws) and len(self._entries) > 1:
                    self._entries.remove(draws)
                    self._kept -= len(draws)
            if left == 0:
                break
        return Taken(entries[0].number, np.concatenate(indices), np.concatenate(weights))
