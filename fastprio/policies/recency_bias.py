"""RecencyBias: draw the examples whose latest predictions disagree with each other."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import kernel, power
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import fetch, push
from fastprio.policies.schedules import between, exponential, span

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


@kernel
def _certainty(indices: Int64, ring: Any, counts: Uint8, classes: int, ln: Float64, certainty: Float32) -> None:
    width = ring.shape[1]
    ln_classes = ln[width + 1]
    found = np.zeros(classes, np.uint8)  # of the example's predictions, how many are each class
    for j in range(indices.size):
        i = indices[j]
        if counts[i] < width:
            continue  # zero: the most uncertain
        if np.any(ring[i] >= classes):
            continue  # not as observed: a file may hold anything
        for k in range(width):
            found[ring[i, k]] += 1
        logs = 0.0
        for k in range(width):
            logs += ln[found[ring[i, k]]]
        for k in range(width):
            found[ring[i, k]] = 0
        # The entropy sum(-m / width ln(m / width)) over classes is ln width - sum(ln m) / width over predictions.
        entropy = ln[width] - logs / width
        # First to float32, so that a certainty of nothing, or of a half, is just that.
        uncertainty = np.float64(np.float32(entropy / ln_classes))
        certainty[i] = np.float32(min(max(1.0 - uncertainty, 0.0), 1.0))


@kernel
def _priorities(certainty: Float32, n: int, pressure: float, out: Float32) -> None:
    for j in range(certainty.size):
        out[j] = np.float32(power(pressure, -np.ceil(np.float64(certainty[j]) * n) / n))


@register("recency")
class RecencyBias(Policy):
    """P(i) ~ s^(-Q / N), Q = ceil(c N), with c the certainty of the last ``window`` predictions, in [0, 1].

    c = 1 - H / ln(classes), with H the entropy of the labels predicted last. The pressure s falls exponentially
    between the epochs ``begin`` and ``end``. Before ``begin`` every epoch has all examples once. Draws do not repeat
    within a batch (scheme "unique"); weights are 1.

    Args:
        classes: how many labels there are, in [2, 65536]; predictions are in [0, classes).
        window: predictions that count, in [2, 127].
        pressure: s before ``begin`` and from ``end`` on, >= 1: how much likelier the most uncertain examples are than
            the most certain. A number stays.
        begin: first epoch that draws by it. end: epoch from which on s is the last value.

    Only training counts. An example with fewer than ``window`` predictions, or none, has c = 0: the highest priority.
    Cost: 5 bytes an example and 2 * window, beside the tree.

    Source: Song et al., "Carpe Diem, Seize the Samples Uncertain 'at the Moment' for Adaptive Batch Selection", CIKM
    2020; the defaults are its code's. There a ring begins with predictions of class 0 in place of those still to come.
    """

    requires = ("prediction",)
    example = {"classes": 10}  # noqa: RUF012
    acts = "draw"
    scheme = "unique"
    infallible = True

    def __init__(
        self,
        classes: int,
        window: int = 10,
        pressure: float | tuple[float, float] = (100.0, 1.0),
        begin: int = 10,
        end: int = 100,
    ) -> None:
        self.classes, self.window = integer("classes", classes, 2, 65536), integer("window", window, 2, 127)
        self.pressure = span("pressure", pressure, least=1, most=1e30)
        self.begin = integer("begin", begin, 0)
        self.end = integer("end", end, self.begin)
        # The logarithms of 1 to window, and of classes: rounded correctly, so the same on every machine.
        numbers = [1, *range(1, self.window + 1), self.classes]
        self._ln = np.array([float(Decimal(number).ln()) for number in numbers])

    @property
    def columns(self) -> Mapping[str, str | tuple[str, int]]:  # type: ignore[override]
        """A ring as wide as the window."""
        return {"ring": ("uint16", self.window), "counts": "uint8", "certainty": "float32"}

    def check(self, obs: Observation) -> None:
        """Predictions are classes."""
        super().check(obs)
        if obs.prediction.size and obs.prediction.max() >= self.classes:
            row = int((obs.prediction >= self.classes).argmax())
            expected = f"a class in [0, {self.classes})"
            raise ValueError(f"prediction[{row}] = {obs.prediction[row]}: expected {expected}")

    def _of(self, certainty: Float32, n: int, epoch: int) -> Float32:
        priorities = np.empty(certainty.size, np.float32)
        pressure = exponential(self.pressure, between(epoch, self.begin, self.end))
        _priorities(certainty, n, pressure, priorities)
        return priorities

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the predictions of training."""
        if obs.origin != "train":
            return None
        ring, counts, certainty = columns["ring"], columns["counts"], columns["certainty"]
        fetch(indices, ring, counts, certainty)
        push(ring, counts, indices, obs.prediction)
        _certainty(indices, ring, counts, self.classes, self._ln, certainty)
        return self._of(certainty[indices], certainty.size, clock.epoch)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Everything once; from ``begin`` on, the tree with the epoch's pressure."""
        if clock.epoch < self.begin:
            return Plan()
        store.tree.fill(self._of(store.column("certainty"), len(store), clock.epoch))
        return None
