"""The tables of docs/guard.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

from record import HERE, Record, made, markdown, read

COLUMNS = "clean", "labels 10", "labels 25", "labels 50", "shuffle 50", "gauss 50"
VARIANTS = (
    *("uniform", "random subset", "SB", "as it is", "by share", "always aside", "two means", "SB within"),
    *("never aside", "always aside under tau", "clearly 1", "above 1.2 chance", "last loss", "slower average"),
    *("none back", "quarter back", "two probes"),
)


def guard_signals() -> str:
    """After the probing epoch: medians over seeds."""
    record = read("guard/signals")
    if not record:
        return "No record yet."
    names = ["tau", "above 1 chance", "above 1.2 chance", "unsure: p first < 1/2", "median loss / chance"]
    scores = list(record["rows"][0]["auroc"])
    whether, where = [["data", "warm-up, epochs", *names]], [["data", "warm-up, epochs", *scores]]
    groups: dict[tuple[str, float], list[Record]] = {}
    for row in record["rows"]:
        groups.setdefault((row["column"], row["budget"]), []).append(row)
    for (column, budget), found in groups.items():
        head = [column, f"{record['protocol']['warm_up'] * record['protocol']['epochs'] * budget:.2g}"]
        whether.append(head + [_spread([row[name] for row in found]) for name in names])
        if found[0]["auroc"][scores[0]] is not None:
            where.append(head + [_spread([row["auroc"][name] for row in found]) for name in scores])
    tables = f"{markdown(whether)}\n\nAUROC for the altered examples:\n\n{markdown(where)}"
    return f"{tables}\n\n{made('guard/signals', record)}"


def guard_variants() -> str:
    """Errors on the held-out images: means over the seeds that there are."""
    return _errors("variants", lambda cell: str(cell["method"]), VARIANTS.index)


def guard_rates() -> str:
    """The same, of learning rates."""
    rows = [f"{what}, x {rate:g}" for what in ("uniform, 100 %", "random subset, 33 %") for rate in (0.5, 0.7, 1, 1.4)]
    shown = "{method}, {budget:.0%}, x {lr_scale:g}"
    return _errors("rates", lambda cell: shown.format(**cell).replace("%", " %"), rows.index)


def guard_ies() -> str:
    """Errors and backprops of IES, by its threshold."""
    folders = sorted((HERE / "records" / "guard" / "ies").glob("*"), key=lambda folder: float(folder.name))
    runs = {folder.name: _runs(f"ies/{folder.name}") for folder in folders}
    if not runs:
        return "No record yet."
    columns = list(dict.fromkeys(_column(run) for every in runs.values() for run in every))
    rows = [["threshold", *(f"{column}: {what}" for column in columns for what in ("error", "backprops"))]]
    for threshold, every in runs.items():
        cells = []
        for column in columns:
            found = [run["result"] for run in every if _column(run) == column]
            backprops = statistics.mean(result["backprops"] for result in found)
            cells += [f"{statistics.mean(result['error'] for result in found):.2f}", f"{backprops / 1000:.0f}k"]
        rows.append([threshold, *cells])
    record = next(iter(runs.values()))[-1] | {"command": "python benchmarks/guard.py ies"}
    return f"{markdown(rows)}\n\n{made('guard/ies', record).replace('.json`', '/`')}"


def _errors(part: str, name: Callable[[Record], str], place: Callable[[str], int]) -> str:
    runs = _runs(part)
    if not runs:
        return "No record yet."
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        found.setdefault((name(run["cell"]), _column(run)), []).append(run["result"]["error"])
    columns = sorted({_column(run) for run in runs}, key=COLUMNS.index)
    rows = [["what", *columns, "seeds"]]
    for row in sorted({row for row, _ in found}, key=place):
        errors = [found.get((row, column), []) for column in columns]
        cells = [f"{statistics.mean(each):.2f}" if each else "" for each in errors]
        seeds = sorted({len(each) for each in errors if each})
        rows.append([row, *cells, " or ".join(map(str, seeds))])
    record = runs[-1] | {"command": f"python benchmarks/guard.py {part}"}
    return f"{markdown(rows)}\n\n{made(f'guard/{part}/cells', record).replace('.json`', '.jsonl`')}"


def _runs(part: str) -> list[Record]:
    path = HERE / "records" / "guard" / part / "cells.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _column(run: Record) -> str:
    kind, level = run["cell"]["kind"], run["cell"]["level"]
    return f"{kind} {100 * level:g}" if level else str(kind)


def _spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.3g} ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else f"{middle:.3g}"
