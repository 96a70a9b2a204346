"""The tree by itself, with pytest-benchmark: `pytest benchmarks/bench_tree.py`.

Every call gets indices and seeds that it has not had before, so that no branch predictor or cache learns them; they
are made outside the timing. Draws go into given arrays, updates come from numpy arrays.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastprio import SumTree
from fastprio.bench.contenders import random_weights
from fastprio.bench.limit import random_read_ns

ROUNDS = 100
NS = [10**3, 10**6, 10**7]
BATCHES = [1, 32, 256, 4096]


def calls(batch: int) -> int:
    """How many calls a round has, so that the clock's own time is lost in it."""
    return max(8, 8192 // batch) if batch > 1 else 1024


@pytest.fixture(params=NS, ids="N{}".format, scope="module")
def tree(request):
    made = SumTree(request.param)
    made.fill(random_weights(request.param, np.random.default_rng(0)))
    return made


def sample(timed, tree, batch, scheme):
    rounds = itertools.count()
    out = np.empty(batch, np.int64), np.empty(batch)

    def go(first):
        for offset in range(first, first + calls(batch) * batch, batch):
            tree.sample(batch, seed=1, offset=offset, scheme=scheme, group=batch, out=out)

    timed(go, lambda: next(rounds) * calls(batch) * batch, calls(batch) * batch, ROUNDS)


@pytest.mark.parametrize("batch", BATCHES, ids="batch{}".format)
def test_sample(timed, tree, batch):
    sample(timed, tree, batch, "stratified")


@pytest.mark.parametrize("scheme", ["iid", "systematic", "unique"])
def test_scheme(timed, tree, scheme):
    sample(timed, tree, 256, scheme)


@pytest.mark.parametrize("batch", BATCHES, ids="batch{}".format)
def test_update(timed, tree, batch):
    rng = np.random.default_rng(1)

    def go(rows):
        for at, values in rows:
            tree.update(at, values)

    def make():
        return [(rng.integers(0, len(tree), batch), random_weights(batch, rng)) for _ in range(calls(batch))]

    timed(go, make, calls(batch) * batch, ROUNDS)


@pytest.mark.parametrize("n", NS, ids="N{}".format)
def test_bare_random_read(benchmark, n):
    """The limit, in the same run."""
    benchmark.extra_info["random_read_ns"] = benchmark.pedantic(random_read_ns, args=(n,), rounds=1)
