"""``fastprio bench``: what drawing and updating cost an index on this machine, beside uniform loading by torch.

Every contender runs whole epochs, iterated to their end, because that is what a training run pays: torch's samplers
shuffle before the first index comes out, and its RandomSampler shuffles once more at the end. Nothing is
extrapolated; epochs of few examples are repeated until about 200,000 indices are in one timing.

Contenders take turns (A B C A B C ...), on one thread, so that a slow moment of the machine hits all of them. Ratios
are taken within a turn, then their median. Random indices and values are made afresh for each turn, outside the
timing; so are the trees.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler, WeightedRandomSampler

import fastprio
from fastprio.bench import machine, versions
from fastprio.tree import SumTree

Run = Callable[[], None]
"""A timed piece of work: ``loops`` epochs of a contender."""

Prepare = Callable[[np.random.Generator], Run]
"""Makes a Run, outside the timing."""

CONTENDERS = {
    "uniform": "torch BatchSampler(RandomSampler): shuffle, lists",
    "weighted": "torch BatchSampler(WeightedRandomSampler), with replacement",
    "draw": "fastprio PriorityBatchSampler on fixed weights: lists",
    "update": "fastprio SumTree.update, a batch of CPU tensors a call",
    "draw+update": "both: every batch drawn, then as many priorities set",
    "draw+record": "both as in training: policy 'loss', sampler.record(losses)",
}

# Indices in one timing, at least: short epochs are repeated, or the clock's and the scheduler's grain would show.
_AT_LEAST = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``fastprio bench``."""
    parser.add_argument(
        "--n", type=_counts, default="1e4,1e5,1e6,1e7", help="numbers of examples, with commas (default: %(default)s)"
    )
    parser.add_argument("--batch", type=_count, default=256, help="indices a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=_count, default=5, help="turns of every contender (default: %(default)s)")
    where = "where results go (default: %(default)s)"
    parser.add_argument("--json", metavar="PATH", default="fastprio-bench.json", help=where)


def _count(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value <= 2**32 and value == int(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 2^32, such as 256 or 1e6")
    return int(value)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def contenders(n: int, batch: int) -> dict[str, Prepare]:
    """Name -> how to prepare a turn of that contender.

    Args:
        n: examples, >= 1. batch: indices a batch, >= 1.
    """
    loops = -(-_AT_LEAST // n)
    batches = -(-n // batch)

    def weights(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
        # Spread over about two orders of magnitude, as losses in the middle of training are.
        return rng.lognormal(0.0, 1.0, n).astype(np.float32)

    def updates(rng: np.random.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = []
        for _ in range(loops * batches):
            at = rng.integers(0, n, batch)
            made.append((torch.from_numpy(at), torch.from_numpy(rng.lognormal(0.0, 1.0, batch).astype(np.float32))))
        return made

    def epochs(source: Iterable[Any]) -> Run:
        def go() -> None:
            for _ in range(loops):
                for _ in source:
                    pass

        return go

    def uniform(rng: np.random.Generator) -> Run:
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 40)))
        return epochs(BatchSampler(RandomSampler(range(n), generator=generator), batch, drop_last=False))

    def weighted(rng: np.random.Generator) -> Run:
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 40)))
        sampler = WeightedRandomSampler(torch.from_numpy(weights(rng)), n, replacement=True, generator=generator)  # type: ignore[arg-type]
        return epochs(BatchSampler(sampler, batch, drop_last=False))

    def fixed(rng: np.random.Generator) -> tuple[fastprio.PrioritySampler, fastprio.PriorityBatchSampler]:
        sampler = fastprio.PrioritySampler(weights=weights(rng), batch_size=batch, seed=int(rng.integers(1 << 40)))
        return sampler, fastprio.PriorityBatchSampler(sampler, batch)

    def draw(rng: np.random.Generator) -> Run:
        return epochs(fixed(rng)[1])

    def update(rng: np.random.Generator) -> Run:
        tree = SumTree(n)
        tree.fill(weights(rng))
        rows = updates(rng)

        def go() -> None:
            for at, values in rows:
                tree.update(at, values)

        return go

    def draw_update(rng: np.random.Generator) -> Run:
        sampler, source = fixed(rng)
        tree, rows = sampler.store.tree, updates(rng)

        def go() -> None:
            following = iter(rows)
            for _ in range(loops):
                for _ in source:
                    at, values = next(following)
                    tree.update(at, values)

        return go

    def draw_record(rng: np.random.Generator) -> Run:
        store = fastprio.ScoreStore(n, policy="loss", epochs=loops + 1)
        store.update(np.arange(n), weights(rng))
        seed = int(rng.integers(1 << 40))
        sampler = fastprio.PrioritySampler(store, batch_size=batch, cover_first=False, seed=seed)
        source = fastprio.PriorityBatchSampler(sampler, batch)
        next(iter(source))  # the first epoch of a run looks for unseen examples; what is measured is a later one
        rows = [values for _, values in updates(rng)]

        def go() -> None:
            following = iter(rows)
            for _ in range(loops):
                for indices in source:
                    sampler.record(next(following)[: len(indices)])

        return go

    made = (uniform, weighted, draw, update, draw_update, draw_record)
    return {name: prepare for name, prepare in zip(CONTENDERS, made, strict=True) if name != "weighted" or n <= 1 << 24}


def measure(n: int, batch: int, repeats: int, seed: int = 0) -> dict[str, list[float]]:
    """Nanoseconds an index, for every contender and turn.

    Args:
        n: examples. batch: indices a batch. repeats: turns. seed: of weights, indices and values.

    Returns:
        Contender -> ``repeats`` numbers, in the order of the turns. torch's weighted sampler is absent above 2^24
        examples, which it refuses.
    """
    rng = np.random.default_rng(seed)
    indices = n * -(-_AT_LEAST // n)
    found: dict[str, list[float]] = {}
    prepared = contenders(n, batch)
    for _ in range(repeats):
        for name, prepare in prepared.items():
            go = prepare(rng)
            begin = time.perf_counter()
            go()
            found.setdefault(name, []).append(1e9 * (time.perf_counter() - begin) / indices)
    return found


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Medians of what ``measure`` gave: ns_per_index, ratio (to uniform, within a turn), and the turns themselves."""
    return {
        name: {
            "ns_per_index": statistics.median(turns),
            "ratio": statistics.median(mine / torchs for mine, torchs in zip(turns, found["uniform"], strict=True)),
            "repeats": turns,
        }
        for name, turns in found.items()
    }


def closing(results: dict[int, dict[str, dict[str, Any]]], batch: int) -> str:
    """One sentence: what drawing and updating cost relative to uniform loading, at each number of examples."""
    parts = []
    for n, found in results.items():
        both, recorded = found["draw+update"]["ratio"], found["draw+record"]["ratio"]
        parts.append(f"{both:.2f} times at N = {n:,} ({recorded:.2f} with the arithmetic of policy 'loss')")
    return (
        "Drawing every batch by priority and updating as many priorities took, of the time of torch's uniform batch "
        f"sampler, {', '.join(parts)}; one thread, batches of {batch}."
    )


def show(results: dict[int, dict[str, dict[str, Any]]]) -> None:
    """Prints the medians: a rich table, or plain columns where rich is not installed."""
    head = ["contender", *(f"N = {n:,}" for n in results)]
    body = []
    for name, meaning in CONTENDERS.items():
        cells = [found.get(name) for found in results.values()]
        body.append([meaning, *(f"{c['ns_per_index']:.1f} ({c['ratio']:.2f}x)" if c else "-" for c in cells)])
    title = "ns an index (ratio to uniform), median"
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(len(row[k]) for row in [head, *body]) for k in range(len(head))]
        print(title)
        for row in [head, *body]:
            print(
                row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)), sep="  "
            )
        return
    table = Table(title=title)
    for k, name in enumerate(head):
        table.add_column(name, justify="right" if k else "left", no_wrap=bool(k))
    for row in body:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def run(args: argparse.Namespace) -> int:
    """The command: measures, prints, and writes the JSON. Returns 0, or 2 if the JSON cannot be written."""
    path = Path(args.json)
    if path.is_dir() or not os.access(path.parent, os.W_OK):  # said before the minutes of measuring, not after
        print(f"fastprio bench: {path}: cannot be written: pass another --json PATH", file=sys.stderr)
        return 2
    print(f"fastprio bench on {machine()}", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measure(1000, min(args.batch, 1000), 1)  # compiles, and loads what is loaded once
        results = {}
        for n in args.n:
            begin = time.perf_counter()
            results[n] = summary(measure(n, min(args.batch, n), args.repeats))
            print(f"N = {n:,}: {args.repeats} turns in {time.perf_counter() - begin:.1f} s", flush=True)
    finally:
        torch.set_num_threads(threads)
    sentence = closing(results, args.batch)
    record = {
        "command": f"fastprio bench --n {','.join(map(str, args.n))} --batch {args.batch} --repeats {args.repeats}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "unit": "ns an index",
        "contenders": CONTENDERS,
        "results": {str(n): found for n, found in results.items()},
        "closing": sentence,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    show(results)
    print(sentence)
    print(f"Written: {path}")
    return 0
