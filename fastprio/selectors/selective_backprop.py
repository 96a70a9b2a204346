"""Selective-Backprop: back-propagate an example with a probability that grows with its loss's rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastprio._arrays import integer
from fastprio._random import Rng
from fastprio.policies import primitives
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock
from fastprio.selectors.base import Selector, register
from fastprio.selectors.queue import Selection

MOST = 1 << 16
"""Above so many losses in a store, the table has this many quantiles of them: shares are right to 1 / MOST."""


@register("selective_backprop")
class SelectiveBackprop(Selector):
    """Accepts example i with probability P_i = max(least_chance, (share of remembered losses below loss_i) ^ beta).

    Remembered are the last ``history`` losses that were forwarded; a batch's own enter before they are compared. Or,
    with history=None, the losses of all examples seen, in the store's column "loss", as they were at the epoch's start.
    Accepted examples queue up and are trained on in full batches, with weight 1. The first epochs accept everything,
    without a scoring pass (with history=None they have one, for the store), and do not enter the history. A loss that
    is not finite is not accepted. The smallest loss remembered has probability ``least_chance``, unless beta is 0.
    Where nothing is remembered in the store, everything is accepted.

    Args:
        batch_size: of the batches that are trained on.
        beta: >= 0. About 1 / (beta + 1) of the examples are accepted: 1 for 50 %, 2 for 33 %, 3 for 25 %.
        history: how many losses are remembered, over all examples; None: one for each, in a store whose policy keeps
            a column "loss" (4 bytes an example). They are sorted once an epoch into at most 65536 quantiles.
        accept_all_epochs: epochs that accept everything, >= 0.
        least_chance: in [0, 1].
        seed: in [0, 2^64).

    ::

        selector = SelectiveBackprop(128, beta=1.0)
        for epoch in range(epochs):
            for x, y in selector.batches(loader, losses_of):  # losses_of(batch): [n]
                loss = selector.mean(F.cross_entropy(model(x), y, reduction="none"))
                ...

    Cost: each loss is found in O(log history).

    Source: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv 1910.00762; defaults
    and order of operations from its code, where least_chance is sampling_min. history=None is not in it. Known to fail
    on noisy labels: arXiv 2107.07741.
    """

    def __init__(
        self,
        batch_size: int,
        beta: float = 3.0,
        history: int | None = 1024,
        accept_all_epochs: int = 1,
        least_chance: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.beta, self.least_chance = real("beta", beta, 0), real("least_chance", least_chance, 0, 1)
        self.history = None if history is None else integer("history", history, 1)
        self.accept_all_epochs = integer("accept_all_epochs", accept_all_epochs, 0)
        self.state = {"losses": torch.empty(0), "epoch": -1}  # of history=None: sorted, as of which epoch

    def needs_scores(self, clock: Clock) -> bool:
        """Not in the first epochs, unless the store is to know the losses that come after them."""
        return clock.epoch >= self.accept_all_epochs or self.history is None

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """Accepts by chance; the accepted positions stand at the front, their number is ``count``."""
        n, device = len(losses), losses.device
        if self.history is None and (columns is None or "loss" not in columns):
            raise ValueError(
                "history = None: expected columns= of a store whose policy keeps a column 'loss', or a PriorityLoader "
                "with one, such as of policy=fastprio.policies.InfoBatch(ratio=0)"
            )
        if clock.epoch < self.accept_all_epochs:
            return Selection(torch.arange(n, device=device))
        mine = losses.detach().float()
        remembered = self._of_store(columns, clock, device) if self.history is None else self._last(mine)
        if not len(remembered):
            return Selection(torch.arange(n, device=device))
        u = rng.random(n)
        if mine.is_cpu:
            positions = self._accepted_on_host(mine.numpy(), remembered.numpy(), u)
            return Selection(positions, count=torch.tensor(len(positions)))
        below = torch.searchsorted(remembered, mine)  # strictly below
        shares = below.double() / torch.isfinite(remembered).sum().clamp(min=1)
        chances = torch.from_numpy(u).to(device, non_blocking=True)
        accepted = primitives.accepted(shares, self.beta, chances, self.least_chance) & torch.isfinite(mine)
        # Sorting brings the accepted to the front, in order, without asking the device how many they are.
        positions = torch.sort(accepted.to(torch.uint8), descending=True, stable=True).indices
        return Selection(positions, count=accepted.sum())

    def _accepted_on_host(self, mine: Any, remembered: Any, u: Any) -> torch.Tensor:
        """The same by numpy, for which so few numbers take a tenth of the time."""
        shares = np.searchsorted(remembered, mine) / max(1, np.searchsorted(remembered, np.inf))
        accepted = primitives.accepted(shares, self.beta, u, self.least_chance) & np.isfinite(mine)
        return torch.from_numpy(np.flatnonzero(accepted))

    def _last(self, mine: torch.Tensor) -> torch.Tensor:
        """The last losses, sorted. What is not finite stands behind all others, and does not count."""
        before, most = self.state["losses"].to(mine.device), self.history or 0
        if mine.is_cpu:
            on_host = np.concatenate((before.numpy(), mine.numpy()))[-most:]
            self.state["losses"] = torch.from_numpy(on_host)
            return torch.from_numpy(np.sort(np.where(np.isfinite(on_host), on_host, np.float32(np.inf))))
        recent = torch.cat([before, mine])[-most:]
        self.state["losses"] = recent
        return torch.where(torch.isfinite(recent), recent, torch.inf).sort().values

    def _of_store(self, columns: Any, clock: Clock, device: torch.device) -> torch.Tensor:
        if self.state["epoch"] != clock.epoch:
            loss = columns["loss"]
            seen = primitives.unpacked(columns["seen"], len(loss))
            self.state["losses"] = torch.from_numpy(_quantiles(np.sort(loss[seen])))
            self.state["epoch"] = clock.epoch
        self.state["losses"] = self.state["losses"].to(device)
        table: torch.Tensor = self.state["losses"]
        return table


def _quantiles(ordered: Any) -> Any:
    """float32 [at most MOST]: of each of as many equal parts the one in the middle."""
    n = len(ordered)
    return ordered if n <= MOST else ordered[(2 * np.arange(MOST) + 1) * n // (2 * MOST)]
