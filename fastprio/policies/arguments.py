"""Checks of constructors' arguments: each names the argument, its value and what was expected."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np


def real(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    hint: str = "",
) -> float:
    """The value as a Python number: an int up to 2^53 as it is, any other as a float.

    Args: above, below: leave the range's lower, its upper end out. hint: what ends the message.

    Raises: ValueError unless it is a real number (no bool), finite and in [least, most].
    """
    number = finite(value)
    if number is not None:
        enough = number > least if above else number >= least
        if enough and (number < most if below else number <= most):
            return number
    if math.isinf(most):
        expected = "a finite number" if math.isinf(least) else f"a finite number {'>' if above else '>='} {least:g}"
    else:
        limits = f"{least:g} {'<' if above else '<='} {name} {'<' if below else '<='} {most:g}".replace("e+", "e")
        expected = limits if isinstance(value, Real) else f"a number, {limits}"
    raise ValueError(f"{name} = {value!r}: expected {expected}{hint}")


def finite(value: Any) -> float | None:
    """The value as a Python number; None if it is no real one, or not finite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        return None
    if not math.isfinite(number):
        return None
    return value if isinstance(value, int) and abs(value) <= 2**53 else number  # compiled loops take no larger ones


def flag(name: str, value: Any) -> bool:
    """The value as a bool. ValueError unless it is one, of Python or numpy."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} = {value!r}: expected True or False")
    return bool(value)
