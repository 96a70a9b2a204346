"""Given: fixed weights, as in torch's WeightedRandomSampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import as_float32
from fastprio.policies.base import Policy, register

if TYPE_CHECKING:
    from fastprio.store import ScoreStore


@register("given")
class Given(Policy):
    """Draws in proportion to weights that the user gives, and learns nothing from losses.

    Args:
        weights: real [size], finite and >= 0, stored as float32; None: all zero until ``store.set_priorities``.

    No importance weights come out, as with ``torch.utils.data.WeightedRandomSampler``. Unlike there, more than
    2^24 examples work (pytorch/pytorch issue 2576), and weights may be changed in the middle of an epoch.
    """

    acts = "draw"

    def __init__(self, weights: Any = None) -> None:
        self._given = weights

    def start(self, store: ScoreStore) -> None:
        """Fills the tree."""
        if self._given is None:
            return
        weights = as_float32(self._given, "weights")
        if len(weights) != len(store):
            raise ValueError(f"weights: expected {len(store)} of them, one for each example, got {len(weights)}")
        bad = ~((weights >= 0) & (weights < np.inf))
        if bad.any():
            at = int(bad.argmax())
            raise ValueError(f"weights[{at}] = {weights[at]}: expected a finite number >= 0")
        store.tree.fill(weights)

    def config(self) -> dict[str, Any]:
        """Nothing: a saved store has the weights as priorities."""
        return {}
