"""SmallLoss: back-propagate the small losses of each batch, and ever fewer, down to the share of clean labels."""

from __future__ import annotations

from typing import Any

import torch

from fastprio._arrays import integer
from fastprio._random import Rng
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock
from fastprio.policies.primitives import share_of
from fastprio.policies.schedules import linear
from fastprio.selectors.base import Selector, register
from fastprio.selectors.pool import extreme
from fastprio.selectors.queue import Selection


@register("small_loss")
class SmallLoss(Selector):
    """Keeps the floor((1 - R_t) n) smallest losses of each batch of n that the loader yields; weight 1.

    R_t goes in equal steps from 0 in epoch 0 to noise_rate^exponent in epoch over - 1, and is noise_rate after that.
    Where R_t is 0 no scores are computed. Of equal losses the earlier position is kept. Losses that are not finite come
    last.

    Args:
        batch_size: of the batches that are trained on.
        noise_rate: tau, the share of wrong labels that is expected, in [0, 1).
        over: T_k, in how many epochs R_t gets there, >= 0.
        exponent: c, > 0.
        seed: in [0, 2^64); nothing is drawn here.

    Source: Han et al., "Co-teaching", NeurIPS 2018; over 10 and exponent 1 are its code's defaults. There the losses
    are those of the training pass; here a pass without gradients chooses, and full batches are trained on.
    """

    example = {"batch_size": 32, "noise_rate": 0.2}  # noqa: RUF012

    def __init__(
        self, batch_size: int, noise_rate: float, over: int = 10, exponent: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(batch_size, seed)
        self.noise_rate, self.over = real("noise_rate", noise_rate, 0, 1, below=True), integer("over", over, 0)
        self.exponent = real("exponent", exponent, 0, above=True)

    def left_out(self, epoch: int) -> float:
        """R_t."""
        if epoch >= self.over:
            return self.noise_rate
        return linear((0.0, self.noise_rate**self.exponent), epoch / max(self.over - 1, 1))

    def needs_scores(self, clock: Clock) -> bool:
        """Where something is left out."""
        return self.left_out(clock.epoch) > 0

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """The smallest, in order of position."""
        kept = share_of(losses.shape[-1], 1 - self.left_out(clock.epoch))
        return Selection(extreme(losses, kept, largest=False))
