"""StaleSelectiveBackprop: each epoch trains the examples whose remembered loss is high among all, by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._arrays import integer
from fastprio.policies.arguments import real
from fastprio.policies.base import OUT, SCORE, TRAIN, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import accepted, codes_of, highest, shares_below

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("stale_sb")
class StaleSelectiveBackprop(Policy):
    """Selective-Backprop on remembered losses: example i is trained on in an epoch with chance P_i.

    P_i = (share of all remembered losses that are below loss_i)^beta. The others are left out, unforwarded, until their
    loss would be ``staleness`` epochs old at the next decision: then they are forwarded at the epoch's end, just before
    it (``PriorityLoader.score``). So no decision is made by a loss that old, if each epoch is scored and stepped.

    Args:
        beta: >= 0; about 1 / (beta + 1) of the examples are trained on; 0 trains on all.
        staleness: in [1, 255] epochs; 1 forwards everything each epoch, those trained on too.
        least_chance: in [0, 1], of any example; with 0 the smallest loss is never trained on.

    An example never scored is trained on. Where none would be, and none scored, the one of the largest loss is.
    Losses of training and of a score pass count. Cost: 5 bytes an example.
    Source: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019, arXiv 1910.00762;
    beta 3 is its code's default, staleness 3 its command's (2 its library's). There losses are compared with the last
    1,024 that were seen, and its stale variant gives losses to the wrong examples and forwards all of them.
    """

    columns = {"loss": "float32", "age": "uint8"}  # noqa: RUF012 (never changed)
    acts = "epoch"
    shardable = False
    forwards = "the left-out, every few epochs"
    infallible = True

    def __init__(self, beta: float = 3.0, staleness: int = 3, least_chance: float = 0.0) -> None:
        self.beta, self.staleness = real("beta", beta, 0), integer("staleness", staleness, 1, 255)
        self.least_chance = real("least_chance", least_chance, 0, 1)

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the last loss, and how old it will be, in epochs, when the next plan is made."""
        if obs.origin != "reference":
            columns["loss"][indices] = obs.loss  # numpy writes in order: the last duplicate stays
            columns["age"][indices] = 1 if obs.origin == "train" else 0  # a score pass comes just before that plan
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Accepts or leaves out, once for every example."""
        loss, age, seen = store.column("loss"), store.column("age"), store.seen()
        trained = ~seen
        shares = shares_below(loss[seen], rng)
        trained[seen] = accepted(shares, self.beta, rng.random(len(shares)), self.least_chance)
        due = ~trained & (age >= self.staleness - 1)
        if not trained.any() and not due.any():
            trained = highest(loss, 1, rng)
        codes = codes_of(trained, OUT)
        codes[due] = SCORE
        np.add(age, 1, out=age, where=seen & (age < 255))
        return Plan(codes, score=(SCORE, TRAIN) if self.staleness == 1 else (SCORE,))
