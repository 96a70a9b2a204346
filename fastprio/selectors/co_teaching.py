"""CoTeaching: two networks, each trained on what the other finds easy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastprio.selectors.base import register
from fastprio.selectors.queue import apply
from fastprio.selectors.small_loss import SmallLoss

if TYPE_CHECKING:
    from fastprio.selectors.queue import Rows


@register("co_teaching")
class CoTeaching(SmallLoss):
    """As SmallLoss, for two networks: each gives the other one the examples of which its own losses are small.

    ``score`` returns the losses of both, [2, n]. ``batches`` yields pairs: a batch for network 0, chosen by network 1,
    and a batch for network 1, chosen by network 0. ``mean`` is called for each. A PriorityLoader is told the mean of
    the two losses::

        for (x0, y0), (x1, y1) in selector.batches(loader, losses_of_both):
            loss = selector.mean(losses_of(networks[0], x0, y0)) + selector.mean(losses_of(networks[1], x1, y1))

    Args:
        batch_size, noise_rate, over, exponent, seed: as in SmallLoss.

    Source: Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS
    2018; defaults and differences as in SmallLoss.
    """

    networks = 2
    forwards = "every batch, by both networks"

    def choose(self, batch: Any, rows: Rows | None) -> Any:
        """Each network gets the other one's choice."""
        if rows is None:
            return batch, batch
        return tuple(apply(batch, lambda t, k=other: t[rows(t.device)[k]]) for other in (1, 0))
