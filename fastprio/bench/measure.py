"""How the timings are taken: in turns, whole epochs or call by call, always with fresh random data.

Contenders and peers take turns (A B C A B C ...), so that a slow moment of the machine hits all of them. Ratios are
taken within a turn, then their median. Random indices and values are made afresh for each turn, outside the timing;
so are the trees. Nothing is extrapolated: what costs O(N) a batch is timed with the few batches that fit its time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastprio.bench.contenders import contenders, loops, random_weights
from fastprio.bench.peers import PEERS, Peer
from fastprio.tree import SumTree

PARTS = ("sample", "update", "both")
"""What is timed of a peer, call by call: a batch drawn; a batch of priorities set; one after the other."""

Turns = dict[str, list[float]]
"""Name -> ns an index, one number a turn."""


def measure(
    n: int, batch: int, repeats: int, seed: int = 0, tick: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Nanoseconds an index of every contender, over whole epochs.

    Args:
        n: examples, >= 1. batch: indices a batch, in [1, n]. repeats: turns, >= 1. seed: of weights, indices, values.
        tick: called with each contender's name before its turn.

    Returns:
        Contender -> ``repeats`` numbers, in the order of the turns.
    """
    rng = np.random.default_rng(seed)
    found: Turns = {}
    prepared = contenders(n, batch)
    for _ in range(repeats):
        for name, prepare in prepared.items():
            tick(name)
            go = prepare(rng)
            begin = time.perf_counter()
            go()
            found.setdefault(name, []).append(1e9 * (time.perf_counter() - begin) / (n * loops(n)))
    return found


def measure_calls(
    n: int,
    batch: int,
    repeats: int,
    names: Iterable[str],
    seconds: float,
    seed: int = 0,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, list[float]]]:
    """Nanoseconds an index of peers, call by call: of those ``names`` that can run with ``n`` examples.

    Args:
        n, batch, repeats, seed, tick: as ``measure``. names: keys of ``PEERS``; those that draw whole epochs ahead
            are left out, for ``measure`` has them.
        seconds: how long each part of ``PARTS`` is timed in a turn, at least; and at least two batches.

    Returns:
        Peer -> part -> ``repeats`` numbers.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Turns] = {}
    able = [PEERS[name] for name in names if not (PEERS[name].whole_epochs or PEERS[name].skipped(n))]
    for _ in range(repeats):
        weights = random_weights(n, rng)
        for peer in able:
            tick(peer.name)
            made = peer(weights, batch, int(rng.integers(1 << 40)))
            for part in PARTS:
                found.setdefault(peer.name, {}).setdefault(part, []).append(_calls(made, part, seconds, rng))
            del made  # before the next one takes its memory
    return found


def _calls(peer: Peer, part: str, seconds: float, rng: np.random.Generator) -> float:
    def row() -> tuple[Any, Any]:
        return rng.integers(0, peer.n, peer.batch), random_weights(peer.batch, rng)

    peer.draw()
    peer.update(*row())
    spent, done, size = 0.0, 0, 1
    while spent < seconds or done < 2:
        rows = [row() for _ in range(size)]
        begin = time.perf_counter()
        if part == "sample":
            for _ in rows:
                peer.draw()
        elif part == "update":
            for at, values in rows:
                peer.update(at, values)
        else:
            for at, values in rows:
                peer.draw()
                peer.update(at, values)
        spent += time.perf_counter() - begin
        done += size
        size = min(2 * size, 256)
    return 1e9 * spent / (done * peer.batch)


def fixed_call_ns(repeats: int = 5, calls: int = 2000) -> dict[str, float]:
    """Nanoseconds that a call of SumTree.sample and of SumTree.update costs before its first index.

    The time of a call with one index, less the slope between 1 and 256 indices, on a tree of 1,000 examples, where
    nothing waits for memory; the median of ``repeats`` rounds of ``calls`` calls each.
    """
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    tree.fill(random_weights(1000, rng))

    def sample_ns(batch: int, first: int) -> float:
        out = np.empty(batch, np.int64), np.empty(batch, np.float64)
        offsets = [(first + k) * 256 for k in range(calls)]
        begin = time.perf_counter()
        for offset in offsets:
            tree.sample(batch, seed=1, offset=offset, scheme="stratified", group=batch, out=out)
        return 1e9 * (time.perf_counter() - begin) / calls

    def update_ns(batch: int, first: int) -> float:
        rows = [(rng.integers(0, 1000, batch), random_weights(batch, rng)) for _ in range(calls)]
        begin = time.perf_counter()
        for at, values in rows:
            tree.update(at, values)
        return 1e9 * (time.perf_counter() - begin) / calls

    found: dict[str, float] = {}
    for name, timed in (("sample", sample_ns), ("update", update_ns)):
        turns = []
        for turn in range(repeats):
            one, many = timed(1, 2 * turn * calls), timed(256, (2 * turn + 1) * calls)
            turns.append(one - (many - one) / 255)
        found[name] = statistics.median(turns)
    return found


def summary(found: Turns) -> dict[str, dict[str, Any]]:
    """Medians of what ``measure`` gave: ns_per_index, ratio (to uniform, within a turn), and the turns themselves."""
    return {
        name: {
            "ns_per_index": statistics.median(turns),
            "ratio": statistics.median(mine / torchs for mine, torchs in zip(turns, found["uniform"], strict=True)),
            "repeats": turns,
        }
        for name, turns in found.items()
    }


def summary_of_calls(found: dict[str, Turns]) -> dict[str, dict[str, dict[str, Any]]]:
    """Medians of what ``measure_calls`` gave: peer -> part -> ns_per_index, and the turns themselves."""
    return {
        name: {part: {"ns_per_index": statistics.median(t), "repeats": t} for part, t in parts.items()}
        for name, parts in found.items()
    }
