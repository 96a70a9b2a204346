"""SeTa: a window of difficulty that moves from easy to hard over the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._arrays import integer
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Plan, register
from fastprio.policies.last_loss import LastLoss
from fastprio.policies.primitives import at_least_one, clusters, codes_of, uniformly
from fastprio.policies.schedules import annealing

if TYPE_CHECKING:
    from fastprio._arrays import Float32
    from fastprio._random import Rng
    from fastprio.policies.primitives import Mask
    from fastprio.store import ScoreStore


@register("seta")
class SeTa(LastLoss):
    """Each epoch keeps floor((1 - ratio) N) examples uniformly, and of them those whose loss is in a moving window.

    The last losses of those kept are put into groups by k-means (from parts of equal size). Of G groups in order of
    their losses, epoch t takes w = round(G * window), at least one, from number t mod (G - w + 1) on; epoch 0 takes
    all. The last epochs, from ``delta * epochs`` on, take all that were kept uniformly. No weights.

    Args:
        ratio: share that is left out uniformly, in [0, 1).
        groups: >= 1; fewer where the losses have too few different values.
        window: share of the groups in an epoch, in (0, 1]. A half is rounded to the even number.
        delta: share of the epochs that have a window, in [0, 1].

    An example never scored is trained on if it is kept uniformly, and is in no group. Needs ``epochs=``. At least one
    example is kept. Cost: 4 bytes an example.

    Source: Zhou et al., "Scale Efficient Training for Large Datasets", CVPR 2025; the defaults are those of its code's
    scripts. That code has a loss also for what was never scored.
    """

    acts = "epoch"
    needs_epochs = True

    def __init__(self, ratio: float = 0.1, groups: int = 5, window: float = 0.9, delta: float = 0.875) -> None:
        self.ratio, self.groups = real("ratio", ratio, 0, 1, below=True), integer("groups", groups, 1)
        self.window, self.delta = real("window", window, 0, 1, above=True), real("delta", delta, 0, 1)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """The window of column "loss", whoever keeps it."""
        size = len(store)
        kept = uniformly(at_least_one(size, 1 - self.ratio), rng, np.ones(size, bool))
        if clock.epoch > 0 and not annealing(clock.epoch, self.delta, store.epochs or 1):
            kept &= ~store.seen() | self._in_window(store.column("loss"), kept & store.seen(), clock.epoch)
        return Plan(codes_of(kept))

    def _in_window(self, scores: Float32, among: Mask, epoch: int) -> Mask:
        """bool [n]: whose score is in the epoch's window of the scores ``among`` these."""
        values = np.sort(scores[among])
        if len(values) == 0:
            return among
        begins = clusters(values, self.groups)
        count = len(begins) - 1
        width = max(1, round(count * self.window))
        first = epoch % (count - width + 1)
        window: Mask = (scores >= values[begins[first]]) & (scores <= values[begins[first + width] - 1])
        return window
