"""The journal: which draws were issued, which of them have been consumed, and which are in flight."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio import _core
from fastprio._locks import fork_safe_lock

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64

DEPTH, BATCHES = 1 << 16, 256
"""How many draws, and how many batches, may be in flight: both must be exceeded before the oldest are forgotten.

More than any loader reads ahead, and few enough that a loop that never steps reuses memory that is still in the cache.
"""


class Draws:
    """What was drawn together: a batch, or a stretch of single draws. Arrays are global, over all ranks.

    Args:
        number: of the batch in its epoch. first: number of the first draw in its epoch.
        indices: int64 [n]. probabilities: float64 [n]. weights: float32 [n], or None for all one.
        mine: this rank's slice of them; None for all.
        cover: where covering stood before, to go back to if these are never consumed.

    Of single draws only those that the loader has already taken count as issued.
    """

    __slots__ = ("consumed", "cover", "first", "indices", "mine", "number", "probabilities", "singles", "weights")

    def __init__(
        self,
        number: int,
        first: int,
        indices: Int64,
        probabilities: Float64,
        weights: Float32 | None,
        mine: slice | None,
        cover: Any = None,
    ) -> None:
        self.number, self.first, self.mine, self.cover = number, first, mine, cover
        self.indices, self.probabilities, self.weights = indices, probabilities, weights
        self.consumed = 0  # of this rank's
        self.singles: _core.Singles | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def my_indices(self) -> Int64:
        """This rank's indices."""
        return self.indices if self.mine is None else self.indices[self.mine]

    def singly(self) -> _core.Singles:
        """This rank's indices one by one."""
        self.singles = _core.Singles(self.my_indices)
        return self.singles

    @property
    def issued(self) -> int:
        """How many of this rank's draws the loader has taken."""
        return len(self.my_indices) if self.singles is None else self.singles.taken

    def cut(self) -> None:
        """Takes back the single draws that the loader has not taken yet."""
        if self.singles is None:
            return
        kept = self.singles.cut() * (1 if self.mine is None else self.mine.step)
        self.indices, self.probabilities = self.indices[:kept], self.probabilities[:kept]
        self.weights = None if self.weights is None else self.weights[:kept]

    def part(self, begin: int, end: int) -> Taken:
        """This rank's draws number ``begin`` to ``end``."""
        indices, probabilities, weights = self.my_indices, self.probabilities, self.weights
        if self.mine is not None:
            probabilities, weights = probabilities[self.mine], None if weights is None else weights[self.mine]
        if end - begin < len(indices):
            indices, probabilities = indices[begin:end], probabilities[begin:end]
            weights = None if weights is None else weights[begin:end]
        return Taken(self, indices, probabilities, weights)


class Taken:
    """What a step consumes: of which draws (the first ones), int64 indices, float64 probabilities, float32 weights."""

    __slots__ = ("draws", "indices", "probabilities", "weights")

    def __init__(self, draws: Draws, indices: Int64, probabilities: Float64, weights: Float32 | None) -> None:
        self.draws, self.indices, self.probabilities, self.weights = draws, indices, probabilities, weights


class Journal:
    """The draws of an epoch from the oldest not consumed to the newest issued.

    A loop that never steps (it may update the store itself) loses the oldest beyond ``DEPTH`` draws and ``BATCHES``
    batches; stepping then is an error. Thread safety: every method takes the journal's lock.
    """

    def __init__(self) -> None:
        self._entries: deque[Draws] = deque()
        self._lock = fork_safe_lock(self, "_lock")
        self.begin_epoch(whole=True)

    def begin_epoch(self, whole: bool) -> None:
        """Forgets everything: what was not consumed never will be. ``whole``: whether draws come as batches."""
        with self._lock:
            for draws in self._entries:
                draws.cut()  # an iterator of the last epoch that is still held finds nothing more
            self._entries.clear()
            self._whole = whole
            self._kept = 0
            self._forgotten = False
            self.consumed_batches = 0
            self.issuer = 0

    def append(self, draws: Draws) -> None:
        """Notes what is about to be issued."""
        with self._lock:
            self._entries.append(draws)
            self.issuer = threading.get_ident()
            self._kept += len(draws.indices)
            while self._kept > DEPTH and len(self._entries) > BATCHES:
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
            return sum([draws.issued - draws.consumed for draws in self._entries])

    def oldest(self) -> Draws | None:
        """The oldest draws that are not all consumed, or None."""
        with self._lock:
            return next((draws for draws in self._entries if draws.consumed < len(draws.my_indices)), None)

    def peek(self, count: int | None = None) -> Taken:
        """The next draws not consumed: ``count`` of them, or the rest of the batch (of single draws: all issued).

        Raises: RuntimeError if nothing is outstanding. ValueError if ``count`` is neither the batch nor an equal part
            of it, or more than is outstanding.
        """
        with self._lock:
            if self._forgotten:
                raise RuntimeError(
                    f"more than {DEPTH} draws, and {BATCHES} batches of them, were issued and not consumed, the oldest "
                    "are forgotten: step(losses) or skip() every batch, or update the store yourself and never step"
                )
            first = next((draws for draws in self._entries if draws.issued > draws.consumed), None)
            if first is None:
                raise RuntimeError(
                    "nothing is outstanding: step(losses) or skip() once for every batch, after it was drawn"
                )
            return self._of_batch(first, count) if self._whole else self._of_singles(count)

    def find(self, indices: Int64) -> Taken:
        """The outstanding batch with just these indices, wherever it stands. ValueError if there is none."""
        with self._lock:
            for draws in self._entries:
                if self._whole and draws.consumed == 0 and np.array_equal(draws.my_indices, indices):
                    return self._of_batch(draws, None)
        raise ValueError(
            "indices: no outstanding batch has these indices in this order (single draws have no batches: give the "
            "sampler a batch_size)"
        )

    def consume(self, taken: Taken) -> None:
        """What was peeked at or found is consumed now."""
        with self._lock:
            draws, count = taken.draws, len(taken.indices)
            if self._whole:
                draws.consumed += count
                if draws.consumed == len(draws.my_indices):
                    self._remove(draws)
                    self.consumed_batches += 1
                return
            self.consumed_batches += 1
            for draws in list(self._entries):
                part = min(draws.issued - draws.consumed, count)
                draws.consumed += part
                count -= part
                if draws.consumed == len(draws.my_indices) and draws is not self._entries[-1]:
                    self._remove(draws)

    def _remove(self, draws: Draws) -> None:
        if self._entries and draws is self._entries[0]:
            self._entries.popleft()
        elif draws in self._entries:
            self._entries.remove(draws)
        else:
            return  # forgotten meanwhile: the thread that draws went on
        self._kept -= len(draws)

    def _of_batch(self, draws: Draws, count: int | None) -> Taken:
        size = len(draws.my_indices)
        left = size - draws.consumed
        if count is None or count == left:
            return draws.part(draws.consumed, size)
        singly = draws.singles is not None  # the loader makes batches of them by itself
        if not (singly and 1 < count < left and size % count == 0):
            hint = f"; give the loader the sampler's batch_size, {size}" if singly else ""
            raise ValueError(
                f"losses: expected {left} of them, one an example of batch {draws.number}, got {count}{hint}"
            )
        return draws.part(draws.consumed, draws.consumed + count)

    def _of_singles(self, count: int | None) -> Taken:
        issued = sum([draws.issued - draws.consumed for draws in self._entries])
        count = issued if count is None else count
        if count == 0 or count > issued:
            raise ValueError(f"losses: {count} of them, but {issued} draws are outstanding")
        parts, left = [], count
        for draws in self._entries:
            end = min(draws.issued, draws.consumed + left)
            if end > draws.consumed:
                parts.append(draws.part(draws.consumed, end))
                left -= end - draws.consumed
        weights = [np.ones(len(p.indices), np.float32) if p.weights is None else p.weights for p in parts]
        return Taken(
            parts[0].draws,
            np.concatenate([p.indices for p in parts]),
            np.concatenate([p.probabilities for p in parts]),
            np.concatenate(weights),
        )
