"""The floor that must always hold: `python benchmarks/floor.py [--json PATH]`.

Three numbers: what an epoch costs that draws lists with PriorityBatchSampler and updates the tree for every batch
from CPU tensors, beside an epoch of torch's uniform BatchSampler(RandomSampler) in the same run (at most 1.0 of it);
the first batch after iter() at ten million examples (at most 50 ms); the bytes an example (at most 6 for the tree).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import fastprio
from fastprio.bench import machine, throughput, versions

BATCH = 256


def first_batch(n: int, scored: bool) -> float:
    """ms from iter() to the first batch, policy "loss" with its defaults, on a fresh store or one scored before."""
    store = fastprio.ScoreStore(n)
    if scored:
        store.update(torch.arange(n), torch.rand(n))
    batches = fastprio.PriorityBatchSampler(fastprio.PrioritySampler(store), BATCH)
    begin = time.perf_counter()
    next(iter(batches))
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    """Measures, prints, and writes the JSON."""
    parser = argparse.ArgumentParser(description="The floor for speed and memory.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    throughput.measure(1000, BATCH, 1)  # compiles
    ratio = throughput.summary(throughput.measure(10**6, BATCH, options.repeats))["draw+update"]["ratio"]
    store = fastprio.ScoreStore(10**7)
    record = {
        "draw_and_update_over_uniform_at_1e6": ratio,
        "first_batch_ms_at_1e7": statistics.median(first_batch(10**7, False) for _ in range(options.repeats)),
        "first_batch_ms_at_1e7_scored": statistics.median(first_batch(10**7, True) for _ in range(options.repeats)),
        "tree_bytes_an_example": store.tree.nbytes / len(store),
        "store_bytes_an_example_policy_loss": store.nbytes / len(store),
        "repeats": options.repeats,
        "machine": machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
