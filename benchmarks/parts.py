"""Where a batch's time goes: `python benchmarks/parts.py [--json PATH]`.

Each part by itself, in a loop of its own, batches of 32 and of 256 from a million examples: microseconds, the least of
sixty rounds. What the whole costs beyond its parts is Python. In training the same code is cold: see bench_loader.py.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fastprio
from fastprio.bench import stamp, write
from fastprio.bench.contenders import random_rows, random_weights
from fastprio.policies.base import Observation
from fastprio.tree import SCHEMES

N, CALLS, ROUNDS = 10**6, 300, 60


def least(call: Callable[[], object]) -> float:
    """Microseconds of a call."""
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - begin) / CALLS)
    return 1e6 * min(found)


def parts(batch: int) -> dict[str, float]:
    """Name of a part -> microseconds a batch."""
    rng = np.random.default_rng(0)
    sampler = fastprio.PrioritySampler(weights=random_weights(N, rng), num_samples=10**9, batch_size=batch)
    lists = iter(fastprio.PriorityBatchSampler(sampler, batch))
    core, tree = sampler.store.tree._core, sampler.store.tree
    store = fastprio.ScoreStore(N, epochs=2)
    store.update(np.arange(N), random_weights(N, rng))
    offsets = itertools.count(0, batch)
    indices, probabilities = np.empty(batch, np.int64), np.empty(batch)
    rows = random_rows(N, batch, 1000, rng)
    tensors = itertools.cycle(rows)
    arrays = itertools.cycle([(at.numpy(), values.numpy()) for at, values in rows])
    at, values = rows[0][0].numpy(), rows[0][1].numpy()
    seen = Observation(values, "train", {})
    policy, columns, clock = store.policy, store.columns, store.clock
    return {
        "a batch drawn, as a list": least(lambda: next(lists)),
        "of it the core": least(
            lambda: core.sample(0, 0, next(offsets), SCHEMES["stratified"], batch, indices, probabilities)
        ),
        "of it the list": least(indices.tolist),
        "of it two arrays": least(lambda: (np.empty(batch, np.int64), np.empty(batch))),
        "SumTree.update from tensors": least(lambda: tree.update(*next(tensors))),
        "of it the core, on arrays": least(lambda: core.update(*next(arrays))),
        "of it two Tensor.numpy()": least(lambda: (rows[0][0].numpy(), rows[0][1].numpy())),
        "ScoreStore.update from tensors, policy 'loss'": least(lambda: store.update(*next(tensors))),
        "of it LossPower.observe": least(lambda: policy.observe(columns, at, seen, clock, None)),
        "LossPower.weights": least(lambda: policy.weights(columns, at, probabilities, clock)),
    }


def main() -> None:
    """Measures, prints, and writes the JSON."""
    parser = argparse.ArgumentParser(description="Where a batch's time goes.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = {"us_a_batch": {str(batch): parts(batch) for batch in (32, 256)}, **stamp("python benchmarks/parts.py")}
    write(record, options.json)


if __name__ == "__main__":
    main()
