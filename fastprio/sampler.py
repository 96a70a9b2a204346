"""The samplers: how a torch loader gets its next indices, and how the losses find their way back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch.utils.data import DistributedSampler, Sampler

from fastprio._arrays import integer, one_dimensional, to_numpy
from fastprio._random import Rng
from fastprio.epoch import Epoch
from fastprio.feedback import Feedback, weights_of
from fastprio.journal import Journal, Taken
from fastprio.order import Cover, PlannedEpoch
from fastprio.policies.base import Plan
from fastprio.policies.given import Given
from fastprio.store import ScoreStore
from fastprio.tree import SCHEMES

if TYPE_CHECKING:
    from fastprio._arrays import Float64, Int64


class PrioritySampler(DistributedSampler[Any]):
    """Yields indices drawn by priority; give it to a loader as ``sampler=``, or to a PriorityBatchSampler.

    Args:
        source: a ScoreStore; or a data set or a number of examples, for which a store with policy "loss" is made.
        num_samples: draws an epoch over all ranks; the size of the store if None.
        replacement: False draws each example at most once an epoch (scheme "epoch").
        weights: real [size], instead of ``source``: draw in proportion to these, as WeightedRandomSampler does.
        batch_size: the global batch. Strata and ``lag`` are counted in it. Without it draws are iid, one at a time.
        scheme: "stratified" (the default with a batch size), "systematic", "unique", "iid" or "epoch"; see
            ``SumTree.sample``.
        cover_first: draw what was never scored first, so that the first epoch scores everything.
        seed: in [0, 2^64). The same seed, losses and lag give the same sequence.
        lag: None draws with whatever losses have arrived. d: batch t sees exactly the losses of the batches up to
            t - 1 - d, so that prefetching cannot change the sequence; at least as many as the loader reads ahead.
        num_replicas, rank: which slice of every batch to yield; by default those of the process group, if there is
            one when iteration begins. Only for policies that do not learn from losses.
        drop_last: with several ranks, drop draws that do not divide evenly instead of drawing more.

    One sampler draws from a store at a time. Every iteration is an epoch of its own: that of ``set_epoch`` if it was
    called since the last one began, else the next. Iterators are lazy; only the newest may be used.

    Raises: ValueError, TypeError: arguments that do not fit together, named.
    Cost: O(batch log size) a batch; O(1) memory beside the store.
    """

    def __init__(
        self,
        source: ScoreStore | Sized | int | None = None,
        num_samples: int | None = None,
        replacement: bool = True,
        *,
        weights: Any = None,
        batch_size: int | None = None,
        scheme: str | None = None,
        cover_first: bool = True,
        seed: int = 0,
        lag: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        # DistributedSampler.__init__ is not called: it asks for the process group, which frameworks start later.
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement = {replacement!r}: expected a bool")
        self.store, self.dataset = _store_of(source, weights)
        num_samples = None if num_samples is None else integer("num_samples", num_samples, 1)
        batch_size = None if batch_size is None else integer("batch_size", batch_size, 1, 1 << 31)
        lag = None if lag is None else integer("lag", lag, 0)
        seed = integer("seed", seed, 0, (1 << 64) - 1)
        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f"scheme = {scheme!r}: expected one of {', '.join(SCHEMES)}")
        if not replacement and scheme not in (None, "epoch"):
            raise ValueError(f"scheme = {scheme!r}: replacement=False is the scheme 'epoch'")
        if not replacement and num_samples is not None and num_samples > len(self.store):
            raise ValueError(f"num_samples = {num_samples}: expected at most {len(self.store)} without replacement")
        if (num_replicas is None) != (rank is None):
            raise ValueError("num_replicas and rank: give both or neither")
        if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
            raise ValueError(f"rank = {rank}: expected 0 <= rank < num_replicas = {num_replicas}")
        self.replacement, self.batch_size, self.cover_first = replacement, batch_size, cover_first
        self.seed, self.lag, self.drop_last, self.shuffle = seed, lag, drop_last, True
        self.epoch, self.generator = 0, None
        self.lookahead: int | None = None  # batches the loader reads ahead, where an integration knows
        self.journal = Journal()
        self._num_samples, self._scheme = num_samples, scheme
        self._replicas, self._rank = num_replicas, rank
        self._epoch_said = self._was_idle = False
        self._under_way: Epoch | None = None
        self._cover = Cover(self.store)
        self._feedback = Feedback(self.store, self.journal, lag)
        self._check_scheme()

    # What torch and the trainers ask for.

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Draws an epoch, over all ranks."""
        return len(self.store) if self._num_samples is None else self._num_samples

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Draws an epoch, over all ranks, once every rank has the same number."""
        return len(self) * self._slice()[1]

    def __len__(self) -> int:
        """Draws an epoch on this rank. Constant; ``planned`` is less where a policy leaves examples out."""
        replicas = self._slice()[1]
        return self.num_samples // replicas if self.drop_last else -(-self.num_samples // replicas)

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of ranks, as it is now."""
        return self._slice()[1]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This rank, as it is now."""
        return self._slice()[0]

    @property
    def planned(self) -> int:
        """Draws of the epoch under way on this rank, after the policy's plan."""
        return len(self) if self._under_way is None else self._under_way.total // self._slice()[1]

    @property
    def plan(self) -> Plan | None:
        """The policy's plan of the epoch under way, or None if it has none."""
        planned = None if self._under_way is None else self._under_way.planned
        return None if planned is None else planned.plan

    @property
    def scheme(self) -> str:
        """The scheme in use."""
        if not self.replacement:
            return "epoch"
        return self._scheme or ("iid" if self.batch_size is None else "stratified")

    def __repr__(self) -> str:
        batch = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"PrioritySampler({self.store!r}, num_samples={self.num_samples}{batch}, scheme={self.scheme!r})"

    def set_epoch(self, epoch: int) -> None:
        """Names the next iteration's epoch; calling it twice is harmless."""
        self.epoch, self._epoch_said = integer("epoch", epoch, 0, (1 << 32) - 1), True

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self._stretches())

    def _stretches(self) -> Iterator[Iterator[int]]:
        epoch = self._begin()
        while (draws := epoch.next()) is not None:
            yield draws.singly()

    # What the training loop calls.

    @property
    def indices(self) -> Int64:
        """int64 [n]: the examples of the batch that ``step`` is about to take (of single draws: all outstanding)."""
        return self.journal.peek().indices.copy()

    @property
    def probabilities(self) -> Float64:
        """float64 [n]: with which probability each of them was drawn."""
        return self.journal.peek().probabilities.copy()

    @property
    def weights(self) -> torch.Tensor:
        """float32 [n]: their importance weights, a copy."""
        return weights_of(self.journal.peek())

    def step(self, losses: torch.Tensor, *, indices: Any = None, **observations: Any) -> torch.Tensor:
        """Records a batch's losses and returns mean(weight * loss), with its graph.

        Args:
            losses: floating [n], one for each example of the next batch not consumed, on any device, attached or not.
                16-bit losses are averaged in float32. Where the loader makes smaller batches of single draws than the
                sampler's ``batch_size``, to accumulate gradients, an equal part of it.
            indices: integers [n] that came with the batch (``WithIndex``), for loaders that reorder batches.
            observations: what else the policy uses, by name, [n, ...] each.

        Returns: a scalar tensor on the losses' device.

        Raises:
            RuntimeError: nothing is outstanding, or an earlier batch was neither stepped nor skipped.
            ValueError: another length; a loss that is not finite (``on_nonfinite``) or that the policy refuses, which
                for losses on an accelerator is found at the next draw. Nothing was recorded or consumed then.

        PriorityLoader, which knows what it has yielded, finds every forgotten step. By itself a sampler finds one only
        where a later step shows it: not one before an epoch's first step, nor at its end, nor where another thread
        draws. To train on a batch in pieces, take ``weights`` first and ``record`` all its losses at the end.

        Never waits for the device.
        """
        return self._feedback.mean(losses, self._record(losses, indices, observations))

    def record(self, losses: torch.Tensor, *, indices: Any = None, **observations: Any) -> None:
        """``step`` without a result."""
        self._record(losses, indices, observations)

    def skip(self, count: int | None = None, *, indices: Any = None) -> None:
        """Passes over the next batch not consumed, or the one with ``indices``: no losses will come for it.

        ``count`` examples are passed over where the sampler draws singly, without a batch size; it is needed there.

        Raises: RuntimeError if nothing is outstanding. ValueError if ``count`` is missing, or indices are not found.
        """
        if self.batch_size is None and count is None:
            raise ValueError("count: this sampler has no batch_size; say how many examples the skipped batch had")
        self._feedback.skip(None if count is None else integer("count", count, 1), indices)

    def flush(self) -> None:
        """Applies all losses recorded so far, also those that ``lag`` holds back: for reading the store at the end."""
        self._feedback.apply()

    def _record(self, losses: torch.Tensor, indices: Any, observations: dict[str, Any]) -> Taken:
        taken = self._feedback.record(losses, indices, observations)
        if self._feedback.waiting and self.lag is None and self._under_way is not None:
            self._under_way.priorities_changed()  # by the next draw, which applies what came from an accelerator
        return taken

    # An epoch.

    def _slice(self) -> tuple[int, int]:
        """(rank, number of ranks), as they are now."""
        if self._replicas is not None and self._rank is not None:
            return self._rank, self._replicas
        return slice_of_batch()

    def _check_scheme(self) -> None:
        policy, replicas = self.store.policy, self._slice()[1]
        if self.batch_size is not None and self.batch_size % replicas:
            raise ValueError(f"batch_size = {self.batch_size}: the global batch must divide by {replicas} ranks")
        if self.scheme in ("unique", "epoch") and policy.needs_unbiased:
            raise ValueError(
                f"scheme = {self.scheme!r}: the importance weights of policy {policy.name!r} need draws with "
                "replacement; choose another scheme, or no such weights (fastprio.policies.LossPower(beta=0))"
            )
        if self.batch_size is None and self.scheme not in ("iid", "epoch"):
            raise ValueError(f"scheme = {self.scheme!r}: its groups are batches, so pass batch_size=")
        if self.batch_size is None and self.lag is not None:
            raise ValueError(f"lag = {self.lag}: it is counted in batches, so pass batch_size=")
        if self.lag is not None and self.lookahead is not None and self.lag < self.lookahead:
            raise ValueError(
                f"lag = {self.lag}: this loader reads {self.lookahead} batches ahead, so lag >= {self.lookahead}"
            )

    def _begin(self) -> Epoch:
        """The next epoch, begun: the epoch's number is fixed here, at an iteration's first draw."""
        with self.store.lock:  # a thread that still draws for the last epoch is done with it before, or finds it over
            return self._begin_locked()

    def _begin_locked(self) -> Epoch:
        store, policy, last = self.store, self.store.policy, self._under_way
        rank, replicas = self._slice()
        self._check_scheme()
        if replicas > 1 and policy.observes:
            raise ValueError(
                f"{replicas} ranks: policy {policy.name!r} learns from losses, which are not yet gathered over ranks; "
                "pass num_replicas=1, rank=0, or fixed weights"
            )
        if replicas > 1 and self.scheme == "epoch" and len(self) * replicas > self.num_samples:
            raise ValueError(
                f"num_samples = {self.num_samples} does not divide by {replicas} ranks: pass drop_last=True"
            )
        if self.generator is None:
            # RandomSampler takes one number here; doing the same keeps augmentation equal between the two.
            torch.empty((), dtype=torch.int64).random_()
        ahead, batch = self.lookahead, self.batch_size
        self._feedback.begin_epoch(None if ahead is None or batch is None else ahead * batch)
        unconsumed = self.journal.oldest()
        idle = last is not None and not self.journal.consumed_batches
        if unconsumed is not None and unconsumed.cover is not None and not (idle and self._was_idle):
            # A loop that broke off, or only looked at a batch: covering goes on after what was consumed, however far
            # the loader had read ahead. But not twice in a row without progress, or one batch could block it for ever.
            self._cover.go_back(unconsumed.cover)
        self._was_idle = idle
        if last is not None:
            last.over = True
            self.epoch += 0 if self._epoch_said else 1
        self._epoch_said = False
        self.journal.begin_epoch(batch is not None, (max(self.lag or 0, ahead or 0) + 1) * (batch or 0))
        store.seed = self.seed
        store.begin_epoch(self.epoch)
        if store.tree.refit_gain(least=8):
            store.tree.refit()
        plan = policy.plan(store, store.clock, Rng(self.seed, self.epoch, 0, "plan"))
        planned, total = None, len(self) * replicas
        if plan is not None:
            planned = PlannedEpoch(plan, len(store), self.seed, self.epoch)
            total = planned.chosen
            if self._num_samples is not None:  # a plan without codes has no end of its own
                total = self._num_samples if plan.codes is None else min(total, self._num_samples)
            total = (total // replicas if self.drop_last else -(-total // replicas)) * replicas
        elif policy.observes:
            # Without replacement everything comes once anyway, and what was covered would come twice.
            self._cover.begin_epoch(self.seed, self.cover_first and self.scheme != "epoch")
        self._under_way = Epoch(
            store,
            self.journal,
            self._feedback,
            self._cover,
            planned,
            number=self.epoch,
            seed=self.seed,
            total=total,
            scheme=self.scheme,
            batch_size=batch,
            lag=self.lag,
            mine=slice(rank, None, replicas) if replicas > 1 else None,
        )
        return self._under_way


class PriorityBatchSampler(Sampler[list[int]]):
    """Yields a batch of a PrioritySampler at a time, as a fresh list[int]; give it to a loader as ``batch_sampler=``.

    Args:
        sampler: a PrioritySampler. One without a batch size takes ``batch_size`` times the number of ranks.
        batch_size: examples a batch on this rank.
        drop_last: leave out a last batch that is not full.

    As ``sampler=`` it would be wrong: torch would take each batch for one example.

    Raises: TypeError for any other sampler. ValueError if the sampler has another batch size.
    """

    def __init__(self, sampler: PrioritySampler, batch_size: int, drop_last: bool = False) -> None:
        if not isinstance(sampler, PrioritySampler):
            raise TypeError(f"sampler: expected a PrioritySampler, got {type(sampler).__name__}")
        batch_size = integer("batch_size", batch_size, 1, 1 << 31)
        replicas = sampler._slice()[1]
        if sampler.batch_size not in (None, batch_size * replicas):
            raise ValueError(
                f"batch_size = {batch_size} on {replicas} ranks: the sampler's global one is {sampler.batch_size}"
            )
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        sampler._check_scheme()

    def __iter__(self) -> Iterator[list[int]]:
        sampler = self.sampler
        sampler.batch_size = self.batch_size * sampler._slice()[1]
        epoch = sampler._begin()
        while (draws := epoch.next(self.drop_last)) is not None:
            yield draws.indices.tolist()

    def __len__(self) -> int:
        n = len(self.sampler)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The sampler's ``set_epoch``."""
        self.sampler.set_epoch(epoch)


def slice_of_batch() -> tuple[int, int]:
    """(rank, number of ranks) of the process group, (0, 1) where there is none."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _store_of(source: Any, weights: Any) -> tuple[ScoreStore, Any]:
    if weights is not None:
        if source is not None:
            raise TypeError("weights: give either weights, or a store, data set or size")
        array = one_dimensional(to_numpy(weights), "weights")
        if not len(array):
            raise ValueError("weights: expected at least one")
        return ScoreStore(len(array), Given(array)), range(len(array))
    if isinstance(source, ScoreStore):
        return source, range(len(source))
    if isinstance(source, Sized):
        _refuse_weights(source)
        if not len(source):
            raise ValueError("source: the data set is empty")
        return ScoreStore(len(source)), source
    try:
        size = integer("source", source, 1)
    except TypeError:
        kind = type(source).__name__
        raise TypeError(f"source: expected a ScoreStore, a data set with a length, or a size, got {kind}") from None
    return ScoreStore(size), range(size)


def _refuse_weights(source: Sized) -> None:
    """TypeError for floats where a data set is expected: WeightedRandomSampler takes its weights there."""
    if isinstance(source, (list, tuple)):
        floats = len(source) > 0 and isinstance(source[0], float)
    else:
        dtype = getattr(source, "dtype", None)
        floats = getattr(source, "ndim", 0) == 1 and "float" in str(dtype)
    if floats:
        raise TypeError(
            "source: these are floats, not a data set; weights are given by name: PrioritySampler(weights=...)"
        )
