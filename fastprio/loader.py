"""PriorityLoader: a DataLoader, its sampler and its store as one object; and WithIndex."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastprio._arrays import integer
from fastprio.checkpoint import Checkpoint
from fastprio.policies.base import Policy
from fastprio.ranks import place_in, shard_of
from fastprio.sampler import PriorityBatchSampler, PrioritySampler
from fastprio.scoring import score
from fastprio.store import ScoreStore

OWN = {
    "shuffle": "PriorityLoader draws in random order by itself; leave it out",
    "sampler": "PriorityLoader has its own; with another, use torch's DataLoader",
    "batch_sampler": "PriorityLoader has its own; with another, use torch's DataLoader",
}


class PriorityLoader(DataLoader[Any]):
    """A DataLoader that draws its batches by priority and takes the losses back.

    ::

        loader = PriorityLoader(dataset, 256, epochs=10, num_workers=4)
        for epoch in range(10):
            for x, y in loader:
                losses = F.cross_entropy(model(x), y, reduction="none")
                loss = loader.step(losses)          # records them; mean(weight * loss)
                ...

    Args:
        dataset: map-style, with a length.
        batch_size: examples a batch.
        policy: a registered name, a Policy, or a ScoreStore of the data set's length to use.
        epochs: how many epochs training will have.
        num_samples, replacement, scheme, cover_first, seed, lag, depth: as in PrioritySampler.
        process_group, shard: as in PrioritySampler. Make the loader when the process group exists: ``batch_size`` is
            that of a rank, and with "sharded" the store is of this rank's shard.
        on_nonfinite: as in ScoreStore, "raise" by default.
        drop_last and all other arguments: as in torch.utils.data.DataLoader.

    Every batch is stepped or skipped once, in order; the next one of the epoch after a forgotten batch raises
    RuntimeError.
    ``lag`` below what the workers read ahead (num_workers * prefetch_factor) is a ValueError that names it.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        policy: str | Policy | ScoreStore = "loss",
        epochs: int | None = None,
        num_samples: int | None = None,
        replacement: bool = True,
        scheme: str | None = None,
        cover_first: bool = True,
        seed: int = 0,
        lag: int | None = None,
        depth: int = 1024,
        process_group: Any = None,
        shard: str = "replicated",
        on_nonfinite: str | None = None,
        drop_last: bool = False,
        **arguments: Any,
    ) -> None:
        for name, what in OWN.items():
            if arguments.pop(name, None) not in (None, False):
                raise TypeError(f"{name}: {what}")
        if isinstance(dataset, IterableDataset):
            raise TypeError("dataset: an IterableDataset has no indices to draw; expected a map-style data set")
        size = whole = len(dataset)  # type: ignore[arg-type]
        rank, ranks = place_in(process_group)
        if shard == "sharded":
            size = len(shard_of(whole, rank, ranks))
        if isinstance(policy, ScoreStore):
            store = policy
            if len(store) != size:
                of = "" if size == whole else f", this rank's shard {size}"
                raise ValueError(f"the store has {len(store)} examples, the data set {whole}{of}")
            for name, given, its in (
                ("epochs", epochs, store.epochs),
                ("on_nonfinite", on_nonfinite, store.on_nonfinite),
            ):
                if given not in (None, its):
                    raise ValueError(f"{name} = {given!r}: the store that was given has {its!r}")
        else:
            store = ScoreStore(size, policy, epochs=epochs, on_nonfinite=on_nonfinite or "raise")
        sampler = PrioritySampler(
            store,
            whole if shard == "sharded" and num_samples is None else num_samples,
            replacement,
            batch_size=integer("batch_size", batch_size, 1) * ranks,
            scheme=scheme,
            cover_first=cover_first,
            seed=seed,
            lag=lag,
            depth=depth,
            process_group=process_group,
            shard=shard,
        )
        sampler.dataset = dataset
        sampler.generator = arguments.get("generator")
        self.store = store
        super().__init__(dataset, batch_sampler=PriorityBatchSampler(sampler, batch_size, drop_last), **arguments)
        # torch has put a SequentialSampler here, and does not let it be replaced; trainers look at it.
        object.__setattr__(self, "sampler", sampler)
        self._priority = sampler
        self._finished: bool | None = None  # not known where another loader goes through the batch sampler
        self._yielded: int | None = None
        sampler.lookahead = self.num_workers * (self.prefetch_factor or 0)
        if not self.in_order:
            if lag is not None:
                raise ValueError(
                    f"lag = {lag}: it needs batches in the order in which they were drawn, so in_order=True"
                )
            if ranks > 1 and store.policy.observes:
                raise ValueError(
                    f"in_order = False: {ranks} ranks gather their losses in the order in which batches were drawn"
                )
            sampler.lookahead = None  # batches come as they are ready: step(..., indices=) says which
        sampler._check_scheme()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self._priority
        strict = sampler.store.policy.observes and self.in_order
        consumed = None  # batches, before the first one; not zero where an epoch goes on
        self._finished, self._yielded = False, 0
        for yielded, batch in enumerate(super().__iter__()):
            consumed = sampler.journal.consumed_batches if consumed is None else consumed
            if strict and sampler.journal.consumed_batches < consumed + yielded:
                raise RuntimeError(
                    f"batch {sampler.journal.consumed_batches} of this epoch was neither stepped nor skipped: call "
                    "step(losses) or skip() once for every batch"
                )
            self._yielded = yielded + 1
            yield batch
        self._finished = True

    def set_epoch(self, epoch: int) -> None:
        """As ``PrioritySampler.set_epoch``."""
        self._priority.set_epoch(epoch)

    def step(self, losses: torch.Tensor, *, indices: Any = None, **observations: Any) -> torch.Tensor:
        """As ``PrioritySampler.step``: records the losses of the batch just yielded; returns mean(weight * loss)."""
        self._with_indices(indices)
        return self._priority.step(losses, indices=indices, **observations)

    def record(self, losses: torch.Tensor, *, indices: Any = None, **observations: Any) -> None:
        """As ``PrioritySampler.record``."""
        self._with_indices(indices)
        self._priority.record(losses, indices=indices, **observations)

    def skip(self, *, indices: Any = None) -> None:
        """As ``PrioritySampler.skip``: no losses will come for the batch just yielded."""
        self._with_indices(indices)
        self._priority.skip(indices=indices)

    def flush(self) -> None:
        """As ``PrioritySampler.flush``: applies what ``lag`` holds back, before the store is read or saved."""
        self._priority.flush()

    def stats(self) -> dict[str, float]:
        """As ``PrioritySampler.stats``."""
        return self._priority.stats()

    def score(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Any],
        *,
        indices: Any = None,
        origin: str = "score",
    ) -> int:
        """Forwards examples without training on them, and tells the store their losses: for policies that want those.

        ::

            for epoch in range(10):
                for x, y in loader:
                    ...
                loader.score(model, lambda model, batch: losses_of(model, *batch))   # what the plan asks for

        Args:
            model: put in eval mode for the pass; of DistributedDataParallel the module within is used.
            loss_fn: (model, batch) -> losses [n], or (losses, {name: observation [n]}) for policies that need more.
            indices: int64 [m], which of the store's examples; None: those that the plan of the epoch just finished
                asks for (``Plan.score``); before the first epoch, or with origin "reference", all.
            origin: "score", or "reference" for another model's losses.

        Returns: how many examples were scored, on all ranks together; 0 if the policy asks for none.

        Under ``no_grad``; the modes of the model's parts, its batch-norm statistics, and the random states of torch
        (processor and CUDA), numpy and Python are as they were. With several ranks all of them call it and each
        forwards a part. Call it once at an epoch's end, and save afterwards: a pass missing is warned about when the
        next epoch begins.

        Raises: RuntimeError in the middle of an epoch where ``lag`` says which losses a draw may see; or, without
            ``indices``, after a state was loaded, before its epoch goes on. ValueError for losses of another shape, or
            those that the store refuses; nothing was recorded then.
        Cost: a forward pass of each; a DataLoader like this one is made for it.
        """
        return score(self, self._priority, model, loss_fn, indices, origin)

    def state_dict(self) -> dict[str, Any]:
        """The store, and where training stands: saved after a step, the next batch is the one after it.

        Tensors (copies) and plain values; loads under ``torch.load(weights_only=True)``. What workers had read ahead
        is drawn again as it was. Cost: O(size).
        """
        return Checkpoint(self._priority).state_dict(self._finished, self._yielded)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave: the next iteration goes on there. ValueError if it does not fit."""
        Checkpoint(self._priority).load_state_dict(state)

    def _with_indices(self, indices: Any) -> None:
        if indices is None and not self.in_order and self.num_workers > 1:
            raise ValueError(
                "indices: with in_order=False batches come in any order; carry their indices in them "
                "(fastprio.WithIndex) and pass indices="
            )

    @property
    def indices(self) -> Any:
        """int64 [n]: the examples of the batch just yielded."""
        self._with_indices(None)
        return self._priority.indices

    @property
    def weights(self) -> torch.Tensor:
        """float32 [n]: the importance weights of the batch just yielded."""
        self._with_indices(None)
        return self._priority.weights


class WithIndex(Dataset[Any]):
    """A data set whose items carry their index: ``(index, item)``. For loaders that may reorder batches.

    ``for index, batch in loader: ... sampler.step(losses, indices=index)``. Batched fetching is passed on where the
    data set has it (then ``item`` is what it gives).
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        if hasattr(dataset, "__getitems__"):
            # torch asks for this name on the instance; a data set without it must not seem to have it.
            self.__getitems__ = functools.partial(_fetch, dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


def _fetch(dataset: Any, indices: list[int]) -> list[tuple[int, Any]]:
    # Not a lambda: worker processes that are not forked get the data set pickled.
    return list(zip(indices, dataset.__getitems__(indices), strict=True))
