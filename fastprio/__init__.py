"""fastprio: draw the next training batch by priority, at about the price of drawing it uniformly. The public names."""

from fastprio._version import __version__
from fastprio.loader import PriorityLoader, WithIndex
from fastprio.sampler import PriorityBatchSampler, PrioritySampler
from fastprio.store import ScoreStore
from fastprio.tree import SumTree

__all__ = [
    "PriorityBatchSampler",
    "PriorityLoader",
    "PrioritySampler",
    "ScoreStore",
    "SumTree",
    "WithIndex",
    "__version__",
]
