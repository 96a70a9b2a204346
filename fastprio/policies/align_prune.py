"""AlignPrune: another method's pruning, on how alike each example's losses and a reference's move over the epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.last_loss import host_of, plain_config

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore

LEAST_COMMON = 3
"""Fewer epochs than that give no correlation: any two points are on a line."""


@kernel
def _observe(
    losses: Float32, known: Any, indices: Int64, loss: Float32, slot: int, population: bool, sums: Any, counts: Any
) -> None:
    for j in range(indices.size):
        losses[indices[j], slot] = loss[j]
        known[indices[j]] |= np.uint32(1 << slot)
        if population:
            sums[slot] += np.float64(loss[j])
            counts[slot] += 1


@kernel
def _correlations(losses: Float32, known: Any, given: int, reference: Float64, score: Float32) -> None:
    width = losses.shape[1]
    x, y = np.empty(width), np.empty(width)
    largest = -np.inf
    for i in range(known.size):
        common = np.int64(known[i]) & given
        n, mean_x, mean_y = 0, 0.0, 0.0
        for k in range(width):
            if common >> k & 1:
                # Differences to the first: of a constant they are zero, and not almost.
                x[n], y[n] = np.float64(losses[i, k]), reference[k]
                if n:
                    x[n] -= x[0]
                    y[n] -= y[0]
                    mean_x += x[n]
                    mean_y += y[n]
                n += 1
        if n < LEAST_COMMON:
            score[i] = np.nan
            continue
        mean_x, mean_y, x[0], y[0] = mean_x / n, mean_y / n, 0.0, 0.0
        xx, yy, xy = 0.0, 0.0, 0.0
        for k in range(n):
            dx, dy = x[k] - mean_x, y[k] - mean_y
            xx += dx * dx
            yy += dy * dy
            xy += dx * dy
        score[i] = np.float32(xy / np.sqrt(xx * yy)) if xx > 0.0 and yy > 0.0 else np.float32(0.0)
        largest = max(largest, np.float64(score[i]))
    for i in range(known.size):
        if np.isnan(score[i]):
            score[i] = largest if largest >= -1.0 else 0.0


@register("align")
class AlignPrune(Policy):
    """Prunes as ``host`` does, by the correlation of each example's losses with a reference in place of its loss.

    score_i = Pearson correlation of the example's losses with the reference's over those of the last ``window``
    epochs of which both are known; 0 where either is constant. Losses that fall as the reference's do score high; the
    host leaves out low ones. It reads the score where it would read the loss, in the column "loss". In the first
    ``window`` epochs that is the last loss.

    Args:
        window: in [3, 32], epochs.
        reference: "population", the mean of all losses of an epoch, of training and of scoring; or "given", a number
            that you tell ``policy.refer`` at each epoch's end, such as the mean loss of a small clean set.
        host: name of the policy that prunes, one that plans by the column "loss" alone. host_config: its arguments.

    An example with fewer than 3 such epochs, or never scored, gets the largest score there is, so that no host that
    leaves out low scores leaves it out for what is not known. Of several losses in an epoch the last counts.
    Cost: 4 window + 8 bytes an example (48).
    Source: Qin et al., "Beyond Loss Values: Robust Dynamic Pruning via Loss Trajectory Alignment", CVPR 2026 Findings,
    arXiv 2604.07306; known from secondary text. Window 10 and the mean loss of a clean set as reference are the
    paper's; the population's mean in its place, the least number of epochs and what its lack does are ours.
    """

    acts = "epoch, weight"
    shardable = False
    infallible = True

    def __init__(
        self,
        window: int = 10,
        reference: str = "population",
        host: str = "infobatch",
        host_config: Mapping[str, Any] | None = None,
    ) -> None:
        if reference not in ("population", "given"):
            raise ValueError(f"reference = {reference!r}: expected 'population' or 'given'")
        self._host = host_of(host, host_config)
        self.window, self.reference = integer("window", window, LEAST_COMMON, 32), reference
        self.host, self.host_config = host, plain_config(self._host, host_config)
        self.needs_epochs = self._host.needs_epochs
        self.columns = {"loss": "float32", "losses": ("float32", self.window), "known": "uint32"}
        self.state = {"epoch": -1, "sums": np.zeros(self.window), "counts": np.zeros(self.window, np.int64)}

    def refer(self, mean_loss: float) -> None:
        """Tells the reference's mean loss at the end of the epoch under way."""
        if self.reference != "given":
            raise ValueError(f"reference = {self.reference!r}: refer() is for reference = 'given'")
        if self.state["epoch"] < 0:
            raise ValueError("refer(): no epoch has begun yet; call it at the end of each")
        if getattr(mean_loss, "ndim", None) == 0:  # a tensor's mean is a tensor
            mean_loss = mean_loss.item()  # type: ignore[attr-defined]
        slot = self.state["epoch"] % self.window
        self.state["sums"][slot], self.state["counts"][slot] = real("mean_loss", mean_loss), 1

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the epoch's loss."""
        if obs.origin == "reference":
            return None
        if clock.epoch < self.window:
            columns["loss"][indices] = obs.loss
        slot, population = clock.epoch % self.window, self.reference == "population"
        sums, counts = self.state["sums"], self.state["counts"]
        _observe(columns["losses"], columns["known"], indices, obs.loss, slot, population, sums, counts)
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Scores, from the window's epochs on, and lets the host plan."""
        before, now, counts = self.state["epoch"], clock.epoch, self.state["counts"]
        if self.reference == "given" and 0 <= before < now and not counts[before % self.window]:
            raise ValueError(f"epoch {before} has no reference: call policy.refer(mean_loss) at each epoch's end")
        self._forget(store, range(min(before + 1, now), max(before + 1, now)))  # epochs passed over, or begun again
        if now >= self.window:
            given = sum(1 << slot for slot in np.flatnonzero(counts).tolist())
            means = self.state["sums"] / np.maximum(counts, 1)
            _correlations(store.column("losses"), store.column("known"), given, means, store.column("loss"))
        self._forget(store, range(now, now + 1))
        self.state["epoch"] = now
        return self._host.plan(store, clock, rng)

    def _forget(self, store: ScoreStore, epochs: range) -> None:
        known = store.column("known")
        for epoch in epochs[-self.window :]:
            slot = epoch % self.window
            known &= np.uint32(0xFFFFFFFF ^ 1 << slot)
            self.state["sums"][slot], self.state["counts"][slot] = 0, 0
