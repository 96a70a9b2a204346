"""The report's sections on errors, speed and cost: each a heading, a few sentences, tables, and their records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastprio.study.report import errors, speed
from fastprio.study.report.results import FIRST, RARE, Record, Result, Results, Study, balanced, of_the_rare, plain
from fastprio.study.report.tables import NONE, markdown, number, percent, pivot, signed, times
from fastprio.study.training import PARTS


@dataclass
class Section:
    """A part of the report.

    Args:
        title: its heading. text: Markdown. files: a name -> the records of a CSV file of that name.
        pictures: names of PNG files that belong here, with what they show.
    """

    title: str
    text: str
    files: dict[str, list[Record]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _speed(record: Record) -> str:
    least, most = record["least"], record["most"]
    ends = "" if least == most else f" [{number(least)} to {number(most)}]"
    return f"{times(record['speed_up'])}{ends} ({record['error']:.2f})"


def in_short(study: Study) -> Section:
    """Mean errors of the methods that a reader asks for first."""
    if not any(row in FIRST for row in study.runs.rows):
        return Section("In short", f"Missing: runs of {', '.join(FIRST)}.")
    intro = (
        "Final error in %, the mean over the seeds that all of these rows have: of training on everything; on a third "
        "of the backprops, chosen at random, by loss (SB: Selective-Backprop), and by loss with the guard; and of "
        "methods that choose their own share. Fewer backprops cost something by themselves, so the row to be compared "
        "with is the one at random."
    )
    return Section("In short", _paragraphs(intro, short_table(study.runs)))


def short_table(results: Results, rows: Sequence[str] = FIRST) -> str:
    """Mean errors, some rows by all columns."""
    return pivot(errors.means(results, rows), lambda record: number(record["error"]), results.columns)


def paper_table(results: Results, clock: str = speed.BACKPROPS) -> Section:
    """The paper's table, for each target."""
    text, files = [], {}
    for factor in speed.FACTORS:
        found = speed.speed_ups(results, factor, clock)
        files[f"speed_up_{clock}_{factor}"] = found
        text += [f"Target: {factor} x uniform's final error.", pivot(found, _speed, results.columns)]
    best = speed.best_uniform(results)
    if best and clock == speed.BACKPROPS:
        files["uniform_best"] = best
        rows = [[b["column"], number(b["error"]), number(b["best_error"]), b["best"], str(b["seeds"])] for b in best]
        text += [
            "Uniform training may be longer than it needs to be. Its final error, and the least mean error of all "
            "budgets that were run, each with its learning rate taken down to the end:",
            markdown(["column", "final error", "least error", "of", "seeds"], rows),
        ]
    intro = (
        f"Each cell is speed-up (final error in %). The speed-up is uniform's {clock} until its error is at most the "
        "target at two evaluations in a row, over the method's, with the same seed and data: the median over seeds "
        "(of an even number of them the lower one of the two in the middle), in brackets the least to the most of "
        f"them. “{NONE}”: never (or uniform itself was not there twice in a row), "
        "which counts as 0; of a run that was not made there is no error either. It is known to no more than the "
        "distance of two evaluations, of which every run has as many, so that they are closer in shorter ones. An "
        "error is that of the last step, the mean over seeds."
    )
    title = "Speed-up and error: the paper's table" if clock == speed.BACKPROPS else "The paper's table in seconds"
    return Section(title, _paragraphs(intro, *text), files)


def curve_table(study: Study, clock: str = speed.BACKPROPS) -> Section:
    """Speed-up over uniform training of any budget."""
    found = speed.over_curve(study, clock)
    title = "Speed-up over shorter uniform training" + (" in seconds" if clock != speed.BACKPROPS else "")
    if not found:
        return Section(title, "Missing: uniform training with two budgets or more and one seed.")
    worth = (
        "Above 1 the method is worth its time. Only uniform's and the method's own seconds are measured: shorter "
        "training takes uniform's seconds for as many backprops."
        if clock == speed.SECONDS
        else "Forward passes for scoring are not in it: in seconds it is less."
    )
    intro = (
        "A method that stops early must be set against uniform training that was meant to stop early, its learning "
        f"rate taken down to the end. Each cell is the {clock} that such training (random subset with each budget, "
        f"and uniform; in straight lines over log({clock}) between them) needs for the method's final error, over the "
        f"method's own; the mean over the seeds that have all of these budgets. {worth} “>”: some seeds' errors are "
        "lower than those of any budget, and the longest was taken instead (under noise, where longer training can be "
        "worse, no budget may ever get there); “<”: some are higher than those of all, and the shortest was taken; "
        "“~”: some of both. Uniform training itself is below 1 where a shorter run of the same seed ended as low."
    )
    columns = list(dict.fromkeys(study.runs.columns + study.timed.columns))
    table = pivot(found, lambda r: f"{r['sign']} {r['speed_up']:.2f}x".strip(), columns)
    return Section(title, _paragraphs(intro, table), {f"over_curve_{clock}": found})


def seconds(study: Study) -> list[Section]:
    """What was timed: three sections, or one that says how to."""
    if not study.timed.lines:
        return [Section("Seconds", "Missing: runs made in turns in one process (`fastprio study time`).")]
    equal, parts = speed.at_equal_seconds(study), speed.parts(study.timed)
    head = ["column", "method", "seconds", *PARTS, "seeds"]
    rows = [[r["column"], r["row"], number(r["seconds"], ".1f"), *_shares(r), str(r["seeds"])] for r in parts]
    where = Section(
        "Where the seconds go",
        _paragraphs(
            "Choosing is all that decides which examples are trained on, but for forward passes made for that alone, "
            "which are scoring. **!**: choosing takes more than 1 %. Evaluation is not counted.",
            markdown(head, rows, left=2),
        ),
        {"seconds": parts},
    )
    text = "Missing: runs in turns of uniform and another method, and uniform training with two budgets."
    if equal:
        head = ["column", "method", "seconds", "error", "uniform's", "difference", "90 % interval", "seeds"]
        rows = [
            [
                *(r["column"], r["row"], number(r["seconds"], ".1f"), number(r["error"])),
                number(r["uniform"]) + (" (longest)" if r["beyond"] else ""),
                *(signed(r["difference"]), _ends(r), str(r["seeds"])),
            ]
            for r in equal
        ]
        text = _paragraphs(
            "The error of each method, and the least of uniform training of any budget in the same seconds "
            "(with seconds and interpolated as above; of a single seed's budgets, which flatters uniform a little). "
            "Below 0 the method is worth its time. (longest): it took longer than any uniform run, and longer ones "
            "might be better still. Runs shorter than any uniform one are left out.",
            markdown(head, rows, left=2),
        )
    against = Section("Against uniform at equal seconds", text, {"equal_seconds": equal} if equal else {})
    return [
        paper_table(study.timed, speed.SECONDS),
        curve_table(study, speed.SECONDS),
        against,
        where,
    ]


def _shares(record: Record) -> list[str]:
    mark = " **!**" if record["choosing"] > 0.01 else ""
    return [percent(record[name], 1) + (mark if name == "choosing" else "") for name in PARTS]


def cost_table(results: Results) -> Section:
    """Backprops and scoring forwards."""
    found = errors.costs(results)
    if not found:
        return Section("Backprops and scoring", "Missing: uniform runs to set the others against.")
    kinds = {"backprops": "backprops", "scoring": "scored"}
    long = [{**r, "what": f"{r['column']}: {kind}", "share": r[name]} for r in found for kind, name in kinds.items()]
    columns = [f"{column}: {kind}" for column in results.columns for kind in kinds]
    table = pivot(long, lambda r: percent(r["share"]), columns, across="what")
    intro = (
        "What a run was made of, as shares of uniform's backprops: examples back-propagated, and examples forwarded "
        "only to be scored. A forward pass is about a third of a backprop's arithmetic."
    )
    return Section("Backprops and scoring", _paragraphs(intro, table), {"costs": found})


def error_tables(results: Results) -> Section:
    """Every seed's error, and differences paired by seed."""
    intro = (
        "Final errors in %, a column for each seed, and mean differences in points with 90 % intervals (Student's t, "
        "paired by seed; none of a single pair): to uniform; to random subset with the same budget, if as much was "
        "used up; of a guarded method to the same one unguarded; and to the least error of uniform training with at "
        "most as many backprops, interpolated as above (which flatters uniform a little). Below 0 the row is better. "
        "A guarded method may have more backprops than the same one unguarded (“Backprops and scoring”). Where classes "
        "were made rare in training, there is the error of these classes, too, and the mean of all classes' errors "
        "(balanced), if that is another one."
    )
    text, per_seed, paired = [intro], [], []
    for column in results.columns:
        for name, measure in _measures(results, column):
            shown, differences = errors.by_seed(results, column, measure), errors.differences(results, column, measure)
            if shown:
                text += [f"### {name}", _seed_table(results, shown, differences)]
                per_seed += [{**record, "column": name} for record in shown]
                paired += [{**record, "column": name} for record in differences]
    return Section("Every seed", _paragraphs(*text), {"errors": per_seed, "differences": paired})


def _measures(results: Results, column: str) -> list[tuple[str, Callable[[Result], float]]]:
    found: list[tuple[str, Callable[[Result], float]]] = [(column, plain)]
    if results.level[column][0] == RARE:
        runs = [run for row in results.rows for run in results.of(column, row)]
        if any(abs(balanced(run) - plain(run)) > 1e-6 for run in runs):
            found.append((f"{column}, balanced", balanced))
        found.append((f"{column}, the rare classes", of_the_rare))
    return found


def _seed_table(results: Results, shown: list[Record], differences: list[Record]) -> str:
    seeds = sorted({record["seed"] for record in shown})
    against = [name for name in errors.RIVALS if any(record["against"] == name for record in differences)]
    by_rival = {(record["row"], record["against"]): record for record in differences}
    rows = []
    for row in dict.fromkeys(record["row"] for record in shown):
        values = {record["seed"]: record["error"] for record in shown if record["row"] == row}
        line = [row, *(number(values.get(seed)) for seed in seeds), number(sum(values.values()) / len(values))]
        for name in against:
            record = by_rival.get((row, name))
            line.append(
                "" if record is None else f"{signed(record['mean'])} ({_ends(record)})".replace(f" ({NONE})", "")
            )
        rows.append(line)
    return markdown(["method", *(f"seed {seed}" for seed in seeds), "mean", *(f"to {name}" for name in against)], rows)


def _ends(record: Record) -> str:
    return NONE if record["low"] is None else f"{signed(record['low'])} to {signed(record['high'])}"
