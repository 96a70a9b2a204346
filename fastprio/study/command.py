"""``fastprio study``: runs a study, times it, and writes its report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from fastprio.cli import look_here
from fastprio.study import grid
from fastprio.study.corruptions import KINDS
from fastprio.study.files import StudyError
from fastprio.study.methods import find
from fastprio.study.presets import PRESETS
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.timing import in_turns

SILENCE = 30.0
"""Seconds between two lines of ``Share``."""
MORE = "what the preset does not have gets the rows of its"
SETTINGS = {field.name: field for field in dataclasses.fields(Protocol) if field.name != "name"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares ``fastprio study run | time | report``."""
    actions = parser.add_subparsers(dest="action", metavar="run | time | report", required=True)
    run = actions.add_parser("run", help="make the runs of a preset; stop it and go on as you like")
    run.add_argument("preset", choices=PRESETS)
    run.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: %(default)s)")
    timing = actions.add_parser("time", help="make runs one step after another in one process, for seconds")
    timing.add_argument("preset", choices=PRESETS)
    for action in (run, timing):
        add = action.add_argument
        add("--out", metavar="DIR", help="where finished runs are kept (default: fastprio-study/PRESET)")
        add("--methods", metavar="NAME,...", help="only these")
        add("--columns", metavar="KIND:LEVEL,...", help=f"only these, as in 'clean,labels:0.5'; {MORE} clean data")
        add("--set", metavar="NAME=VALUE", action="append", default=[], help="another setting of the protocol")
        add("--list", action="store_true", help="print the runs, and what is done of them, and do nothing")
    run.add_argument("--seeds", metavar="A-B", help=f"only these; {MORE} seed 0")
    help = f"only these (default: %(default)s); {MORE} seed 0. A seed's column is kept once all its runs are finished"
    timing.add_argument("--seeds", metavar="A-B", default="0", help=help)
    report = actions.add_parser("report", help="write tables and pictures of the runs in a folder")
    report.add_argument("folder", metavar="DIR")


def protocol_for(args: argparse.Namespace) -> Protocol:
    """The preset's, with what ``--set`` changes.

    Raises: StudyError: a setting that is unknown or out of range.
    """
    protocol, changed = PRESETS[args.preset].protocol, {}
    for given in args.set:
        name, equals, text = given.partition("=")
        if not equals or name not in SETTINGS:
            raise StudyError(f"--set {given}: expected NAME=VALUE with NAME one of {', '.join(SETTINGS)}")
        changed[name] = _read(name, text, getattr(protocol, name))
    protocol = dataclasses.replace(protocol, **changed)
    protocol.check()
    return protocol


def _read(name: str, text: str, like: Any) -> Any:
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, tuple):
            return tuple(float(part) for part in text.split(",") if part)
        return type(like)(text)
    except (ValueError, KeyError):
        form = ",".join(map(str, like)) if isinstance(like, tuple) else repr(like)
        raise StudyError(f"--set {name}={text}: expected a value like {form}") from None


def cells_for(args: argparse.Namespace) -> list[Cell]:
    """The preset's runs, as far as they are wanted.

    Raises: StudyError: an unknown method or column, or seeds that are none.
    """
    cells = PRESETS[args.preset].cells()
    first = cells[0].seed
    if args.methods is not None:
        names = args.methods.split(",")
        for name in names:
            find(name)
        cells = [cell for cell in cells if cell.method in names]
    if args.columns is not None:
        wanted = [_column(text) for text in args.columns.split(",")]
        new = set(wanted) - {(cell.kind, cell.level) for cell in cells}
        plain = [cell for cell in cells if cell.kind == "clean" and cell.lr_scale == 1]
        cells = [cell for cell in cells if (cell.kind, cell.level) in wanted]
        cells += [dataclasses.replace(cell, kind=kind, level=level) for kind, level in sorted(new) for cell in plain]
    if args.seeds is not None:
        seeds = _seeds(args.seeds)
        more = [seed for seed in seeds if seed not in {cell.seed for cell in cells}]
        plain = [cell for cell in cells if cell.seed == first]
        cells = [cell for cell in cells if cell.seed in seeds]
        cells += [dataclasses.replace(cell, seed=seed) for seed in more for cell in plain]
    return sorted(dict.fromkeys(cells), key=lambda cell: cell.seed)


def _column(text: str) -> tuple[str, float]:
    if text == "clean":
        return text, 0.0
    if text.startswith("file:") and text != "file:":
        return text, 1.0
    kind, _, level = text.rpartition(":")
    known = [name for name in (*KINDS, "rare") if name != "clean"]
    try:
        share = float(level)
    except ValueError:
        share = -1.0
    if kind not in known or not 0 <= share <= 1:
        raise StudyError(
            f"--columns {text}: expected clean, file:PATH, or KIND:LEVEL with KIND one of {', '.join(known)} "
            "and 0 <= LEVEL <= 1"
        )
    return kind, share


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds or seeds[-1] >= 2**63:
        raise StudyError(f"--seeds {text}: expected a number below 2^63, or two as in 100-102")
    return seeds


class Progress:
    """Says what was done and how long the rest will take, from what the runs of this call took."""

    def __init__(self) -> None:
        self.begin, self.made = time.perf_counter(), 0

    def __call__(self, run: dict[str, Any], done: int, total: int) -> None:
        self.made += 1
        cell, result = grid.cell_of(run), run["result"]
        left = (time.perf_counter() - self.begin) / self.made * (total - done)
        print(
            f"{done} of {total}  {cell.column}, {cell.row}, seed {cell.seed}: error {result['error']:.2f} %, "
            f"{result['whole_seconds']:.0f} s; {_span(left)} left",
            flush=True,
        )


class Share:
    """Says how much of something is done, when it is asked to and has been silent for half a minute."""

    def __init__(self, what: str) -> None:
        self.what, self.said = what, time.monotonic()

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self.said >= SILENCE:
            self.said = now
            print(f"{self.what}: {100 * share:.0f} %", flush=True)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def make_runs(args: argparse.Namespace) -> None:
    """``fastprio study run``."""
    protocol, cells = protocol_for(args), cells_for(args)
    if args.workers < 1:
        raise StudyError(f"--workers {args.workers}: expected at least 1")
    folder = Path(args.out or f"fastprio-study/{protocol.name}")
    if args.list:
        _list(protocol, cells, folder, grid.FILE)
        return
    try:
        made = grid.run_all(folder, protocol, cells, args.workers, Progress())
    except KeyboardInterrupt:
        print(f"fastprio study: stopped; {folder} has what was finished: start it again to go on", file=sys.stderr)
        raise
    _said(len(cells), made, folder, grid.FILE)


def _said(asked: int, made: int, folder: Path, name: str) -> None:
    have = len(grid.read(folder, name))
    print(f"{made} of {asked} made now; {folder / name} has {have}. For the report: fastprio study report {folder}")


def _list(protocol: Protocol, cells: list[Cell], folder: Path, name: str) -> None:
    grid.check(folder, protocol)
    have = {grid.cell_of(run) for run in grid.read(folder, name)}
    for cell in cells:
        done = "done" if cell in have else "    "
        print(f"{done}  {cell.column}, {cell.row}, seed {cell.seed}")


def make_times(args: argparse.Namespace) -> None:
    """``fastprio study time``: all methods of a column at once, a column after the other."""
    protocol, cells = protocol_for(args), cells_for(args)
    cells = [cell for cell in cells if cell.lr_scale == 1]
    folder = Path(args.out or f"fastprio-study/{protocol.name}")
    if args.list:
        _list(protocol, cells, folder, grid.TIMES)
        return
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.column, cell.seed), []).append(cell)
    made = 0
    with grid.appending(folder, protocol, grid.TIMES) as add:
        have = {grid.cell_of(run) for run in grid.read(folder, grid.TIMES)}
        for (column, seed), group in groups.items():
            if have.issuperset(group):
                continue
            print(f"{column}, seed {seed}: {len(group)} runs in turns", flush=True)
            # Seconds of different times are not to be compared: a group that was cut when it was stored is made again
            # whole, and of two lines of a run the report takes the later one.
            add(*in_turns(protocol, group, Share(f"{column}, seed {seed}")))
            made += len(group)
    _said(len(cells), made, folder, grid.TIMES)


def run(args: argparse.Namespace) -> int:
    """The command; 2 after one line on stderr where something is missing or does not fit."""
    look_here()
    try:
        {"run": make_runs, "time": make_times, "report": _report}[args.action](args)
    except StudyError as error:
        print(f"fastprio study: {error}", file=sys.stderr)
        return 2
    return 0


def _report(args: argparse.Namespace) -> None:
    from fastprio.study.report import write  # what it needs is in the extra

    for path in write(Path(args.folder)):
        print(path)
