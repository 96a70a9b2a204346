"""On-the-fly denoising: once in training, remove the examples whose losses are those of random labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastprio._arrays import integer
from fastprio._kernels import kernel, put_bit
from fastprio.policies.arguments import real
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import codes_of, push, unpacked

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore

CHUNK = 4096  # of simulated features


@kernel
def _remove(ring: Float32, counts: Uint8, threshold: float, removed: Uint8) -> int:
    found = 0
    for i in range(counts.size):
        known = min(np.int64(counts[i]), ring.shape[1])
        total = 0.0
        for k in range(known):
            total += np.float64(ring[i, k])
        above = known > 0 and total / known >= threshold
        put_bit(removed, i, above)
        found += above
    return found


@register("odd")
class OnTheFlyDenoising(Policy):
    """At an epoch's start removes, for good, every example whose mean over its last losses is >= a threshold.

    The threshold is a percentile of the losses that random labels would have, l = cross entropy(W relu(e) + b, y), with
    e ~ N(0, I), y uniform over the classes, and W, b the model's last layer: ``simulate`` draws them. Call it at the
    end of epoch ``epoch - 1``, with the layer as it is then. Large learning rates keep the losses of wrong labels high.

    Args:
        epoch: > 0, at whose start to remove, counted from 0; just before the learning rate falls.
        history: in [1, 127], how many of an example's last losses are averaged; all it has, if they are fewer.
        percentile: in [0, 100], of the simulated losses.
        threshold: in units of the loss, in place of the percentile and of ``simulate``. Expected: one of the two.

    Losses of training and of scoring count. An example never scored is kept. Weights are 1. To remove everything is an
    error. Cost: 4 history + 1 bytes and a bit an example.
    Source: Song et al., "Robust and On-the-fly Dataset Denoising for Image Classification", ECCV 2020, arXiv
    2003.10647; that it models random labels' losses by the network's parameters and removes by a quantile is the
    paper's, the exact form here is from memory and not checked against its text, so no argument has a default.
    """

    example = {"epoch": 2, "history": 2, "threshold": 10.0}  # noqa: RUF012
    acts = "epoch"
    shardable = False
    forwards = "none"
    infallible = True

    def __init__(
        self, epoch: int, history: int, percentile: float | None = None, threshold: float | None = None
    ) -> None:
        if (percentile is None) == (threshold is None):
            raise ValueError(f"percentile = {percentile}, threshold = {threshold}: expected one of the two")
        self.epoch, self.history = integer("epoch", epoch, 1), integer("history", history, 1, 127)
        self.percentile = None if percentile is None else real("percentile", percentile, 0, 100)
        self.threshold = None if threshold is None else real("threshold", threshold)
        self.columns = {"losses": ("float32", self.history), "count": "uint8", "removed": "bit"}
        self.state = {"threshold": self.threshold, "done": False}

    def simulate(
        self, weight: torch.Tensor, bias: torch.Tensor | None, samples: int, generator: torch.Generator | None = None
    ) -> float:
        """Draws losses of random labels and sets the threshold to their percentile, which it returns.

        Args:
            weight, bias: floating [K, d] and [K] (or None), of the model's last layer. samples: losses to draw.
            generator: on the weight's device; None: a new one with seed 0, so that no other random numbers move.
        """
        if self.percentile is None:
            raise ValueError("percentile = None: the threshold was given; simulate() needs a percentile")
        samples = integer("samples", samples, 1)
        if not isinstance(weight, torch.Tensor) or not (bias is None or isinstance(bias, torch.Tensor)):
            raise TypeError(f"weight, bias: expected tensors, got {type(weight).__name__} and {type(bias).__name__}")
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            shapes = list(weight.shape), None if bias is None else list(bias.shape)
            raise ValueError(f"weight, bias: expected shapes [K, d] and [K], got {shapes[0]} and {shapes[1]}")
        device = weight.device
        drawn = torch.Generator(device).manual_seed(0) if generator is None else generator
        bias = None if bias is None else bias.float()
        parts: list[Any] = []
        with torch.no_grad():
            for begin in range(0, samples, CHUNK):
                n = min(CHUNK, samples - begin)
                noise = torch.randn(n, weight.shape[1], generator=drawn, device=device)
                labels = torch.randint(weight.shape[0], (n,), generator=drawn, device=device)
                logits = torch.nn.functional.linear(noise.relu(), weight.float(), bias)
                parts.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu().numpy())
        threshold = float(np.percentile(np.concatenate(parts).astype(np.float64), self.percentile))
        if not np.isfinite(threshold):
            raise ValueError(f"weight, bias: the simulated threshold is {threshold}; expected finite values")
        self.state["threshold"] = threshold
        return threshold

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the last losses."""
        if obs.origin != "reference":
            push(columns["losses"], columns["count"], indices, obs.loss)
        return None

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan:
        """Everything that is not removed; removes, once."""
        if not self.state["done"] and clock.epoch >= self.epoch:
            self._remove(store)
        if not self.state["done"]:
            return Plan()
        removed = unpacked(store.column("removed"), len(store))
        return Plan(codes_of(~removed), info={"removed": int(np.count_nonzero(removed))})

    def _remove(self, store: ScoreStore) -> None:
        threshold = self.state["threshold"]
        if threshold is None:
            raise ValueError(
                f"threshold: none at epoch {self.epoch}; call policy.simulate(weight, bias, samples) before"
            )
        removed = np.zeros_like(store.column("removed"))
        if _remove(store.column("losses"), store.column("count"), threshold, removed) == len(store):
            raise ValueError(f"threshold = {threshold}: no example has a lower loss; expected one that some are below")
        store.column("removed")[:] = removed
        self.state["done"] = True
