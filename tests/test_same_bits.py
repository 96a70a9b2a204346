"""Promise: what is drawn follows from seed, priorities, updates and lag alone: one hash, whatever runs it and how."""

import hashlib
import itertools
import random

import numpy as np
import pytest
from helpers import ISAS, using
from loader_helpers import loss_of

import fastprio
from fastprio import PriorityLoader, SumTree, _core

HASH = "baae007af63e55a92375883e3a02d4ade267af25d592168733af4b5e67b18d3d"
"""Of draws, probabilities, weights and leaves: the same on every machine, until a major release changes it."""

THREADS, SPLITS, WORKERS = (1, 2, 3, 8), (1, 7, 256, 65536), (0, 1, 2, 4)
STARTS = ("fork", "spawn", "forkserver")
SIZE, DRAWS, SCHEMES = 3000, 4096, ("iid", "stratified", "systematic", "unique")
LAG = 8
"""In batches: as far as four workers read ahead."""

CELLS = [
    (threads, split, workers, start, isa)
    for threads, split, (workers, start), isa in itertools.product(
        THREADS, SPLITS, [(0, None), *itertools.product(WORKERS[1:], STARTS)], ISAS
    )
]
NORMAL = [
    *random.Random(0).sample([cell for cell in CELLS if cell[3] in (None, "fork")], 22),
    (2, 7, 1, "spawn", ISAS[-1]),
    (3, 256, 1, "forkserver", ISAS[0]),
]


def priorities(n, number):
    """Made of integers, so that no library of functions takes part: eight decades, some zeros."""
    i = np.arange(n, dtype=np.uint64) + np.uint64(number * 1_000_003)
    mixed = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return np.where(mixed % 11 == 0, 0, mixed % 1000 * 10.0 ** (mixed % 8).astype(np.int64)).astype(np.float32)


def of_a_tree(hashed, split):
    """Updates and draws in calls of ``split`` rows."""
    tree = SumTree(SIZE)
    tree.fill(priorities(SIZE, 0))
    for number in range(1, 4):
        at = np.arange(DRAWS) * 7919 * number % SIZE
        new = priorities(DRAWS, number)
        for begin in range(0, DRAWS, split):
            tree.update(at[begin : begin + split], new[begin : begin + split])
        for scheme in SCHEMES:
            drawn = []
            step = max(split // 64, 1) * 64 if scheme == "unique" else split  # whole groups
            for begin in range(0, DRAWS, step):
                count = min(step, DRAWS - begin)
                drawn.append(tree.sample(count, seed=5, epoch=number, offset=begin, scheme=scheme, group=64))
            for part in zip(*drawn, strict=True):
                hashed.update(np.concatenate(part).tobytes())
    hashed.update(tree.priorities.tobytes())


def of_a_loader(hashed, workers, start):
    """Two epochs with losses that come back and change what is drawn."""
    loader = PriorityLoader(
        range(200), 8, lag=LAG, seed=3, epochs=2, num_workers=workers, multiprocessing_context=start
    )
    for epoch in range(2):
        for batch in loader:
            hashed.update(batch.numpy().tobytes())
            hashed.update(loader.weights.numpy().tobytes())
            loader.step(loss_of(batch, epoch))
    hashed.update(loader.store.priorities.tobytes())


def run(threads, split, workers, start, isa):
    before = fastprio.get_num_threads()
    _core.set_least_per_thread(50)  # so that these few rows are spread over the threads
    fastprio.set_num_threads(threads)
    hashed = hashlib.sha256()
    try:
        with using(isa):
            of_a_tree(hashed, split)
            of_a_loader(hashed, workers, start)
    finally:
        fastprio.set_num_threads(before)
        _core.set_least_per_thread(0)
    return hashed.hexdigest()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("threads", "split", "workers", "start", "isa"),
    [*NORMAL, *(pytest.param(*cell, marks=pytest.mark.long) for cell in CELLS if cell not in NORMAL)],
)
def test_one_hash(threads, split, workers, start, isa):
    assert run(threads, split, workers, start, isa) == HASH


def test_another_seed_lag_or_update_is_another_hash(monkeypatch):
    monkeypatch.setitem(globals(), "LAG", 9)
    assert run(1, 256, 0, None, ISAS[0]) != HASH
    monkeypatch.undo()
    right = priorities
    monkeypatch.setitem(globals(), "priorities", lambda n, number: right(n, number) + np.float32(n == DRAWS))
    assert run(1, 256, 0, None, ISAS[0]) != HASH
