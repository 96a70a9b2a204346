"""Tables as Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from fastprio.study.report.results import Record

NONE = "\N{EN DASH}"
"""Stands for what never happened or is not known."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the first ``left`` columns are words, the others numbers, set to the right."""
    marks = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, marks, *rows))


def pivot(
    records: Sequence[Record],
    shown: Callable[[Record], str],
    columns: Sequence[str],
    across: str = "column",
    seeds: bool = True,
) -> str:
    """Records as a table: a line a row, the given columns, and how many seeds there are, where records say so."""
    cells = {(record["row"], record[across]): record for record in records}
    rows = list(dict.fromkeys(record["row"] for record in records))
    columns = [column for column in columns if any((row, column) in cells for row in rows)]
    head, lines = ["method", *columns], []
    for row in rows:
        here = [cells.get((row, column)) for column in columns]
        line = [row, *(NONE if record is None else shown(record) for record in here)]
        if seeds:
            line.append(span([record["seeds"] for record in here if record is not None]))
        lines.append(line)
    return markdown([*head, "seeds"] if seeds else head, lines)


def span(counts: Sequence[int]) -> str:
    """As in "3", or "3 to 6"."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def write_csv(path: Path, records: Sequence[Record]) -> Path:
    """A line a record, under the names of all of them. None is left empty; numbers have all their digits."""
    names = list(dict.fromkeys(name for record in records for name in record))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return path


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or the dash."""
    return NONE if value is None else f"{value:{form}}"


def signed(value: float) -> str:
    """A difference with its sign; what rounds to zero is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as "33 %", or the dash."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def times(value: float | None) -> str:
    """A ratio as "1.30x", or the dash."""
    return NONE if value is None else f"{value:.2f}x"
