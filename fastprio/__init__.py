"""fastprio: draw the next training batch by priority. These are the public names."""

from fastprio._version import __version__

try:
    import fastprio._core  # noqa: F401  (first, to say what is wrong if it is not there)
except ImportError as error:
    raise ImportError(
        f"fastprio._core is missing ({error}): if this is the source folder and the package is installed, run from "
        "another folder; else install it with pip, or with pip install -e . to use the sources here"
    ) from error

from fastprio import policies, selectors
from fastprio._threads import get_num_threads, set_num_threads
from fastprio.checkpoint import Checkpoint
from fastprio.loader import PriorityLoader, WithIndex
from fastprio.ranks import shard_of
from fastprio.sampler import PriorityBatchSampler, PrioritySampler
from fastprio.store import ScoreStore
from fastprio.tree import SumTree

__all__ = [
    "Checkpoint",
    "PriorityBatchSampler",
    "PriorityLoader",
    "PrioritySampler",
    "ScoreStore",
    "SumTree",
    "WithIndex",
    "__version__",
    "get_num_threads",
    "policies",
    "selectors",
    "set_num_threads",
    "shard_of",
]
