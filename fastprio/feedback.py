"""Losses on their way from the training loop to the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastprio._arrays import to_numpy

if TYPE_CHECKING:
    from fastprio._arrays import Int64
    from fastprio.store import ScoreStore


class Feedback:
    """A queue of recorded losses, by the number of their batch; applying them is a matter of when, not of what."""

    def __init__(self, store: ScoreStore) -> None:
        self._store = store
        self._queue: deque[_Update] = deque()

    def put(self, number: int, indices: Int64, losses: torch.Tensor, observations: Mapping[str, Any]) -> None:
        """Queues a batch's losses [n] and other observations. Never waits for a device."""
        self._queue.append(_Update(number, indices, losses, observations))

    def apply(self, newest: int | None = None) -> None:
        """Hands the losses of the batches up to number ``newest`` to the store, oldest first; None: all."""
        while self._queue and (newest is None or self._queue[0].number <= newest):
            update = self._queue.popleft()
            self._store.update(update.indices, update.losses(), **update.observations())


class _Update:
    def __init__(self, number: int, indices: Int64, losses: torch.Tensor, observations: Mapping[str, Any]) -> None:
        self.number, self.indices = number, indices
        self._losses = _to_host(losses)
        self._observations = {name: _to_host(value) for name, value in observations.items()}
        self._copied = None
        if losses.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(losses.device))

    def losses(self) -> Any:
        """Waits until the copies are there, which they are by the next draw."""
        if self._copied is not None:
            self._copied.synchronize()
        return to_numpy(self._losses)

    def observations(self) -> dict[str, Any]:
        return {name: to_numpy(value) for name, value in self._observations.items()}


def _to_host(value: Any) -> Any:
    """A copy on the host: the loop may write over its tensors before they are applied."""
    if not isinstance(value, torch.Tensor):
        return np.array(value)
    value = value.detach()
    if value.is_cuda:
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return host.copy_(value, non_blocking=True)
    return value.to("cpu", copy=True)
