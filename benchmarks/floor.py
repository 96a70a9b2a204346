"""What choosing costs beside uniform loading: the floor that must always hold. `python benchmarks/floor.py [--json PATH]`

An epoch that draws lists with PriorityBatchSampler (its defaults) and updates the tree for every batch from CPU
tensors, against an epoch of torch's BatchSampler(RandomSampler(n)), in turn A B A B, one thread; the first batch
after iter(); and the bytes an example.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.utils.data import BatchSampler, RandomSampler

import fastprio

BATCH = 256


def uniform(n: int) -> float:
    """ns per index of an epoch of uniform batches."""
    begin = time.perf_counter()
    for _ in BatchSampler(RandomSampler(range(n)), BATCH, False):
        pass
    return (time.perf_counter() - begin) / n * 1e9


def prioritized(
    batches: fastprio.PriorityBatchSampler, indices: list[torch.Tensor], values: list[torch.Tensor]
) -> float:
    """ns per index of an epoch of prioritized batches with an update of 256 priorities after each."""
    tree, n = batches.sampler.store.tree, len(batches.sampler)
    begin = time.perf_counter()
    for k, _ in enumerate(batches):
        tree.update(indices[k % len(indices)], values[k % len(values)])
    return (time.perf_counter() - begin) / n * 1e9


def first_batch(n: int) -> float:
    """ms from iter() to the first batch, on a fresh sampler of policy "loss" with its defaults."""
    batches = fastprio.PriorityBatchSampler(fastprio.PrioritySampler(n), BATCH)
    begin = time.perf_counter()
    next(iter(batches))
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    """Measures, prints, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=lambda s: int(float(s)), default=10**6)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n = options.n
    generator = torch.Generator().manual_seed(0)
    sampler = fastprio.PrioritySampler(weights=torch.rand(n, generator=generator) + 0.01)
    batches = fastprio.PriorityBatchSampler(sampler, BATCH)
    # More batches than a predictor or a cache remembers.
    indices = [torch.randint(n, (BATCH,), generator=generator) for _ in range(4096)]
    values = [torch.rand(BATCH, generator=generator) + 0.01 for _ in range(4096)]
    pairs = [(prioritized(batches, indices, values), uniform(n)) for _ in range(options.repeats + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    first = statistics.median(first_batch(10**7) for _ in range(5))
    store = fastprio.ScoreStore(10**7)
    record = {
        "n": n,
        "batch": BATCH,
        "draw_and_update_ns": ours,
        "uniform_ns": theirs,
        "ratio": ratio,
        "pairs": pairs,
        "first_batch_ms_at_1e7": first,
        "tree_bytes_per_example": store.tree.nbytes / len(store),
        "store_bytes_per_example": store.nbytes / len(store),
        "torch": torch.__version__,
        "fastprio": fastprio.__version__,
        "machine": f"{platform.machine()}, {_processor()}",
        "date": time.strftime("%Y-%m-%d"),
    }
    print(
        f"draw + update {ours:.0f} ns an index, uniform {theirs:.0f}, ratio {ratio:.2f} (n = {n}, {options.repeats} pairs)"
    )
    print(f"first batch at n = 1e7: {first:.1f} ms")
    print(
        f"bytes an example: tree {record['tree_bytes_per_example']:.2f}, store 'loss' {record['store_bytes_per_example']:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
