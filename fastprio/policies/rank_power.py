"""RankPower: priority is a power of the rank by loss, as in rank-based prioritized experience replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._kernels import kernel, power
from fastprio.policies.arguments import flag, real
from fastprio.policies.base import Clock, register
from fastprio.policies.importance import Importance
from fastprio.policies.last_loss import LastLoss
from fastprio.policies.primitives import LEAST, ranking, unseen_first
from fastprio.policies.schedules import span

if TYPE_CHECKING:
    from fastprio._arrays import Float32
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _priorities(order: Any, alpha: float, priorities: Float32) -> None:
    for k in range(order.size):
        priorities[order[k]] = np.float32(max(power(np.float64(k + 1), -alpha), LEAST))


@register("rank_power")
class RankPower(Importance, LastLoss):
    """Priority p_i = rank_i^-alpha (rank 1: the largest last loss), drawn with P(i) = p_i / sum p; weight (N P)^-beta.

    Examples are ranked at every epoch's start. Losses that come within an epoch leave the ranks as they are until the
    next one. Ranks depend on the order of losses alone, so that outliers count for no more than their place.

    Args:
        alpha: >= 0; 0 draws uniformly.
        beta: >= 0, how much of the bias the weights take away, as in LossPower; a pair goes linearly from the first to
            the second over training, and stays at the first where the store has no ``epochs=``.
        max_normalize: divide a batch's weights by the largest, as the paper does.

    An example never scored ranks before all others, and equal losses in random order. Pass ``abs(td_error)`` for
    temporal differences.

    Cost: 4 bytes an example beside the tree.

    Source: Schaul et al., "Prioritized Experience Replay", arXiv 1511.05952, rank-based variant; alpha and beta have no
    defaults because the paper's for this variant were not verified. It ranks by a heap that is sorted now and then,
    this by a sort an epoch.
    """

    example = {"alpha": 0.7, "beta": (0.5, 1.0)}  # noqa: RUF012
    acts = "draw, weight"

    def __init__(self, alpha: float, beta: float | tuple[float, float], max_normalize: bool = False) -> None:
        self.alpha, self.beta = real("alpha", alpha, 0), span("beta", beta, least=0)
        self.max_normalize = flag("max_normalize", max_normalize)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> None:
        """Ranks, and sets all priorities."""
        priorities = np.empty(len(store), np.float32)
        _priorities(ranking(unseen_first(store.column("loss"), store.seen()), rng), self.alpha, priorities)
        store.tree.fill(priorities)
