"""GroupDRO: draw the groups whose loss is largest, for the worst group's sake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock, Columns, Observation, Plan, register
from fastprio.policies.grouped import Grouped, means_by_group, softmax

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("group_dro")
class GroupDRO(Grouped):
    """Group k is drawn with p_k ~ exp(L_k / temperature), then one of its examples uniformly.

    L_k is a moving average of the mean losses of the group's rows in a batch: L_k <- ema L_k + (1 - ema) mean. A group
    that was never observed has the share 1 / (number of groups with examples), and the others divide the rest.

    Args:
        groups: integers [N] in [0, count), each example's group. None: all are in group 0 until
            ``store.column("group")[:] = ...`` and ``store.policy.regroup(store)``; so are those that a store grows by.
        count: K, how many groups there are, in [1, 65536]; some may be empty.
        temperature: > 0, in units of the loss; small draws the worst group, large all alike.
        ema: in [0, 1): share of the old value; 0 remembers the last batch's mean.
        reweight: True visits every example once an epoch, uniformly, and gives it the weight p_k N / N_k instead of
            drawing by it; the mean weight over all examples is one.

    Losses of training and of a score pass count. Cost: 6 bytes an example, 17 a group.
    Source: Task-Robust Pre-Training, NeurIPS 2023, arXiv 2306.12070; "softmax weighted gradient descent" on a minimax
    of tasks' losses. The form here follows from that name and was not checked against its text; temperature, ema and
    the share of groups not yet observed are ours, so the first two have no defaults.
    """

    example = {"groups": None, "count": 4, "temperature": 1.0, "ema": 0.9}  # noqa: RUF012
    acts = "draw, weight"
    infallible = True

    def __init__(self, groups: Any, count: int, *, temperature: float, ema: float, reweight: bool = False) -> None:
        super().__init__(groups, count)
        self.temperature, self.ema = real("temperature", temperature, 0, above=True), real("ema", ema, 0, 1, below=True)
        self.reweight = flag("reweight", reweight)
        self.state.update(loss=np.zeros(self.count), observed=np.zeros(self.count, np.uint8))

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Moves the averages of the groups in the batch."""
        if obs.origin != "reference":
            means, rows = np.zeros(self.count), np.zeros(self.count, np.int64)
            means_by_group(columns["group"], indices, obs.loss, means, rows)
            loss, observed = self.state["loss"], self.state["observed"]
            here = rows > 0
            old = np.where(observed, self.ema, 0.0)
            loss[here] = (old * loss + (1 - old) * means)[here]
            observed[here] = 1
        return None

    @property
    def own_draws(self) -> bool:
        """Where it does not weigh."""
        return not self.reweight

    def p(self) -> Float64:
        """The softmax over the groups that were observed."""
        present = self.sizes > 0
        known = present & (self.state["observed"] > 0)
        p: Float64 = present / np.count_nonzero(present)
        if known.any():
            p[known] = p[known].sum() * softmax(self.state["loss"][known], self.temperature)
        return p

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Everything once, where weights do the work."""
        super().plan(store, clock, rng)
        return Plan() if self.reweight else None

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """p_k N / N_k."""
        if not self.reweight:
            return None
        group = columns["group"]
        each = (self.p() * (group.size / np.maximum(self.sizes, 1))).astype(np.float32)
        weights: Float32 = each[group[indices]]
        return weights
