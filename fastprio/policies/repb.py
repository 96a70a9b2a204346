"""RePB: prunes while training, by a window of batches' mean, and weighs by how often an example was in the set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import get_bit, kernel, put_bit
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import codes_of, packed, unpacked

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore

HEAD, LENGTH, ROWS, BATCHES = range(4)


@kernel
def _decide(kept: Uint8, indices: Int64, loss: Float32, ratio: float, u: Float64) -> None:
    total = 0.0
    for j in range(loss.size):
        total += loss[j]
    for j in range(indices.size):
        put_bit(kept, indices[j], loss[j] >= total / loss.size or u[j] >= ratio)


@kernel
def _wait(
    losses: Float32, links: Any, waiting: Uint8, chain: Int64, total: Float64, indices: Int64, loss: Float32
) -> None:
    for j in range(indices.size):
        i = indices[j]
        losses[i] = loss[j]
        total[0] += loss[j]
        if not get_bit(waiting, i):
            put_bit(waiting, i, True)
            links[i] = chain[HEAD]
            chain[HEAD] = i
            chain[LENGTH] += 1
    chain[ROWS] += indices.size
    chain[BATCHES] += indices.size > 0


@kernel
def _decide_chain(
    kept: Uint8, losses: Float32, links: Any, waiting: Uint8, chain: Int64, total: Float64, ratio: float, u: Float64
) -> None:
    i, mean = chain[HEAD], total[0] / chain[ROWS]
    for k in range(u.size):
        if not 0 <= i < losses.size:  # the store has shrunk: the rest of the chain is lost, and stays as it is
            break
        put_bit(kept, i, losses[i] >= mean or u[k] >= ratio)
        put_bit(waiting, i, False)
        i = np.int64(links[i])
    chain[:] = 0
    total[0] = 0.0


@kernel
def _weights(selected: Any, indices: Int64, epochs: int, weights: Float32) -> None:
    for j in range(indices.size):
        weights[j] = np.float32(epochs / selected[indices[j]])


@register("repb")
class RePB(Policy):
    """Of an epoch's set, a random share of the examples below the mean of their window of batches is left out next.

    Example i of the set stays for the next epoch if loss_i >= mean, the mean loss of the rows of its window, or with
    probability 1 - ratio. An example that was not in the set comes back with probability 1 - ratio. It weighs
    E / N_i: E epochs so far, of which i was in the set in N_i, both with the present one. The first epoch has all.

    Args:
        ratio: in [0, 1), the probability with which an example below the mean is left out.
        window: >= 1, batches (updates) that are decided together, each row by the mean of all; an example that comes
            twice counts by its last loss. A window that an epoch's end cuts is decided by what it has.

    Losses from training alone decide. An example never scored is in every set; one that a store had not at first
    counts as in the set in all epochs before it came. One of the set whose loss does not come stays in it. If nobody
    is left, all are. Epochs: up to 65,535.

    Cost: 2 bytes and 2 bits an example; 10 bytes and 3 bits with a window above 1.

    Source: "RePB", ICLR 2026, as secondary notes tell it; window = 1 is its default there; ratio has none here. Those
    notes name no annealing. They do not say what becomes of a cut window, or of examples without a loss: that is ours.
    """

    example = {"ratio": 0.5}  # noqa: RUF012 (never changed)
    acts = "epoch, weight"
    shardable = False
    infallible = True

    def __init__(self, ratio: float, window: int = 1) -> None:
        self.ratio, self.window = real("ratio", ratio, 0, 1, below=True), integer("window", window, 1)
        chained = {"loss": "float32", "link": "uint32", "waiting": "bit"} if self.window > 1 else {}
        self.columns = {"selected": "uint16", "in_set": "bit", "kept": "bit", **chained}
        self.state = {"epochs": 0, "chain": np.zeros(4, np.int64), "total": np.zeros(1)}

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Decides about the rows, now or when the window is full."""
        if obs.origin != "train":
            return None
        if self.window == 1:
            _decide(columns["kept"], indices, obs.loss, self.ratio, rng.random(indices.size))
            return None
        chain, total = self.state["chain"], self.state["total"]
        _wait(columns["loss"], columns["link"], columns["waiting"], chain, total, indices, obs.loss)
        if chain[BATCHES] in (0, self.window):  # without any, to compile the loop
            self._close(columns, rng)
        return None

    def _close(self, columns: Columns, rng: Rng) -> None:
        chain, total = self.state["chain"], self.state["total"]
        u = rng.random(min(max(int(chain[LENGTH]), 0), len(columns["loss"])))
        losses, links, waiting = columns["loss"], columns["link"], columns["waiting"]
        _decide_chain(columns["kept"], losses, links, waiting, chain, total, self.ratio, u)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Puts the set together, and counts it."""
        size, columns = len(store), store.columns
        if self.window > 1:
            self._close(columns, rng)
            columns["waiting"][:] = 0  # of a chain that a shrinking store has cut
        members = np.ones(size, bool)
        if self.state["epochs"] > 0:
            back = rng.random(size) >= self.ratio
            members = np.where(unpacked(columns["in_set"], size), unpacked(columns["kept"], size), back) | ~store.seen()
            members |= not members.any()
        columns["in_set"][:] = columns["kept"][:] = packed(members)
        selected = columns["selected"]
        selected[selected == 0] = min(self.state["epochs"], 65534)
        selected[members & (selected < 65535)] += 1
        self.state["epochs"] += 1
        return Plan(codes_of(members))

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """E / N_i."""
        weights = np.empty(indices.size, np.float32)
        _weights(columns["selected"], indices, self.state["epochs"], weights)
        return weights
