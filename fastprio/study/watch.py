"""Where a run's time goes: every moment belongs to one name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Watch:
    """Adds up seconds by name. What is timed within something else is not counted there.

    ::

        with watch("loading"):
            ...
            with watch("choosing"):  # the time in here is not loading
                ...

    Args: settle: called before the clock is read, to wait for what is under way elsewhere; None: nothing is.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self._settle = settle
        self.seconds: dict[str, float] = {}
        self._names: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times a block. The name "" is for what belongs to nobody, such as a pause."""
        self._switch()
        self._names.append(name)
        try:
            yield
        finally:
            self._switch()
            self._names.pop()

    def _switch(self) -> None:
        if self._settle is not None:
            self._settle()
        now = time.perf_counter()
        if self._names:
            name = self._names[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Goes through items; what they take to come is on the clock."""
        with self(name):
            source = iter(items)
        end = object()
        while True:
            with self(name):
                item: Any = next(source, end)
            if item is end:
                return
            yield item


class OnTheClock:
    """A batch sampler that iterates like ``batches``, on the clock as "choosing"."""

    def __init__(self, batches: Any, watch: Watch) -> None:
        self.batches, self.watch = batches, watch
        self.batch_size: int = batches.batch_size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return self.watch.each("choosing", self.batches)
