"""The samplers: how a torch loader gets its next indices, and how the losses find their way back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, Sampler

from fastprio import resume
from fastprio._arrays import as_indices, integer
from fastprio.callers import check_callers, check_data_set, dealing_loader, has_workers, held_back, refuse_dispatching
from fastprio.epoch import Epoch
from fastprio.epochs import Epochs, Settings
from fastprio.feedback import Feedback, weights_of
from fastprio.journal import Journal, Share, Taken
from fastprio.order import scored
from fastprio.policies.base import Plan
from fastprio.ranks import place_in, shard_of
from fastprio.source import store_of
from fastprio.tree import SCHEMES

if TYPE_CHECKING:
    from fastprio._arrays import Float64, Int64
    from fastprio.store import ScoreStore


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
            one when iteration begins. num_replicas=1 in a larger group: the loader slices (Accelerate, HF Trainer), and
            the batches of all ranks are yielded one after another.
        process_group: of the ranks whose losses are gathered (the data-parallel ones); torch's default group if None.
        shard: "replicated": every rank has the same store and draws the same global batch, of which it yields a slice;
            losses are gathered. "sharded": every rank has the store of its own shard (``shard_of``) and draws its part
            of the global batch there; only masses are exchanged.
        drop_last: with several ranks, drop draws that do not divide evenly instead of drawing more.
        depth: how many consumed batches the journal keeps at most, for loaders that go back to an older snapshot
            (StatefulDataLoader's snapshot_every_n_steps). It keeps none for loaders that take no snapshots.

    With several ranks ``step`` and ``skip`` are collective: every rank calls one of them for every batch, in order, and
    what one rank's losses have wrong raises on all, at the next draw.

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
        process_group: Any = None,
        shard: str = "replicated",
        drop_last: bool = False,
        depth: int = 1024,
    ) -> None:
        # DistributedSampler.__init__ is not called: it asks for the process group, which frameworks start later.
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement = {replacement!r}: expected a bool")
        if shard not in ("replicated", "sharded"):
            raise ValueError(f"shard = {shard!r}: expected 'replicated' or 'sharded'")
        self.process_group, self.shard = process_group, shard
        self.store, self.dataset, whole = store_of(source, weights, self._own_shard if shard == "sharded" else None)
        num_samples = None if num_samples is None else integer("num_samples", num_samples, 1)
        batch_size = None if batch_size is None else integer("batch_size", batch_size, 1, 1 << 31)
        lag = None if lag is None else integer("lag", lag, 0)
        seed = integer("seed", seed, 0, (1 << 64) - 1)
        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f"scheme = {scheme!r}: expected one of {', '.join(SCHEMES)}")
        if not replacement and scheme not in (None, "epoch"):
            raise ValueError(f"scheme = {scheme!r}: replacement=False is the scheme 'epoch'")
        if not (replacement or shard == "sharded") and num_samples is not None and num_samples > len(self.store):
            raise ValueError(f"num_samples = {num_samples}: expected at most {len(self.store)} without replacement")
        if shard == "sharded" and (num_replicas is not None or (num_samples is None and whole is None)):
            raise ValueError(
                "shard = 'sharded': ranks are those of the process group, so leave out num_replicas and rank, and with "
                "a store of this rank's shard pass num_samples, the draws an epoch of all ranks"
            )
        if (num_replicas is None) != (rank is None):
            raise ValueError("num_replicas and rank: give both or neither")
        if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
            raise ValueError(f"rank = {rank}: expected 0 <= rank < num_replicas = {num_replicas}")
        self.replacement, self.batch_size, self.cover_first = replacement, batch_size, cover_first
        self.seed, self.lag, self.drop_last, self.shuffle = seed, lag, drop_last, True
        self.generator = None
        self.lookahead: int | None = None  # batches the loader reads ahead, where an integration knows
        self.journal = Journal(integer("depth", depth, 1))
        self._whole = whole
        self._num_samples, self._scheme = num_samples, scheme
        self._replicas, self._rank = num_replicas, rank
        self._feedback = Feedback(self.store, self.journal, lag)
        self._epochs = Epochs(self.store, self.journal, self._feedback)
        self._check_scheme()

    # What torch and the trainers ask for.

    @property
    def num_samples(self) -> int:  # type: ignore[override]
        """Draws an epoch, over all ranks."""
        if self._num_samples is not None:
            return self._num_samples
        return len(self.store) if self._whole is None else self._whole

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Draws an epoch, over all ranks, once every rank has the same number."""
        share = self._share()
        return len(self) * (1 if share.dealt else share.ranks)

    def __len__(self) -> int:
        """Draws an epoch on this rank. Constant; ``planned`` is less where a policy leaves examples out."""
        share = self._share()
        each = self._each(share)
        parts = self.num_samples // each if self.drop_last else -(-self.num_samples // each)
        return parts * each if share.dealt else parts

    @property
    def num_replicas(self) -> int:  # type: ignore[override]
        """Number of slices, as it is now."""
        return 1 if self._replicas == 1 else self._share().ranks

    @property
    def rank(self) -> int:  # type: ignore[override]
        """This rank's slice, as it is now."""
        return 0 if self._replicas == 1 else self._share().rank

    @property
    def planned(self) -> int:
        """Draws of the epoch under way on this rank, after the policy's plan."""
        epoch = self._epochs.under_way
        return len(self) if epoch is None else epoch.total // (1 if epoch.share.dealt else epoch.share.ranks)

    @property
    def plan(self) -> Plan | None:
        """The policy's plan of the epoch under way, or None if it has none."""
        planned = None if self._epochs.under_way is None else self._epochs.under_way.planned
        return None if planned is None else planned.plan

    def to_score(self, indices: Any = None) -> Int64:
        """int64 [m]: rows of the store to score without training.

        Those given, or those whose losses the plan of the epoch under way wants at its end; before the first one, all.

        Raises: RuntimeError in the middle of an epoch where ``lag`` fixes which losses its draws see; or where a state
            was loaded, and its epoch has not gone on. IndexError: no such row.
        """
        epoch = self._epochs.under_way
        if self.lag is not None and epoch is not None and not epoch.finished:
            raise RuntimeError(
                f"lag = {self.lag}: losses from beside training would be seen by some of this epoch's draws, depending "
                "on how far the loader has read; score at its end"
            )
        if indices is not None:
            rows = as_indices(indices)
            self.store.check_indices(rows)
            return rows
        if self._epochs.was_loaded and self._epochs.begun:
            raise RuntimeError(
                "a state was loaded, and its epoch has not gone on yet: which examples its plan asks for is not known "
                "before it does; pass indices=, or save after the pass"
            )
        if epoch is None:
            return np.arange(len(self.store))
        plan = self.plan
        return np.empty(0, np.int64) if plan is None else np.flatnonzero(scored(plan, len(self.store)))

    @property
    def scheme(self) -> str:
        """The scheme in use."""
        if not self.replacement:
            return "epoch"
        if self._scheme is not None or self.batch_size is None:
            return self._scheme or "iid"
        preferred = self.store.policy.scheme
        if preferred == "unique" and self.batch_size > len(self.store):  # there are not as many different ones
            preferred = None
        return preferred or "stratified"

    @property
    def epoch(self) -> int:  # type: ignore[override]
        """The number of the epoch under way, or of the next one where ``set_epoch`` has said it."""
        return self._epochs.number if self._epochs.said is None else self._epochs.said

    def __repr__(self) -> str:
        batch = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"PrioritySampler({self.store!r}, num_samples={self.num_samples}{batch}, scheme={self.scheme!r})"

    def set_epoch(self, epoch: int) -> None:
        """Names the next iteration's epoch; calling it twice is harmless."""
        self._epochs.said = integer("epoch", epoch, 0, (1 << 32) - 1)

    def __iter__(self) -> Iterator[int]:
        refuse_dispatching()  # here all ranks find it, and at the first draw only the one that draws
        return itertools.chain.from_iterable(self._stretches(self._epochs.iterator()))

    def _stretches(self, iterator: int) -> Iterator[Iterator[int]]:
        epoch = self._begin(iterator, singly=True)
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
                for losses on an accelerator, or of several ranks, is found at the next draw. Nothing was recorded
                then; nor consumed, where it is found at once.

        PriorityLoader, which knows what it has yielded, finds every forgotten step but that of an epoch's last batch
        (whose losses are then missing, and credited to no other). By itself a sampler finds one only where a later step
        shows it: not one before an epoch's first step, nor at its end, nor where another thread draws. To train on a
        batch in pieces, take ``weights`` first and ``record`` all its losses at the end.

        Never waits for the device, but where several ranks exchange an accelerator's losses by a group of processors.
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
        """Applies all losses recorded so far, also those that ``lag`` holds back: for reading the store at the end.

        Those of a state that was loaded are applied when the next iteration begins, and not here.
        """
        self._feedback.apply()

    def _record(self, losses: torch.Tensor, indices: Any, observations: dict[str, Any]) -> Taken:
        taken = self._feedback.record(losses, indices, observations)
        if self._feedback.waiting and self.lag is None and self._epochs.under_way is not None:
            self._epochs.under_way.priorities_changed()  # by the next draw, which applies what came from an accelerator
        return taken

    # Saving, and going on.

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: the number of the draw that it asks for next. A few plain values.

        The journal, by which a loader goes on exactly, is saved with the store: save ``store.state_dict()`` at the
        same moment. For a loop whose loader has no ``state_dict`` of its own, ``Checkpoint`` saves both.
        """
        with self.store.lock:
            return self._epochs.state(self.seed)

    def consumed_state(self, over: bool | None = None, yielded: int | None = None) -> dict[str, Any]:
        """The same for where training stands: the first draw neither stepped nor skipped, however far loaders read on.

        Args:
            over: whether the epoch has ended; None: if all its draws were consumed.
            yielded: batches that the loader has yielded in this iteration, for loops that need not step.

        Raises: ValueError if nothing was stepped, nothing is learnt, and a loader reads ahead. RuntimeError if a loop
            that learns never steps, so that the oldest draws are forgotten.
        """
        with self.store.lock:
            self._epochs.claim()
            return self._epochs.consumed_state(self.seed, over, yielded)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on where the state was taken: with the same draws, also those that were in flight.

        Load the store's state before that iteration begins; it finds out, and says so, if the two do not fit.

        Raises: ValueError: not such a state, or of a newer version. Nothing has changed then.
        """
        checked = resume.check_state(state)
        with self.store.lock:
            self._epochs.load(checked)
            self.seed = checked["seed"]

    def stats(self) -> dict[str, float]:
        """``ScoreStore.stats`` and, of the epoch under way, a flat dict of floats:

        * ``ahead``: batches drawn and neither stepped nor skipped, by now.
        * ``waiting``: batches whose losses wait to be applied at a draw.
        * ``epoch``: its number.
        """
        return {
            **self.store.stats(),
            "ahead": float(self.journal.outstanding_batches),
            "waiting": float(len(self._feedback.waiting)),
            "epoch": float(self.epoch),
        }

    # An epoch.

    def _share(self) -> Share:
        """Which draws are this rank's, as it is now."""
        rank, ranks = place_in(self.process_group)
        if self._replicas is None or self._rank is None:
            return Share(rank, ranks)
        if self._replicas == 1 and ranks > 1 and self.batch_size is not None:
            return Share(rank, ranks, dealt=True)
        return Share(self._rank, self._replicas)

    def _each(self, share: Share) -> int:
        """Of what the number of draws of an epoch, over all ranks, is a multiple."""
        # A loader that deals would fill up the last batches of ranks that come short.
        return self.batch_size if share.dealt and self.batch_size is not None else share.ranks

    def _own_shard(self, size: int) -> int:
        return len(shard_of(size, *place_in(self.process_group)))

    def _check_scheme(self) -> None:
        policy, ranks = self.store.policy, self._share().ranks
        if self.batch_size is not None and self.batch_size % ranks:
            raise ValueError(f"batch_size = {self.batch_size}: the global batch must divide by {ranks} ranks")
        if self.scheme in ("unique", "epoch") and policy.needs_unbiased:
            raise ValueError(
                f"scheme = {self.scheme!r}: the importance weights of policy {policy.name!r} need draws with "
                "replacement; choose another scheme, or no such weights (fastprio.policies.LossPower(beta=0))"
            )
        if self.batch_size is None and self.scheme not in ("iid", "epoch"):
            raise ValueError(f"scheme = {self.scheme!r}: its groups are batches, so pass batch_size=")
        if self.batch_size is None and self.lag is not None:
            raise ValueError(f"lag = {self.lag}: it is counted in batches, so pass batch_size=")
        if self.batch_size is None and self.shard == "sharded":
            raise ValueError("shard = 'sharded': every rank draws its part of a global batch, so pass batch_size=")
        if self.shard == "sharded" and ranks > 1 and (not policy.shardable or policy.own_draws or policy.by_batch):
            raise ValueError(
                f"shard = 'sharded': policy {policy.name!r} goes by all examples together; use 'replicated'"
            )
        if policy.own_draws and (self._scheme is not None or not self.replacement):
            given = "replacement = False" if not self.replacement else f"scheme = {self._scheme!r}"
            raise ValueError(f"{given}: policy {policy.name!r} draws in its own way; leave it out")
        if policy.needs_repeats and self.scheme in ("unique", "epoch"):
            raise ValueError(
                f"scheme = {self.scheme!r}: policy {policy.name!r} sets examples aside, and may leave too few to draw "
                "without repeats; choose another scheme"
            )
        if self.lag is not None and self.lookahead is not None and self.lag < self.lookahead:
            raise ValueError(
                f"lag = {self.lag}: this loader reads {self.lookahead} batches ahead, so lag >= {self.lookahead}"
            )

    def _check_ranks(self, share: Share, singly: bool) -> None:
        """Refuses what would train ranks on each other's examples, or twice on some."""
        ranks, policy = place_in(self.process_group)[1], self.store.policy
        check_callers(share, singly, policy.observes, self._epochs.was_loaded)
        if share.dealt and dealing_loader() is None:
            raise ValueError(
                f"num_replicas = 1 in a group of {ranks}: this leaves slicing to the loader, but no loader that deals "
                "batches to ranks (Accelerate's) asks for them; leave num_replicas and rank out, or, where all ranks "
                "are to have the same batches, pass process_group= of the data-parallel ranks"
            )
        if not policy.observes or share.ranks == 1:
            return
        if ranks != share.ranks:
            raise ValueError(
                f"{share.ranks} ranks: policy {policy.name!r} learns from losses, and its process group has {ranks} to "
                "gather them from; pass process_group="
            )
        if self.batch_size is None:
            raise ValueError(
                f"{ranks} ranks: policy {policy.name!r} learns from losses of a batch, so pass batch_size="
            )

    def _begin(self, iterator: int, singly: bool) -> Epoch:
        """The next epoch, begun: the epoch's number is fixed here, at an iteration's first draw."""
        with self.store.lock:  # a thread that still draws for the last epoch is done with it before, or finds it over
            self._check_scheme()
            if self.store.policy.by_batch and self.batch_size is None:
                name = self.store.policy.name
                raise ValueError(f"policy {name!r}: its weights are relative to a batch, so pass batch_size=")
            share = self._share()
            self._check_ranks(share, singly)
            if self.shard == "replicated":
                check_data_set(len(self.store))
            elif self._whole is not None:
                check_data_set(self._whole)
            settings = Settings(
                seed=self.seed,
                batch_size=self.batch_size,
                scheme=self.scheme,
                lag=self.lag,
                lookahead=None if self.lookahead is None else self.lookahead + held_back(),
                num_samples=self._num_samples,
                cover_first=self.cover_first,
                drop_last=self.drop_last,
                sharded=self.shard == "sharded",
                group=self.process_group,
                share=share,
                draws=len(self),
                whole=self._whole,
                each=self._each(share),
                moves_torch=self.generator is None,
                reads_ahead=has_workers(),
            )
            return self._epochs.begin(settings, iterator)


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
            hint = ""
            if isinstance(sampler, DistributedSampler):
                hint = (
                    "; if a trainer has put it there (Lightning and Fabric rebuild batch samplers on several "
                    "processes), give the loader batch_size= and sampler=PrioritySampler(...) instead of batch_sampler="
                )
            raise TypeError(f"sampler: expected a PrioritySampler, got {type(sampler).__name__}{hint}")
        self.sampler, self.batch_size, self.drop_last = (
            sampler,
            integer("batch_size", batch_size, 1, 1 << 31),
            drop_last,
        )
        ranks = sampler._share().ranks
        if sampler.batch_size is not None and sampler.batch_size % self.batch_size:
            raise ValueError(
                f"batch_size = {batch_size} on {ranks} ranks: the sampler's global one is {sampler.batch_size}"
            )
        sampler._check_scheme()

    def __iter__(self) -> Iterator[list[int]]:
        refuse_dispatching()
        return self._batches(self.sampler._epochs.iterator())

    def _batches(self, iterator: int) -> Iterator[list[int]]:
        sampler, drop_last = self.sampler, self.drop_last
        ranks = place_in(sampler.process_group)[1] if sampler._replicas in (None, 1) else sampler._replicas
        if sampler.batch_size not in (None, self.batch_size * ranks):
            raise ValueError(
                f"batch_size = {self.batch_size} on {ranks} ranks: the sampler's global one is {sampler.batch_size}"
            )
        sampler.batch_size = self.batch_size * ranks
        epoch = sampler._begin(iterator, singly=False)
        while (draws := epoch.next(drop_last)) is not None:
            if draws.share.dealt:
                yield from draws.lists()
            else:
                draws.handed = len(draws.indices)
                yield draws.indices.tolist()

    def __len__(self) -> int:
        n = len(self.sampler)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The sampler's ``set_epoch``."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's ``state_dict``."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The sampler's ``load_state_dict``."""
        self.sampler.load_state_dict(state)
