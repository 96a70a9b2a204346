"""OnlineDataMixing: a bandit that draws the groups from which there is most to learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Columns, Observation, register
from fastprio.policies.grouped import Grouped, means_by_group, softmax

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng


@register("odm")
class OnlineDataMixing(Grouped):
    """Group k is drawn with pi_k, the Exp3 bandit's law for rewards that are moving averages of its losses.

    After each update, for the K groups and those of them that are in the batch (loss_k: the mean over its rows there):
    R_k <- alpha R_k + (1 - alpha) scale loss_k / pi_k, and then, with t = 1, 2, ... updates since the warm-up,
    pi_k = (1 - K eps_t) exp(eps_{t-1} R_k) / sum_j exp(eps_{t-1} R_j) + eps_t. The share that is drawn uniformly is
    eps_t = min(1 / K, max(floor, sqrt(ln K / (K t)))), eps_0 = 1 / K. K and the sum are of the groups with examples.

    Args:
        groups: integers [N] in [0, count), each example's group. None: all are in group 0 until
            ``store.column("group")[:] = ...`` and ``store.policy.regroup(store)``; so are those that a store grows by.
        count: how many groups there are, in [1, 65536]; some may be empty.
        alpha: in [0, 1): share of the old reward. scale: in (0, 1e100], of the losses.
        floor: in [0, 1], the least eps; 1 / K where that is smaller.
        warm_up: >= 0 updates that learn nothing and draw the groups in proportion to their sizes.

    Only losses of training count, as only those are drawn by pi; pass ``cover_first=False`` to the sampler, or let the
    warm-up be as long as the first epoch. Cost: 6 bytes an example, 24 a group.
    Source: Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", arXiv 2312.02406, as ported
    by DataFlex; alpha 0.9, scale 15, floor 0.03 and warm_up 2000 are that port's defaults, scale and floor its own. It
    also bounds R by 10^4 and the exponents by -5, and has a group a batch; here eps never exceeds 1 / K.
    """

    example = {"groups": None, "count": 4}  # noqa: RUF012
    acts = "draw"
    infallible = True

    def __init__(
        self,
        groups: Any,
        count: int,
        *,
        alpha: float = 0.9,
        scale: float = 15.0,
        floor: float = 0.03,
        warm_up: int = 2000,
    ) -> None:
        super().__init__(groups, count)
        self.alpha, self.scale = real("alpha", alpha, 0, 1, below=True), real("scale", scale, 0, 1e100, above=True)
        self.floor, self.warm_up = real("floor", floor, 0, 1), integer("warm_up", warm_up, 0)
        self.state.update(reward=np.zeros(self.count), pi=np.zeros(self.count), updates=0)

    def eps(self, t: int, count: int) -> float:
        """The least probability of a group after t updates, of ``count`` that have examples."""
        if t == 0:
            return 1 / count
        return min(1 / count, max(self.floor, math.sqrt(math.log(count) / (count * t))))

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Moves the rewards of the groups in the batch, and pi."""
        means, rows = np.zeros(self.count), np.zeros(self.count, np.int64)
        means_by_group(columns["group"], indices, obs.loss, means, rows)
        if obs.origin != "train" or not indices.size:
            return None
        pi = self.p()
        self.state["updates"] += 1
        t = self.state["updates"] - self.warm_up
        if t > 0:
            reward = self.state["reward"]
            here = (rows > 0) & (pi > 0)  # not of a group that has its first examples: it was drawn otherwise
            reward[here] = self.alpha * reward[here] + (1 - self.alpha) * self.scale * means[here] / pi[here]
            present = self.sizes > 0
            count = int(np.count_nonzero(present))
            eps = self.eps(t, count)
            law = (1 - count * eps) * softmax(self.eps(t - 1, count) * reward[present]) + eps
            self.state["pi"][:] = 0
            self.state["pi"][present] = law
        return None

    def p(self) -> Float64:
        """The law of the next draws."""
        sizes = self.sizes
        pi: Float64 = np.where(sizes > 0, self.state["pi"], 0.0)
        if self.state["updates"] <= self.warm_up or not pi.any():
            pi = sizes.astype(np.float64)
        pi /= pi.sum()
        return pi
