"""The tree by itself, with pytest-benchmark: `pytest benchmarks/bench_tree.py`.

Every call gets indices and seeds that it has not had before, so that no branch predictor or cache learns them; they
are made outside the timing. Times are for a batch of 256.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastprio import SumTree

BATCH = 256


@pytest.fixture(params=[10**4, 10**6, 10**7], ids="N={:,}".format)
def tree(request):
    made = SumTree(request.param)
    made.fill(np.random.default_rng(0).lognormal(size=request.param).astype(np.float32))
    return made


@pytest.mark.parametrize("scheme", ["iid", "stratified", "unique"])
def test_sample(benchmark, tree, scheme):
    offsets = itertools.count(0, BATCH)
    out = np.empty(BATCH, np.int64), np.empty(BATCH)
    benchmark.pedantic(
        lambda offset: tree.sample(BATCH, seed=1, offset=offset, scheme=scheme, group=BATCH, out=out),
        setup=lambda: ((next(offsets),), {}),
        rounds=2000,
    )


def test_update(benchmark, tree):
    rng = np.random.default_rng(1)
    benchmark.pedantic(
        tree.update,
        setup=lambda: ((rng.integers(0, len(tree), BATCH), rng.lognormal(size=BATCH).astype(np.float32)), {}),
        rounds=2000,
    )
