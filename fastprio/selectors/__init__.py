"""Selectors: which examples of a forwarded batch to back-propagate, one method a file."""

from fastprio.selectors.base import Selection, Selector
from fastprio.selectors.selective_backprop import SelectiveBackprop

__all__ = ["Selection", "SelectiveBackprop", "Selector"]
