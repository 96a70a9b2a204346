"""The journal: which draws were issued, which of them have been consumed, and which are in flight."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

from fastprio import _core
from fastprio._locks import fork_safe_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastprio._arrays import Float32, Float64, Int64

DEPTH, BATCHES, SINGLES = 1 << 18, 1024, 1 << 20
"""What may be in flight before the oldest are forgotten: batches beyond both the first two, or so many single draws.

More than loaders read ahead (and never less than a known lag or lookahead), so that only a loop that never steps gets
there. Fewer would reuse memory that is still in the cache, more would only take memory.
"""


class Share(NamedTuple):
    """Which draws of every global batch are this rank's: number rank, rank + ranks, rank + 2 ranks, ...

    dealt: the loader goes through the batches of all ranks, one after another, and keeps this rank's by itself.
    """

    rank: int = 0
    ranks: int = 1
    dealt: bool = False


WHOLE = Share()


class Draws:
    """What was drawn together: a batch, or a stretch of single draws.

    Args:
        number: of the batch in its epoch. first: number of the first draw in its epoch.
        indices: int64 [n]. probabilities: float64 [n]. weights: float32 [n], or None for all one. Of all ranks:
            ``everyones``. The attributes of these names have this rank's ``share`` of them.
        cover: where covering stood before, to go back to if these are never consumed.

    Of single draws only those that the loader has already taken count as issued. In a training loop every function
    that is called costs some microseconds, because the model has driven it out of the cache: hence plain attributes.
    """

    __slots__ = (
        "consumed",
        "cover",
        "everyones",
        "first",
        "handed",
        "indices",
        "number",
        "probabilities",
        "share",
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
        share: Share = WHOLE,
        cover: Any = None,
    ) -> None:
        self.number, self.first, self.share, self.cover = number, first, share, cover
        self.everyones = indices, probabilities, weights
        if share.ranks > 1:
            # Copies, because compiled loops would be compiled once more for arrays with gaps.
            indices, probabilities = indices[share.rank :: share.ranks].copy(), probabilities[share.rank :: share.ranks]
            weights = None if weights is None else weights[share.rank :: share.ranks].copy()
        self.indices, self.probabilities, self.weights = indices, probabilities, weights
        self.consumed = 0
        self.handed = 0  # how many went out, in the order in which they go out, before ``singles``
        self.singles: _core.Singles | None = None

    def __len__(self) -> int:
        """How many draws, of all ranks."""
        return len(self.everyones[0])

    def singly(self) -> _core.Singles:
        """The indices that the loader takes, one by one."""
        order = self.indices
        if self.share.dealt:
            indices = self.everyones[0]
            order = np.concatenate([indices[rank :: self.share.ranks] for rank in range(self.share.ranks)])
        self.singles = _core.Singles(order[self.handed :])
        return self.singles

    def lists(self) -> Iterator[list[int]]:
        """The indices that the loader takes, a batch of a rank's size at a time."""
        share = self.share
        if not share.dealt:
            self.handed = len(self.indices)
            yield self.indices.tolist()
            return
        size = len(self.indices)
        for rank in range(self.handed // size, share.ranks):
            self.handed = (rank + 1) * size
            yield self.everyones[0][rank :: share.ranks].tolist()

    @property
    def out(self) -> int:
        """How many the loader has taken, in the order in which they go out."""
        return self.handed if self.singles is None else self.handed + self.singles.taken

    @property
    def issued(self) -> int:
        """How many of this rank's the loader has taken."""
        if self.singles is None:
            return len(self.indices)
        if not self.share.dealt:
            return self.out
        return min(max(self.out - self.share.rank * len(self.indices), 0), len(self.indices))

    @property
    def position(self) -> int:
        """Number of the draw with which a loader goes on that has taken so many of these."""
        return self.first + (self.out if self.share.dealt else self.out * self.share.ranks)

    def cut(self) -> None:
        """Takes back the single draws that the loader has not taken yet."""
        if self.singles is None:
            return
        kept = self.handed + self.singles.cut()
        self.indices, self.probabilities, self.weights = _sliced(
            (self.indices, self.probabilities, self.weights), 0, kept
        )
        self.everyones = _sliced(self.everyones, 0, kept * self.share.ranks)

    def part(self, begin: int, end: int) -> Part:
        """This rank's draws number ``begin`` to ``end``, and what other ranks have beside them."""
        mine = _sliced((self.indices, self.probabilities, self.weights), begin, end)
        ranks = self.share.ranks
        return Part(self, begin * ranks, *mine, _sliced(self.everyones, begin * ranks, end * ranks))


class Part:
    """What a step consumes where it is not one whole batch: of which draws (the first ones), and the arrays."""

    __slots__ = ("begin", "draws", "everyones", "indices", "probabilities", "weights")

    def __init__(
        self,
        draws: Draws,
        begin: int,
        indices: Int64,
        probabilities: Float64,
        weights: Float32 | None,
        everyones: Arrays,
    ) -> None:
        self.draws, self.begin, self.everyones = draws, begin, everyones
        self.indices, self.probabilities, self.weights = indices, probabilities, weights

    @property
    def number(self) -> int:
        """Of the first draws' batch."""
        return self.draws.number

    @property
    def first(self) -> int:
        """Number of the first draw, of all ranks."""
        return self.draws.first + self.begin


Taken = Union[Draws, Part]  # noqa: UP007 (Python 3.10 evaluates it)
Arrays = tuple["Int64", "Float64", "Float32 | None"]


class Journal:
    """The draws of an epoch from the oldest not consumed to the newest issued.

    Where a loader takes snapshots (``mark``) it also keeps those consumed since the last one that the loader may go
    back to, but no more than ``depth`` batches, or stretches of single draws.

    A loop that never steps (it may update the store itself) loses the oldest beyond what may be in flight; stepping
    then is an error. Thread safety: every method takes the journal's lock; one thread steps at a time.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._entries: deque[Draws] = deque()
        self._behind: deque[Draws] = deque()
        self._marks: deque[int] = deque()
        self._lock = fork_safe_lock(self, "_lock")
        self.begin_epoch(None, 1)

    def begin_epoch(self, batch_size: int | None, ranks: int, in_flight: int = 0) -> None:
        """Forgets everything: what was not consumed never will be.

        Args:
            batch_size: of all ranks, or None where draws come singly. ranks: that share it. in_flight: how many draws
                are known to run ahead of the steps.
        """
        whole = batch_size is not None
        with self._lock:
            for draws in self._entries:
                draws.cut()  # an iterator of the last epoch that is still held finds nothing more
            self._entries.clear()
            self._behind.clear()
            if self._marks:  # the loader's last snapshot may be of before this epoch
                self._marks = deque([0])
            self._whole, self._size = whole, (batch_size or 0) // ranks
            self._most = max(DEPTH if whole else SINGLES, in_flight)
            self._left = 0  # not consumed, issued or not
            self._forgotten = False
            self.consumed_batches = 0
            self.issuer = 0

    def append(self, draws: Draws) -> None:
        """Notes what is about to be issued. Of draws that are issued again, those consumed before stay so."""
        with self._lock:
            self.issuer = threading.get_ident()
            if draws.consumed == len(draws.indices):
                self._behind.append(draws)
                return
            self._entries.append(draws)
            self._left += len(draws.indices) - draws.consumed
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
            return len(draws)

    @property
    def outstanding(self) -> int:
        """How many have been issued and not consumed."""
        with self._lock:
            if not self._entries or self._entries[-1].singles is None:
                return self._left
            newest = self._entries[-1]  # older ones have been taken whole before it was drawn
            return self._left - (len(newest.indices) - newest.issued)

    @property
    def outstanding_batches(self) -> int:
        """How many batches, or stretches of single draws, have draws outstanding."""
        with self._lock:
            return sum(draws.issued > draws.consumed for draws in self._entries)

    def oldest(self) -> Draws | None:
        """The oldest draws that are not all consumed, or None."""
        with self._lock:
            return next((draws for draws in self._entries if draws.consumed < len(draws.indices)), None)

    def mark(self, position: int) -> None:
        """A loader has taken a snapshot in which draw number ``position`` comes next, and may go back to it."""
        with self._lock:
            if not self._marks or position > self._marks[-1]:
                self._marks.append(position)
            if len(self._marks) > BATCHES:  # nothing is stepped
                del self._marks[1]
            self._forget_behind()

    def go_on_from(self, snapshot: int | None) -> None:
        """The loader's snapshot that counts is the one that it was loaded from, if it was."""
        with self._lock:
            self._marks = deque([] if snapshot is None else [snapshot])

    def kept(self) -> list[Draws]:
        """All draws that are still known, in the order of their numbers."""
        with self._lock:
            return sorted([*self._behind, *self._entries], key=lambda draws: draws.first)

    @property
    def gone_back_to(self) -> int | None:
        """Number of the draw that comes next in the loader's last snapshot that counts; None if it takes none."""
        with self._lock:
            return self._marks[0] if self._marks else None

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
        self.check_forgotten()
        first = next((draws for draws in self._entries if draws.issued > draws.consumed), None)
        if first is None:
            raise RuntimeError(
                "nothing is outstanding: step(losses) or skip() once for every batch, after it was drawn"
            )
        return self._of_batch(first, count) if self._whole else self._of_singles(count)

    def check_forgotten(self) -> None:
        """RuntimeError if draws were never consumed and are not known any more."""
        if self._forgotten:
            raise RuntimeError(
                f"more than {self._most} draws were issued and not consumed, and the oldest are forgotten: call "
                "step(losses) or skip() for every batch, or update the store yourself and never step"
            )

    def find(self, indices: Int64) -> Draws:
        """The outstanding batch with just these indices, wherever it stands. ValueError if there is none."""
        with self._lock:
            self.check_forgotten()
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
            else:
                self.consumed_batches += 1
                self._left -= count
                for draws in list(self._entries):
                    part = min(draws.issued - draws.consumed, count)
                    draws.consumed += part
                    count -= part
                    if draws.consumed == len(draws.indices) and draws is not self._entries[-1]:
                        self._remove(draws)
            if self._marks:
                self._forget_behind()

    def _remove(self, draws: Draws) -> None:
        if self._entries[0] is draws:
            self._entries.popleft()
        else:
            self._entries.remove(draws)
        if self._marks:
            self._behind.append(draws)

    def _forget_behind(self) -> None:
        """Forgets what was consumed before the newest snapshot that is not ahead of what was consumed."""
        newest = self._entries[0] if self._entries else None
        if newest is not None:
            consumed = newest.first + newest.consumed * newest.share.ranks
        else:
            consumed = self._behind[-1].first + len(self._behind[-1]) if self._behind else 0
        while len(self._marks) > 1 and self._marks[1] <= consumed:
            self._marks.popleft()
        behind = self._behind
        while behind and (behind[0].first + len(behind[0]) <= self._marks[0] or len(behind) > self.depth):
            behind.popleft()

    def _of_batch(self, draws: Draws, count: int | None) -> Taken:
        size = len(draws.indices)
        left = size - draws.consumed
        singly = draws.singles is not None  # the loader makes batches of them by itself
        if count in (None, left):
            return draws.part(draws.consumed, size)
        if not (singly and count is not None and 1 < count < left and (self._size or size) % count == 0):
            hint = f"; give the loader the sampler's batch_size, {self._size}" if singly else ""
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
        mine = _joined([(part.indices, part.probabilities, part.weights) for part in parts])
        everyones = mine if parts[0].draws.share.ranks == 1 else _joined([part.everyones for part in parts])
        return Part(parts[0].draws, parts[0].begin, *mine, everyones)


def _sliced(arrays: Arrays, begin: int, end: int) -> Arrays:
    indices, probabilities, weights = arrays
    return indices[begin:end], probabilities[begin:end], None if weights is None else weights[begin:end]


def _joined(parts: list[Arrays]) -> Arrays:
    weights = [np.ones(len(part[0]), np.float32) if part[2] is None else part[2] for part in parts]
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate(weights),
    )
