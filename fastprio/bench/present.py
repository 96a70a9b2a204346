"""What ``fastprio bench`` shows: progress, tables and the closing sentence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from fastprio.bench.contenders import CONTENDERS
from fastprio.bench.peers import PEERS


class Progress:
    """A bar on a terminal (where rich is installed), plain lines elsewhere. A context manager.

    Args:
        total: how many ticks there will be.

    The bar is drawn at ticks, between the timings; no thread of its own could be in them.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            try:
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
                from rich.progress import Progress as Bar
            except ModuleNotFoundError:
                return self
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, auto_refresh=False, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tick(self, what: str) -> None:
        """``what`` begins."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=what)
            self._bar.refresh()

    def say(self, line: str) -> None:
        """Prints a line (above the bar)."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)


def span(seconds: float) -> str:
    """A duration in the unit that suits it, to three figures: "12.3 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def number(value: float) -> str:
    """ns an index: one decimal below a hundred, none above."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def contender_rows(results: Mapping[Any, Mapping[str, Any]]) -> list[list[str]]:
    """Head and body of the table of whole epochs, a column for each N: "ns (ratio to uniform)"."""
    rows = [["whole epochs", *(f"N = {int(n):,}" for n in results)]]
    for name, meaning in CONTENDERS.items():
        cells = [found.get(name) for found in results.values()]
        rows.append([meaning, *(f"{number(c['ns_per_index'])} ({c['ratio']:.2f}x)" if c else "-" for c in cells)])
    return rows


def peer_rows(calls: Mapping[Any, Mapping[str, Any]], limit: Mapping[Any, float]) -> list[list[str]]:
    """Head and body of the table of single calls, a column for each N: "sample / update", and both in turn."""
    rows = [["call by call", *(f"N = {int(n):,}" for n in calls)]]
    for name in PEERS:
        found = [peers.get(name) for peers in calls.values()]
        if any(found):
            three = [
                [number(c[part]["ns_per_index"]) for part in ("sample", "update", "both")] if c else None for c in found
            ]
            rows.append([PEERS[name].title, *(f"{t[0]} / {t[1]} ({t[2]})" if t else "-" for t in three)])
    rows.append(["bare random read of 4 bytes", *(number(limit[n]) if n in limit else "-" for n in calls)])
    return rows


def skipped_lines(skipped: Mapping[str, str]) -> list[str]:
    """A line for each peer that did not run, with the reason."""
    return [f"skipped: {PEERS[name].title}: {why}" for name, why in skipped.items()]


def closing(results: Mapping[int, Mapping[str, Any]], batch: int) -> str:
    """One sentence: what an epoch chosen by priority costs in place of a uniform one, at each number of examples."""
    parts = []
    for n, found in results.items():
        mine, torchs = (1e-9 * n * found[name]["ns_per_index"] for name in ("draw+record", "uniform"))
        parts.append(
            f"{'+' if mine > torchs else ''}{span(mine - torchs)} at N = {n:,} ({span(mine)} for {span(torchs)}, "
            f"{found['draw+record']['ratio']:.2f} times; {found['draw+update']['ratio']:.2f} times without the policy)"
        )
    return (
        "Choosing every batch by priority and recording its losses (policy 'loss'), in place of uniform loading, costs "
        f"an epoch {', '.join(parts)}; one thread, batches of {batch}."
    )


def fitting(rows: Sequence[Sequence[str]], width: int) -> list[list[list[str]]]:
    """The table cut into as few as fit ``width`` characters side by side; each has the first column."""
    widths = [max(len(row[k]) for row in rows) + 3 for k in range(len(rows[0]))]
    first = min(widths[0], 36)  # that column's cells may take several lines; numbers may not
    tables: list[list[int]] = [[]]
    for k in range(1, len(widths)):
        if tables[-1] and first + sum(widths[j] for j in tables[-1]) + widths[k] > width:
            tables.append([])
        tables[-1].append(k)
    return [[[row[k] for k in (0, *columns)] for row in rows] for columns in tables]


def show(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, the first row its head: by rich, or in plain columns where rich is not installed."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    print(title)
    for part in fitting(rows, width):
        try:
            from rich.box import SIMPLE
            from rich.console import Console
            from rich.table import Table
        except ModuleNotFoundError:
            widths = [max(len(row[k]) for row in part) for k in range(len(part[0]))]
            for row in part:
                cells = (cell.rjust(to) for cell, to in zip(row[1:], widths[1:], strict=True))
                print(row[0].ljust(widths[0]), *cells, sep="  ")
            continue
        table = Table(box=SIMPLE, pad_edge=False)
        for k, head in enumerate(part[0]):
            table.add_column(head, justify="right" if k else "left", no_wrap=bool(k))
        for row in part[1:]:
            table.add_row(*row)
        Console(width=width).print(table)
