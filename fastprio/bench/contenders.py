"""What is timed by whole epochs: torch's uniform and weighted loading, and fastprio from the bare draw to the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

import fastprio
from fastprio.bench.peers import Uniform, Weighted
from fastprio.tree import SumTree

if TYPE_CHECKING:
    from fastprio._arrays import Float32

Run = Callable[[], None]
"""A timed piece of work: ``loops`` epochs of a contender."""

Prepare = Callable[[np.random.Generator], Run]
"""Makes a Run, outside the timing."""

CONTENDERS = {
    "uniform": "torch BatchSampler(RandomSampler): shuffle, lists",
    "weighted": "torch BatchSampler(WeightedRandomSampler), with replacement",
    "draw": "fastprio PriorityBatchSampler on fixed weights: lists",
    "single": "fastprio PrioritySampler, one int at a time, in torch's BatchSampler",
    "update": "fastprio SumTree.update, a batch of CPU tensors a call",
    "draw+update": "both: every batch drawn, then as many priorities set",
    "draw+store": "policy 'loss': every batch drawn, then ScoreStore.update of as many losses",
    "draw+record": "the same as in training: sampler.record(losses)",
}
"""Name -> what it does, in the order in which they take turns."""

AT_LEAST = 200_000
"""Indices in one timing: shorter epochs are repeated, or the clock's and the scheduler's grain would show."""


def loops(n: int) -> int:
    """How many epochs of ``n`` examples make one timing."""
    return -(-AT_LEAST // n)


def random_weights(n: int, rng: np.random.Generator) -> Float32:
    """float32 [n], spread over about two orders of magnitude, as losses in the middle of training are."""
    return rng.lognormal(0.0, 1.0, n).astype(np.float32)


def random_rows(n: int, batch: int, count: int, rng: np.random.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """``count`` batches of (int64 [batch] in [0, n), float32 [batch]): CPU tensors, no two in the same memory."""
    made = []
    for _ in range(count):
        made.append((torch.from_numpy(rng.integers(0, n, batch)), torch.from_numpy(random_weights(batch, rng))))
    return made


def contenders(n: int, batch: int) -> dict[str, Prepare]:
    """Name -> how to prepare a turn of that contender; without "weighted" above 2^24 examples, which torch refuses.

    Args:
        n: examples, >= 1. batch: indices a batch, in [1, n].
    """
    batches = -(-n // batch)

    def rows(rng: np.random.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return random_rows(n, batch, loops(n) * batches, rng)

    def seed(rng: np.random.Generator) -> int:
        return int(rng.integers(1 << 40))

    def epochs(source: Iterable[Any]) -> Run:
        def go() -> None:
            for _ in range(loops(n)):
                for _ in source:
                    pass

        return go

    def uniform(rng: np.random.Generator) -> Run:
        return epochs(Uniform(np.ones(n, np.float32), batch, seed(rng)).batches)

    def weighted(rng: np.random.Generator) -> Run:
        return epochs(Weighted(random_weights(n, rng), batch, seed(rng)).batches)

    def fixed(rng: np.random.Generator) -> tuple[fastprio.PrioritySampler, fastprio.PriorityBatchSampler]:
        sampler = fastprio.PrioritySampler(weights=random_weights(n, rng), batch_size=batch, seed=seed(rng))
        return sampler, fastprio.PriorityBatchSampler(sampler, batch)

    def draw(rng: np.random.Generator) -> Run:
        return epochs(fixed(rng)[1])

    def single(rng: np.random.Generator) -> Run:
        sampler = fastprio.PrioritySampler(weights=random_weights(n, rng), seed=seed(rng))
        return epochs(BatchSampler(sampler, batch, drop_last=False))

    def update(rng: np.random.Generator) -> Run:
        tree, given = SumTree(n), rows(rng)
        tree.fill(random_weights(n, rng))

        def go() -> None:
            for at, values in given:
                tree.update(at, values)

        return go

    def drawing(source: Iterable[Any], then: Callable[[Any, Any], None], rng: np.random.Generator) -> Run:
        given = rows(rng)

        def go() -> None:
            following = iter(given)
            for _ in range(loops(n)):
                for _ in source:
                    then(*next(following))

        return go

    def draw_update(rng: np.random.Generator) -> Run:
        sampler, source = fixed(rng)
        return drawing(source, sampler.store.tree.update, rng)

    def learning(rng: np.random.Generator) -> tuple[fastprio.PrioritySampler, fastprio.PriorityBatchSampler]:
        store = fastprio.ScoreStore(n, policy="loss", epochs=loops(n) + 1)
        store.update(np.arange(n), random_weights(n, rng))
        sampler = fastprio.PrioritySampler(store, batch_size=batch, seed=seed(rng))
        source = fastprio.PriorityBatchSampler(sampler, batch)
        next(iter(source))  # the first epoch of a run looks for unseen examples; what is measured is a later one
        return sampler, source

    def draw_store(rng: np.random.Generator) -> Run:
        sampler, source = learning(rng)
        return drawing(source, sampler.store.update, rng)

    def draw_record(rng: np.random.Generator) -> Run:
        sampler, source = learning(rng)
        given = [losses for _, losses in rows(rng)]

        def go() -> None:
            following = iter(given)
            for _ in range(loops(n)):
                for indices in source:
                    sampler.record(next(following)[: len(indices)])

        return go

    made = (uniform, weighted, draw, single, update, draw_update, draw_store, draw_record)
    able: dict[str, Prepare] = dict(zip(CONTENDERS, made, strict=True))
    if n > Weighted.most:
        del able["weighted"]
    return able
