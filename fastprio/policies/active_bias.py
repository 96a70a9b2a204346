"""ActiveBias: weigh (or draw) examples by how much their predictions have varied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _add(indices: Int64, p: Float32, n: Any, mean: Float64, squares: Float64) -> None:
    # Welford's sums: as exact as those from the whole history.
    for j in range(indices.size):
        i = indices[j]
        if n[i] == 65535:
            continue
        n[i] += 1
        value = np.float64(p[j])
        delta = value - mean[i]
        mean[i] += delta / n[i]
        squares[i] += delta * (value - mean[i])


@kernel
def _spread(indices: Int64, n: Any, squares: Float64, smoothness: float, out: Any) -> None:
    for j in range(indices.size):
        i = indices[j]
        count = np.float64(n[i])
        spread = smoothness
        if count > 1.0:
            variance = squares[i] / count
            spread += np.sqrt(variance + variance * variance / (count - 1.0))
        out[j] = spread


@register("active_bias")
class ActiveBias(Policy):
    """Weight sqrt(var + var^2 / (n - 1)) + smoothness, scaled to a mean of one over the batch.

    var is the population variance of the n values of p(label) at an example's presentations in training; with n < 2
    the weight is ``smoothness`` alone. Every epoch has all examples once, in random order; the first ``warm_up``
    epochs have weights 1. A batch whose weights would all be zero has weights 1.

    Args:
        smoothness: in [0, 1000], in units of a standard deviation of p(label); the paper's epsilon.
        warm_up: uniform epochs at the beginning, >= 0.
        draws: after them, draw in proportion to the same quantity, with weights 1, instead. Needs smoothness > 0, so
            that everything can be drawn. An example never scored is then drawn as one of the largest variance.

    Only training counts, up to 65,535 presentations. Where it weighs, an example never scored has the weight
    ``smoothness``. Cost: 18 bytes an example, beside the tree.

    Source: Chang et al., "Active Bias: Training More Accurate Neural Networks by Emphasizing High Variance Samples",
    NeurIPS 2017; the formula, smoothness 0 and 10 epochs of warm-up are those of the code of Song et al. (arXiv
    1911.08050), which compares with it. That drawing takes the same quantity as weighing is not verified.
    """

    columns = {"n": "uint16", "mean": "float64", "squares": "float64"}  # noqa: RUF012 (never changed)
    requires = ("p_label",)
    acts = "draw, weight"
    infallible = True

    def __init__(self, smoothness: float = 0.0, warm_up: int = 10, draws: bool = False) -> None:
        self.smoothness, self.draws = real("smoothness", smoothness, 0, 1000), flag("draws", draws)
        if self.draws and not np.float32(self.smoothness) > 0:
            raise ValueError(f"smoothness = {smoothness}: expected a number > 0 with draws=True")
        self.warm_up = integer("warm_up", warm_up, 0)

    @property
    def by_batch(self) -> bool:
        """Where it weighs."""
        return not self.draws

    def _spreads(self, columns: Columns, indices: Int64, dtype: type[np.floating[Any]]) -> Any:
        spreads = np.empty(indices.size, dtype)
        _spread(indices, columns["n"], columns["squares"], self.smoothness, spreads)
        return spreads

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Adds the presentations of training."""
        if obs.origin != "train":
            return None
        _add(indices, obs.p_label, columns["n"], columns["mean"], columns["squares"])
        return self._spreads(columns, indices, np.float32) if self.draws else None

    def unseen(self) -> float:
        """That of the largest variance, 1/4."""
        return 0.5 + self.smoothness

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Everything once, but where it draws."""
        return None if self.draws and clock.epoch >= self.warm_up else Plan()

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """The batch's, of mean one."""
        if (self.draws or clock.epoch < self.warm_up) and indices.size:
            return None
        spreads = self._spreads(columns, indices, np.float64)
        largest = spreads.max(initial=0.0)
        if largest == 0:
            return np.ones(indices.size, np.float32)
        spreads /= largest  # so that no mean is too small to divide by
        weights: Float32 = (spreads / spreads.mean()).astype(np.float32)
        return weights
