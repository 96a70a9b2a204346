"""Losses on their way back: matched with the draws they belong to, queued, and handed to the store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastprio._arrays import as_float32, as_indices, to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastprio._arrays import Int64
    from fastprio.journal import Journal, Taken
    from fastprio.ranks import Exchange, Gathering, Shards
    from fastprio.store import ScoreStore


class Feedback:
    """What ``step`` does, for one sampler.

    Args:
        store: learns from the losses, if its policy observes. journal: knows which draws they belong to.
        lag: None applies losses as they come (from an accelerator: at the next draw); else draws apply them.
    """

    def __init__(self, store: ScoreStore, journal: Journal, lag: int | None) -> None:
        self._store, self._journal, self._lag = store, journal, lag
        self.waiting: deque[Update | Gathering] = deque()
        self.exchange: Exchange | None = None  # with the ranks that draw alike
        self.shards: Shards | None = None  # or with those that draw from other shards
        self.epoch = 0
        self.drawn = 0  # batches, as the epoch under way counts them
        self._most_left: int | None = None

    def begin_epoch(self, epoch: int, most_left: int | None) -> None:
        """Applies everything. ``most_left``: how many draws a step may leave outstanding; None: as the first did."""
        self.apply()
        self.epoch, self._most_left = epoch, most_left

    def restore(self, updates: Iterable[Update], drawn: int) -> None:
        """What was recorded and not applied when a state was saved, in place of what is now."""
        self.waiting, self.drawn = deque(updates), drawn

    def record(self, losses: torch.Tensor, indices: Any, observations: Mapping[str, Any]) -> Taken:
        """Takes the losses of the next batch (or the one with ``indices``), as ``PrioritySampler.step`` says."""
        if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
            got = losses.dtype if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise TypeError(f"losses: expected a floating-point tensor, one loss for each example, got {got}")
        if losses.ndim != 1:
            shape = list(losses.shape)
            raise ValueError(f"losses: expected one for each example, shape [n] (reduction='none'), got {shape}")
        count = losses.numel()
        at = None if indices is None else as_indices(indices)
        if at is not None and len(at) != count:
            raise ValueError(f"indices: expected {count} of them, one for each loss, got {len(at)}")
        if at is not None and self._lag is not None:
            raise ValueError("indices: with lag= batches are stepped in the order in which they were drawn")
        if at is not None and self.exchange is not None:
            raise ValueError("indices: with several ranks batches are stepped in the order in which they were drawn")
        with self._store.lock:  # a state that another thread saves has the whole step or nothing of it
            taken = self._journal.peek(count) if at is None else self._journal.find(at)
            self._check_left(count)
            if self.exchange is not None:
                self._store.check_observations(observations, count)  # before other ranks wait for this one
                self.waiting.append(self.exchange.send(taken, self.epoch, self.drawn, losses, observations))
            elif self.shards is None:
                self._learn(taken, losses, observations)  # refusing, it consumes nothing
            else:
                failure = None
                try:
                    self._learn(taken, losses, observations)
                except ValueError as error:
                    failure = error  # to be raised at the next draw, on all ranks
                self.shards.send(taken.number, failure)
            self._journal.consume(taken)
        return taken

    def _learn(self, taken: Taken, losses: torch.Tensor, observations: Mapping[str, Any]) -> None:
        """By this rank alone: at once if nothing is to be waited for, else at a draw."""
        observes = self._store.policy.observes
        if losses.is_cpu and (self._lag is None or not observes):
            if self.waiting:
                self.apply()
            loss = as_float32(losses, "losses", tiny_is_zero=True)
            self._store.update_rows(self._rows(taken), loss, "train", observations)
        elif observes:
            self._put(taken, losses, observations)

    def _rows(self, taken: Taken) -> Int64:
        """The rows of the store that were drawn."""
        return taken.indices if self.shards is None else taken.indices - self.shards.offset

    def _put(self, taken: Taken, losses: torch.Tensor, observations: Mapping[str, Any]) -> None:
        rows = self._rows(taken)
        if losses.is_cpu:  # elsewhere it would have to wait
            self._store.check(rows, losses, **observations)
        copied = None
        others = {name: _to_host(value) for name, value in observations.items()}
        on_host = _to_host(losses)
        if losses.is_cuda:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(losses.device))
        self.waiting.append(Update(taken.number, rows, on_host, others, copied))

    def skip(self, count: int | None, indices: Any) -> None:
        """Passes over the next batch, or the one with ``indices``."""
        with self._store.lock:  # as in ``record``
            taken = self._journal.peek(count) if indices is None else self._journal.find(as_indices(indices))
            self._check_left(len(taken.indices))
            if self.exchange is not None:
                self.waiting.append(self.exchange.send(taken, self.epoch, self.drawn, None, {}))
            self._journal.consume(taken)
            if self.shards is not None:
                self.shards.send(taken.number)

    def mean(self, losses: torch.Tensor, taken: Taken) -> torch.Tensor:
        """mean(weight * loss) with its graph, over the finite losses where others are skipped."""
        wide = losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
        weights = taken.weights
        if self._store.on_nonfinite == "raise":
            if weights is None:
                return wide.mean()
            # One operation with a graph, where multiplying and averaging would be two.
            if wide.dtype == torch.float32 and wide.is_cpu:
                shares = torch.from_numpy(weights / np.float32(len(weights)))
            else:
                shares = torch.from_numpy(weights).to(wide.device, wide.dtype, non_blocking=True) / len(weights)
            return torch.dot(wide, shares)
        if weights is not None:
            wide = wide * weights_of(taken).to(device=wide.device, dtype=wide.dtype, non_blocking=True)
        finite = torch.isfinite(losses.detach())
        return torch.where(finite, wide, 0).sum() / finite.sum().clamp(min=1)

    def apply(self, newest: int | None = None) -> None:
        """Hands the losses of the batches up to number ``newest`` to the store, oldest first; None: all."""
        if not self.waiting:
            return
        with self._store.lock:  # the thread that draws and the one that steps may both be here
            while self.waiting and (newest is None or self.waiting[0].number <= newest):
                update = self.waiting.popleft()
                indices, losses, observations = update.result()
                if not len(indices):  # all ranks skipped
                    continue
                try:
                    self._store.update(indices, losses, **observations)
                except ValueError as error:
                    if self.exchange is None:
                        raise
                    ranks = self.exchange.ranks
                    raise ValueError(
                        f"batch {update.number} of epoch {self.epoch}, rows of all {ranks} ranks (row k is of rank k "
                        f"mod {ranks} if all stepped): {error}"
                    ) from error

    def _check_left(self, count: int) -> None:
        """Finds a batch that was yielded and never stepped, before its successor's losses are credited to it.

        A loader reads ahead by a constant number of batches, so no step may leave more draws outstanding than an
        epoch's first step did. A loader that draws in another thread is exempt: there the number varies.
        """
        left = self._journal.outstanding - count
        if self._most_left is None:
            if self._journal.issuer != threading.get_ident() or not self._store.policy.observes:
                return
            self._most_left = left
        if left > self._most_left:
            raise RuntimeError(
                f"{left} draws would stay outstanding where {self._most_left} were expected: a batch was neither "
                "stepped nor skipped, so these losses would be credited to other examples than theirs; call "
                "step(losses) or skip() once for every batch"
            )


def weights_of(taken: Taken) -> torch.Tensor:
    """float32 [n]: the importance weights of drawn examples, a copy."""
    if taken.weights is None:
        return torch.ones(len(taken.indices))
    return torch.from_numpy(np.array(taken.weights))


class Update:
    """Losses and observations of a batch, on the host or on their way there (until ``copied``)."""

    def __init__(
        self, number: int, indices: Int64, losses: Any, observations: Mapping[str, Any], copied: Any = None
    ) -> None:
        self.number, self._indices, self._losses, self._copied = number, indices, losses, copied
        self._observations = observations

    def result(self) -> tuple[Int64, Any, dict[str, Any]]:
        """Rows of the store, losses, observations. Waits until copies are there, which they are by the next draw."""
        if self._copied is not None:
            self._copied.synchronize()
        others = {name: to_numpy(value) for name, value in self._observations.items()}
        return self._indices, to_numpy(self._losses), others


def _to_host(value: Any) -> Any:
    """A copy on the host: the loop may write over its tensors before they are applied."""
    if not isinstance(value, torch.Tensor):
        return np.array(value)
    value = value.detach()
    if value.is_cuda:
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return host.copy_(value, non_blocking=True)
    return value.to("cpu", copy=True)
