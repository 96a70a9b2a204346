"""Uniform: every example once an epoch, in random order. The baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastprio.policies.base import Clock, Plan, Policy, register

if TYPE_CHECKING:
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@register("uniform")
class Uniform(Policy):
    """All examples, once each an epoch, in keyed random order, weight 1. Keeps nothing, learns nothing.

    What ``torch.utils.data.RandomSampler`` does, in O(1) memory. Cost: no bytes an example.
    """

    acts = "draw"

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Everything, every epoch."""
        return Plan()
