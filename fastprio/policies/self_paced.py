"""Self-paced learning: train on what is easy enough, where "enough" grows over training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio.policies.base import SCORE, Clock, Plan, register
from fastprio.policies.last_loss import LastLoss
from fastprio.policies.primitives import codes_of
from fastprio.policies.schedules import exponential, span

if TYPE_CHECKING:
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("self_paced")
class SelfPaced(LastLoss):
    """Trains on an example iff its last loss is below lambda, which grows over training.

    lambda goes from the first threshold to the second by equal factors: start * (end / start)^progress, with the
    progress at the epoch's start, so that the last of T epochs has (T - 1) / T. The others are forwarded at the
    epoch's end (code SCORE), as their losses would go stale otherwise. Weights are 1.

    Args:
        threshold: (start, end), 0 < start <= end, in units of the loss; or a number, which stays.

    An example never scored is trained on. Needs ``epochs=``. Cost: 4 bytes an example.
    Source: Kumar et al., "Self-Paced Learning for Latent Variable Models", NIPS 2010; hard weights 1[loss < lambda]
    and a growing lambda are its scheme as it is known from memory, not checked against the text. The values, the
    growth over epochs and the pass over what is left out are ours.
    """

    example = {"threshold": (0.5, 4.0)}  # noqa: RUF012
    acts = "epoch"
    forwards = "the left-out, each epoch"
    needs_epochs = True

    def __init__(self, threshold: float | tuple[float, float]) -> None:
        self.threshold = span("threshold", threshold, least=0)
        start, end = self.threshold if isinstance(self.threshold, tuple) else (self.threshold, self.threshold)
        if not 0 < start <= end:
            raise ValueError(f"threshold = {threshold}: expected 0 < start <= end")

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Leaves out what is too hard as yet."""
        easy = store.column("loss") < np.float64(exponential(self.threshold, clock.progress))
        return Plan(codes_of(easy | ~store.seen(), SCORE), score=(SCORE,))
