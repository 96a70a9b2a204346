"""Uniform and prioritized epochs side by side: how long they take, and what part of them is choosing.

Choosing is what decides which examples come next, where it takes the main thread's time: the batch sampler's
iterator (for uniform: its shuffle), and what becomes of a batch's losses: ``step``, or for uniform their mean. Worker
processes do not choose.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

import fastprio


@dataclass
class Choosing:
    """A batch sampler whose work is on the clock: iterates like ``batches`` and adds up the seconds that it took."""

    batches: Any
    seconds: float = 0.0
    count: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        clock = time.perf_counter
        begin = clock()
        source = iter(self.batches)
        self.seconds += clock() - begin
        while True:
            begin = clock()
            indices = next(source, None)
            self.seconds += clock() - begin
            if indices is None:
                return
            self.count += 1
            yield indices


def on_the_clock(loader: DataLoader[Any]) -> Choosing:
    """Puts the clock around the loader's batch sampler, and returns it. The loader must not be iterated yet."""
    choosing = Choosing(loader.batch_sampler)
    # torch does not let a loader's batch sampler be replaced, lest it disagree with its other arguments.
    object.__setattr__(loader, "batch_sampler", choosing)
    return choosing


class Arm:
    """One of the two ways to load.

    Args:
        loader: what is iterated, once an epoch.
        train: what is done with a batch: takes it and its number in the epoch, and returns the losses float [B].
        choose: what takes those losses, on the clock, and returns the scalar to minimise.
        learn: what is done with that scalar (backward, the optimiser's step).
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        train: Callable[[Any, int], torch.Tensor],
        choose: Callable[[torch.Tensor], Any] = torch.mean,
        learn: Callable[[Any], None] = lambda loss: None,
    ) -> None:
        self.loader, self.train, self.choose, self.learn = loader, train, choose, learn
        self.choosing = on_the_clock(loader)

    def epoch(self) -> tuple[float, float]:
        """Runs an epoch. Returns its seconds, and those of them that were choosing."""
        clock = time.perf_counter
        self.choosing.seconds = recording = 0.0
        begin = clock()
        for number, batch in enumerate(self.loader):
            losses = self.train(batch, number)
            since = clock()
            loss = self.choose(losses)
            recording += clock() - since
            self.learn(loss)
        return clock() - begin, self.choosing.seconds + recording


def compare(
    uniform: Arm, prioritized: Arm, pairs: int, tick: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Alternates epochs of two arms and compares their times.

    Args:
        uniform, prioritized: the arms; each runs one epoch more than ``pairs``, the first of which is not counted (it
            fills caches, and the prioritized one covers every example).
        pairs: of epochs, one of each arm, at least 6; which of them goes first alternates.
        tick: called before each epoch with what it is.

    Returns:
        pairs: [[uniform, prioritized], ...] in seconds. ratio: the median of prioritized / uniform within a pair, and
        interval: its 95 % interval (``interval``). epoch_seconds: the median epoch of each arm. choosing_share:
        choosing as a share of each arm's seconds, over all epochs. choosing_us_per_batch: the same in microseconds.

    Raises: ValueError: fewer than 6 pairs.
    """
    if pairs < 6:
        raise ValueError(f"pairs = {pairs}: a 95 % interval takes at least 6")
    arms = {"uniform": uniform, "prioritized": prioritized}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    choosing = dict.fromkeys(arms, 0.0)
    for turn in range(pairs + 1):
        for name in list(arms) if turn % 2 else list(arms)[::-1]:
            tick(f"{name} epoch {turn} of {pairs}" if turn else f"{name} epoch to warm up")
            took, chose = arms[name].epoch()
            if turn:
                seconds[name].append(took)
                choosing[name] += chose
    ratios = [b / a for a, b in zip(seconds["uniform"], seconds["prioritized"], strict=True)]
    return {
        "pairs": [list(pair) for pair in zip(seconds["uniform"], seconds["prioritized"], strict=True)],
        "ratio": statistics.median(ratios),
        "interval": list(interval(ratios)),
        "epoch_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "choosing_share": {name: choosing[name] / sum(seconds[name]) for name in arms},
        "choosing_us_per_batch": {name: 1e6 * choosing[name] / pairs / len(arms[name].loader) for name in arms},
    }


def interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """An interval that holds the median with at least this probability, whatever the values' distribution.

    Its ends are two of the values: the median lies below the k-th smallest of n only if fewer than k of n fair coins
    fall on one side, so k is the largest whose probability is at most (1 - level) / 2. (Of 20: the 6th and 15th.)

    Raises: ValueError: too few values for that, fewer than 6 at 95 %.
    """
    n, below, k = len(values), 0, 0
    while (below + math.comb(n, k)) * 2 <= (1 - level) * 2**n:
        below += math.comb(n, k)
        k += 1
    if k == 0:
        raise ValueError(f"{n} values are too few for an interval at {level:.0%}")
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def prioritized_like(loader: DataLoader[Any], seed: int = 0) -> fastprio.PriorityLoader:
    """A PriorityLoader (policy "loss") of the same data set, batches, workers and samples an epoch as ``loader``.

    Raises: TypeError, ValueError: as PriorityLoader.
    """
    same = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    more = ("generator", "prefetch_factor", "persistent_workers")
    return fastprio.PriorityLoader(
        loader.dataset,
        loader.batch_size or 0,
        num_samples=len(loader.sampler),  # type: ignore[arg-type]
        seed=seed,
        drop_last=loader.drop_last,
        **{name: getattr(loader, name) for name in same + more},
    )
