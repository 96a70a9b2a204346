"""RandomSubset: a random part of the examples each epoch, the baseline that every method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._random import Rng
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock, Plan, Policy, register
from fastprio.policies.primitives import at_least_one, codes_of

if TYPE_CHECKING:
    from fastprio.store import ScoreStore


@register("random_subset")
class RandomSubset(Policy):
    """Each epoch trains on n = floor(keep * N) examples, at least one, chosen uniformly, with weight 1.

    The epochs of a round take successive parts of one random order of all examples: floor(N / n) epochs, in which no
    example comes twice. What is left over of the order is not used; the next round has another one.

    Args:
        keep: share of the examples in an epoch, in (0, 1].
        fresh: choose anew each epoch, whatever the epochs before had.

    Keeps nothing and observes nothing: the epoch's number and the seed say which part it is, so a resume needs nothing
    either. A resized store has other orders. Cost: no bytes an example.

    Source: Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024,
    arXiv 2305.18424; both variants are its own, without replacement being its main one. keep has no default there.
    """

    example = {"keep": 0.25}  # noqa: RUF012 (never changed)
    acts = "epoch"
    shardable = False

    def __init__(self, keep: float, fresh: bool = False) -> None:
        self.keep, self.fresh = real("keep", keep, 0, 1, above=True), flag("fresh", fresh)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """The epoch's part."""
        size = len(store)
        count = at_least_one(size, self.keep)
        turn, part = divmod(clock.epoch, size // count)
        # Step 1, because plans are made with the bits of step 0.
        order = rng if self.fresh else Rng(rng.seed, turn, 1, "plan")
        trained = np.zeros(size, bool)
        trained[order.permutation(size, 0 if self.fresh else part * count, count)] = True
        return Plan(codes_of(trained))
