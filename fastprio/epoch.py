"""One epoch of a sampler: where each of its draws comes from, until all are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._random import Rng
from fastprio.journal import Draws
from fastprio.policies.base import Policy
from fastprio.tree import SCHEMES

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio.feedback import Feedback
    from fastprio.journal import Journal
    from fastprio.order import Cover, PlannedEpoch
    from fastprio.store import ScoreStore

AHEAD = 1024
"""Single draws made at once, without a batch size. Those not yet taken are made anew when a priority changes."""


class Epoch:
    """Draws batches, or stretches of single draws, by plan, by covering, or by priority.

    Args:
        store: whose examples are drawn. journal: told of every draw. feedback: applies losses before a draw.
        cover: goes first where it is under way. planned: the policy's plan, which replaces drawing; or None.
        number: of the epoch, in [0, 2^32). seed: in [0, 2^64). total: draws over all ranks.
        scheme: of SumTree.sample. batch_size: the global batch, or None for single draws. lag: as in PrioritySampler.
        mine: this rank's slice of every batch; None for all.
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
        mine: slice | None,
    ) -> None:
        self._store, self._journal, self._feedback, self._cover = store, journal, feedback, cover
        self.planned, self.number, self.seed, self.total = planned, number, seed, total
        self._scheme, self._batch_size, self._lag, self._mine = SCHEMES[scheme], batch_size, lag, mine
        self._policy_draws = type(store.policy).draw is not Policy.draw
        self._singles_go_stale = batch_size is None and scheme == "iid"
        self._stale: Draws | None = None  # single draws that a change of priorities makes so
        self._drawn = self._batches = 0
        self.over = False  # whether another epoch has begun: who still draws from this one is told so
        if self._singles_go_stale:
            store.listen(self.priorities_changed)

    def next(self, drop_partial: bool = False) -> Draws | None:
        """The next draws, or None at the end; ``drop_partial`` leaves out a last batch that is not full."""
        store = self._store
        with store.lock:
            if self.over:
                raise RuntimeError("a newer iteration of this sampler has begun; two loaders cannot share one sampler")
            left = self.total - self._drawn
            count = self._batch_size or self._stretch()
            if count > left:
                if left <= 0 or (drop_partial and self._batch_size is not None):
                    return None
                count = left
            if self._lag is not None or self._feedback.waiting:
                self._apply_losses()
            if store.epochs is not None:
                store.set_progress(self._drawn / self.total)
            cover, drawn = None, None
            if self.planned is not None:
                drawn = self._by_plan(self.planned, count)
            elif self._cover.walk is not None:
                cover = self._cover.state
                drawn = self._covering(count)
            by_priority = drawn is None
            if drawn is None:
                drawn = self._by_priority(count, self._drawn)
            draws = Draws(self._batches, self._drawn, *drawn, self._mine, cover)
            self._stale = draws if by_priority and self._singles_go_stale else None
            self._drawn += draws.everyones
            self._batches += 1
            self._journal.append(draws)
            return draws

    def priorities_changed(self) -> None:
        """Takes back the single draws that the loader has not taken yet."""
        if self._stale is None:
            return
        with self._store.lock:
            if self._stale is not None:
                self._drawn = self._stale.first + self._journal.cut(self._stale)
                self._stale = None

    def _stretch(self) -> int:
        """How many single draws to make at once."""
        if self._cover.walk is not None:
            return 64
        ahead = (self._singles_go_stale and not self._policy_draws) or not self._store.policy.observes
        ranks = 1 if self._mine is None else self._mine.step
        return AHEAD - AHEAD % ranks if ahead else 1

    def _apply_losses(self) -> None:
        if self._lag is None:
            self._feedback.apply()
            return
        stepped = self._journal.consumed_batches
        if self._store.policy.observes and stepped < self._batches - self._lag:
            raise RuntimeError(
                f"lag = {self._lag}: batch {self._batches} is drawn when only {stepped} batches were stepped or "
                "skipped; pass as lag what the loader reads ahead, num_workers * prefetch_factor (here at least "
                f"{self._batches - stepped}), and call step(losses) or skip() once for every batch"
            )
        self._feedback.apply(self._batches - 1 - self._lag)

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
        probabilities = np.full(len(covered), 1.0 / len(self._store))
        rest = count - len(covered)
        if rest == 0 or self._batch_size is None:
            return covered, probabilities, None
        if self._scheme == SCHEMES["unique"]:
            drawn, of_drawn = self._others_of_group(covered, rest)
            return np.concatenate([covered, drawn]), np.concatenate([probabilities, of_drawn]), None
        drawn, of_drawn, weights = self._by_priority(rest, self._drawn + len(covered))
        if weights is not None:
            weights = np.concatenate([np.ones(len(covered), np.float32), weights])
        return np.concatenate([covered, drawn]), np.concatenate([probabilities, of_drawn]), weights

    def _others_of_group(self, covered: Int64, count: int) -> tuple[Int64, Float64]:
        """Scheme "unique", where covering ends inside a batch: of a whole group, ``count`` that are not covered."""
        drawn, probabilities, _ = self._by_priority(count + len(covered), self._drawn)
        others = np.flatnonzero(~np.isin(drawn, covered))[:count]
        return drawn[others], probabilities[others]

    def _by_priority(self, count: int, offset: int) -> tuple[Int64, Float64, Float32 | None]:
        store, policy = self._store, self._store.policy
        drawn = None
        if self._policy_draws:
            drawn = policy.draw(store, count, store.clock, Rng(self.seed, self.number, offset, "draw"))
        if drawn is None:
            group = self._batch_size or 1  # of no meaning to the schemes of single draws
            drawn = store.tree.sample_checked(count, self.seed, self.number, offset, self._scheme, group)
        return *drawn, policy.weights(store.columns, *drawn, store.clock)


def _times(first: Float32 | None, second: Float32 | None) -> Float32 | None:
    """The product of weights, None being all one."""
    if first is None or second is None:
        return second if first is None else first
    return first * second
