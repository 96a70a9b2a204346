"""The final error of every run, its difference to other runs, and what it cost: plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from fastprio.study.grid import cell_of
from fastprio.study.report.measures import interval, late_share, least_within, mean, reached
from fastprio.study.report.results import (
    GUARDED,
    SUBSET,
    UNIFORM,
    Record,
    Result,
    Results,
    Study,
    balanced,
    plain,
    subset_of,
)
from fastprio.study.report.selection import seen
from fastprio.study.report.speed import BACKPROPS, FACTORS, cost, over_curve_of, speed_up, uniform_curve

UNGUARDED = "unguarded"
WITHIN_ITS_BACKPROPS = "uniform within its backprops"
RIVALS = (UNIFORM, SUBSET, UNGUARDED, WITHIN_ITS_BACKPROPS)
ALIKE = 0.05
"""How much the backprops of two runs of the same budget may differ, as a share: by an epoch's last batch, say."""


def every_run(study: Study) -> list[Record]:
    """All numbers of every run but its curve: what the tables are made of."""
    records: list[Record] = []
    runs = study.runs
    for line in runs.lines:
        cell, result = cell_of(line), line["result"]
        record: Record = {"column": cell.column, "row": cell.row, **dataclasses.asdict(cell)}
        record |= {"error": plain(result), "balanced": balanced(result)}
        record |= {name: result[name] for name in ("epochs", "backprops", "scored", "altered_share")}
        record["altered_share_late"] = late_share(result["curve"])
        uniform = runs.get(cell.column, UNIFORM, cell.seed)
        for factor in FACTORS:
            target = None if uniform is None else factor * uniform["error"]
            record[f"backprops_to_{factor}"] = None if target is None else reached(result["curve"], target, BACKPROPS)
            record[f"speed_up_to_{factor}"] = speed_up(runs, cell.column, cell.row, cell.seed, factor)
        bound = over_curve_of(study, cell.column, cell.row, cell.seed)
        record["speed_up_over_curve"], record["sign"] = bound or (None, None)
        record |= seen(result)
        record |= {f"grid_seconds_{name}": seconds for name, seconds in result["seconds"].items()}
        records.append(record | {"date": line["date"], "key": line["key"]})
    return records


def means(results: Results, rows: Sequence[str]) -> list[Record]:
    """Column, row, seeds, error: means over the seeds that all of these rows have, of those that the column has."""
    records: list[Record] = []
    for column in results.columns:
        there = [row for row in results.rows if row in rows and results.seeds(column, row)]
        for row, runs in zip(there, zip(*results.paired(column, *there), strict=True) if there else (), strict=False):
            error = mean([plain(run) for run in runs])
            records.append({"column": column, "row": row, "seeds": len(runs), "error": error})
    return records


def by_seed(results: Results, column: str, measure: Callable[[Result], float] = plain) -> list[Record]:
    """Column, row, seed, error: of every run in a column."""
    return [
        {"column": column, "row": row, "seed": seed, "error": measure(run)}
        for row in results.rows
        for seed, run in zip(results.seeds(column, row), results.of(column, row), strict=True)
    ]


def rival(results: Results, row: str, against: str) -> str | None:
    """The row that a row is set against: "uniform", "random subset" with its budget, "unguarded" the same method."""
    cell = results.cells[row]
    found = UNIFORM
    if against == SUBSET:
        found = subset_of(cell)
    elif against == UNGUARDED:
        found = row.removeprefix(GUARDED)
    return found if found in results.rows and found != row else None


def differences(results: Results, column: str, measure: Callable[[Result], float] = plain) -> list[Record]:
    """Column, row, against, seeds, mean, low, high: differences of errors paired by seed, with 90 % intervals.

    Random subset has the same budget, where a method also used it up. "uniform within its backprops" is the least of
    ``speed.uniform_curve`` up to those of the method.
    """
    records: list[Record] = []
    for row in results.rows:
        pairs: dict[str, list[float]] = {}
        for against in (UNIFORM, SUBSET, UNGUARDED):
            name = rival(results, row, against)
            runs = [] if name is None else results.paired(column, row, name)
            if against == SUBSET:
                runs = [(run, other) for run, other in runs if _as_long(run, other)]
            pairs[against] = [measure(run) - measure(other) for run, other in runs]
        pairs[WITHIN_ITS_BACKPROPS] = _to_the_curve(results, column, row, measure)
        for against, values in pairs.items():
            if values:
                middle, low, high, n = interval(values)
                record = {"column": column, "row": row, "against": against, "seeds": n}
                records.append(record | {"mean": middle, "low": low, "high": high})
    return records


def _as_long(run: Result, other: Result) -> bool:
    return abs(cost(run, BACKPROPS) / cost(other, BACKPROPS) - 1) <= ALIKE


def _to_the_curve(results: Results, column: str, row: str, measure: Callable[[Result], float]) -> list[float]:
    found: list[float] = []
    if results.is_uniform(row):  # those are the curve
        return found
    for seed, run in zip(results.seeds(column, row), results.of(column, row), strict=True):
        points = uniform_curve(results, column, seed, measure)
        there = None if points is None else least_within(points, cost(run, BACKPROPS))
        if there is not None:
            found.append(measure(run) - there.value)
    return found


def costs(results: Results) -> list[Record]:
    """Column, row, seeds, backprops and scored, both as shares of uniform's backprops with the same seed."""
    records: list[Record] = []
    for column, row in results.pairs():
        both = results.paired(column, row, UNIFORM)
        if both:
            record: Record = {"column": column, "row": row, "seeds": len(both)}
            for name in (BACKPROPS, "scored"):
                record[name] = mean([run[name] / uniform[BACKPROPS] for run, uniform in both])
            records.append(record)
    return records
