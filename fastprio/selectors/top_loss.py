"""TopLoss: back-propagate the largest losses of each forwarded batch."""

from __future__ import annotations

from typing import Any

import torch

from fastprio._arrays import integer
from fastprio._random import Rng
from fastprio.policies.base import Clock
from fastprio.selectors.base import Selector, register
from fastprio.selectors.pool import extreme
from fastprio.selectors.queue import Selection


@register("top_loss")
class TopLoss(Selector):
    """Takes the ``count`` largest losses of each batch that the loader yields; weight 1.

    Of equal losses the earlier position is taken. Losses that are not finite come last. A batch of no more than
    ``count`` is taken whole, such as an epoch's last.

    Args:
        batch_size: of the batches that are trained on.
        count: how many are taken of each batch of the loader, >= 1; None: ``batch_size``, so that each gives one.
        seed: in [0, 2^64); nothing is drawn here.

    Source: Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016;
    the paper mines regions of interest within an image, after non-maximum suppression. Here only its choice of the
    largest losses, from any pool of examples; sizes are the user's.
    """

    def __init__(self, batch_size: int, count: int | None = None, seed: int = 0) -> None:
        super().__init__(batch_size, seed)
        self.count = None if count is None else integer("count", count, 1)

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """The largest, in order of position."""
        return Selection(extreme(losses, self.count or self.batch_size))
