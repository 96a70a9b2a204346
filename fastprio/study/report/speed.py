"""How much sooner than uniform training a method gets to an error, in backprops or in seconds."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median_low
from typing import Any

from fastprio.study.report.measures import Bound, interval, least_within, mean, mean_bound, needed, reached
from fastprio.study.report.results import UNIFORM, Record, Result, Results, Study, plain
from fastprio.study.training import PARTS

FACTORS = (1.2, 1.1, 1.05)
"""Targets, of uniform's final error. The first is the paper's, as far as its table tells."""
BACKPROPS, SECONDS = "backprops", "seconds"


def cost(result: Result, clock: str) -> float:
    """What a whole run took: backprops, or seconds without evaluation."""
    if clock == BACKPROPS:
        return float(result["backprops"])
    return float(sum(result["seconds"][name] for name in PARTS))


def speed_up(results: Results, column: str, row: str, seed: int, factor: float, clock: str = BACKPROPS) -> float | None:
    """Uniform's cost to reach ``factor`` times its own final error, over a method's; None if one of them never does."""
    uniform, run = results.get(column, UNIFORM, seed), results.get(column, row, seed)
    if uniform is None or run is None:
        return None
    target = factor * uniform["error"]
    base, own = reached(uniform["curve"], target, clock), reached(run["curve"], target, clock)
    return base / own if base and own else None


def speed_ups(results: Results, factor: float, clock: str = BACKPROPS) -> list[Record]:
    """Column, row, seeds, speed_up (median over seeds), least, most, error (mean).

    A seed that never gets there has 0, so that rows are compared over the same seeds; a median between two of them is
    the lower one. None for 0, and without uniform.
    """
    records: list[Record] = []
    for column, row in results.pairs():
        paired = results.seeds(column, row, UNIFORM)
        found = [speed_up(results, column, row, seed, factor, clock) or 0.0 for seed in paired] or [0.0]
        record: Record = {"column": column, "row": row, "seeds": len(results.seeds(column, row))}
        record |= {"speed_up": median_low(found) or None, "least": min(found) or None, "most": max(found) or None}
        records.append(record | {"error": mean([plain(run) for run in results.of(column, row)])})
    return records


def best_uniform(results: Results) -> list[Record]:
    """Column, error of uniform, the budget (a row) with the least mean error, that error, and seeds.

    Means over the seeds that have all of the column's budgets.
    """
    records: list[Record] = []
    for column in results.columns:
        rows = results.budgets(column)
        runs = results.paired(column, *rows) if UNIFORM in rows else []
        if runs:
            errors = {row: mean([plain(run[place]) for run in runs]) for place, row in enumerate(rows)}
            best = min(errors, key=lambda row: errors[row])
            record = {"column": column, "error": errors[UNIFORM], "best": best, "best_error": errors[best]}
            records.append(record | {"seeds": len(runs)})
    return records


def uniform_curve(
    results: Results, column: str, seed: int, measure: Callable[[Result], float] = plain
) -> list[tuple[float, float]] | None:
    """(backprops, final error) of uniform training, each point a run of its own with its learning rate taken down.

    Returns: None unless the column has two budgets, and the seed all that the column has: a seed with fewer points
    would have another curve for that alone.
    """
    rows = results.budgets(column)
    if len(rows) < 2 or seed not in results.seeds(column, *rows):
        return None
    runs = [results.get(column, row, seed) for row in rows]
    return sorted((cost(run, BACKPROPS), measure(run)) for run in runs if run is not None)


def timed_curve(study: Study, column: str, seed: int) -> list[tuple[float, float]] | None:
    """The same over seconds, at what a backprop of uniform took among the runs that were made in turns."""
    points, uniform = uniform_curve(study.runs, column, seed), study.timed.get(column, UNIFORM, seed)
    if points is None or uniform is None:
        return None
    rate = cost(uniform, SECONDS) / cost(uniform, BACKPROPS)
    return [(rate * backprops, error) for backprops, error in points]


def over_curve_of(study: Study, column: str, row: str, seed: int, clock: str = BACKPROPS) -> Bound | None:
    """What uniform training needs, over whatever budget, to end at a method's final error, over the method's cost."""
    points = uniform_curve(study.runs, column, seed) if clock == BACKPROPS else timed_curve(study, column, seed)
    run = (study.runs if clock == BACKPROPS else study.timed).get(column, row, seed)
    if points is None or run is None:
        return None
    uniform = needed(points, plain(run))
    return Bound(uniform.value / cost(run, clock), uniform.sign)


def over_curve(study: Study, clock: str = BACKPROPS) -> list[Record]:
    """Column, row, seeds (with a curve), speed_up (mean), sign: of ``measures.mean_bound``."""
    results, records = study.runs if clock == BACKPROPS else study.timed, []
    for column, row in results.pairs():
        found = [over_curve_of(study, column, row, seed, clock) for seed in results.seeds(column, row)]
        bounds = [bound for bound in found if bound is not None]
        if bounds:
            value, sign = mean_bound(bounds)
            records.append({"column": column, "row": row, "seeds": len(bounds), "speed_up": value, "sign": sign})
    return records


def at_equal_seconds(study: Study) -> list[Record]:
    """Column, row, seeds, seconds, error, uniform (the least in those seconds), difference with interval, beyond.

    beyond: how many of the runs took longer than the longest uniform one. Runs that were shorter than the shortest
    uniform one are left out.
    """
    records: list[Record] = []
    for column, row in study.timed.pairs():
        found: list[tuple[float, float, Bound]] = []
        for seed in study.timed.seeds(column, row):
            run, points = study.timed.get(column, row, seed), timed_curve(study, column, seed)
            if run is None or points is None or study.timed.is_uniform(row):  # those are the curve
                continue
            seconds = cost(run, SECONDS)
            uniform = least_within(points, seconds)
            if uniform is not None:
                found.append((seconds, plain(run), uniform))
        if found:
            difference = interval([error - uniform.value for _, error, uniform in found])
            records.append(
                {
                    "column": column,
                    "row": row,
                    "seeds": len(found),
                    "seconds": mean([seconds for seconds, _, _ in found]),
                    "error": mean([error for _, error, _ in found]),
                    "uniform": mean([uniform.value for _, _, uniform in found]),
                    "difference": difference.mean,
                    "low": difference.low,
                    "high": difference.high,
                    "beyond": sum(uniform.sign == "<" for _, _, uniform in found),
                }
            )
    return records


def parts(timed: Results) -> list[Record]:
    """Column, row, seeds, seconds, and the share of each of ``training.PARTS``, in [0, 1]; means over seeds."""
    records: list[Record] = []
    for column, row in timed.pairs():
        runs = timed.of(column, row)
        record: dict[str, Any] = {"column": column, "row": row, "seeds": len(runs)}
        record["seconds"] = mean([cost(run, SECONDS) for run in runs])
        for name in PARTS:
            record[name] = mean([run["seconds"][name] / cost(run, SECONDS) for run in runs])
        records.append(record)
    return records
