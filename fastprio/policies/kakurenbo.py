"""KAKURENBO: hide the easiest examples that are surely right, and only forward them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel, put_bit
from fastprio.policies.arguments import real
from fastprio.policies.base import SCORE, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import codes_of, lowest, share_of, unpacked
from fastprio.policies.schedules import stepwise

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _observe(
    loss: Float32,
    correct: Uint8,
    confidence: Float32,
    indices: Int64,
    losses: Float32,
    corrects: Uint8,
    confidences: Float32,
) -> None:
    for j in range(indices.size):
        i = indices[j]
        loss[i] = losses[j]
        confidence[i] = confidences[j]
        put_bit(correct, i, corrects[j] != 0)


@register("kakurenbo")
class Kakurenbo(Policy):
    """Hides those of the F_t N lowest losses whose prediction is right and confident; they are forwarded at the end.

    F_t = fraction * stepwise(steps, epoch). Of the floor(F_t N) scored examples with the lowest last losses, those
    that were predicted right with a confidence of at least ``threshold`` are hidden for the epoch (code SCORE); the
    others of them, and all the rest, are trained on. Weights are 1; ``plan.info["lr_scale"]`` is what the learning
    rate is to be multiplied with instead: 1 / (1 - F_t) from epoch ``warm_up`` on, 1 before.

    Args:
        warm_up: epochs, >= 0, before the learning rate is scaled. The reference code warms its rate up in them.
        fraction: in [0, 1), the largest share that may be hidden.
        threshold: in [0, 1], of the confidence, the largest probability that the model gives a class.
        steps: (epoch, factor in [0, 1]), ascending: the factor of ``fraction`` from that epoch on; 1 before.

    ``step`` and ``score`` take ``correct`` and ``confidence`` beside the losses (``policies.observations`` makes
    both). An example never scored is trained on. Cost: 8 bytes and a bit an example.
    Source: Nguyen et al., "KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training", NeurIPS 2023;
    fraction 0.3, threshold 0.7 and the steps are those of its code for CIFAR-100. The length of the warm-up is the
    user's. A script of that code takes the softmax over the batch; here it is over the classes.
    """

    columns = {"loss": "float32", "correct": "bit", "confidence": "float32"}  # noqa: RUF012 (never changed)
    requires = ("correct", "confidence")
    example = {"warm_up": 1}  # noqa: RUF012
    acts = "epoch"
    shardable = False
    forwards = "the left-out, each epoch"
    infallible = True

    def __init__(
        self,
        warm_up: int,
        fraction: float = 0.3,
        threshold: float = 0.7,
        steps: Sequence[tuple[int, float]] = ((60, 0.8), (120, 0.6), (160, 0.4)),
    ) -> None:
        self.warm_up = integer("warm_up", warm_up, 0)
        self.fraction, self.threshold = real("fraction", fraction, 0, 1, below=True), real("threshold", threshold, 0, 1)
        try:
            self.steps = tuple((integer("epoch", epoch, 0), real("factor", factor, 0, 1)) for epoch, factor in steps)
        except (TypeError, ValueError) as error:
            raise ValueError(f"steps = {steps!r}: expected pairs (epoch, factor in [0, 1]); {error}") from error
        if any(later[0] <= earlier[0] for earlier, later in pairwise(self.steps)):
            raise ValueError(f"steps = {steps!r}: expected strictly ascending epochs")

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the last loss, and whether the prediction was right and how confident."""
        if obs.origin != "reference":
            known = columns["loss"], columns["correct"], columns["confidence"]
            _observe(*known, indices, obs.loss, obs.correct, obs.confidence)
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Hides, from scratch each epoch."""
        share = self.fraction * stepwise(self.steps, clock.epoch)
        hidden = lowest(store.column("loss"), share_of(len(store), share), rng, among=store.seen())
        hidden &= unpacked(store.column("correct"), len(store))
        hidden &= store.column("confidence") >= np.float32(self.threshold)
        scale = 1 / (1 - share) if clock.epoch >= self.warm_up else 1.0
        info = {"lr_scale": scale, "hidden": int(np.count_nonzero(hidden))}
        return Plan(codes_of(~hidden, SCORE), score=(SCORE,), info=info)
