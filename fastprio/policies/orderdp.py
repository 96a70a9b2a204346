"""OrderDP: the largest losses of a random half."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Plan, register
from fastprio.policies.last_loss import LastLoss
from fastprio.policies.primitives import at_least_one, codes_of, highest, uniformly, unseen_first

if TYPE_CHECKING:
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("orderdp")
class OrderDP(LastLoss):
    """Each epoch takes a uniform pool of floor(pool * N) examples, of which the share ``keep`` of largest last loss.

    floor(keep * floor(pool * N)) examples are trained on, at least one. No weights, no annealing: the mean over them is
    an unbiased estimate not of the mean loss but of one that favours large losses, and so wrong labels.

    Args:
        pool: share of the examples in an epoch's pool, in (0, 1].
        keep: share of the pool that is trained on, in (0, 1].

    An example never scored counts as the largest loss; among equal ones chance decides. Cost: 4 bytes an example.

    Source: "OrderDP", ICLR 2026, as secondary notes tell it; pool = 0.5 and keep = 0.6 are its defaults there. It takes
    a pool an iteration; this takes one an epoch, of the same shares.
    """

    acts = "epoch"

    def __init__(self, pool: float = 0.5, keep: float = 0.6) -> None:
        self.pool, self.keep = real("pool", pool, 0, 1, above=True), real("keep", keep, 0, 1, above=True)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """The pool, and the top of it."""
        size = len(store)
        pooled = at_least_one(size, self.pool)
        pool = uniformly(pooled, rng, np.ones(size, bool))
        losses = unseen_first(store.column("loss"), store.seen())
        return Plan(codes_of(highest(losses, at_least_one(pooled, self.keep), rng, among=pool)))
