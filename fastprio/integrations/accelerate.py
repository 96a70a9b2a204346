"""Hugging Face Accelerate: a loader that draws by priority, prepared, on one process or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from fastprio.checkpoint import Checkpoint
from fastprio.sampler import PrioritySampler


def prepare(accelerator: Accelerator, loader: DataLoader[Any]) -> Any:
    """``accelerator.prepare(loader)``, but that the sampler slices by rank, which is not done a second time.

    ::

        loader = PriorityLoader(dataset, 64, epochs=epochs)  # when the Accelerator exists; 64 a process
        batches = prepare(accelerator, loader)
        for epoch in range(first, epochs):
            batches.set_epoch(epoch)
            for x, y in batches:
                loss = loader.step(F.cross_entropy(model(x), y, reduction="none"))
                accelerator.backward(loss)

    From now on ``save_state`` and ``load_state`` include the sampler and its store. After ``load_state`` the loader
    goes on behind the last batch that was stepped, with the draws that were in flight, also in StatefulDataLoader mode;
    do not skip batches as well (``skip_first_batches`` raises). Draws run ahead by num_workers * prefetch_factor + 1
    batches.

    Args:
        accelerator: moves the batches to its device.
        loader: a PriorityLoader, or a DataLoader with a PrioritySampler or PriorityBatchSampler, of a process's batch
            size and without num_replicas and rank.

    Returns: Accelerate's loader, to iterate over; ``step``, ``skip`` and the rest are those of ``loader``, or of the
        sampler.

    Raises:
        TypeError: a loader without a PrioritySampler; for it is ``accelerator.prepare``.
        ValueError: split_batches or dispatch_batches on several processes; a lag below what the loader reads ahead.
    """
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if not isinstance(sampler, PrioritySampler):
        raise TypeError(f"loader: expected one with a PrioritySampler, got one with {type(sampler).__name__}")
    for name in ("split_batches", "dispatch_batches"):
        if accelerator.num_processes > 1 and getattr(accelerator, name):
            raise ValueError(f"{name}=True: every process draws whole batches of its own; leave it out")
    ahead = loader.num_workers * (loader.prefetch_factor or 0) + 1
    if sampler.lag is not None and sampler.lag < ahead:
        raise ValueError(
            f"lag = {sampler.lag}: under Accelerate this loader reads {ahead} batches ahead, so lag >= {ahead}"
        )
    if sampler.lookahead is None and loader.in_order:
        sampler.lookahead = ahead - 1  # the sampler sees by itself that Accelerate holds one back
    batches = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        rng_types=list(accelerator.rng_types),
        non_blocking=accelerator.non_blocking,
        use_stateful_dataloader=accelerator.use_stateful_dataloader,
    )
    batches._drop_last = True  # or gather_for_metrics would cut the last batch to what of the data set is left over
    batches._is_accelerate_prepared = True
    accelerator.prepare(batches)  # which now only registers it
    accelerator.register_for_checkpointing(_Checkpoint(sampler, batches))
    return batches


class _Checkpoint(Checkpoint):
    """Also puts back the loader's count of epochs, which Accelerate begins at zero and passes to ``set_epoch``."""

    def __init__(self, sampler: PrioritySampler, batches: Any) -> None:
        super().__init__(sampler)
        self._batches = batches

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave."""
        super().load_state_dict(state)
        at = state["sampler"]
        self._batches.set_epoch(max(at["epoch"] + int(at["over"]), at["said"] or 0))
