"""Fabric keeps a sampler as it is; what is missing is where it stands, in Fabric's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastprio.checkpoint import Checkpoint
from fastprio.ranks import place_in
from fastprio.sampler import PrioritySampler


class PriorityCheckpoint(Checkpoint):
    """A sampler's store and position, for ``fabric.save`` and ``fabric.load``.

    ::

        sampler = PrioritySampler(ScoreStore(len(data), epochs=10), batch_size=32 * fabric.world_size)
        loader = fabric.setup_dataloaders(DataLoader(data, batch_size=32, sampler=sampler))
        state = {"model": model, "optimizer": optimizer, "priority": PriorityCheckpoint(loader)}
        ...
        loss = sampler.step(losses)         # in the loop: one loss an example
        fabric.backward(loss)
        fabric.save(path, state)            # after any step
        fabric.load(path, state)            # the next ``for batch in loader`` is the rest of that epoch

    Fabric numbers a loader's iterations from 0, also after a resume, and tells the sampler: other batches would follow
    than without one. Loading sets that number right too. Where a state was saved after an epoch's last batch, the next
    iteration is the next epoch.

    Args:
        loader: what ``fabric.setup_dataloaders`` returned for a DataLoader with ``sampler=`` a PrioritySampler.

    Raises: TypeError for another loader. ValueError: the data set or the batch is not of the sampler's size, ``lag`` is
        below what the workers read ahead, or ``shard="sharded"``, of which Fabric would save one rank's part.
    """

    def __init__(self, loader: Any) -> None:
        sampler = getattr(loader, "sampler", None)
        if not hasattr(loader, "_num_iter_calls"):
            raise TypeError(f"loader: expected what fabric.setup_dataloaders returned, got {type(loader).__name__}")
        if not isinstance(sampler, PrioritySampler):
            raise TypeError(f"loader: its sampler is {type(sampler).__name__}; give it sampler=PrioritySampler(...)")
        super().__init__(sampler)
        self.loader, store, ranks = loader, sampler.store, place_in(None)[1]
        if sampler.shard == "sharded" and ranks > 1:
            raise ValueError("shard = 'sharded': Fabric saves the state of one rank; use 'replicated'")
        if len(loader.dataset) != len(store):
            raise ValueError(f"the store has {len(store)} examples, the data set {len(loader.dataset)}")
        if sampler.batch_size is not None:
            if sampler.batch_size != loader.batch_size * ranks:
                raise ValueError(
                    f"the sampler's batch_size is {sampler.batch_size}: expected that of all processes, "
                    f"{ranks} * {loader.batch_size} = {ranks * loader.batch_size}"
                )
            sampler.lookahead = loader.num_workers * (loader.prefetch_factor or 0)
            sampler._check_scheme()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave. ValueError if it does not fit, before anything has changed."""
        super().load_state_dict(state)
        position = state["sampler"]
        self.loader._num_iter_calls = position["epoch"] + position["over"]
