"""Every peer by itself, an adapter each: `pytest benchmarks/peers.py -rs` (-rs says why one is skipped).

The adapters are in `fastprio/bench/peers.py`, and each one's docstring says what it cannot do. `fastprio bench` takes
them in turns; here each is timed by itself, for work on one of them. Draws and updates get fresh random data, made
outside the timing. What costs O(N) a batch is timed with few batches; what draws an epoch ahead, with whole epochs.
"""

from __future__ import annotations

import numpy as np
import pytest

from fastprio.bench.contenders import random_weights
from fastprio.bench.measure import PARTS
from fastprio.bench.peers import PEERS

BATCH = 256
NS = [10**4, 10**6, 10**7]
# O(N) a batch.
REBUILT = ("multinomial", "choice", "alias")


@pytest.mark.parametrize("n", NS, ids="N{}".format)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", PEERS)
def test_peer(timed, name, part, n):
    peer = PEERS[name]
    why = peer.skipped(n)
    if why:
        pytest.skip(why)
    if part != "sample" and not peer.updates:
        pytest.skip(f"{peer.title}: priorities cannot change within an epoch")
    rng = np.random.default_rng(0)
    made = peer(random_weights(n, rng), BATCH, 1)
    epoch = -(-n // BATCH)
    calls = epoch if peer.whole_epochs else 2 if name in REBUILT and part != "update" else 64

    def rows():
        return [(rng.integers(0, n, BATCH), random_weights(BATCH, rng)) for _ in range(calls)]

    def sample(given):
        for _ in range(calls):
            made.draw()

    def update(given):
        for at, values in given:
            made.update(at, values)

    def both(given):
        for at, values in given:
            made.draw()
            made.update(at, values)

    if part == "sample":
        timed(sample, lambda: None, n if peer.whole_epochs else calls * BATCH, 3 if calls in (2, epoch) else 50)
    else:
        timed(update if part == "update" else both, rows, calls * BATCH, 3 if calls == 2 else 50)
