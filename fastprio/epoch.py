"""One epoch of a sampler: where each of its draws comes from, until all are made."""

from __future__ import annotations

import warnings
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from fastprio._random import Rng
from fastprio.journal import WHOLE, Draws, Share
from fastprio.policies.base import Policy
from fastprio.tree import SCHEMES

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio.feedback import Feedback
    from fastprio.journal import Journal
    from fastprio.order import Cover, PlannedEpoch
    from fastprio.ranks import Shards
    from fastprio.store import ScoreStore

AHEAD = 1024
"""Single draws made at once, without a batch size. Those not yet taken are made anew when a priority changes."""


class Epoch:
    """Draws batches, or stretches of single draws, by plan, by covering, or by priority.

    Args:
        store: whose examples are drawn. journal: told of every draw. feedback: applies losses before a draw.
        cover: goes first where it is under way. planned: the policy's plan, which replaces drawing; or None.
        number: of the epoch, in [0, 2^32). seed: in [0, 2^64). total: draws, of all ranks that draw alike.
        scheme: of SumTree.sample. batch_size: the global batch, or None for single draws. lag: as in PrioritySampler.
        share: which part of every batch is this rank's. shards: where every rank draws from a shard of its own.
    """

    def __init__(
        self,
        store: ScoreStore,
        journal: Journal,
        feedback: Feedback,
        cover: Cover,
        planned: PlannedEpoch | None,
        *,
        number: int,
        seed: int,
        total: int,
        scheme: str,
        batch_size: int | None,
        lag: int | None,
        share: Share = WHOLE,
        shards: Shards | None = None,
    ) -> None:
        self._store, self._journal, self._feedback, self._cover = store, journal, feedback, cover
        self.planned, self.number, self.seed, self.total = planned, number, seed, total
        self._scheme, self.batch_size, self._lag, self.share = SCHEMES[scheme], batch_size, lag, share
        self._shards = shards
        self._policy_draws = type(store.policy).draw is not Policy.draw
        self._singles_go_stale = batch_size is None and scheme == "iid"
        self._stale: Draws | None = None  # single draws that a change of priorities makes so
        self.drawn = self.batches = 0
        self.over = False  # whether another epoch has begun: who still draws from this one is told so
        self.begun_at = 0  # number of the first draw to be issued: not zero where it goes on
        self.exhausted = False  # whether the loader has been told that there is no more
        self.again: deque[Draws] = deque()  # drawn before a resume, to be issued once more
        self.newest: Draws | None = None
        self._warned = False
        if self._singles_go_stale:
            store.listen(self.priorities_changed)

    def next(self, drop_partial: bool = False) -> Draws | None:
        """The next draws, or None at the end; ``drop_partial`` leaves out a last batch that is not full."""
        store = self._store
        with store.lock:
            if self.over:
                raise RuntimeError("a newer iteration of this sampler has begun; two loaders cannot share one sampler")
            if self.again:
                self.newest = self.again.popleft()
                self._journal.append(self.newest)
                return self.newest
            left = self.total - self.drawn
            count = self.batch_size or self._stretch()
            if count > left:
                if left <= 0 or (drop_partial and self.batch_size is not None):
                    self.exhausted = True
                    self._warn_if_empty(left)
                    return None
                count = left
            if self._lag is not None or self._feedback.waiting:
                self._apply_losses()
            if self._shards is not None:
                self._shards.receive()
            if store.epochs is not None:
                store.set_progress(self.drawn / self.total)
            cover, drawn = None, None
            if self.planned is not None:
                drawn = self._by_plan(self.planned, count)
            elif self._cover.walk is not None:
                cover = self._cover.state
                drawn = self._covering(count)
            by_priority = drawn is None
            if drawn is None:
                drawn = self._by_priority(count, self.drawn)
            if self._shards is not None:
                drawn = (drawn[0] + self._shards.offset, *drawn[1:])
            draws = self.newest = Draws(self.batches, self.drawn, *drawn, self.share, cover)
            self._stale = draws if by_priority and self._singles_go_stale else None
            self.drawn += len(draws)
            self.batches += 1
            self._feedback.drawn = self.batches
            self._journal.append(draws)
            return draws

    @property
    def position(self) -> int:
        """Number of the draw that comes next, of all ranks."""
        if self.newest is not None:
            return self.newest.position
        return self.again[0].position if self.again else self.drawn

    @property
    def finished(self) -> bool:
        """Whether all draws have been made, and all were stepped or skipped."""
        return (self.exhausted or self.drawn >= self.total) and not self.again and not self._journal.outstanding

    def go_to(self, position: int) -> None:
        """Goes on at draw number ``position``, where nothing has been learnt since the epoch began."""
        if self.planned is not None:
            self.planned.take(position)
        elif self._scheme == SCHEMES["epoch"] and position:
            self._by_priority(position, 0)  # they stand aside from now on
        self.drawn = position
        self.batches = position // (self.batch_size or 1)

    def priorities_changed(self) -> None:
        """Takes back the single draws that the loader has not taken yet."""
        if self._stale is None:
            return
        with self._store.lock:
            if self._stale is not None:
                self.drawn = self._stale.first + self._journal.cut(self._stale)
                self._stale = None

    def _warn_if_empty(self, left: int) -> None:
        """A loop over epochs would go on without training, whatever its policy does to have more examples."""
        if self.drawn == 0 and left > 0:
            warnings.warn(
                f"epoch {self.number} has no batch: it has {left} examples, a batch {self.batch_size}, and drop_last "
                "leaves out what is not full",
                stacklevel=3,
            )

    def _stretch(self) -> int:
        """How many single draws to make at once."""
        if self._cover.walk is not None:
            return 64
        ahead = (self._singles_go_stale and not self._policy_draws) or not self._store.policy.observes
        return AHEAD - AHEAD % self.share.ranks if ahead else 1

    def _apply_losses(self) -> None:
        if self._lag is None:
            self._feedback.apply()
            return
        stepped = self._journal.consumed_batches
        if self._store.policy.observes and stepped < self.batches - self._lag:
            raise RuntimeError(
                f"lag = {self._lag}: batch {self.batches} is drawn when only {stepped} batches were stepped or "
                "skipped; pass as lag what the loader reads ahead, num_workers * prefetch_factor (here at least "
                f"{self.batches - stepped}), and call step(losses) or skip() once for every batch"
            )
        self._feedback.apply(self.batches - 1 - self._lag)

    # Each gives indices, probabilities and weights.

    def _by_plan(self, planned: PlannedEpoch, count: int) -> tuple[Int64, Float64, Float32 | None]:
        store = self._store
        indices = planned.take(count)
        probabilities = np.full(count, 1.0 / planned.chosen)
        weights = store.policy.weights(store.columns, indices, probabilities, store.clock)
        return indices, probabilities, _times(weights, planned.weights(indices))

    def _covering(self, count: int) -> tuple[Int64, Float64, Float32 | None] | None:
        """Unseen examples, and where they end inside a batch, others by priority; None if there are none left."""
        covered = self._cover.take(count)
        if len(covered) == 0:
            return None
        probabilities = np.full(len(covered), 1.0 / (len(self._store) if self._shards is None else self._shards.whole))
        rest = count - len(covered)
        if rest == 0 or self.batch_size is None:
            return covered, probabilities, None
        if self._scheme == SCHEMES["unique"]:
            drawn, of_drawn = self._others_of_group(covered, rest)
            return np.concatenate([covered, drawn]), np.concatenate([probabilities, of_drawn]), None
        drawn, of_drawn, weights = self._by_priority(rest, self.drawn + len(covered))
        if weights is not None:
            weights = np.concatenate([np.ones(len(covered), np.float32), weights])
        return np.concatenate([covered, drawn]), np.concatenate([probabilities, of_drawn]), weights

    def _others_of_group(self, covered: Int64, count: int) -> tuple[Int64, Float64]:
        """Scheme "unique", where covering ends inside a batch: of a whole group, ``count`` that are not covered."""
        drawn, probabilities, _ = self._by_priority(count + len(covered), self.drawn)
        others = np.flatnonzero(~np.isin(drawn, covered))[:count]
        return drawn[others], probabilities[others]

    def _by_priority(self, count: int, offset: int) -> tuple[Int64, Float64, Float32 | None]:
        store, policy = self._store, self._store.policy
        if self._shards is not None and store.tree.total == 0 and self._shards.masses.any():
            return self._of_no_mass(count, offset)
        drawn = None
        if self._policy_draws:
            drawn = policy.draw(store, count, store.clock, Rng(self.seed, self.number, offset, "draw"))
        if drawn is None:
            group = self.batch_size or 1  # of no meaning to the schemes of single draws
            drawn = store.tree.sample_checked(count, self.seed, self.number, offset, self._scheme, group)
        if self._shards is None:
            return *drawn, policy.weights(store.columns, *drawn, store.clock)
        share = self._shards.share_of_mass()
        indices, probabilities = drawn[0], drawn[1] * share
        # A policy that reckons with N P finds the shard's size where N should be: the product is made right in P.
        weights = policy.weights(store.columns, indices, probabilities * (self._shards.whole / len(store)), store.clock)
        correction = np.float32(self._shards.ranks * share)
        return indices, probabilities, np.full(count, correction) if weights is None else weights * correction

    def _of_no_mass(self, count: int, offset: int) -> tuple[Int64, Float64, Float32 | None]:
        """A shard from which nothing can be drawn takes part all the same, uniformly and with weight zero."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"epoch {self.number}: no example of this rank's shard has a priority above zero; it draws uniformly "
                "with weight 0 until one has",
                stacklevel=2,
            )
        indices = Rng(self.seed, self.number, offset, "draw").integers(len(self._store), count)
        return indices, np.zeros(count), np.zeros(count, np.float32)


def _times(first: Float32 | None, second: Float32 | None) -> Float32 | None:
    """The product of weights, None being all one."""
    if first is None or second is None:
        return second if first is None else first
    return first * second
