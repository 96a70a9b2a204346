"""EL2N: train on the examples whose predictions were furthest from their labels early in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._kernels import kernel
from fastprio._random import Rng
from fastprio.policies.arguments import real
from fastprio.policies.base import TRAIN, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import at_least_one, codes_of, highest, share_of

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64
    from fastprio.store import ScoreStore


@kernel
def _average(indices: Int64, values: Float32, mean: Float32, count: Any) -> None:
    for j in range(indices.size):
        i = indices[j]
        if count[i] < 65535:
            count[i] += 1
        mean[i] = np.float32(mean[i] + (np.float64(values[j]) - mean[i]) / count[i])


@register("el2n")
class EL2N(Policy):
    """Score: ||p - one_hot(label)||_2, averaged over runs. Trains on the highest scores.

    Of N examples the floor(skip N) highest are left out and the next floor(keep N) (at least one) trained on; equal
    scores by chance, the same in every epoch. While an example has no score, everything is trained on and scored at
    the epoch's end.

    Args:
        keep: share of the examples that is trained on, in (0, 1].
        skip: share of the highest scores that is left out as probably noise, in [0, 1 - keep].

    The score is meant as an average over about ten models, each trained for a few epochs: give the values of such
    models as origin "reference" before the first epoch. A "score" pass of this run adds to the same mean; training
    does not. Scores that come later change the set at the next epoch. An example without a score is trained on.
    Cost: 6 bytes an example.

    Source: Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021; it averages over 10 runs. keep depends on the
    data and has no default (the paper keeps half of CIFAR-10); skip is an option there, 0 here.
    """

    columns = {"mean": "float32", "count": "uint16"}  # noqa: RUF012 (never changed)
    requires = ("error_norm",)
    example = {"keep": 0.5}  # noqa: RUF012
    acts = "epoch"
    shardable = False
    forwards = "all, once"
    infallible = True

    def __init__(self, keep: float, skip: float = 0.0) -> None:
        self.keep, self.skip = real("keep", keep, 0, 1, above=True), real("skip", skip, 0)
        if not self.skip <= 1 - self.keep + 1e-9:
            raise ValueError(f"skip = {skip}: expected 0 <= skip <= 1 - keep")

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Adds what was not seen in training to the mean."""
        if obs.origin != "train" or not indices.size:
            _average(indices, obs.error_norm, columns["mean"], columns["count"])
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Everything, to be scored, or those of the highest scores that are not the very highest."""
        if not store.column("count").all():
            return Plan(score=(TRAIN,))
        same = Rng(rng.seed, 0, 0, "plan")  # so that the set stays while the scores do
        n, mean = len(store), store.column("mean")
        skipped = min(share_of(n, self.skip), n - 1)  # one is left, however small keep is
        top = highest(mean, skipped + at_least_one(n, self.keep), same)
        return Plan(codes_of(top & ~highest(mean, skipped, same, among=top)))
