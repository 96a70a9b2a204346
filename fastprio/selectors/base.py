"""The selector protocol: which examples of a forwarded batch to back-propagate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastprio._random import Rng
from fastprio.policies.base import Clock


@dataclass
class Selection:
    """What a selector chose from a batch of n.

    positions: int64 [k] on the losses' device, each in [0, n). weights: float32 [k], or None for all one.
    count: None if all of ``positions`` are chosen; else an int64 scalar tensor that says how many of them are, from
    the front. A selector that accepts by chance cannot know the number without waiting for the device.
    """

    positions: torch.Tensor
    weights: torch.Tensor | None = None
    count: torch.Tensor | None = None


class Selector:
    """Base of all selectors. Everything stays on the losses' device, and nothing waits for it.

    ``columns`` names what the selector reads of each example in a store (``ScoreStore(columns=selector.columns)``);
    ``batch_size`` is the size of the batches that ``batches`` yields.
    """

    columns: Mapping[str, str | tuple[str, int]] = {}

    def __init__(self, batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected batch_size >= 1")
        self.batch_size, self.seed = batch_size, seed
        self.steps = 0  # batches seen
        self.state: dict[str, Any] = {}

    def needs_scores(self, clock: Clock) -> bool:
        """Whether this step needs the scoring pass. Decided on the host, from what the host knows."""
        return True

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """Chooses from a batch.

        Args:
            losses: floating [n]. indices: int64 [n], the examples; columns: the store's, by name: for selectors that
                compare with what is remembered.
        """
        raise TypeError(f"{type(self).__name__} does not say how it selects: override __call__")

    def observe(self, losses: torch.Tensor, *, indices: Any = None, clock: Clock) -> None:
        """For the training loop to call: the training losses of a batch that was yielded without having been scored."""

    def batches(
        self,
        loader: Iterable[Any],
        score: Callable[[Any], torch.Tensor],
        clock: Clock,
        *,
        columns: Any = None,
        indices: Callable[[Any], Any] | None = None,
        on_scores: Callable[[torch.Tensor], None] | None = None,
        on_unscored: Callable[[], None] | None = None,
    ) -> Iterator[tuple[Any, torch.Tensor | None]]:
        """The whole loop of a selector: forwards every batch, gathers what is chosen, yields full batches.

        Args:
            loader: yields batches: a tensor, or a tuple, list or dict of tensors with one first dimension.
            score: batch -> losses [n]; called without gradients, and puts the model's mode right by itself.
            clock: a ``fastprio.policies.Clock`` with epoch and progress, kept by the loop (or a store's ``clock``). The
                selector's own has these, and the number of batches it has seen as its step.
            columns, indices: for selectors that read columns: those of the store, and batch -> indices int64 [n].
            on_scores: told every scored batch's losses (such as ``sampler.record``).
            on_unscored: called for every batch that needed no scores (such as ``sampler.skip``).

        Yields: (batch of ``batch_size`` examples, weights float32 [batch_size] or None); the last one may be smaller.
        Train on it as on any batch. Accepted counts are read one step late, so no step waits for the device.
        """
        queue = _Queue(self.batch_size)
        for batch in loader:
            now = Clock(clock.epoch, self.steps, clock.progress)
            if self.needs_scores(now):
                with torch.no_grad():
                    losses = score(batch)
                if on_scores is not None:
                    on_scores(losses)
                rng = Rng(self.seed, now.epoch, now.step, "select")
                at = indices(batch) if indices is not None else None
                queue.push(batch, self(losses, indices=at, columns=columns, clock=now, rng=rng))
            else:
                if on_unscored is not None:
                    on_unscored()
                queue.push(batch, None)
            self.steps += 1
            yield from queue.full()
        queue.settle()
        yield from queue.full()
        yield from queue.rest()


@dataclass
class _Waiting:
    batch: Any
    selection: Selection | None
    count: torch.Tensor | None  # on the host, or on its way there
    event: Any


class _Queue:
    """Gathers chosen examples into full batches. The newest batch waits until its count has arrived."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: _Waiting | None = None
        self._parts: list[tuple[Any, torch.Tensor | None]] = []
        self._length = 0

    def push(self, batch: Any, selection: Selection | None) -> None:
        """Takes a batch in; its chosen examples come out after the next one."""
        self.settle()
        count, event = None, None
        if selection is not None and selection.count is not None:
            count = selection.count
            if count.is_cuda:
                count = torch.empty((), dtype=count.dtype, pin_memory=True).copy_(count, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
        self._waiting = _Waiting(batch, selection, count, event)

    def settle(self) -> None:
        """Takes the waiting batch's chosen examples in."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        if waiting.selection is None:
            self._add(waiting.batch, None, _length(waiting.batch))
            return
        if waiting.event is not None:
            waiting.event.synchronize()
        positions, weights = waiting.selection.positions, waiting.selection.weights
        if waiting.count is not None:
            n = int(waiting.count)
            positions, weights = positions[:n], None if weights is None else weights[:n]
        if len(positions):
            self._add(_gather(waiting.batch, lambda t: t[positions.to(t.device)]), weights, len(positions))

    def _add(self, batch: Any, weights: torch.Tensor | None, n: int) -> None:
        self._parts.append((batch, weights))
        self._length += n

    def full(self) -> Iterator[tuple[Any, torch.Tensor | None]]:
        """What there is of full batches."""
        b = self.batch_size
        while self._length >= b:
            (batch, weights), left = self._join(), self._length - b
            self._parts, self._length = [], 0
            if left:
                self._add(_gather(batch, lambda t: t[b:]), None if weights is None else weights[b:], left)
            yield _gather(batch, lambda t: t[:b]), None if weights is None else weights[:b]

    def rest(self) -> Iterator[tuple[Any, torch.Tensor | None]]:
        """The last batch, which is not full."""
        if self._length:
            yield self._join()
            self._parts, self._length = [], 0

    def _join(self) -> tuple[Any, torch.Tensor | None]:
        batches, weights = [batch for batch, _ in self._parts], [w for _, w in self._parts]
        if all(w is None for w in weights):
            return _concatenate(batches), None
        device = next(w.device for w in weights if w is not None)
        filled = [torch.ones(_length(b), device=device) if w is None else w for b, w in self._parts]
        return _concatenate(batches), torch.cat(filled)


def _gather(batch: Any, take: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, torch.Tensor):
        return take(batch)
    if isinstance(batch, Mapping):
        return {name: _gather(value, take) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_gather(value, take) for value in batch)
    raise TypeError(f"batch: expected tensors in tuples, lists or dicts, got {type(batch).__name__}")


def _concatenate(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(batches) if len(batches) > 1 else first
    if isinstance(first, Mapping):
        return {name: _concatenate([batch[name] for batch in batches]) for name in first}
    return tuple(_concatenate([batch[k] for batch in batches]) for k in range(len(first)))


def _length(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return len(batch)
    return _length(next(iter(batch.values() if isinstance(batch, Mapping) else batch)))
