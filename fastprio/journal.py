"""The journal: which draws were issued, which of them have been consumed, and which are in flight."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from fastprio import _core
from fastprio._locks import fork_safe_lock

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64

DEPTH, BATCHES, SINGLES = 1 << 18, 1024, 1 << 20
"""What may be in flight before the oldest are forgotten: batches beyond both the first two, or so many single draws.

More than loaders read ahead (and never less than a known lag or lookahead), so that only a loop that never steps gets
there. Fewer would reuse memory that is still in the cache, more would only take memory.
"""


class Draws:
    """What was drawn together: a batch, or a stretch of single draws.

    Args:
        number: of the batch in its epoch. first: number of the first draw in its epoch.
        indices: int64 [n]. probabilities: float64 [n]. weights: float32 [n], or None for all one. Of all ranks.
        mine: this rank's slice of them, which becomes ``indices`` and so on; None if there is one rank.
        cover: where covering stood before, to go back to if these are never consumed.

    Of single draws only those that the loader has already taken count as issued. In a training loop every function
    that is called costs some microseconds, because the model has driven it out of the cache: hence plain attributes.
    """

    __slots__ = (
        "consumed",
        "cover",
        "everyones",
        "first",
        "indices",
        "mine",
        "number",
        "probabilities",
        "singles",
        "weights",
    )

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
        self.everyones = len(indices)
        if mine is not None:
            indices, probabilities = indices[mine], probabilities[mine]
            weights = None if weights is None else weights[mine]
        self.indices, self.probabilities, self.weights = indices, probabilities, weights
        self.consumed = 0
        self.singles: _core.Singles | None = None

    def singly(self) -> _core.Singles:
        """The indices one by one."""
        self.singles = _core.Singles(self.indices)
        return self.singles

    @property
    def issued(self) -> int:
        """How many the loader has taken."""
        return len(self.indices) if self.singles is None else self.singles.taken

    def cut(self) -> None:
        """Takes back the single draws that the loader has not taken yet."""
        if self.singles is None:
            return
        kept = self.singles.cut()
        self.everyones = kept * (1 if self.mine is None else self.mine.step)
        self.indices, self.probabilities = self.indices[:kept], self.probabilities[:kept]
        self.weights = None if self.weights is None else self.weights[:kept]

    def part(self, begin: int, end: int) -> Part:
        """Draws number ``begin`` to ``end``."""
        weights = None if self.weights is None else self.weights[begin:end]
        return Part(self, self.indices[begin:end], self.probabilities[begin:end], weights)


class Part:
    """What a step consumes where it is not one whole batch: of which draws (the first ones), and the arrays."""

    __slots__ = ("draws", "indices", "probabilities", "weights")

    def __init__(self, draws: Draws, indices: Int64, probabilities: Float64, weights: Float32 | None) -> None:
        self.draws, self.indices, self.probabilities, self.weights = draws, indices, probabilities, weights

    @property
    def number(self) -> int:
        """Of the first draws' batch."""
        return self.draws.number


Taken = Union[Draws, Part]  # noqa: UP007 (Python 3.10 evaluates it)


class Journal:
    """The draws of an epoch from the oldest not consumed to the newest issued.

    A loop that never steps (it may update the store itself) loses the oldest beyond what may be in flight; stepping
    then is an error. Thread safety: every method takes the journal's lock; one thread steps at a time.
    """

    def __init__(self) -> None:
        self._entries: deque[Draws] = deque()
        self._lock = fork_safe_lock(self, "_lock")
        self.begin_epoch(whole=True)

    def begin_epoch(self, whole: bool, in_flight: int = 0) -> None:
        """Forgets everything: what was not consumed never will be.

        Args:
            whole: whether draws come as batches. in_flight: how many draws are known to run ahead of the steps.
        """
        with self._lock:
            for draws in self._entries:
                draws.cut()  # an iterator of the last epoch that is still held finds nothing more
            self._entries.clear()
            self._whole = whole
            self._most = max(DEPTH if whole else SINGLES, in_flight)
            self._left = 0  # not consumed, issued or not
            self._forgotten = False
            self.consumed_batches = 0
            self.issuer = 0

    def append(self, draws: Draws) -> None:
        """Notes what is about to be issued."""
        with self._lock:
            self._entries.append(draws)
            self.issuer = threading.get_ident()
            self._left += len(draws.indices)
            if self._left > self._most and (len(self._entries) > BATCHES or not self._whole):
                forgotten = self._entries.popleft()
                self._left -= len(forgotten.indices) - forgotten.consumed
                self._forgotten = True

    def cut(self, draws: Draws) -> int:
        """Takes back what the loader has not taken of single draws; returns how many remain, over all ranks."""
        with self._lock:
            before = len(draws.indices)
            draws.cut()
            self._left -= before - len(draws.indices)
            return draws.everyones

    @property
    def outstanding(self) -> int:
        """How many have been issued and not consumed."""
        with self._lock:
            if not self._entries or self._entries[-1].singles is None:
                return self._left
            newest = self._entries[-1]  # older ones have been taken whole before it was drawn
            return self._left - (len(newest.indices) - newest.issued)

    def oldest(self) -> Draws | None:
        """The oldest draws that are not all consumed, or None."""
        with self._lock:
            return next((draws for draws in self._entries if draws.consumed < len(draws.indices)), None)

    def peek(self, count: int | None = None) -> Taken:
        """The next draws not consumed: ``count`` of them, or the rest of the batch (of single draws: all issued).

        Raises: RuntimeError if nothing is outstanding. ValueError if ``count`` is neither the batch nor an equal part
            of it, or more than is outstanding.
        """
        with self._lock:
            if self._entries and self._whole and not self._forgotten:
                draws = self._entries[0]
                if draws.singles is None and not draws.consumed and count in (None, len(draws.indices)):
                    return draws
            return self._peek(count)

    def _peek(self, count: int | None) -> Taken:
        self._check_forgotten()
        first = next((draws for draws in self._entries if draws.issued > draws.consumed), None)
        if first is None:
            raise RuntimeError(
                "nothing is outstanding: step(losses) or skip() once for every batch, after it was drawn"
            )
        return self._of_batch(first, count) if self._whole else self._of_singles(count)

    def _check_forgotten(self) -> None:
        if self._forgotten:
            raise RuntimeError(
                f"more than {self._most} draws were issued and not consumed, and the oldest are forgotten: call "
                "step(losses) or skip() for every batch, or update the store yourself and never step"
            )

    def find(self, indices: Int64) -> Draws:
        """The outstanding batch with just these indices, wherever it stands. ValueError if there is none."""
        with self._lock:
            self._check_forgotten()
            for draws in self._entries:
                if self._whole and draws.consumed == 0 and np.array_equal(draws.indices, indices):
                    return draws
        raise ValueError(
            "indices: no outstanding batch has these indices in this order (single draws have no batches: give the "
            "sampler a batch_size)"
        )

    def consume(self, taken: Taken) -> None:
        """What was peeked at or found is consumed now."""
        with self._lock:
            if self._forgotten:  # meanwhile, by a thread that draws: the next step says so
                return
            count = len(taken.indices)
            draws = taken if isinstance(taken, Draws) else taken.draws
            if draws not in self._entries:
                raise RuntimeError("a newer epoch began while this step was being recorded; its draws are gone")
            if self._whole:
                draws.consumed += count
                if draws.consumed == len(draws.indices):
                    self.consumed_batches += 1
                    self._remove(draws)
                self._left -= count
                return
            self.consumed_batches += 1
            self._left -= count
            for draws in list(self._entries):
                part = min(draws.issued - draws.consumed, count)
                draws.consumed += part
                count -= part
                if draws.consumed == len(draws.indices) and draws is not self._entries[-1]:
                    self._remove(draws)

    def _remove(self, draws: Draws) -> None:
        if self._entries[0] is draws:
            self._entries.popleft()
        else:
            self._entries.remove(draws)

    def _of_batch(self, draws: Draws, count: int | None) -> Taken:
        size = len(draws.indices)
        left = size - draws.consumed
        singly = draws.singles is not None  # the loader makes batches of them by itself
        if count in (None, left):
            return draws.part(draws.consumed, size)
        if not (singly and count is not None and 1 < count < left and size % count == 0):
            hint = f"; give the loader the sampler's batch_size, {size}" if singly else ""
            raise ValueError(
                f"losses: expected {left} of them, one an example of batch {draws.number}, got {count}{hint}"
            )
        return draws.part(draws.consumed, draws.consumed + count)

    def _of_singles(self, count: int | None) -> Part:
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
        return Part(
            parts[0].draws,
            np.concatenate([p.indices for p in parts]),
            np.concatenate([p.probabilities for p in parts]),
            np.concatenate(weights),
        )
