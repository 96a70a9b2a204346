"""Instance-dependent early stopping: an example whose loss has stopped changing is not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel
from fastprio.policies.arguments import real
from fastprio.policies.base import SCORE, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import codes_of, push

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _flat(ring: Float32, counts: Uint8, smooth: int, threshold: float, flat: Any) -> None:
    width = ring.shape[1]
    for i in range(counts.size):
        flat[i] = False
        if counts[i] < width:
            continue
        place = (np.int64(counts[i]) - 1) % width  # of the last loss
        later, last, total = 0.0, 0.0, 0.0
        for k in range(smooth + 2):  # back from the last loss
            loss = np.float64(ring[i, place])
            if k >= 2:
                total += abs(later - 2.0 * last + loss)
            later, last = last, loss
            place = place - 1 if place > 0 else width - 1
        flat[i] = total / smooth < threshold


@register("ies")
class InstanceEarlyStopping(Policy):
    """Leaves out the examples whose loss has become flat: the mean of the last |second differences| < threshold.

    With D_t = loss_t - 2 loss_(t-1) + loss_(t-2) over an example's own losses, it is left out where the mean of the
    last ``smooth`` |D| is below ``threshold``. What is left out is forwarded at the epoch's end (code SCORE), and the
    set is made from scratch each epoch, so that an example whose loss moves again comes back. Where all are left out
    the epoch is empty. No example has another weight than 1.

    Args:
        threshold: > 0, in units of the loss; the paper's delta.
        smooth: in [1, 124]. With 3, the rule as its code has it, nothing is left out before its sixth loss: one more
            second difference than are averaged. With 1, the paper's rule to the letter, from the third loss on.

    Losses of training and of scoring count, each a value of its own. An example with fewer losses is trained on.
    Flat is not learnt: a mislabeled example that stays at a high loss is left out too. Cost: 4 (smooth + 3) + 1 bytes
    an example (25; with smooth 1: 13).
    Source: Yuan et al., "Instance-dependent Early Stopping", ICLR 2025; threshold 1e-3 and smooth 3 are its code's for
    CIFAR-10 (twice the threshold for CIFAR-100). That code keeps its smaller set when nothing is left out any more;
    here everything is trained on then.
    """

    acts = "epoch"
    shardable = False
    forwards = "the left-out, each epoch"
    infallible = True

    def __init__(self, threshold: float = 1e-3, smooth: int = 3) -> None:
        self.threshold, self.smooth = real("threshold", threshold, 0, above=True), integer("smooth", smooth, 1, 124)
        width = self.smooth + 3 if self.smooth > 1 else 3
        # Never of 16 bits: the differences of a high loss would be rounded to zero.
        self.columns = {"losses": ("float32", width), "count": "uint8"}

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the last losses."""
        if obs.origin != "reference":
            push(columns["losses"], columns["count"], indices, obs.loss)
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Leaves out what is flat now."""
        flat = np.empty(len(store), bool)
        _flat(store.column("losses"), store.column("count"), self.smooth, self.threshold, flat)
        return Plan(codes_of(~flat, SCORE), score=(SCORE,))
