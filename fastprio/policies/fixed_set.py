"""FixedSet: what methods share that choose once which examples to train on, and keep to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastprio._arrays import integer
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Plan, Policy
from fastprio.policies.primitives import codes_of, packed, unpacked

if TYPE_CHECKING:
    from fastprio._random import Rng
    from fastprio.policies.primitives import Mask
    from fastprio.store import ScoreStore


class FixedSet(Policy):
    """Base of policies that train on everything until epoch ``after`` begins, and then on a fixed set.

    Derived classes say in ``chosen`` which, and have "left_out" among their columns. Examples that the store grows by
    later are trained on.
    """

    columns = {"left_out": "bit"}  # noqa: RUF012 (never changed)
    acts = "epoch"
    shardable = False

    def __init__(self, after: int, keep: float) -> None:
        self.after = integer("after", after, 1)
        self.keep = real("keep", keep, 0, 1, above=True)
        self.state = {"chosen": False}

    def chosen(self, store: ScoreStore, rng: Rng) -> Mask:
        """bool [size]: the examples to train on from now on."""
        raise NotImplementedError

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Everything, or the set, which is chosen when it is first needed."""
        if clock.epoch < self.after:
            return Plan()
        left_out = store.column("left_out")
        if not self.state["chosen"]:
            left_out[:] = packed(~self.chosen(store, rng))
            self.state["chosen"] = True
        return Plan(codes_of(~unpacked(left_out, len(store))))
