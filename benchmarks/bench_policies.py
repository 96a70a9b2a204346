"""What every policy costs at N examples: `python benchmarks/bench_policies.py --json benchmarks/records/policies.json`.

plan: the slowest of a policy's plans over some epochs, between which a quarter of the examples get new losses.
observe: the policy alone on 256 random rows, of training or of a score pass, whichever takes longer. update: the whole
of ScoreStore.update, with the tree and the checks. Medians in microseconds. Losses, observations and rows are fresh for
every call and made outside the timing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fastprio import ScoreStore, policies
from fastprio._random import Rng
from fastprio.bench import stamp, write
from fastprio.methods import keeps
from fastprio.order import scored
from fastprio.policies.base import Observation
from fastprio.testing import made_up

EPOCHS = 0, 1, 2, 7, 12, 13  # those that have plans timed: what begins late is among them
PART, ROWS, CALLS = 1 << 20, 256, 300


def lived_in(name: str, n: int, rng: np.random.Generator) -> ScoreStore:
    """A store of a policy whose examples have all been scored by it and by another model."""
    store = ScoreStore(n, policies.registered()[name](**policies.registered()[name].example), epochs=20)
    if hasattr(store.policy, "regroup"):
        store.column("group")[:] = rng.integers(0, store.policy.count, n)
        store.policy.regroup(store)
    for origin in ("reference", "train", "score"):
        tell(store, np.arange(n), origin, rng)
    return store


def tell(store: ScoreStore, rows: Any, origin: str, rng: np.random.Generator) -> None:
    """New losses and observations of some rows."""
    for begin in range(0, len(rows), PART):
        part = rows[begin : begin + PART]
        losses = rng.exponential(size=len(part)).astype(np.float32)
        store.update(part, losses, origin=origin, **made_up(store.policy, len(part), rng))


def plans(store: ScoreStore, rng: np.random.Generator) -> float:
    """Seconds of the slowest plan."""
    slowest = 0.0
    for epoch in EPOCHS:
        store.begin_epoch(epoch)
        begin = time.perf_counter()
        plan = store.policy.plan(store, store.clock, Rng(0, epoch, 0, "plan"))
        slowest = max(slowest, time.perf_counter() - begin)
        tell(store, rng.integers(0, len(store), len(store) // 4), "train", rng)
        if plan is not None and plan.score:
            tell(store, np.flatnonzero(scored(plan, len(store))), "score", rng)
    return slowest


def calls(store: ScoreStore, rng: np.random.Generator) -> tuple[float, float]:
    """Median microseconds of observe and of update, on rows that no call has had before."""
    alone: dict[str, list[float]] = {"train": [], "score": []}
    whole: dict[str, list[float]] = {"train": [], "score": []}
    for call in range(2 * CALLS):
        origin = ("train", "score")[call % 2]
        at = rng.integers(0, len(store), ROWS)
        loss, others = rng.exponential(size=ROWS).astype(np.float32), made_up(store.policy, ROWS, rng)
        obs = Observation(loss, origin, dict(others))
        store.policy.check(obs)
        draw = Rng(0, 0, store.clock.step, "observe")
        begin = time.perf_counter()
        store.policy.observe(store.columns, at, obs, store.clock, draw)
        alone[origin].append(time.perf_counter() - begin)
        at = rng.integers(0, len(store), ROWS)
        begin = time.perf_counter()
        store.update(at, loss, origin=origin, **others)
        whole[origin].append(time.perf_counter() - begin)
    return 1e6 * max(map(statistics.median, alone.values())), 1e6 * max(map(statistics.median, whole.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=float, default=1e7)
    parser.add_argument("--policies", nargs="*", help="names; all if not given")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    for name, policy in policies.registered().items():
        if args.policies and name not in args.policies:
            continue
        rng = np.random.default_rng(0)
        lived_in(name, 1000, rng)  # compiles what is compiled later than a store is made
        store = lived_in(name, int(args.n), rng)
        plan = plans(store, rng)
        observe, update = calls(store, rng)
        rows[name] = {"bytes": keeps(policy), "plan_ms": 1e3 * plan, "observe_us": observe, "update_us": update}
        print(
            f"{name:16} plan {1e3 * plan:7.1f} ms   observe {observe:5.1f} us   update {update:5.1f} us",
            file=sys.stderr,
        )
        del store
    record = {"n": int(args.n), "rows": ROWS, "policies": rows}
    write(record | stamp(f"python benchmarks/bench_policies.py --n {args.n:g}"), args.json)


if __name__ == "__main__":
    main()
