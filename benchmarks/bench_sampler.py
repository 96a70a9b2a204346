"""Whole epochs of the samplers, and how long the first batch takes: `pytest benchmarks/bench_sampler.py`.

The contenders are those of `fastprio bench`, which also takes them in turns and states ratios; here each is timed by
itself, for work on one of them. Trees, indices and losses are made anew for every round, outside the timing.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import fastprio
from fastprio.bench.contenders import CONTENDERS, contenders, loops

ROUNDS = 5
NS = [10**5, 10**6]
BATCHES = [32, 256]
# The largest needs about 3 GB.
FIRST_NS = [int(float(n)) for n in os.environ.get("FASTPRIO_BENCH_FIRST_N", "1e6,1e7,1e8").split(",")]


@pytest.mark.parametrize("n", NS, ids="N{}".format)
@pytest.mark.parametrize("batch", BATCHES, ids="batch{}".format)
@pytest.mark.parametrize("name", CONTENDERS)
def test_epoch(timed, name, batch, n):
    rng = np.random.default_rng(0)
    prepare = contenders(n, batch)[name]
    timed(lambda go: go(), lambda: prepare(rng), n * loops(n), ROUNDS)


@pytest.mark.parametrize("n", FIRST_NS, ids="N{}".format)
@pytest.mark.parametrize("state", ["fresh", "scored"])
def test_first_batch(timed, state, n):
    """From iter() to the first batch of 256, policy "loss", defaults: of a store just made, or all scored before."""
    kept = None
    if state == "scored":
        kept, rng = fastprio.ScoreStore(n), np.random.default_rng(0)
        for begin in range(0, n, 1 << 22):
            at = np.arange(begin, min(begin + (1 << 22), n))
            kept.update(at, rng.random(len(at), np.float32))

    def make():
        sampler = fastprio.PrioritySampler(kept or fastprio.ScoreStore(n), seed=1)
        return fastprio.PriorityBatchSampler(sampler, 256)

    timed(lambda batches: next(iter(batches)), make, 256, ROUNDS, 0)
