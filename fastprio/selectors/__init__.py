"""Selectors: which examples of a forwarded batch to back-propagate, one method a file."""

from fastprio.selectors.base import Selector, find, make, register, registered
from fastprio.selectors.co_teaching import CoTeaching
from fastprio.selectors.noise_guard import NoiseGuard
from fastprio.selectors.queue import Selection
from fastprio.selectors.reducible_loss import ReducibleLoss
from fastprio.selectors.selective_backprop import SelectiveBackprop
from fastprio.selectors.small_loss import SmallLoss
from fastprio.selectors.top_loss import TopLoss
from fastprio.selectors.variance_reduction import VarianceReduction, gradient_norm

__all__ = [
    "CoTeaching",
    "NoiseGuard",
    "ReducibleLoss",
    "Selection",
    "SelectiveBackprop",
    "Selector",
    "SmallLoss",
    "TopLoss",
    "VarianceReduction",
    "find",
    "gradient_norm",
    "make",
    "register",
    "registered",
]
