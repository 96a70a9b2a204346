"""Schedules: parameters that change over training, as functions of progress or of the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from fastprio._kernels import power
from fastprio.policies.arguments import finite

Span: TypeAlias = float | tuple[float, float]
"""A constant, or its values at the start and at the end."""


def span(name: str, values: object, least: float = -math.inf, most: float = math.inf) -> Span:
    """The values as a number or a pair of them. ValueError unless each is finite and in [least, most]."""
    pair = tuple(values) if isinstance(values, (tuple, list)) else (values, values)
    if len(pair) != 2:
        raise ValueError(f"{name} = {values}: expected a number, or two: at the start and at the end")
    start, end = map(finite, pair)
    if start is None or end is None or not (least <= start <= most and least <= end <= most):
        limits = f"{least:g} <= {name} {'<' if math.isinf(most) else '<='} {most:g}"
        raise ValueError(f"{name} = {values}: expected {'finite numbers' if math.isinf(least) else limits}")
    return (start, end) if isinstance(values, (tuple, list)) else start


def linear(values: Span, progress: float) -> float:
    """From the first value to the second in a straight line. progress: in [0, 1]."""
    if isinstance(values, tuple):
        return values[0] + (values[1] - values[0]) * progress
    return values


def exponential(values: Span, progress: float) -> float:
    """From the first value to the second by equal factors; both above zero. The same bits on every machine."""
    if not isinstance(values, tuple):
        return values
    if progress in (0, 1):  # exactly: power has some rounding
        return values[int(progress)]
    return values[0] * float(power(values[1] / values[0], progress))


def cosine(values: Span, progress: float) -> float:
    """From the first value to the second along half a cosine, flat at both ends."""
    if isinstance(values, tuple):
        return values[1] + (values[0] - values[1]) * 0.5 * (1 + math.cos(math.pi * progress))
    return values


def stepwise(steps: Sequence[tuple[int, float]], epoch: int, before: float = 1.0) -> float:
    """The value of the last step whose epoch has come; ``before`` the first one. steps: (epoch, value), in order."""
    value = before
    for begin, following in steps:
        if epoch >= begin:
            value = following
    return value


def between(epoch: float, begin: float, end: float) -> float:
    """How far ``epoch`` is on the way from ``begin`` to ``end``, in [0, 1]; a step where they are the same."""
    return min(1.0, max(0.0, (epoch - begin) / (end - begin))) if end > begin else float(epoch >= begin)


def annealing(epoch: int, delta: float, epochs: int) -> bool:
    """Whether the share ``delta`` of training is over, so that the rest is plain: epoch + 1 > delta * epochs.

    Epochs count from 0. It holds from some epoch on, also where delta * epochs is no integer. A product such as
    0.29 * 100 may be a little less than it means.
    """
    return epoch + 1 > delta * epochs + 1e-9
