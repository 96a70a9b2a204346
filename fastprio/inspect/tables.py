"""An inspection as tables for a person, 80 columns wide, and as a CSV file of every example."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio.inspect.numbers import PERCENTILES, Distribution, Guarded, Inspection, of_classes
from fastprio.policies.noise_guard import CLEAN, UNDECIDED, UNSAFE
from fastprio.policies.primitives import unpacked

if TYPE_CHECKING:
    from rich.table import Table

    from fastprio._arrays import Int64
    from fastprio.inspect.evidence import Suspects
    from fastprio.store import ScoreStore

ROWS = 1 << 16
"""Rows of a CSV file that are made at a time."""
MOST_CLASSES = 30
"""Classes that are shown: those of which the most examples are listed."""


def show(path: Path, found: Inspection, labels: Int64 | None) -> None:
    """Prints an inspection of a file. ``labels``: int64 [size], the given label of each example, or None."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)

    def section(title: str, table: Table | None, words: str = "") -> None:
        console.print(title, style="bold")
        if table is not None:
            console.print(table)
        console.print(words + "\n" if words else "")

    section("What it is", _pairs(_facts(path, found)))
    section("How it draws", _pairs(_law(found)))
    section("Scores", _distributions(found), "Priorities of all examples, columns of those that have a value.")
    if found.suspects is None:
        why = "the store keeps nothing that tells" if found.seen else "nothing has been scored yet"
        section("Most likely mislabelled", None, f"There is nothing to go by: {why}.")
        return
    evidence, at, tied = found.suspects.evidence, found.suspects.at, found.suspects.tied
    also = f" {tied:,} more have the score of the last one listed." if tied else ""
    if found.guard is not None and found.guard.verdict in (CLEAN, UNSAFE):
        also += " The guard saw no sign of wrong labels: these are the largest of whatever there is."
    title = f"Most likely mislabelled: the {len(at)} largest by {evidence.name}"
    section(title, _suspects(found.suspects, labels), evidence.words + also)
    if labels is not None:
        section("Those listed, by label", *_classes(labels, at))


def _table() -> Table:
    from rich.table import Table

    return Table(box=None, pad_edge=False)


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    table = _table()
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _facts(path: Path, found: Inspection) -> list[tuple[str, str]]:
    size, seen = found.size, found.seen
    of = "" if found.epochs is None else f" of {found.epochs}"
    kept = "nothing" if found.kept_bytes is None else f"a sampler's state, {found.kept_bytes:,} bytes"
    rows = [
        ("file", f"{path}, {path.stat().st_size:,} bytes"),
        ("policy", found.policy),
        *([] if found.guard is None else [("guard", _verdict(found.guard, size))]),
        ("examples", f"{size:,}; {found.nbytes:,} bytes in memory"),
        ("clock", f"epoch {found.epoch}{of}, counted from 0; {found.step:,} updates"),
        ("seen", f"{seen:,} ({_share(seen / size)}); never: {size - seen:,}"),
        ("kept with it", kept),
    ]
    if found.stats["skipped_nonfinite"]:
        rows.append(("left out", f"{found.stats['skipped_nonfinite']:,.0f} rows whose loss was not finite"))
    return rows


def _verdict(guard: Guarded, size: int) -> str:
    if guard.verdict == UNDECIDED:
        return f"{UNDECIDED}: that is when the epoch after its probe begins; until then epochs are uniform"
    if guard.verdict == CLEAN:
        return f"{CLEAN}: tau was {guard.tau:.3f}, at least {guard.border:g}; the inner policy is left alone"
    verdict = f"{guard.verdict}: tau was {guard.tau:.3f}, below {guard.border:g}; epochs are uniform"
    if guard.verdict == UNSAFE:
        return verdict
    share = _share(guard.aside / size)
    what = f"{guard.aside:,} examples ({share}), whose smoothed loss is above a guess's, {guard.chance:.3g}"
    return f"{verdict}, and but for {_share(guard.back)} of them without {what}"


def _law(found: Inspection) -> list[tuple[str, str]]:
    stats, ages = found.stats, found.ages
    effective, age = stats["effective_sample_size"], "not there: nothing has been scored"
    unset = found.priorities.zeros == found.size
    if ages is not None:
        most = _number(ages.percentiles[100])
        age = f"{_number(stats['score_age'])} updates old on average, {most} at most ({ages.examples:,} looked at)"
    rows = [
        ("stale", f"{_share(stats['staleness'])} of those seen have no score of this epoch yet"),
        ("scores are", age),
    ]
    if effective:
        of = "losses" if unset else "priorities"
        even = f"{of} as of {effective:,.0f} equal examples, {_share(effective / found.size)} (effective sample size)"
        top = f"{_share(stats['top_1pct_share'])} of all {of} is on the examples of the largest"
        tau = f"{stats['tau']:.3f} = sqrt(1 + CV^2) as of now; near 1, {of} hardly differ"
        rows = [("evenness", even), ("tau", tau), ("top 1 %", top), *rows]
    if unset:
        rows.append(("note", "no priority has been set"))
    if not found.by_tree:
        rows.append(("note", "this policy plans its epochs or draws in its own way: priorities alone do not say how"))
    return rows


def _distributions(found: Inspection) -> Table:
    table = _table()
    table.add_column("", overflow="fold")
    for head in ("have it", "zeros", *(f"{p} %" for p in PERCENTILES[:-1]), "max"):
        table.add_column(head, justify="right", no_wrap=True)
    for of in (found.priorities, *found.columns):
        table.add_row(*_distribution(of, found.size))
    return table


def _distribution(of: Distribution, size: int) -> list[str]:
    values = [_number(value) for value in of.percentiles.values()] or ["-"] * len(PERCENTILES)
    return [of.name, _share(of.examples / size), _share(of.zeros / of.examples) if of.examples else "-", *values]


def _suspects(found: Suspects, labels: Int64 | None) -> Table:
    table = _table()
    for head in ("index", "score", *(() if labels is None else ("label",))):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for i, why in zip(found.at.tolist(), found.why, strict=True):
        given = [] if labels is None else [str(labels[i])]
        table.add_row(str(i), _number(float(found.scores[i])), *given, why)
    return table


def _classes(labels: Int64, at: Int64) -> tuple[Table, str]:
    """The table, and what it leaves out."""
    rows = of_classes(labels, at)
    table = _table()
    for head in ("label", "listed", "of all"):
        table.add_column(head, justify="right", no_wrap=True)
    for label, listed, every in rows[:MOST_CLASSES]:
        table.add_row(str(label), f"{listed:,}", f"{every:,}")
    more = len(rows) - MOST_CLASSES
    return table, f"And {more:,} more labels." if more > 0 else ""


def _share(share: float) -> str:
    """Three characters and "%"; not 0 or 100 where it is only near."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "<0.1 %"
    return ">99 %" if 99 < percent < 100 else f"{percent:.3g} %" if percent < 10 else f"{percent:.0f} %"


def _number(value: float) -> str:
    """Seven characters at most: three figures, two where they need an exponent."""
    short = f"{value + 0.0:.3g}"  # not -0
    return short if "e" not in short else f"{value:,.0f}" if 100 <= abs(value) < 1e5 else f"{value:.1e}"


def write_csv(path: Path, store: ScoreStore, found: Inspection, labels: Int64 | None) -> None:
    """Writes a row for each example: index, seen, priority, age, its columns of single numbers, label, score.

    updates_since_scored: as in ``ScoreStore.ages``; empty where it is not known. mislabel_score: that of the tables;
    empty without one. A column of the store that is named as one of these has "column." before its name. Numbers read
    back as the same bits. Raises: OSError; half a file does not stay. Cost: O(size) time, a few MB.
    """
    made = _csv_columns(store, found, labels)
    try:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(made)
            for begin in range(0, len(store), ROWS):
                end = min(begin + ROWS, len(store))
                writer.writerows(zip(*(text(begin, end) for text in made.values()), strict=True))
    except BaseException:
        if path.is_file():
            path.unlink()
        raise


def _csv_columns(
    store: ScoreStore, found: Inspection, labels: Int64 | None
) -> dict[str, Callable[[int, int], list[str]]]:
    """Name -> what gives the cells of [begin, end)."""
    aged, ages = store.ages()

    def age(begin: int, end: int) -> list[str]:
        cells = [""] * (end - begin)
        for k in range(*np.searchsorted(aged, [begin, end]).tolist()):
            cells[int(aged[k]) - begin] = str(ages[k])
        return cells

    def text(values: Any) -> Callable[[int, int], list[str]]:
        return lambda begin, end: values[begin:end].astype(str).tolist()

    def text_or_empty(values: Any) -> Callable[[int, int], list[str]]:
        every = text(values)
        return lambda begin, end: ["" if cell == "nan" else cell for cell in every(begin, end)]

    made = {
        "index": lambda begin, end: [str(i) for i in range(begin, end)],
        "seen": text(store.seen().view(np.uint8)),
        "priority": text(store.priorities),
        "updates_since_scored": age,
    }
    after = {} if labels is None else {"label": text(labels)}
    if found.suspects is not None:
        after["mislabel_score"] = text_or_empty(found.suspects.scores)
    for name, kind in store.types.items():
        if isinstance(kind, tuple):
            continue
        values = store.column(name)
        head = f"column.{name}" if name in made or name in after else name
        made[head] = text(unpacked(values, len(store)).view(np.uint8) if kind == "bit" else values)
    return {**made, **after}
