"""What was selected, against what the collapse law predicts; how well the guards saw it; and other learning rates."""

from __future__ import annotations

from fastprio.study.report.measures import late_share, mean, right_after_selection
from fastprio.study.report.results import GUARDED, UNIFORM, Record, Result, Results, plain

SELECTIVE = "SB"


def relative(results: Results, column: str, row: str) -> list[float]:
    """A row's error over uniform's, of each seed that both have and of which uniform has an error."""
    return [plain(run) / plain(other) for run, other in results.paired(column, row, UNIFORM) if plain(other)]


def law(results: Results) -> list[Record]:
    """What Selective-Backprop selects, against the collapse law, in every column with altered examples.

    right: the share of unaltered examples. predicted: 1 - right^(beta + 1), the altered share of what is selected.
    measured, late: that share over the run and over its second half; "guarded measured", "guarded late": of the same
    method with the guard.
    border: what right^(beta + 1) must exceed for the right label to stay the most frequent one: 1 / classes where
    wrong labels are spread over all others, 1 / 2 where they are all the same; None where labels are right. survives:
    whether it does. accuracy: mean, in %; uniform_accuracy: of the same seeds. relative: error over uniform's, mean.
    """
    records: list[Record] = []
    for column, row in results.pairs():
        cell, altered = results.cells[row], results.altered_share(column)
        if cell.method != SELECTIVE or not altered:
            continue
        beta = 1 / cell.budget - 1
        left = right_after_selection(1 - altered, beta)
        record: Record = {"column": column, "row": row, "seeds": len(results.of(column, row)), "right": 1 - altered}
        record |= {"beta": beta, "predicted": 1 - left, "left": left}
        border = {"labels": 1 / results.classes, "symmetric": 1 / results.classes, "pair": 1 / 2}
        record["border"] = border.get(results.level[column][0])
        record["survives"] = None if record["border"] is None else left > record["border"]
        for prefix, name in (("", row), (GUARDED, GUARDED + row)):
            runs = results.of(column, name)
            late = [share for run in runs if (share := late_share(run["curve"])) is not None]
            record[f"{prefix}measured"] = mean([run["altered_share"] for run in runs]) if runs else None
            record[f"{prefix}late"] = mean(late) if late else None
        record["accuracy"] = 100 - mean([plain(run) for run in results.of(column, row)])
        uniform = [100 - plain(other) for _, other in results.paired(column, row, UNIFORM)]
        record["uniform_accuracy"] = mean(uniform) if uniform else None
        over = relative(results, column, row)
        record["relative"] = mean(over) if over else None
        records.append(record)
    return records


def seen(result: Result) -> Record:
    """What a guard saw of a run: verdict, tau, auroc, precision, recall; aside: shares, of all and of the unaltered.

    Those are the most of an epoch, precision and recall what they are in the end. Without a guard there is no more
    than auroc, of the last losses.
    """
    guard = result["guard"] or {"verdict": None, "tau": None, "aside": []}
    found: Record = {"verdict": guard["verdict"], "tau": guard["tau"]}
    found |= {name: result["detection"][name] for name in ("auroc", "precision", "recall")}
    for which in ("all", "unaltered"):
        found[f"aside_{which}"] = max((epoch[which] for epoch in guard["aside"]), default=None)
    return found


def guards(results: Results) -> list[Record]:
    """Column, row, seed, and ``seen``, of every run with a guard."""
    return [
        {"column": column, "row": row, "seed": seed, **seen(run)}
        for column, row in results.pairs()
        for seed, run in zip(results.seeds(column, row), results.of(column, row), strict=True)
        if run["guard"] is not None
    ]


def rates(results: Results) -> list[Record]:
    """Column, row, lr_scale, seeds, error (mean) and low, high (of the seeds): rows with several learning rates.

    Of the seeds that all rates of a method have.
    """
    families: dict[tuple[str, float], list[str]] = {}
    for row, cell in results.cells.items():
        families.setdefault((cell.method, cell.budget), []).append(row)
    records: list[Record] = []
    for column in results.columns:
        for rows in families.values():
            there = [row for row in rows if results.seeds(column, row)]
            if not set(there) & set(results.scaled):
                continue
            for row, runs in zip(there, zip(*results.paired(column, *there), strict=True), strict=False):
                errors = [plain(run) for run in runs]
                record: Record = {"column": column, "row": row, "lr_scale": results.cells[row].lr_scale}
                record |= {"seeds": len(errors), "error": mean(errors), "low": min(errors), "high": max(errors)}
                records.append(record)
    return records
