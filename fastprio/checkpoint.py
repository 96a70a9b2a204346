"""Checkpoint: everything that a run's choosing consists of, as one object to save and load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastprio import resume
from fastprio.sampler import PriorityBatchSampler, PrioritySampler


class Checkpoint:
    """A sampler's whole state as one object, for loops and trainers whose loader has no state of its own.

    ``state_dict`` has the store, and where training stands, however far a loader had read ahead: the first draw that
    was neither stepped nor skipped. The next iteration after ``load_state_dict`` goes on with that one, in any loader;
    the loader, or trainer, is not to skip batches by itself.

    Args:
        sampler: a PrioritySampler, or a PriorityBatchSampler of one.
    """

    def __init__(self, sampler: PrioritySampler | PriorityBatchSampler) -> None:
        found = sampler.sampler if isinstance(sampler, PriorityBatchSampler) else sampler
        if not isinstance(found, PrioritySampler):
            raise TypeError(f"sampler: expected a PrioritySampler, got {type(found).__name__}")
        self.sampler = found

    def state_dict(self, over: bool | None = None, yielded: int | None = None) -> dict[str, Any]:
        """Tensors and plain values; loads under ``torch.load(weights_only=True)``. Cost: O(size).

        over, yielded: what a loader knows of its iteration, as in ``PrioritySampler.consumed_state``; raises as there.
        """
        with self.sampler.store.lock:
            position = self.sampler.consumed_state(over, yielded)
            return {"store": self.sampler.store.state_dict(), "sampler": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave. ValueError if it does not fit, before anything has changed."""
        if not isinstance(state, Mapping) or set(state) != {"store", "sampler"}:
            raise ValueError(
                "not a state of a PriorityLoader or a Checkpoint, which has 'store' and 'sampler': "
                f"{sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__}"
            )
        resume.check_state(state["sampler"])
        place = self.sampler._share()
        resume.check_kept(state["store"], self.sampler.shard, place.rank, place.ranks)
        self.sampler.store.load_state_dict(state["store"])
        self.sampler.load_state_dict(state["sampler"])
