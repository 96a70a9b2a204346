"""What whole-epoch work costs at size: `python benchmarks/bench_scale.py [--n 1e6,1e7,1e8,1e9] [--json PATH]`.

Every size runs in processes of their own, one after another: the tree (fill, refit, find, sample, update, on one
thread and on all), then the store (scoring, the first batch, save, load, and the peak of the process's memory without
the caller's arrays), beside a copy of the same bytes and bare random reads. A time is the shortest of ``--repeats``,
in seconds, or of one run where it says "once": the machine may be doing other work. At N = 1e9 this takes 10 GB of
memory and 9 GB on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fastprio
from fastprio.bench import stamp, write
from fastprio.bench.limit import random_read_ns

BATCH, PIECE, LOOKUPS = 256, 1 << 22, 10**6


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def shortest(repeats: int, call: Callable[[], object]) -> float:
    """Of several calls."""
    return min(seconds(call) for _ in range(repeats))


def batches(call: Callable[[int], object]) -> float:
    """Seconds for a million examples in batches of 256."""
    return seconds(lambda: [call(first) for first in range(0, LOOKUPS, BATCH)])


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def resident_peak() -> int:
    """Bytes: the most that it has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def of_tree(n: int, repeats: int, folder: Path) -> dict[str, float]:
    """The tree by itself, s."""
    rng, found = np.random.default_rng(0), dict[str, float]()
    priorities = np.empty(n, np.float32)
    for begin in range(0, n, PIECE):
        rng.standard_exponential(out=priorities[begin : begin + PIECE], dtype=np.float32)
    threads = fastprio.get_num_threads()
    copied = np.empty_like(priorities)
    found["copy_fresh_once"] = seconds(lambda: np.copyto(copied, priorities))
    found["copy"] = shortest(repeats, lambda: np.copyto(copied, priorities))
    copied = np.empty(0, np.float32)
    tree = fastprio.SumTree(n)
    found["fill_fresh_once"] = seconds(lambda: tree.fill(priorities))
    del tree
    # Its pages have gone back to the system. A virtual machine has them ready now, and had to ask for them before.
    tree = fastprio.SumTree(n)
    found["fill_fresh"] = seconds(lambda: tree.fill(priorities))
    masses = rng.integers(0, tree.total, LOOKUPS, dtype=np.uint64)
    for name, count in ("one_thread", 1), ("all_threads", threads):
        fastprio.set_num_threads(count)
        found[f"fill_{name}"] = shortest(repeats, lambda: tree.fill(priorities))
        found[f"fill_scalar_{name}"] = shortest(repeats, lambda: tree.fill(1.0))
        tree.fill(priorities)
        found[f"refit_{name}"] = shortest(repeats, tree.refit)
        found[f"find_1e6_{name}"] = shortest(repeats, lambda: tree.find(masses))
        for scheme in ("iid", "stratified"):
            call = lambda scheme=scheme: tree.sample(LOOKUPS, seed=1, scheme=scheme, group=BATCH)  # noqa: E731
            found[f"sample_1e6_{scheme}_at_once_{name}"] = shortest(repeats, call)
    priorities = np.empty(0, np.float32)
    out = np.empty(BATCH, np.int64), np.empty(BATCH)
    count = LOOKUPS // BATCH * BATCH
    indices, new = rng.integers(0, n, count), rng.standard_exponential(count, dtype=np.float32)
    found["sample_1e6_in_batches"] = min(
        batches(lambda k, r=r: tree.sample(BATCH, seed=r, offset=k, scheme="stratified", group=BATCH, out=out))
        for r in range(repeats)
    )
    found["update_1e6_in_batches"] = batches(lambda k: tree.update(indices[k : k + BATCH], new[k : k + BATCH]))
    return found


def first_batch(store: fastprio.ScoreStore) -> float:
    """Seconds from iter() to the first batch."""
    made = fastprio.PriorityBatchSampler(fastprio.PrioritySampler(store), BATCH)
    return seconds(lambda: next(iter(made)))


def of_store(n: int, repeats: int, folder: Path) -> dict[str, float]:
    """The store with policy "loss", s and bytes an example; everything is scored, a piece at a time."""
    first_batch(fastprio.ScoreStore(1000))  # compiles
    found, baseline = dict[str, float](), resident()
    store = fastprio.ScoreStore(n)
    found["first_batch_fresh"] = first_batch(store)
    found["update_all_once"] = seconds(lambda: score(store))
    found["first_batch_scored_once"] = first_batch(store)
    found["first_batch_scored"] = shortest(repeats, lambda: first_batch(store))
    found["peak_bytes_an_example_scored"] = (resident_peak() - baseline) / n
    found["save"] = seconds(lambda: store.save(folder / "store"))
    found["peak_bytes_an_example_saved"] = (resident_peak() - baseline) / n
    found["store_nbytes_an_example"] = store.nbytes / n
    found["total"] = store.tree.total
    return found


def score(store: fastprio.ScoreStore) -> None:
    """Gives every example a loss, in pieces."""
    rng, n = np.random.default_rng(1), len(store)
    for begin in range(0, n, 1 << 20):
        at = np.arange(begin, min(begin + (1 << 20), n))
        store.update(at, rng.standard_exponential(len(at), dtype=np.float32))


def of_load(n: int, repeats: int, folder: Path) -> dict[str, float]:
    """Loading the file that ``of_store`` wrote, in a process that has done nothing else."""
    first_batch(fastprio.ScoreStore(1000))
    found, baseline = dict[str, float](), resident()
    begin = time.perf_counter()
    store = fastprio.ScoreStore.load(folder / "store")
    found["load"] = time.perf_counter() - begin
    found["peak_bytes_an_example_loaded"] = (resident_peak() - baseline) / n
    found["total_loaded"] = store.tree.total
    return found


def of_memory(n: int, repeats: int, folder: Path) -> dict[str, float]:
    """Bare reads."""
    return {"random_read_ns": random_read_ns(n, repeats=repeats)}


PARTS = {"memory": of_memory, "tree": of_tree, "store": of_store, "load": of_load}


def measure(n: int, repeats: int) -> dict[str, float]:
    """Everything for one size, each part in a process of its own."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fastprio-scale-") as folder:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--n", str(n), "--repeats", str(repeats)]
            text = subprocess.run([*command, "--folder", folder], check=True, stdout=subprocess.PIPE, text=True).stdout
            found |= json.loads(text)
    if found.pop("total") != found.pop("total_loaded"):
        raise RuntimeError("the loaded store is another one")
    return found


def main() -> None:
    """Measures, prints, and writes the JSON."""
    parser = argparse.ArgumentParser(description="Whole-epoch work at size.")
    parser.add_argument("--n", default="1e6,1e7,1e8,1e9", help="sizes, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(float(n)) for n in options.n.split(",")]
    if options.part:
        print(json.dumps(PARTS[options.part](sizes[0], options.repeats, options.folder)))
        return
    record = {"sizes": {}, "load_average": [os.getloadavg()[0]]}
    for n in sizes:
        record["sizes"][f"{n:.0e}".replace("e+0", "e")] = measure(n, options.repeats)
        print(f"N = {n:.0e} done", file=sys.stderr)
    record["load_average"].append(os.getloadavg()[0])
    record |= {
        "threads": fastprio.get_num_threads(),
        "repeats": options.repeats,
        **stamp(f"python benchmarks/bench_scale.py --n {options.n} --repeats {options.repeats}"),
    }
    write(record, options.json)


if __name__ == "__main__":
    main()
