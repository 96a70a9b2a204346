"""With and without: a small experiment in several ways, over some seeds, as a table, a picture and a JSON file.

What the files in ``examples/`` have in common. An example has its ways by name, the plain one first, and a function
that tries one of them: ``run(way, trial)`` returns what it measured, name (with the unit) -> number.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastprio.bench import stamp
from fastprio.loader import PriorityLoader
from fastprio.study.data import Batches, Data, Split, identity
from fastprio.study.examples import whole
from fastprio.study.files import StudyError
from fastprio.study.models import SmallCNN, evaluate

HELD_OUT = 5000
"""Training images that settings are chosen on; of a set that is too small, a fifth of it."""


@dataclass(frozen=True)
class Trial:
    """One try of one way.

    seed: of everything that chance decides. quick: the smaller form, on digits, that takes seconds. held_out: measure
    on training images that are not trained on, not on the test set. source: of the images, ten classes of squares, as
    ``data.load`` takes it.
    """

    seed: int
    quick: bool = False
    held_out: bool = False
    source: str = "fashion-mnist"

    def whole(self) -> Data:
        """All images there are. Raises StudyError if there are none, or if an example cannot be of them."""
        data = whole("digits" if self.quick else self.source)
        height, width = data.train.images.shape[2:]
        if data.classes != 10 or height != width or height % 4:
            raise StudyError(
                f"{data.name}: {data.classes} classes of {height} x {width} pixels; "
                "the examples are for ten classes of squares whose side is a multiple of 4"
            )
        return data

    def data(self, examples: int) -> Data:
        """So many training images (all, if there are fewer), chosen by the seed; torch's random numbers begin anew.

        Raises StudyError as ``whole`` does.
        """
        torch.manual_seed(self.seed)
        data = self.whole()
        order = torch.from_numpy(np.random.default_rng([self.seed, 0]).permutation(len(data.train)))
        test = data.test
        if self.held_out:
            kept = min(HELD_OUT, len(order) // 5)
            test, order = data.train[order[:kept]], order[kept:]
        return Data(data.name, data.train[order[:examples]], test, data.classes)

    def loader(self, split: Split, policy: Any = "uniform", batch_size: int | None = None) -> PriorityLoader:
        """Whole batches (images, labels), 64 examples each (32 in the quick form) unless said, drawn by the seed."""
        size = batch_size or self.of(64, 32)
        return PriorityLoader(Batches(split), size, policy=policy, seed=self.seed, collate_fn=identity)

    def model(self, data: Data) -> SmallCNN:
        """A small network for the data's images, with weights by torch's random numbers."""
        _, channels, size, _ = data.train.images.shape
        return SmallCNN(size, data.classes, width=8, channels=channels)

    def of(self, full: Any, quick: Any) -> Any:
        """The setting that goes with the size of the trial."""
        return quick if self.quick else full


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """float32 [B]: the cross entropy of each example of (images, labels)."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def losses_and_correct(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The same, and {"correct": bool [B]}, whether its label was predicted: for policies that want to know."""
    logits = model(batch[0])
    right = logits.argmax(1) == batch[1]
    return nn.functional.cross_entropy(logits, batch[1], reduction="none"), {"correct": right}


def accuracy(model: nn.Module, split: Split) -> float:
    """The share of the split that is predicted right, in %."""
    return 100 * float(evaluate(model, split.images, split.labels)[0].float().mean())


def found(removed: Any, wrong: Any) -> dict[str, float]:
    """Precision and recall in %, by name, of bool [n] ``removed`` for what is ``wrong``; no precision where nothing is.

    Precision by chance is the share of what is wrong.
    """
    both = 100 * float(np.count_nonzero(removed & wrong))
    of = {"removed that are wrong, %": removed, "wrong that are removed, %": wrong}
    return {name: both / int(mask.sum()) for name, mask in of.items() if mask.any()}


Run = Callable[[str, Trial], dict[str, float]]
Results = dict[str, list[dict[str, float]]]
"""Way -> what was measured with each seed."""


def compare(ways: Sequence[str], run: Run, trials: Sequence[Trial]) -> Results:
    """Tries every way with every trial; the ways take turns, on one thread of torch, so that their times compare."""
    results: Results = {way: [] for way in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for trial in trials:
            for way in ways:
                results[way].append(run(way, trial))
                print(f"seed {trial.seed}, {way}: {_line(results[way][-1])}", file=sys.stderr, flush=True)
    finally:
        torch.set_num_threads(threads)
    return results


def mean(results: Results, way: str, what: str) -> float:
    """Of all seeds."""
    return float(np.mean([result[what] for result in results[way] if what in result]))


def main(name: str, about: str, ways: Sequence[str], run: Run, argv: Sequence[str] | None = None) -> int:
    """An example as a program: a line for each try, a table, and NAME.json and NAME.png with every seed.

    Args:
        name: its file's name or path. about: its docstring, of which the first line says what it shows.
        argv: the arguments after the program's name; those of the process if not given.

    Returns: the exit status: 0, or 2 where something is missing or misused, said in one line on stderr.
    """
    name, argv = Path(name).stem, sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog=f"fastprio examples {name}", description=about, formatter_class=_AsItIs)
    parser.add_argument("--quick", action="store_true", help="a smaller form, on digits, in seconds")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many to try (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="(default: %(default)s)")
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="measure on training images that are not trained on: for choosing settings, with seeds of their own",
    )
    parser.add_argument(
        "--data", metavar="SOURCE", default="fashion-mnist", help="ten classes of images, as `fastprio demo` takes them"
    )
    parser.add_argument("--out", metavar="DIR", default="fastprio-examples", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        if args.seeds < 1 or args.first_seed < 0:
            raise StudyError(
                f"--seeds {args.seeds} --first-seed {args.first_seed}: expected one at least, and 0 or above"
            )
        if args.quick and args.data != "fashion-mnist":
            raise StudyError(f"--quick --data {args.data}: the smaller form is on digits; leave one of them out")
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        began = time.perf_counter()
        trials = [Trial(seed, args.quick, args.held_out, args.data) for seed in seeds]
        data = trials[0].whole()
        results = compare(ways, run, trials)
        seconds = time.perf_counter() - began
        stamped = stamp(" ".join(["fastprio examples", name, *argv]))
        record = {
            **stamped,
            "about": about.partition("\n")[0],
            "data": data.name,
            "seeds": list(seeds),
            "seconds": seconds,
            "results": results,
        }
        (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        picture(record["about"], results).savefig(out / f"{name}.png", dpi=130)
    except (StudyError, OSError) as error:
        print(f"fastprio examples {name}: {error}", file=sys.stderr)
        return 2
    Console().print(table(results))
    print(f"{data.name}, {len(seeds)} seeds, {seconds:.0f} s; {out / name}.json and .png have every seed")
    return 0


class _AsItIs(argparse.RawDescriptionHelpFormatter):
    """Does not rewrap the docstring."""


def measures(results: Results) -> list[str]:
    """The names of what was measured, in the order in which they came up."""
    return list(dict.fromkeys(what for runs in results.values() for result in runs for what in result))


def _number(value: float) -> str:
    """As in "0.9512", "86.58" or "80,562"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _line(result: dict[str, float]) -> str:
    return "; ".join(f"{what}: {_number(value)}" for what, value in result.items())


def spread(results: Results, way: str, what: str) -> str:
    """The mean over the seeds, with the least and the largest; nothing where it was not measured."""
    values = [result[what] for result in results[way] if what in result]
    if not values:
        return ""
    ends = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
    return _number(float(np.mean(values))) + ends


def table(results: Results) -> Table:
    """A row for each way, a column for each measure."""
    made = Table()
    made.add_column("")
    for what in measures(results):
        made.add_column(what, justify="right")
    for way in results:
        made.add_row(way, *(spread(results, way, what) for what in measures(results)))
    return made


def picture(title: str, results: Results) -> Figure:
    """A panel for each measure: a dot a seed, a bar at their mean, in a row for each way."""
    names, ways = measures(results), list(results)
    figure = Figure((2.2 + 2.6 * len(names), 1.3 + 0.42 * len(ways)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, what in zip(panels, names, strict=True):
        for row, way in enumerate(ways):
            values = [result[what] for result in results[way] if what in result]
            axes.plot(values, [row] * len(values), "o", color=f"C{row}", alpha=0.6, markersize=6)
            if values:
                axes.plot([np.mean(values)], [row], "|", color=f"C{row}", markersize=20, markeredgewidth=2.5)
        axes.set(yticks=range(len(ways)), yticklabels=ways, ylim=(len(ways) - 0.5, -0.5))
        axes.set_title(what, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.15)
    figure.suptitle(title, fontsize=11)
    return figure
