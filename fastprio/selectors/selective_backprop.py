"""Selective-Backprop: back-propagate an example with a probability that grows with its loss's rank."""

from __future__ import annotations

from typing import Any

import torch

from fastprio._random import Rng
from fastprio.policies.base import Clock
from fastprio.selectors.base import Selection, Selector


class SelectiveBackprop(Selector):
    """Accepts example i with probability P_i = (share of the last ``history`` losses below loss_i) ^ beta.

    A batch's losses enter the history before they are compared with it. Accepted examples queue up and are trained
    on in full batches, with weight 1. The first epochs accept everything and do not enter the history. A loss that is
    not finite is not accepted.

    Args:
        batch_size: of the batches that are trained on.
        beta: >= 0. About 1 / (beta + 1) of the examples are accepted: 1 for 50 %, 2 for 33 %, 3 for 25 %.
        history: how many losses are remembered, over all examples.
        accept_all_epochs: epochs that accept everything.
        seed: in [0, 2^64).

    ::

        selector = SelectiveBackprop(128, beta=1.0)
        for epoch in range(epochs):
            clock = fastprio.policies.Clock(epoch)
            for (x, y), _ in selector.batches(loader, losses_of, clock):  # losses_of(batch): [n]
                ...  # train on x, y: 128 accepted examples

    Source: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv 1910.00762; defaults
    and order of operations from its code. Known to fail on noisy labels: arXiv 2107.07741.
    """

    def __init__(
        self, batch_size: int, beta: float = 3.0, history: int = 1024, accept_all_epochs: int = 1, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        if not beta >= 0:
            raise ValueError(f"beta = {beta}: expected beta >= 0")
        if history < 1:
            raise ValueError(f"history = {history}: expected history >= 1")
        self.beta, self.history, self.accept_all_epochs = beta, history, accept_all_epochs
        self.state = {"losses": torch.empty(0)}

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """Accepts by chance; the accepted positions stand at the front, their number is ``count``."""
        n, device = len(losses), losses.device
        if clock.epoch < self.accept_all_epochs:
            return Selection(torch.arange(n, device=device))
        mine = losses.detach().float()
        recent = torch.cat([self.state["losses"].to(device), mine])[-self.history :]
        self.state["losses"] = recent
        below = torch.searchsorted(recent.sort().values, mine)  # strictly below
        chance = (below.double() / len(recent)) ** self.beta
        accepted = torch.from_numpy(rng.random(n)).to(device, non_blocking=True) < chance
        accepted &= torch.isfinite(mine)
        # Sorting brings the accepted to the front, in order, without asking the device how many they are.
        positions = torch.sort(accepted.to(torch.uint8), descending=True, stable=True).indices
        return Selection(positions, count=accepted.sum())
