"""LateStopping: train again and again, each time without the examples that were learned last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel
from fastprio.policies.arguments import real
from fastprio.policies.base import TRAIN, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import at_least_one, codes_of, packed, unpacked

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _count(indices: Int64, correct: Uint8, needed: int, epoch: int, streak: Any, first_learned: Any) -> None:
    for j in range(indices.size):
        i = indices[j]
        streak[i] = min(np.int64(streak[i]) + 1, 255) if correct[j] else 0
        if first_learned[i] == 0 and streak[i] >= needed:
            first_learned[i] = epoch


@register("late_stopping")
class LateStopping(Policy):
    """Rounds of training, of which each keeps only those examples that were learned by its end.

    An example is learned when k evaluations in a row have predicted its (given) label; the examples trained on are
    evaluated after every epoch. Round r, from 0, ends when int(N keep^(r + 1)) examples (at least one) are learned, or
    after ``most_epochs``; exactly the learned ones remain, all if there are none, and counting begins anew. After the
    last round the rest is trained on without evaluations.

    The loop must start the model anew where ``plan.info["round_over"]`` is true, the first epoch of a new round; info
    also has "round", and "learned": how many were learned in the round so far (or in the one that is over).

    Args:
        keep: what a round is to keep of N * (the shares before), in (0, 1]: 0.98 at 20 % noise, 0.955 at 40 %.
        rounds: ((k, number of rounds), ...), in order; k in [1, 255].
        warm_up: evaluations of a round's epochs 0 to ``warm_up`` do not count; -1: all count.
        most_epochs: of a round, in [1, 65535].

    Only origin "score" counts: training and reference losses do not. An example never evaluated is not learned, and
    goes with the others that were not. Cost: 3 bytes and a bit an example.

    Source: Yuan et al., "Late Stopping: Avoiding Confidently Learning from Mislabeled Examples", ICCV 2023; the
    defaults and the values of keep are its code's for CIFAR-10. keep depends on the noise and has no default.
    """

    columns = {"streak": "uint8", "first_learned": "uint16", "removed": "bit"}  # noqa: RUF012 (never changed)
    requires = ("correct",)
    example = {"keep": 0.98}  # noqa: RUF012
    acts = "epoch"
    shardable = False
    forwards = "those trained on, each epoch"
    infallible = True

    def __init__(
        self,
        keep: float,
        rounds: Sequence[tuple[int, int]] = ((1, 4), (2, 4), (3, 4)),
        warm_up: int = 6,
        most_epochs: int = 300,
    ) -> None:
        self.keep = real("keep", keep, 0, 1, above=True)
        if not isinstance(rounds, (tuple, list)) or not all(
            isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in rounds
        ):
            raise ValueError(f"rounds = {rounds!r}: expected pairs (k, number of rounds)")
        self.rounds = tuple(
            (integer("rounds: k", k, 1, 255), integer("rounds: number of rounds", m, 0)) for k, m in rounds
        )
        if not any(number for _, number in self.rounds):
            raise ValueError(f"rounds = {rounds}: expected one round at least")
        self.warm_up = integer("warm_up", warm_up, -1)
        self.most_epochs = integer("most_epochs", most_epochs, 1, 65535)
        self.state = {"round": 0, "began": -1}

    def _streak_needed(self) -> int:
        """k of the round under way; 0 after the last."""
        end = 0
        for k, number in self.rounds:
            end += number
            if self.state["round"] < end:
                return k
        return 0

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Counts evaluations that were right in a row."""
        needed, epoch = self._streak_needed(), clock.epoch - self.state["began"]
        counts = obs.origin == "score" and needed > 0 and self.state["began"] >= 0 and epoch > self.warm_up
        if counts or not indices.size:
            at = min(epoch + 1, 65535)
            _count(indices, obs.correct, needed, at, columns["streak"], columns["first_learned"])
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Goes on with the round, or ends it."""
        state, n = self.state, len(store)
        if state["began"] < 0:
            state["began"] = clock.epoch
        kept = ~unpacked(store.column("removed"), n)
        reached = kept & (store.column("first_learned") > 0)
        learned, over = int(np.count_nonzero(reached)), False
        if self._streak_needed():
            enough = learned >= at_least_one(n, self.keep ** (state["round"] + 1))
            over = enough or clock.epoch - state["began"] >= self.most_epochs
        if over:
            kept = reached if learned else kept
            store.column("removed")[:] = packed(~kept)
            store.column("streak")[:] = 0
            store.column("first_learned")[:] = 0
            state["round"], state["began"] = state["round"] + 1, clock.epoch
        info = {"round": state["round"], "round_over": over, "learned": learned}
        return Plan(codes_of(kept), score=(TRAIN,) if self._streak_needed() else (), info=info)
