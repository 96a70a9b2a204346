"""Batches as trees of tensors, and the queue that gathers what is chosen of them into full ones."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastprio.selectors.pool import OnItsWay

if TYPE_CHECKING:
    from typing import TypeAlias

    Rows: TypeAlias = Callable[[torch.device], torch.Tensor]
    """Device -> which rows, int64, there."""


# Batches.


def apply(batch: Any, function: Callable[..., torch.Tensor], *others: Any) -> Any:
    """A batch of the same structure, of what the function makes of each tensor (and of its like in the others)."""
    if isinstance(batch, torch.Tensor):
        return function(batch, *others)
    if isinstance(batch, Mapping):
        made = {name: apply(batch[name], function, *(other[name] for other in others)) for name in batch}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return made
        like = copy.copy(batch)
        like.update(made)
        return like
    if isinstance(batch, (tuple, list)):
        parts = [apply(part, function, *more) for part, *more in zip(batch, *others, strict=True)]
        if isinstance(batch, list):
            return parts
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    raise TypeError(f"batch: expected tensors in tuples, lists or dicts, got {type(batch).__name__}")


def leaves(batch: Any) -> Iterator[torch.Tensor]:
    """The batch's tensors."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from leaves(part)
    else:
        raise TypeError(f"batch: expected tensors in tuples, lists or dicts, got {type(batch).__name__}")


def length_of(batch: Any) -> int:
    """How many examples it has. ValueError unless all its tensors have as many rows."""
    shapes = [tuple(tensor.shape) for tensor in leaves(batch)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or () in rows:
        raise ValueError(f"batch: expected tensors with one row for each example, got the shapes {shapes}")
    return rows.pop()[0]


def _joined(batches: list[Any]) -> Any:
    return apply(batches[0], lambda *tensors: torch.cat(tensors), *batches[1:]) if len(batches) > 1 else batches[0]


# The queue.


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


@dataclass
class Part:
    """Chosen examples: how many, their weights (None: all one), and whether all were taken without scores."""

    batch: Any
    length: int
    weights: torch.Tensor | None
    unscored: bool

    def rows(self, begin: int, end: int) -> Part:
        """Some of them."""
        weights = None if self.weights is None else self.weights[begin:end]
        return Part(apply(self.batch, lambda t: t[begin:end]), end - begin, weights, self.unscored)


@dataclass
class _Waiting:
    batch: Any
    selection: Selection
    count: OnItsWay | None
    positions: OnItsWay | None  # for what of the batch lies on the host


class Queue:
    """Chosen examples in the order of their coming. ``length`` of them can be taken.

    Args: choose: (batch, rows) -> those rows of it, or all of them where rows is None.

    What has to come to the host first, a number accepted by chance or positions for a batch that lies there, is waited
    for when the next batch is pushed, so that no step waits for the device.
    """

    def __init__(self, choose: Callable[[Any, Rows | None], Any]) -> None:
        self._choose = choose
        self._waiting: _Waiting | None = None
        self._parts: deque[Part] = deque()
        self.length = 0

    def push(self, batch: Any, selection: Selection | None) -> None:
        """Takes in what is chosen of a batch; without a selection, the whole of it."""
        self.settle()
        if selection is None:
            self._add(Part(self._choose(batch, None), length_of(batch), None, True))
            return
        away = selection.positions.device.type != "cpu" and any(t.device.type == "cpu" for t in leaves(batch))
        positions = OnItsWay(selection.positions) if away else None
        count = None if selection.count is None else OnItsWay(selection.count)
        self._waiting = _Waiting(batch, selection, count, positions)
        if count is None and positions is None:
            self.settle()

    def settle(self) -> None:
        """Takes in what waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        positions, weights = waiting.selection.positions, waiting.selection.weights
        host = None if waiting.positions is None else waiting.positions.read()
        n = positions.shape[-1] if waiting.count is None else int(waiting.count.read())
        if n == 0:
            return

        def rows(device: torch.device) -> torch.Tensor:
            return (host if host is not None and device.type == "cpu" else positions)[..., :n].to(device)

        self._add(Part(self._choose(waiting.batch, rows), n, None if weights is None else weights[:n], False))

    def _add(self, part: Part) -> None:
        self._parts.append(part)
        self.length += part.length

    def take(self, count: int) -> Part:
        """The first ``count`` examples, as a batch; at most ``length``."""
        parts: list[Part] = []
        self.length -= count
        while count:
            part = self._parts.popleft()
            if part.length > count:
                self._parts.appendleft(part.rows(count, part.length))
                part = part.rows(0, count)
            parts.append(part)
            count -= part.length
        weights = None
        if any(part.weights is not None for part in parts):
            device = next(part.weights.device for part in parts if part.weights is not None)
            given = [torch.ones(p.length, device=device) if p.weights is None else p.weights for p in parts]
            weights = torch.cat(given)
        unscored = all(part.unscored for part in parts)
        return Part(_joined([p.batch for p in parts]), sum(p.length for p in parts), weights, unscored)
