"""InfoBatch: leave out some of the easy examples each epoch and rescale the others of their kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio.policies.base import OUT, TRAIN, TRAIN_RESCALED, Clock, Columns, Observation, Plan, Policy, register

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("infobatch")
class InfoBatch(Policy):
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

    columns = {"loss": "float32"}  # noqa: RUF012 (never changed)
    needs_epochs = True

    def __init__(self, ratio: float = 0.5, delta: float = 0.875) -> None:
        if not 0 <= ratio <= 0.9:
            raise ValueError(f"ratio = {ratio}: expected 0 <= ratio <= 0.9")
        if not 0 <= delta <= 1:
            raise ValueError(f"delta = {delta}: expected 0 <= delta <= 1")
        self.ratio, self.delta = ratio, delta

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the last loss."""
        if obs.origin != "reference":
            columns["loss"][indices] = obs.loss  # numpy writes in order: the last duplicate stays
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Prunes, in all but the last epochs."""
        epochs = store.epochs or 1
        if clock.epoch + 1 > self.delta * epochs or self.ratio == 0:
            return Plan()
        loss, seen = store.column("loss"), store.seen()
        mean = loss.mean(dtype=np.float64, where=seen) if seen.any() else 0.0
        below = np.flatnonzero(seen & (loss < mean))
        codes = np.full(len(store), TRAIN, np.uint8)
        if len(below) < 2:
            return Plan(codes)
        kept = max(1, int((1 - self.ratio) * len(below) + 1e-9))  # 1 - 0.8 is a little less than 0.2
        codes[below] = OUT
        codes[below[rng.choose(len(below), kept)]] = TRAIN_RESCALED
        return Plan(codes, weights=(0.0, 1.0, len(below) / kept, 0.0))
