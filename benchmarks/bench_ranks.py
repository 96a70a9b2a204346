"""What one rank of many does in a step: `python benchmarks/bench_ranks.py [--n 1e6,1e7,1e8] [--json PATH]`.

No network is needed, because a rank's own work does not depend on where the other ranks are. Replicated: it draws the
global batch of R * 256, takes its slice, puts the rows of R ranks in order (as they arrive, from a table made up here)
and updates the store with all of them. Sharded: it draws and updates 256 rows of a shard of N / R examples. Medians of
``--repeats`` steps, one thread, policy "loss".

Then, by simulation, what unequal shards cost: each rank draws as many examples whatever its shard's mass M_r, so
weights vary by R M_r / M, and a weighted mean over the global batch has R sum M_r^2 / M^2 times the variance that it
would have from one tree, if the losses' spread is alike everywhere.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastprio
from fastprio.bench import stamp, write
from fastprio.journal import Draws, Share
from fastprio.ranks import HEADER, STEP, Flight, Gathering

EACH = 256  # examples a rank and step
RANKS = (8, 64, 256, 1024)
PIECE = 1 << 20


class Arrived(Flight):
    """A collective that is over."""

    def __init__(self, table: Any) -> None:
        self._arrived = table

    def table(self) -> Any:
        """What arrived."""
        return self._arrived


def scored(n: int) -> fastprio.ScoreStore:
    """A store in which every example has a loss."""
    rng, store = np.random.default_rng(0), fastprio.ScoreStore(n, epochs=2)
    for begin in range(0, n, PIECE):
        at = np.arange(begin, min(begin + PIECE, n))
        store.update(at, rng.standard_exponential(len(at), dtype=np.float32))
    return store


def arrived(draws: Draws, rng: np.random.Generator) -> Gathering:
    """The losses of all ranks, as they are received."""
    ranks = draws.share.ranks
    headers = np.tile(np.array([STEP, 0, draws.first, EACH, 0, 0], np.int64), (ranks, 1))
    losses = rng.standard_exponential((ranks, EACH), dtype=np.float32)
    table = np.concatenate([headers.view(np.uint8), losses.view(np.uint8)], axis=1)
    gathering = Gathering(draws.number, draws.everyones[0], (("", "torch.float32", ()),), True)
    gathering.flight = Arrived(table)
    return gathering


def replicated(store: fastprio.ScoreStore, ranks: int, repeats: int) -> dict[str, float]:
    """Microseconds of one rank for a step, by part."""
    rng, batch = np.random.default_rng(1), ranks * EACH
    found: dict[str, list[float]] = {"draw": [], "gather": [], "update": []}
    for k in range(repeats + 1):
        times = [time.perf_counter()]
        drawn = store.tree.sample(batch, seed=2, offset=k * batch, scheme="stratified", group=batch)
        weights = store.policy.weights(store.columns, *drawn, store.clock)
        draws = Draws(k, k * batch, *drawn, weights, Share(3, ranks))
        times.append(time.perf_counter())
        gathering = arrived(draws, rng)
        begin = time.perf_counter()
        indices, losses, _ = gathering.result()
        times.append(times[-1] + time.perf_counter() - begin)
        begin = time.perf_counter()
        store.update(indices, losses)
        times.append(times[-1] + time.perf_counter() - begin)
        if k:  # the first is cold
            for part, a, b in zip(found, times, times[1:], strict=False):
                found[part].append(1e6 * (b - a))
    return {part: statistics.median(values) for part, values in found.items()}


def sharded(shard: int, repeats: int) -> dict[str, float]:
    """The same of a rank that has a shard of its own."""
    store, rng = scored(shard), np.random.default_rng(1)
    found: dict[str, list[float]] = {"draw": [], "update": []}
    for k in range(repeats + 1):
        losses = rng.standard_exponential(EACH, dtype=np.float32)
        begin = time.perf_counter()
        drawn = store.tree.sample(EACH, seed=2, offset=k * EACH, scheme="stratified", group=EACH)
        store.policy.weights(store.columns, *drawn, store.clock)
        middle = time.perf_counter()
        store.update(drawn[0], losses)
        end = time.perf_counter()
        if k:
            found["draw"].append(1e6 * (middle - begin))
            found["update"].append(1e6 * (end - middle))
    return {part: statistics.median(values) for part, values in found.items()}


def inflation(examples: int, ranks: int) -> dict[str, float]:
    """R sum M_r^2 / M^2 for priorities loss^0.6, losses exponential, whose mean grows tenfold along the data set."""
    rng = np.random.default_rng(3)
    masses = (rng.standard_exponential(examples) * np.geomspace(1, 10, examples)) ** 0.6

    def of(order: np.ndarray) -> float:
        shards = np.add.reduceat(order, np.arange(ranks) * examples // ranks)
        return float(ranks * (shards**2).sum() / shards.sum() ** 2)

    return {"sorted": of(masses), "shuffled": of(rng.permutation(masses))}


def main() -> None:
    """Measures, prints, and writes the JSON."""
    parser = argparse.ArgumentParser(description="What one rank of many does in a step.")
    parser.add_argument("--n", default="1e6,1e7,1e8", help="sizes of replicated stores, and of shards, up to memory")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fastprio.set_num_threads(1)
    record: dict[str, Any] = {"each": EACH, "header_bytes": 8 * len(HEADER), "load_average": [os.getloadavg()[0]]}
    record["replicated"], record["sharded"] = {}, {}
    for size in options.n.split(","):
        store = scored(int(float(size)))
        record["replicated"][size] = {str(ranks): replicated(store, ranks, options.repeats) for ranks in RANKS}
        record["bytes_an_example"] = store.nbytes / len(store)
        del store
        record["sharded"][size] = sharded(int(float(size)), 10 * options.repeats)
        print(f"N = {size} done", file=sys.stderr)
    record["inflation"] = {str(ranks): inflation(1 << 22, ranks) for ranks in RANKS}
    record["load_average"].append(os.getloadavg()[0])
    record |= stamp(f"python benchmarks/bench_ranks.py --n {options.n} --repeats {options.repeats}")
    write(record, options.json)


if __name__ == "__main__":
    main()
