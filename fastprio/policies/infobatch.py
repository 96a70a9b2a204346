"""InfoBatch: leave out some of the easy examples each epoch and rescale the others of their kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Plan, register
from fastprio.policies.last_loss import LastLoss
from fastprio.policies.primitives import pruned
from fastprio.policies.schedules import annealing

if TYPE_CHECKING:
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("infobatch")
class InfoBatch(LastLoss):
    """Each epoch leaves out a random share of the examples whose last loss is below the mean.

    With W = {i: loss_i < mean loss}, k = floor((1 - ratio) |W|) of W are kept, chosen uniformly, with weight
    |W| / k; all others are kept with weight 1. So the expected weighted sum over the epoch is the sum over all
    examples. The last epochs, from ``delta * epochs`` on, use everything with weight 1.

    Args:
        ratio: share of W that is left out, in [0, 0.9].
        delta: share of the epochs that prune, in [0, 1].

    An example never scored is kept. Needs ``epochs=``. Cost: 4 bytes an example.
    Source: Qin et al., "InfoBatch", ICLR 2024; ratio 0.5 and delta 0.875 are its code's defaults. That code weighs
    with 1 / (1 - ratio), which |W| / k approaches; an unscored example has loss 3.0 there.
    """

    acts = "epoch, weight"
    needs_epochs = True

    def __init__(self, ratio: float = 0.5, delta: float = 0.875) -> None:
        self.ratio, self.delta = real("ratio", ratio, 0, 0.9), real("delta", delta, 0, 1)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Prunes, in all but the last epochs."""
        if annealing(clock.epoch, self.delta, store.epochs or 1) or self.ratio == 0:
            return Plan()
        loss, seen = store.column("loss"), store.seen()
        mean = loss.mean(dtype=np.float64, where=seen) if seen.any() else 0.0
        return Plan(*pruned(seen & (loss < mean), self.ratio, rng))
