"""SecondSplitForgetting: how fast one half is forgotten while training goes on with the other; finds wrong labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel
from fastprio._random import Rng
from fastprio.policies.arguments import flag
from fastprio.policies.base import OUT, SCORE, TRAIN, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import codes_of, packed, uniformly, unpacked

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio.store import ScoreStore


@kernel
def _note_epoch(indices: Int64, correct: Uint8, which: int, epoch: int, last: Any) -> None:
    for j in range(indices.size):
        if correct[j] == which:
            last[indices[j]] = epoch


@register("ssft")
class SecondSplitForgetting(Policy):
    """Trains on a random half A, then on the other half B, and evaluates A after every epoch of both phases.

    ``learned_at`` gives the epoch of phase 1 from which on an example of A was predicted as its label, and
    ``forgotten_at`` the epoch of phase 2 from which on it no longer was: the smallest are most likely labelled wrong,
    large ones are rare examples. The loop may start a new optimizer where ``plan.info["phase_over"]`` is true, the
    first epoch of phase 2; info also has "phase", 1 or 2. To score B, do it all again with ``swap``.

    Args:
        first_epochs: epochs of phase 1, in [1, 65535].
        swap: exchange the halves, which follow from the seed alone: A has floor(N / 2) examples, else the others.

    Epochs count from 0 when training begins. Only origin "score" counts. Examples that the store grows by after the
    first epoch's start belong to B. Cost: 4 bytes and a bit an example.

    Source: Maini et al., "Characterizing Datapoints via Second-Split Forgetting", NeurIPS 2022; it ends phase 1 after
    5 epochs without an error, and takes the average over 5 seeds. first_epochs depends on the data and has no
    default. Two epochs an example replace the code's whole history; the result is the same.
    """

    columns = {"last_incorrect": "uint16", "last_correct": "uint16", "half": "bit"}  # noqa: RUF012 (never changed)
    requires = ("correct",)
    example = {"first_epochs": 2}  # noqa: RUF012
    acts = "epoch"
    shardable = False
    forwards = "half, each epoch"
    infallible = True

    def __init__(self, first_epochs: int, swap: bool = False) -> None:
        self.first_epochs = integer("first_epochs", first_epochs, 1, 65535)
        self.swap = flag("swap", swap)
        self.state = {"split": False, "evaluated": [False, False]}

    def start(self, store: ScoreStore) -> None:
        """Two examples at least, for two halves."""
        if len(store) < 2:
            raise ValueError(f"size = {len(store)}: policy {self.name!r} splits the examples, and needs two at least")

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Notes the last error of phase 1 and the last right answer of phase 2."""
        second = clock.epoch >= self.first_epochs
        epoch = min(clock.epoch - self.first_epochs * second + 1, 65535)
        if not indices.size or (obs.origin == "score" and self.state["split"]):
            last = columns["last_correct" if second else "last_incorrect"]
            _note_epoch(indices, obs.correct, int(second), epoch, last)
            self.state["evaluated"][second] |= indices.size > 0
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Half A, to be scored too; then half B, with A scored."""
        n, bits = len(store), store.column("half")
        if not self.state["split"]:
            half = uniformly(n // 2, Rng(rng.seed, 0, 0, "plan"), np.ones(n, bool))
            bits[:] = packed(half ^ self.swap)
            self.state["split"] = True
        half = unpacked(bits, n)
        if clock.epoch < self.first_epochs:
            return Plan(codes_of(half, OUT), score=(TRAIN,), info={"phase": 1, "phase_over": False})
        over = clock.epoch == self.first_epochs
        return Plan(codes_of(~half, SCORE), score=(SCORE,), info={"phase": 2, "phase_over": over})

    def learned_at(self, store: ScoreStore) -> Int64:
        """int64 [size]: the first epoch of phase 1, from 1, from which on an example was always right.

        0: never wrong. The number of epochs evaluated, plus one: wrong to the last. -1: not in A, or A was not
        evaluated yet (an example of A that was left out of all passes counts as never wrong).
        """
        last = store.column("last_incorrect").astype(np.int64)
        return self._of_half(store, np.where(last > 0, last + 1, 0), phase=1)

    def forgotten_at(self, store: ScoreStore) -> Int64:
        """int64 [size]: the first epoch of phase 2, from 1, from which on an example was always wrong.

        The number of epochs evaluated, plus one: never forgotten for good. -1: not in A, or A was not evaluated yet (an
        example of A that was left out of all passes counts as forgotten at once).
        """
        return self._of_half(store, store.column("last_correct").astype(np.int64) + 1, phase=2)

    def _of_half(self, store: ScoreStore, epochs: Int64, phase: int) -> Int64:
        if not self.state["evaluated"][phase - 1]:
            return np.full(len(store), -1)
        return np.where(unpacked(store.column("half"), len(store)), epochs, -1)
