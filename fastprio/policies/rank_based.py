"""RankBased: online batch selection; an example's chance falls exponentially with its rank by loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._arrays import integer
from fastprio.policies.base import Clock, Plan, register
from fastprio.policies.last_loss import LastLoss
from fastprio.policies.primitives import distinct, geometric_probabilities, geometric_ranks, ranking, unseen_first
from fastprio.policies.schedules import Span, between, exponential, span

if TYPE_CHECKING:
    from fastprio._arrays import Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("rank")
class RankBased(LastLoss):
    """Draws the example of rank r (0: the largest last loss) with P ~ pressure^(-r / N).

    Examples are ranked at the epochs' starts, and the order stays until the next one. A batch has no example twice:
    draws are successive, without replacement. The probability that comes with a draw is that of a single draw.

    Args:
        pressure: >= 1; the first rank is pressure^(1 - 1/N) times as likely as the last; 1 is uniform. A pair goes by
            equal factors from the first value to the second, from the end of the warm-up to the end of training.
        refresh: >= 1, epochs from one ranking to the next. A store of another size is ranked at the next epoch.
        warm_up: >= 0, epochs of uniform training at first.

    An example never scored ranks before all others, and equal losses in random order. Draws before the first ranking
    are uniform. Where covering ends inside a batch, and without a batch size, an example may come twice. No weights.
    Needs ``epochs=`` where the pressure changes.

    Cost: 8 bytes an example.

    Source: Loshchilov and Hutter, "Online Batch Selection for Faster Training of Neural Networks", arXiv 1511.06343;
    pressure from 100 to 1 and draws without replacement in a batch are those of the code of Song et al., "Carpe Diem,
    Seize the Samples Uncertain 'at the Moment' for Adaptive Batch Selection" (CIKM 2020), which warms up for 10
    epochs; refresh = 1 and warm_up = 0 are ours. Losses of the whole data set are not computed anew, as they may be
    there: ``PriorityLoader.score`` does it.
    """

    columns = {**LastLoss.columns, "order": "uint32"}  # noqa: RUF012 (never changed)
    acts = "draw"

    def __init__(
        self, pressure: float | tuple[float, float] = (100.0, 1.0), refresh: int = 1, warm_up: int = 0
    ) -> None:
        self.pressure: Span = span("pressure", pressure, least=1)
        self.refresh, self.warm_up = integer("refresh", refresh, 1), integer("warm_up", warm_up, 0)
        self.needs_epochs = isinstance(self.pressure, tuple)
        self.state = {"ranked": 0, "epoch": 0}

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Ranks, where it is time to."""
        if clock.epoch < self.warm_up:
            return Plan()
        state, seen = self.state, store.seen()
        due = state["ranked"] != len(store) or not 0 <= clock.epoch - state["epoch"] < self.refresh
        if due and seen.any():
            store.column("order")[:] = ranking(unseen_first(store.column("loss"), seen), rng)
            state.update(ranked=len(store), epoch=clock.epoch)
        return None

    def resized(self, store: ScoreStore, before: int) -> None:
        """What is left of an order is none: uniform until the next ranking."""
        if len(store) < before:
            self.state["ranked"] = 0

    def draw(self, store: ScoreStore, count: int, clock: Clock, rng: Rng) -> tuple[Int64, Float64]:
        """Ranks by the closed form, and the examples that have them."""
        n, pressure = self.state["ranked"], self._pressure(store, clock)
        ranked = 0 < n <= len(store)
        if not ranked:
            n, pressure = len(store), 1.0
        ranks = distinct(
            lambda k: geometric_ranks(rng.random(k), n, pressure),
            lambda: geometric_probabilities(np.arange(n), n, pressure),
            n,
            count,
            rng,
        )
        indices = store.column("order")[ranks].astype(np.int64) if ranked else ranks
        return indices, geometric_probabilities(ranks, n, pressure)

    def _pressure(self, store: ScoreStore, clock: Clock) -> float:
        warmed = self.warm_up / store.epochs if store.epochs else 0.0
        return exponential(self.pressure, between(clock.progress, warmed, 1.0))
