"""ReducibleLoss: back-propagate what training can still reduce, by a model that has not seen the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastprio._random import Rng
from fastprio.policies.base import Clock
from fastprio.selectors.base import register
from fastprio.selectors.pool import extreme
from fastprio.selectors.queue import Selection
from fastprio.selectors.top_loss import TopLoss


@register("reducible_loss")
class ReducibleLoss(TopLoss):
    """Takes the ``count`` largest of loss_i - irreducible_i of each batch that the loader yields; weight 1.

    irreducible_i is the loss of i under a model trained on other, held-out data. It is written once::

        store = ScoreStore(len(data), columns=ReducibleLoss.columns)
        store.column("irreducible")[:] = losses_of_the_other_model

    (0 where nothing is written, so the loss itself decides there.) Equal differences, those that are not finite, and
    small batches: as in TopLoss.

    Args:
        batch_size: of the batches that are trained on.
        count: how many are taken of each batch of the loader, >= 1; None: ``batch_size``.
        seed: in [0, 2^64); nothing is drawn here.

    Cost: 4 bytes an example.

    Source: Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt",
    ICML 2022; its code takes 32 of pools of 320.
    """

    columns = {"irreducible": "float32"}  # noqa: RUF012 (never changed)
    forwards = "every batch; all, once, by the other model"

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """The largest differences, in order of position."""
        if columns is None or "irreducible" not in columns or indices is None:
            raise ValueError(
                "ReducibleLoss: expected the columns of a store with 'irreducible', and the batch's indices: make the "
                "store with columns=selector.columns, and use a PriorityLoader or pass columns= and indices="
            )
        at = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
        irreducible = torch.from_numpy(columns["irreducible"][at]).to(losses.device, non_blocking=True)
        return Selection(extreme(losses.detach().float() - irreducible, self.count or self.batch_size))
