"""The report's arithmetic: functions of plain numbers, each of one run or of one seed's runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Points = Sequence[tuple[float, float]]
"""A curve: (cost, error in %) by rising cost. Cost is in backprops or seconds, above 0."""


class Bound(NamedTuple):
    """A number that is known ("" ), or known to be below (<) or above (>) the value; "~" says neither."""

    value: float
    sign: str = ""


class Interval(NamedTuple):
    """The mean of ``pairs`` numbers, and the ends of its 90 % interval, None for a single number."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


# Student's t at 0.95 by degrees of freedom, from 1: half of what is outside a two-sided 90 % interval is above it.
T95 = (
    *(6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812),
    *(1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725),
)


def mean(values: Sequence[float]) -> float:
    """The mean of one number or more."""
    return math.fsum(values) / len(values)


def interval(values: Sequence[float]) -> Interval:
    """The mean of differences paired by seed, and Student's interval of 90 %.

    Above 21 numbers the quantile of 21 is taken, which makes the interval wider by at most 5 %.
    """
    n, middle = len(values), mean(values)
    if n == 1:
        return Interval(middle, None, None, 1)
    deviation = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1))
    half = T95[min(n - 1, len(T95)) - 1] * deviation / math.sqrt(n)
    return Interval(middle, middle - half, middle + half, n)


def reached(curve: Sequence[dict[str, Any]], target: float, clock: str) -> float | None:
    """What a run had spent at the first of two consecutive evaluations with at most the target error.

    Two, for the error of a single evaluation leaps while the learning rate is high. The last evaluation has none after
    it, and so is never the first of two.

    Args: clock: "backprops" or "seconds". Returns: None for never.
    """
    for at, after in pairwise(curve):
        if at["error"] <= target and after["error"] <= target:
            return float(at[clock])
    return None


def needed(points: Points, error: float) -> Bound:
    """The least cost at which a curve is at or below an error, in straight lines over log(cost) between its points.

    Returns: "<" its first cost if the curve begins below the error; ">" its last one if it never comes down to it.
    """
    first, begin = points[0]
    if begin <= error:
        return Bound(first, "<" if begin < error else "")
    for (cost, high), (more, low) in pairwise(points):
        if low <= error:
            return Bound(cost * (more / cost) ** ((high - error) / (high - low)))
    return Bound(points[-1][0], ">")


def least_within(points: Points, cost: float) -> Bound | None:
    """A curve's least error up to a cost, in straight lines over log(cost): under noise, more is not always better.

    Returns: None before the curve's beginning; with "<" beyond its end, where it might go on falling.
    """
    if cost < points[0][0]:
        return None
    least = min(error for at, error in points if at <= cost)
    for (a, error), (b, other) in pairwise(points):
        if a < cost < b:
            return Bound(min(least, error + (other - error) * math.log(cost / a) / math.log(b / a)))
    return Bound(least, "<" if cost > points[-1][0] else "")


def mean_bound(bounds: Sequence[Bound]) -> Bound:
    """The mean of numbers of which some are bounds: itself one, "~" if there are bounds of both kinds."""
    signs = {bound.sign for bound in bounds} - {""}
    return Bound(mean([bound.value for bound in bounds]), signs.pop() if len(signs) == 1 else "~" if signs else "")


def late_share(curve: Sequence[dict[str, Any]]) -> float | None:
    """The share of altered examples among those back-propagated in the second half of a run's evaluations."""
    end = curve[-1]
    half = curve[(len(curve) - 1) // 2]
    spent = end["backprops"] - half["backprops"]
    return (end["altered"] - half["altered"]) / spent if spent else None


def right_after_selection(right: float, beta: float) -> float:
    """The share of right examples among those that CDF^beta selects: right^(beta + 1).

    The altered are taken to have the highest losses and those of a class its own order, so that the right ones are
    the lowest ``right`` of the distribution: the integral of (beta + 1) u^beta up to there.
    """
    return float(right ** (beta + 1))
