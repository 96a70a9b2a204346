"""``fastprio bench``: what drawing and updating cost an index on this machine, beside uniform loading by torch.

Every contender runs whole epochs, iterated to their end, because that is what a training run pays: torch's samplers
shuffle before the first index comes out, and its RandomSampler shuffles once more at the end. Epochs of few examples
are repeated until about 200,000 indices are in one timing. Peers, which know no epochs, are timed call by call
(``fastprio.bench.measure``). All of it on one thread.

With ``--loader`` the user's own loader is timed instead (``fastprio.bench.own``).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import fastprio
from fastprio.bench import machine, own, present, stamp
from fastprio.bench.contenders import CONTENDERS, contenders
from fastprio.bench.limit import random_read_ns
from fastprio.bench.measure import fixed_call_ns, measure, measure_calls, summary, summary_of_calls
from fastprio.bench.peers import PEERS
from fastprio.bench.plot import plot

SECONDS = 0.05
"""How long a peer's draws, its updates, and both are timed in a turn, at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``fastprio bench``."""
    add = parser.add_argument
    add("--n", type=_counts, default="1e4,1e5,1e6,1e7", help="numbers of examples, with commas (default: %(default)s)")
    add("--batch", type=_count, default=256, help="indices a batch (default: %(default)s)")
    add("--repeats", type=_count, default=5, help="turns of every contender (default: %(default)s)")
    add("--peers", type=_peers, default="all", help="'all' installed, 'none', or names with commas (default: all)")
    add("--json", metavar="PATH", default="fastprio-bench.json", help="where results go (default: %(default)s)")
    add("--plot", metavar="PATH", help="also draw ns an index against N (.png, .pdf or .svg)")
    add(
        "--loader",
        metavar="MODULE:CALLABLE",
        help="time your own data instead: a function that returns your uniform DataLoader (shuffle=True)",
    )
    pairs = "with --loader: pairs of epochs, at least 6 (default: %(default)s)"
    add("--pairs", type=_count, default=10, help=pairs)


def _count(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (1 <= value <= 2**32 and value == int(value)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1 to 2^32, such as 256 or 1e6")
    return int(value)


def _counts(text: str) -> list[int]:
    return sorted({_count(part) for part in text.split(",")})


def _peers(text: str) -> list[str]:
    known = [name for name, peer in PEERS.items() if not peer.whole_epochs and name != "tree"]
    names = {"all": known, "none": []}.get(text, text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: expected 'all', 'none', or some of {','.join(known)}")
    return names


def run(args: argparse.Namespace) -> int:
    """The command: measures, prints, and writes the JSON and the picture.

    Returns: 0; 2 if something cannot be done, said in one line on stderr before anything is measured; 130 if
        interrupted, with what was finished until then written.
    """
    problem = _problem(args)
    if problem:
        print(f"fastprio bench: {problem}", file=sys.stderr)
        return 2
    if args.plot:
        importlib.import_module("matplotlib")  # found missing now, not after the minutes of measuring
    try:
        return own.run(args) if args.loader else _throughput(args)
    except own.LoaderError as error:
        print(f"fastprio bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastprio bench: interrupted before anything was finished: nothing is written", file=sys.stderr)
        return 130


def _problem(args: argparse.Namespace) -> str | None:
    for option, name in (("--json", args.json), ("--plot", args.plot)):
        if name and (Path(name).is_dir() or not os.access(Path(name).parent, os.W_OK)):
            return f"{name}: cannot be written: pass another {option} PATH"
    if args.plot and Path(args.plot).suffix.lower() not in (".png", ".pdf", ".svg"):
        return f"--plot {args.plot}: expected a name that ends in .png, .pdf or .svg"
    if args.loader and args.plot:
        return "--plot: there is nothing to draw with --loader"
    if args.loader and args.pairs < 6:
        return f"--pairs = {args.pairs}: a 95 % interval takes at least 6"
    return None


def _throughput(args: argparse.Namespace) -> int:
    skipped = {name: why for name in args.peers if (why := PEERS[name].skipped())}
    names = ["tree", *(name for name in args.peers if name not in skipped)]
    results: dict[int, Any] = {}
    calls: dict[int, Any] = {}
    limit: dict[int, float] = {}
    finished = True
    ticks = sum(
        1 + args.repeats * (len(contenders(n, 1)) + sum(not PEERS[name].skipped(n) for name in names)) for n in args.n
    )
    print(f"fastprio bench on {machine()}", flush=True)
    for line in present.skipped_lines(skipped):
        print(line, flush=True)
    threads, ours = torch.get_num_threads(), fastprio.get_num_threads()
    torch.set_num_threads(1)
    fastprio.set_num_threads(1)
    print("warming up", flush=True)
    try:
        measure(1000, min(args.batch, 1000), 1)  # compiles, and loads what is loaded once
        measure_calls(1000, min(args.batch, 1000), 1, names, 0.0)
        fixed = fixed_call_ns()
        with present.Progress(ticks) as progress:
            for n in args.n:

                def tick(name: str, at: str = f"N = {n:,}") -> None:
                    progress.tick(f"{at}: {name}")

                begin = time.perf_counter()
                batch = min(args.batch, n)
                tick("bare random read")
                read = random_read_ns(n)
                epochs = summary(measure(n, batch, args.repeats, tick=tick))
                called = summary_of_calls(measure_calls(n, batch, args.repeats, names, SECONDS, tick=tick))
                limit[n], results[n], calls[n] = read, epochs, called
                progress.say(f"N = {n:,}: {args.repeats} turns in {time.perf_counter() - begin:.1f} s")
    except KeyboardInterrupt:
        finished = False
        if not results:
            raise
        print(f"Interrupted: what follows is of N = {', '.join(f'{n:,}' for n in results)}")
    finally:
        torch.set_num_threads(threads)
        fastprio.set_num_threads(ours)
    sentence = present.closing(results, args.batch)
    wanted = "all" if len(args.peers) == len(_peers("all")) else ",".join(args.peers) or "none"
    sizes = ",".join(map(str, args.n))
    command = f"fastprio bench --n {sizes} --batch {args.batch} --repeats {args.repeats} --peers {wanted}"
    record = {
        **stamp(command, {k: v for name in names for k, v in PEERS[name].version().items()}),
        "finished": finished,
        "unit": "ns an index",
        "batch": args.batch,
        "contenders": CONTENDERS,
        "results": {str(n): found for n, found in results.items()},
        "peers": {name: PEERS[name].title for name in names},
        "skipped": skipped,
        "calls": {str(n): found for n, found in calls.items()},
        "limit": {str(n): nanoseconds for n, nanoseconds in limit.items()},
        "fixed_call_ns": fixed,
        "bytes_an_example": {
            "tree": fastprio.SumTree(args.n[-1]).nbytes / args.n[-1],
            "store": fastprio.ScoreStore(args.n[-1]).nbytes / args.n[-1],
        },
        "closing": sentence,
    }
    Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
    if args.plot:
        try:
            plot(Path(args.plot), record)
        except OSError as error:
            print(f"fastprio bench: --plot {args.plot}: {error.strerror or error}", file=sys.stderr)
            return 2
    present.show("ns an index (ratio to uniform in the same turn), median", present.contender_rows(results))
    present.show("ns an index: sample / update (a batch of each)", present.peer_rows(calls, limit))
    print(
        f"Before its first index, a call costs {fixed['sample']:.0f} ns (SumTree.sample) or "
        f"{fixed['update']:.0f} ns (SumTree.update)."
    )
    print(sentence)
    print("Written: " + ", ".join(path for path in (args.json, args.plot) if path))
    return 0 if finished else 130
