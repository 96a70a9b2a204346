"""Multiplicative reweighting: every loss of an example lowers its weight by a factor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._kernels import kernel
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import TRAIN, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import exponential

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore

LEAST = 1.1754943508222875e-38  # of float32, normal: no weight is zero, however large the losses


@kernel
def _accumulate(cumulative: Float64, indices: Int64, loss: Float32, regularization: float) -> None:
    for j in range(indices.size):
        cumulative[indices[j]] = regularization * cumulative[indices[j]] + np.float64(loss[j])


@register("mr")
class MultiplicativeReweighting(Policy):
    """Examples are experts: with each loss, w_i becomes w_i^r exp(-eta loss_i), normalised, from equal weights on.

    What is kept is the cumulative loss, C_i = r C_i + loss_i, so that w_i ~ exp(-eta C_i). In a batch the weights are
    scaled to mean 1: the loss is sum w_i loss_i / sum w_i over the batch.

    Args:
        eta: >= 0, a unit of the loss's inverse.
        regularization: r in [0, 1]; below 1 it draws the weights towards equal ones, and old losses are forgotten.
        update: "score", at each epoch's end a pass over everything, without training, gives the losses; or "train",
            the losses of training do, of those trained on.
        draws: draw in proportion to w_i instead, as it is at each epoch's start, with weights 1; with update="train"
            only.

    An example never scored has C = 0. Every pass counts: two at an epoch's end add up. Cost: 8 bytes an example.
    Source: Bar et al., "Multiplicative Reweighting for Robust Neural Network Optimization", arXiv 2102.12192; eta 0.01,
    r = 1 and "score" are its code's. r < 1 is a form in which exponentiated gradient reweighting (Majidi et al., arXiv
    2104.01493) is remembered, not checked against its text; "train" and drawing are ours. That code's limit on weights
    and its decay of eta are not here. Its pass over everything is in training mode and so moves batch-norm statistics;
    ``PriorityLoader.score`` is in eval mode.
    """

    columns = {"cumulative": "float64"}  # noqa: RUF012 (never changed)
    acts = "draw, weight"
    shardable = False
    forwards = "all, each epoch; none with update='train'"
    infallible = True

    def __init__(
        self, eta: float = 0.01, regularization: float = 1.0, update: str = "score", draws: bool = False
    ) -> None:
        self.eta, self.regularization = real("eta", eta, 0), real("regularization", regularization, 0, 1)
        if update not in ("score", "train"):
            raise ValueError(f"update = {update!r}: expected 'score' or 'train'")
        self.update, self.draws = update, flag("draws", draws)
        if self.draws and update != "train":
            raise ValueError(f"draws = True: expected update = 'train' with it, got {update!r}")

    @property
    def by_batch(self) -> bool:
        """Where it weighs."""
        return not self.draws

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Adds the losses to the cumulative ones."""
        if obs.origin == self.update:
            _accumulate(columns["cumulative"], indices, obs.loss, self.regularization)
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Everything once, or fills the tree."""
        if not self.draws:
            return Plan(score=(TRAIN,) if self.update == "score" else ())
        cumulative = store.column("cumulative")
        weights = np.empty(len(store), np.float32)
        exponential(cumulative - cumulative.min(), -self.eta, weights)
        store.tree.fill(np.maximum(weights, LEAST))
        return None

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """exp(-eta C), of mean 1 in the batch."""
        if self.draws or not indices.size:
            return None
        cumulative = columns["cumulative"][indices]
        weights = np.empty(indices.size)
        exponential(cumulative - cumulative.min(), -self.eta, weights)  # the largest is 1: no sum is 0
        mean_one: Float32 = (weights / weights.mean()).astype(np.float32)
        return mean_one
