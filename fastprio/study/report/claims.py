"""What the study is expected to show: each claim a bar, with how it is measured and where it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastprio.policies.noise_guard import UNDECIDED
from fastprio.study.report.measures import interval
from fastprio.study.report.results import (
    AT_RANDOM,
    GUARD,
    GUARDED_PRUNED,
    PRUNED,
    SB,
    UNIFORM,
    VR,
    VR_HALF,
    Record,
    Result,
    Study,
    balanced,
    plain,
)
from fastprio.study.report.selection import relative, seen
from fastprio.study.report.speed import SECONDS, cost

PURPOSE = "paper-small"
"""The preset that the bars were set for."""
SEEDS = 6
"""How many a claim is to rest on."""

Measure = Callable[[Study, str], list[float]]
"""Of a study and a column, a value for each run or pair of runs; none where runs are missing."""


@dataclass(frozen=True)
class Bar:
    """A claim.

    Args:
        claim: in words. measure: what is judged. at_most, at_least, below: the bar, one of them.
        columns: by name; None: every column. unit: of the value. seeds: how many it is to rest on.
        every: whether the worst value is judged, rather than their mean.
    """

    claim: str
    measure: Measure
    columns: tuple[str, ...] | None = None
    at_most: float | None = None
    at_least: float | None = None
    below: float | None = None
    unit: str = "points"
    seeds: int = SEEDS
    every: bool = False

    @property
    def bar(self) -> str:
        """The bar in words."""
        words = {"at most": self.at_most, "at least": self.at_least, "below": self.below}
        return next(f"{word} {value:g}" for word, value in words.items() if value is not None)

    def worst(self, values: list[float]) -> float:
        """The value farthest on the wrong side."""
        return max(values) if self.at_least is None else min(values)

    def met(self, value: float) -> bool:
        """Whether a value is on the right side of the bar. What rounding adds to a difference does not decide."""
        value = round(value, 9)
        return (
            (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
        )


def _minus(row: str, other: str, of: Callable[[Result], float] = plain) -> Measure:
    """By how many points a row's error is higher than another's, of each seed that both have."""
    return lambda study, column: [of(a) - of(b) for a, b in study.runs.paired(column, row, other)]


def _times_uniform(row: str) -> Measure:
    return lambda study, column: relative(study.runs, column, row)


def _seen(row: str, name: str) -> Measure:
    """What a guard saw. Where it set nothing aside, its precision counts as 0.

    One that has not decided has neither seen anything nor overlooked it, and does not count.
    """

    def measure(study: Study, column: str) -> list[float]:
        found = [seen(run) for run in study.runs.of(column, row)]
        values = [
            0.0 if name == "precision" and record[name] is None else record[name]
            for record in found
            if record["verdict"] not in (None, UNDECIDED)
        ]
        return [] if None in values else values

    return measure


def _selecting(row: str) -> Measure:
    """The share of what a row was offered that it scored, to select from it: the rest was trained on as it came."""

    def measure(study: Study, column: str) -> list[float]:
        return [run["scored"] / (run["epochs"] * study.runs.examples) for run in study.runs.of(column, row)]

    return measure


def _choosing(study: Study, column: str) -> list[float]:
    """The share of its seconds that choosing takes in a run; nothing before every row of the column was timed."""
    if any(not study.timed.seeds(column, row) for row in study.runs.rows if study.runs.seeds(column, row)):
        return []
    runs = [run for row in study.timed.rows for run in study.timed.of(column, row)]
    return [run["seconds"]["choosing"] / cost(run, SECONDS) for run in runs]


CLEAN, MISLABELLED = ("clean",), ("labels 25", "labels 50")
GAUSSIAN, HALF_SPOILT = ("gauss 25", "gauss 50"), ("labels 50", "gauss 50")
SHUFFLED, RARE = ("shuffle 25", "shuffle 50"), ("rare 2",)


def _guards(row: str, other: str) -> tuple[Bar, ...]:
    """Of a guarded method beside the same one unguarded."""
    return (
        Bar(f"{row}: error minus that of {other}", _minus(row, other), CLEAN + SHUFFLED, at_most=0.3),
        Bar(f"{row}: error minus that of {other}", _minus(row, other), HALF_SPOILT, below=0.0),
        Bar(f"{row}: AUROC", _seen(row, "auroc"), MISLABELLED, at_least=0.97, unit=""),
        Bar(f"{row}: precision", _seen(row, "precision"), MISLABELLED, at_least=0.85, unit=""),
        Bar(f"{row}: recall", _seen(row, "recall"), MISLABELLED, at_least=0.8, unit=""),
        Bar(f"{row}: {_UNALTERED}", _seen(row, "aside_unaltered"), MISLABELLED, at_most=0.05, unit=""),
        Bar(f"{row}: share of all set aside", _seen(row, "aside_all"), CLEAN + SHUFFLED, at_most=0.01, unit=""),
    )


def _below_uniform(row: str, columns: tuple[str, ...]) -> Bar:
    """That VR does not collapse."""
    return Bar(f"{row}: error over uniform's", _times_uniform(row), columns, at_most=1.1, unit="x")


def _off(row: str) -> Bar:
    """That VR switches itself off."""
    return Bar(f"{row}: {_SELECTS}", _selecting(row), MISLABELLED + GAUSSIAN, at_most=0.5, unit="")


_SELECTS, _UNALTERED = "share of what is offered that it selects from", "share of the unaltered set aside"

BEFORE = (
    Bar(f"{SB}: error minus uniform's", _minus(SB, UNIFORM), CLEAN, at_most=0.5),
    Bar(f"{SB}: error over uniform's", _times_uniform(SB), ("labels 50",), at_least=1.3, unit="x"),
    _below_uniform(VR, MISLABELLED),
    Bar(f"{GUARD}: error minus that of {AT_RANDOM}", _minus(GUARD, AT_RANDOM), at_most=0.3),
    Bar(f"{GUARD}: error minus that of {AT_RANDOM}", _minus(GUARD, AT_RANDOM), ("clean", "labels 50"), at_most=-0.5),
    *_guards(GUARD, SB),
    Bar(f"{GUARD}: balanced error minus that of {SB}", _minus(GUARD, SB, balanced), RARE, at_most=1.0),
    Bar(f"{GUARD}: balanced error minus that of {AT_RANDOM}", _minus(GUARD, AT_RANDOM, balanced), RARE, at_most=1.0),
    Bar("choosing: share of a run's seconds", _choosing, at_most=0.01, unit="", seeds=1, every=True),
)
"""Set before any run with seeds from 0 on."""
ADDED = (
    _below_uniform(VR, GAUSSIAN),
    _off(VR),
    _below_uniform(VR_HALF, MISLABELLED + GAUSSIAN),
    _off(VR_HALF),
    *_guards(GUARDED_PRUNED, PRUNED),
)
"""Added while the runs were made: the same of more rows and columns, and how VR switches itself off."""


def judged(study: Study, bars: tuple[Bar, ...]) -> list[Record]:
    """Claim, column, bar, unit, measured, low, high, worst, runs, wanted (of them), verdict: of bars and their columns.

    Of the columns that there are or that the study's preset has. measured: the mean, with its 90 % interval, or the
    worst where every run counts. verdict: "met", "missed", or "open" where there is nothing to measure.
    """
    records: list[Record] = []
    known = _columns(study)
    for bar in bars:
        for column in known if bar.columns is None else [name for name in bar.columns if name in known]:
            values = bar.measure(study, column)
            worst = bar.worst(values) if values else None
            middle, low, high, _ = interval(values) if values and not bar.every else (worst, None, None, 0)
            verdict = "open" if middle is None else "met" if bar.met(middle) else "missed"
            record: Record = {"claim": bar.claim, "column": column, "bar": bar.bar, "unit": bar.unit}
            record |= {"measured": middle, "low": low, "high": high, "worst": worst}
            record |= {"runs": len(values), "wanted": bar.seeds}
            records.append(record | {"verdict": verdict})
    return records


def _columns(study: Study) -> list[str]:
    preset = study.runs.preset
    wanted = [] if preset is None else [cell.column for cell in preset.cells()]
    return list(dict.fromkeys([*wanted, *study.runs.columns, *study.timed.columns]))
