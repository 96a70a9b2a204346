"""ReplayMixture: every batch has its share of the examples of earlier tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._arrays import integer
from fastprio._random import Rng
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Policy, register
from fastprio.policies.primitives import quota

if TYPE_CHECKING:
    from fastprio._arrays import Float64, Int64
    from fastprio.store import ScoreStore

LAST_STEP = (1 << 34) - 1
"""Passes take their random numbers from the last steps downwards, which no epoch's draw numbers reach."""
PIECE = 1 << 16


@register("replay")
class ReplayMixture(Policy):
    """Draws two sources with a quota: the replay pool, examples below ``state["boundary"]``, and the new ones.

    Of an epoch's first d draws floor(replay d) are of the pool, so that a batch of b has replay b of them, but for one.
    Each source is walked in a random permutation, and then in another, so that nothing comes twice in a pass; passes
    begin anew with each epoch. Within a batch the order is random. Where a source is empty, the other fills all.

    Args:
        replay: share of the draws from the pool, in [0, 1].
        boundary: how many examples are the pool at first, >= 0; all, where it is more than there are.

    ``begin_task`` makes everything so far the pool. Nothing is learnt from losses. A draw's probability is its source's
    share over its source's size. Cost: nothing an example; up to 1 MB in all.
    Source: the two-source batches of data-free class-incremental learning (arXiv 2401.06548), and rehearsal in
    general; quota and passes are ours, and so there is no default for ``replay``.
    """

    example = {"replay": 0.25}  # noqa: RUF012
    acts = "draw"
    shardable = False

    def __init__(self, replay: float, boundary: int = 0) -> None:
        self.replay, self.boundary = real("replay", replay, 0, 1), integer("boundary", boundary, 0, 1 << 32)
        self.state = {"boundary": self.boundary}
        self._pieces: list[tuple[tuple[int, ...], Int64]] = [((), np.empty(0, np.int64))] * 2  # made again at will

    def begin_task(self, store: ScoreStore, size: int) -> None:
        """Makes all examples of the store the pool, and grows it to ``size``, more than it has, for the new ones."""
        with store.lock:
            pool = len(store)
            store.resize(integer("size", size, pool + 1, 1 << 32))
            self.state["boundary"] = pool

    def draw(self, store: ScoreStore, count: int, clock: Clock, rng: Rng) -> tuple[Int64, Float64]:
        """The quota of each source. It follows from the number of the first draw, so that a resume is exact."""
        pool = min(self.state["boundary"], len(store))
        new = len(store) - pool
        share = self.replay if pool and new else float(pool > 0)
        before, replayed = quota(0, rng.step, share), quota(rng.step, count, share)
        indices = np.concatenate(
            [
                self._walk(0, pool, before, replayed, rng),
                self._walk(1, new, rng.step - before, count - replayed, rng) + pool,
            ]
        )
        each = [share / max(pool, 1), (1 - share) / max(new, 1)]
        order = rng.choose(count, count) if count > 1 else np.zeros(count, np.int64)
        return indices[order], np.repeat(each, [replayed, count - replayed])[order]

    def _walk(self, source: int, n: int, begin: int, count: int, rng: Rng) -> Int64:
        """Draws [begin, begin + count) from a source of n examples."""
        out, done = np.empty(count, np.int64), 0
        while done < count:
            number, at = divmod(begin + done, n)
            first = at - at % PIECE
            key = rng.seed, rng.epoch, n, number, first
            if self._pieces[source][0] != key:
                of_pass = Rng(rng.seed, rng.epoch, LAST_STEP - 2 * number - source, "draw")
                self._pieces[source] = key, of_pass.permutation(n, first, min(PIECE, n - first))
            part = self._pieces[source][1][at - first : at - first + count - done]
            out[done : done + len(part)] = part
            done += len(part)
        return out
