"""LossEMA: Evolved Sampling; priority is a blend of the last loss and the moving average before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import get_bit, kernel, put_bit
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import LEAST, lowest, packed, share_of
from fastprio.policies.schedules import annealing

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _observe(
    average: Float32,
    score: Float32,
    seen: Uint8,
    aside: Uint8,
    indices: Int64,
    loss: Float32,
    beta1: float,
    beta2: float,
    priorities: Float32,
) -> None:
    for j in range(indices.size):
        i = indices[j]
        before = np.float64(average[i]) if get_bit(seen, i) else 1.0 / average.size
        put_bit(seen, i, True)  # a later row may be of the same example
        score[i] = np.float32(beta1 * before + (1.0 - beta1) * loss[j])
        average[i] = np.float32(beta2 * before + (1.0 - beta2) * loss[j])
        out = aside.size > 0 and get_bit(aside, i)
        priorities[j] = np.float32(0.0 if out else max(np.float64(score[i]), LEAST))


@register("evolved")
class LossEMA(Policy):
    """Priority w_i = beta1 s_i + (1 - beta1) loss_i, with s_i <- beta2 s_i + (1 - beta2) loss_i after it.

    s begins at 1 / N. In w the loss counts at once and s, the average before it, smooths: w answers to how the loss
    changes too. With ``prune`` it is ESWP: from the second epoch on, the examples of the lowest s are set aside until
    the next epoch's start: priority zero, whatever losses come for them meanwhile. The epoch has as many draws.

    Args:
        beta1, beta2: in [0, 1].
        prune: in [0, 1), share of the examples scored that an epoch sets aside; 0 is ES.
        burn_in: >= 0, epochs of uniform training at first.
        anneal: in [0, 1], share of the last epochs that train uniformly; above 0 it needs ``epochs=``.

    Losses are >= 0; ValueError otherwise. What is not set aside stays drawable, also with loss 0. No weights. An
    example never scored has priority 1 once covering is over, and is not set aside.

    Cost: 8 bytes an example beside the tree, and a bit with ``prune``.

    Source: "Evolved Sampling" (ES and ESWP), arXiv 2509.23461; beta1 = 0.2 and beta2 = 0.8 are its setting for all data
    sets as a reviewer states it, the other defaults switch parts off and are ours. ES draws from a batch that was just
    forwarded; this draws from all examples by the w that they had when last trained on, without that pass.
    """

    acts = "draw"
    least_loss = 0.0
    infallible = True

    def __init__(
        self, beta1: float = 0.2, beta2: float = 0.8, prune: float = 0.0, burn_in: int = 0, anneal: float = 0.0
    ) -> None:
        self.beta1, self.beta2 = real("beta1", beta1, 0, 1), real("beta2", beta2, 0, 1)
        self.prune, self.anneal = real("prune", prune, 0, 1, below=True), real("anneal", anneal, 0, 1)
        self.burn_in = integer("burn_in", burn_in, 0)
        self.needs_epochs = self.anneal > 0
        self.columns = {"average": "float32", "score": "float32", **({"aside": "bit"} if self.prune else {})}

    @property
    def needs_repeats(self) -> bool:
        """With ``prune``."""
        return self.prune > 0

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Moves s and w, of losses from training and from scoring alike, and returns w."""
        if obs.origin == "reference":
            return None
        priorities = np.empty(indices.size, np.float32)
        aside = columns["aside"] if self.prune else np.empty(0, np.uint8)
        average, score, seen = columns["average"], columns["score"], columns["seen"]
        _observe(average, score, seen, aside, indices, obs.loss, self.beta1, self.beta2, priorities)
        return priorities

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Sets some aside, or trains uniformly at the begin and the end."""
        last = self.anneal > 0 and annealing(clock.epoch, 1 - self.anneal, store.epochs or 1)
        uniform = clock.epoch < self.burn_in or last
        if self.prune:
            self._set_aside(store, 0.0 if uniform or clock.epoch == 0 else self.prune, rng)
        return Plan() if uniform else None

    def _set_aside(self, store: ScoreStore, share: float, rng: Rng) -> None:
        """Those of the last epoch come back, with the w that they have by now."""
        seen = store.seen()
        n = int(np.count_nonzero(seen))
        count = min(share_of(n, share), max(n - 1, 0))  # one stays, however close to 1 the share is
        aside = lowest(store.column("average"), count, rng, among=seen)
        store.column("aside")[:] = packed(aside)
        priorities = np.where(seen, np.maximum(store.column("score"), np.float32(LEAST)), store.priorities)
        priorities[aside] = 0
        store.tree.fill(priorities)
