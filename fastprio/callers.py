"""Who asks for the next draw: what loaders do with draws, and for which data set, nothing given to a sampler says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from fastprio.journal import Share

TORCHS = {"torch.utils.data.dataloader", "torchdata.stateful_dataloader.stateful_dataloader"}


def callers(modules: set[str]) -> Iterator[Any]:
    """The objects whose methods, defined in these modules, are on the call stack, the nearest first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in modules and "self" in frame.f_locals:
            yield frame.f_locals["self"]
        frame = frame.f_back


def accelerates() -> dict[str, Any]:
    """Those of Accelerate's loaders and samplers that are on the call stack, by the names of their classes."""
    found: dict[str, Any] = {}
    if "accelerate.data_loader" in sys.modules:
        for loader in callers({"accelerate.data_loader"}):
            found.setdefault(type(loader).__name__, loader)
    return found


def has_workers() -> bool:
    """Whether a torch loader asks that reads ahead."""
    return any(getattr(loader, "_num_workers", 0) > 0 for loader in callers(TORCHS))


def check_data_set(size: int) -> None:
    """ValueError if a torch loader that asks has a data set of another length."""
    for loader in callers(TORCHS):
        dataset = getattr(loader, "_dataset", None)
        if dataset is not None and hasattr(dataset, "__len__") and len(dataset) != size:
            raise ValueError(f"the sampler has {size} examples, the loader's data set {len(dataset)}")


def dealing_loader() -> Any:
    """BatchSamplerShard, if that is who asks, else None: it goes through the batches of all ranks and keeps its own."""
    dealer = accelerates().get("BatchSamplerShard")
    return dealer if dealer is not None and dealer.num_processes > 1 else None


def held_back() -> int:
    """How many batches the loader takes before it passes on the first, beside what its workers read ahead."""
    return int(not accelerates().keys().isdisjoint(("DataLoaderShard", "DataLoaderDispatcher")))


def refuse_dispatching() -> None:
    """ValueError if one rank is asked to draw for all."""
    dispatcher = accelerates().get("DataLoaderDispatcher")
    if dispatcher is not None and dispatcher.state.num_processes > 1:
        raise ValueError(
            "dispatch_batches=True: only the first rank draws, and the others could not say of which examples their "
            "losses are; use DataLoaderConfiguration(dispatch_batches=False)"
        )


def check_callers(share: Share, singly: bool, learns: bool, goes_on: bool) -> None:
    """ValueError if a loader drops, skips or deals draws otherwise than the sampler reckons.

    Args:
        share: which draws are this rank's, as the sampler sees it. singly: whether the loader makes batches by itself.
        learns: whether losses are learnt from; then what is dealt wrongly is credited wrongly, and no draw can be made
            again. goes_on: whether a state was loaded.
    """
    refuse_dispatching()
    around = accelerates()
    skipping, dealer = around.get("SkipBatchSampler"), dealing_loader()
    if (learns or goes_on) and skipping is not None and skipping.skip_batches > 0:
        raise ValueError(
            f"skip_first_batches(..., {skipping.skip_batches}): they would be drawn and never stepped, while a state "
            "that was loaded goes on after them by itself. Save and load a fastprio.Checkpoint, and iterate the loader "
            "itself (HF Trainer: ignore_data_skip=True)"
        )
    stateful = any(getattr(loader, "use_stateful_dataloader", False) for loader in around.values())
    if (learns or goes_on) and stateful and (singly or dealer is not None):
        raise ValueError(
            "use_stateful_dataloader=True: with this batch sampler StatefulDataLoader resumes by drawing anew and "
            "throwing away. Give the loader batch_sampler=PriorityBatchSampler(...), of a sampler without num_replicas "
            "and rank, and prepare it with fastprio.integrations.accelerate.prepare"
        )
    if dealer is None:
        return
    if dealer.split_batches:
        raise ValueError("split_batches=True cuts batches otherwise than the losses are gathered; use False")
    if not share.dealt and (share.ranks > 1 or learns):
        raise ValueError(
            f"this loader deals batches to {dealer.num_processes} ranks by itself, and the sampler does not reckon "
            "with it: examples would be lost, or losses credited to others. Prepare the loader with "
            "fastprio.integrations.accelerate.prepare instead; or pass num_replicas=1, rank=0 and the global "
            "batch_size (per rank * ranks)"
        )
    if share.dealt and (dealer.process_index, dealer.num_processes) != (share.rank, share.ranks):
        raise ValueError(
            f"this loader deals to rank {dealer.process_index} of {dealer.num_processes}, and the process group says "
            f"{share.rank} of {share.ranks}: pass process_group= of the data-parallel ranks"
        )
