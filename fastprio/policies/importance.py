"""Importance: what methods share that draw by priority and weigh against the bias of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastprio._kernels import kernel, power
from fastprio.policies.base import Clock, Columns, Policy
from fastprio.policies.primitives import MOST
from fastprio.policies.schedules import Span, linear

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64


@kernel
def _weights(probabilities: Float64, size: int, beta: float, weights: Float32) -> None:
    for j in range(probabilities.size):
        weights[j] = np.float32(min(power(size * probabilities[j], -beta), MOST))


class Importance(Policy):
    """Base of policies with the weights w_i = (N P(i))^-beta, divided by a batch's largest with ``max_normalize``.

    Derived classes have a column "loss", and take ``beta``, a number or a pair that is gone through linearly.
    """

    beta: Span
    max_normalize: bool

    @property
    def needs_unbiased(self) -> bool:
        """With any beta above zero."""
        return linear(self.beta, 0.0) > 0 or linear(self.beta, 1.0) > 0

    @property
    def by_batch(self) -> bool:
        """Where a batch's largest weight is one."""
        return self.max_normalize

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """(N P)^-beta; None for beta = 0: all one."""
        beta = linear(self.beta, clock.progress)
        if beta == 0:
            return None
        weights = np.empty(probabilities.size, np.float32)
        _weights(probabilities, columns["loss"].size, beta, weights)
        return weights / weights.max() if self.max_normalize and weights.size else weights
