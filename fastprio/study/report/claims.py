"""What the study is expected to show: each claim a bar, with how it is measured and where it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastprio.policies.noise_guard import UNDECIDED
from fastprio.study.report.measures import mean
from fastprio.study.report.results import GUARDED, UNIFORM, Record, Result, Results, Study, balanced, plain
from fastprio.study.report.selection import relative, seen
from fastprio.study.report.speed import SECONDS, cost

SB, VR, GUARD, SUBSET = "SB 33 %", "VR 33 %", "guarded SB 33 %", "random subset 33 %"
PRUNED, GUARDED_PRUNED = "InfoBatch", GUARDED + "InfoBatch"
SEEDS = 6
"""How many a claim is to rest on."""

Measured = tuple[float, int] | None
"""A value and of how many runs or pairs of runs; None where the runs are missing."""


@dataclass(frozen=True)
class Bar:
    """A claim.

    Args:
        claim: in words. measure: (study, column) -> the value. at_most, at_least, below: the bar, one of them.
        columns: by name; None: every column. unit: of the value. seeds: how many it is to rest on.
    """

    claim: str
    measure: Callable[[Study, str], Measured]
    columns: tuple[str, ...] | None = None
    at_most: float | None = None
    at_least: float | None = None
    below: float | None = None
    unit: str = "points"
    seeds: int = SEEDS

    @property
    def bar(self) -> str:
        """The bar in words."""
        words = {"at most": self.at_most, "at least": self.at_least, "below": self.below}
        return next(f"{word} {value:g}" for word, value in words.items() if value is not None)

    def met(self, value: float) -> bool:
        """Whether a value is on the right side of the bar. What rounding adds to a difference does not decide."""
        value = round(value, 9)
        return (
            (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
        )


def _higher(row: str, other: str, of: Callable[[Result], float] = plain) -> Callable[[Study, str], Measured]:
    """By how many points a row's error is higher than another's: the mean over the seeds that both have."""

    def measure(study: Study, column: str) -> Measured:
        pairs = study.runs.paired(column, row, other)
        return (mean([of(a) - of(b) for a, b in pairs]), len(pairs)) if pairs else None

    return measure


def _times_uniform(row: str) -> Callable[[Study, str], Measured]:
    """A row's mean error over uniform's."""

    def measure(study: Study, column: str) -> Measured:
        value = relative(study.runs, column, row)
        return None if value is None else (value, len(study.runs.paired(column, row, UNIFORM)))

    return measure


def _seen(name: str) -> Callable[[Study, str], Measured]:
    """A mean of what the guard saw. Where it set nothing aside, its precision counts as 0.

    None if a guard has not decided: it has neither seen anything nor overlooked it.
    """

    def measure(study: Study, column: str) -> Measured:
        found = [seen(run) for run in study.runs.of(column, GUARD)]
        values = [0.0 if name == "precision" and record[name] is None else record[name] for record in found]
        if not found or None in values or any(record["verdict"] == UNDECIDED for record in found):
            return None
        return mean(values), len(values)

    return measure


def _selecting(row: str) -> Callable[[Study, str], Measured]:
    """The share of what a row was offered that it scored, to select from it: the rest was trained on as it came."""

    def measure(study: Study, column: str) -> Measured:
        runs = study.runs.of(column, row)
        offered = study.runs.examples
        return (mean([run["scored"] / (run["epochs"] * offered) for run in runs]), len(runs)) if runs else None

    return measure


def _choosing(study: Study, column: str) -> Measured:
    """The largest share of its seconds that choosing takes in a run."""
    runs = [run for row in study.timed.rows for run in study.timed.of(column, row)]
    return (max(run["seconds"]["choosing"] / cost(run, SECONDS) for run in runs), len(runs)) if runs else None


CLEAN, MISLABELLED = ("clean",), ("labels 25", "labels 50")
SHUFFLED, RARE = ("shuffle 25", "shuffle 50"), ("rare 2",)
NOISY, HALF_SPOILT = (*MISLABELLED, "gauss 25", "gauss 50"), ("labels 50", "gauss 50")

BARS = (
    Bar(f"{SB}: error above uniform's", _higher(SB, UNIFORM), CLEAN, at_most=0.5),
    Bar(f"{SB}: error over uniform's", _times_uniform(SB), ("labels 50",), at_least=1.3, unit="x"),
    # That it switches itself off under noise rather than collapsing: the two numbers are this report's.
    Bar(f"{VR}: error over uniform's", _times_uniform(VR), NOISY, at_most=1.1, unit="x"),
    Bar(f"{VR}: share of what is offered that it selects from", _selecting(VR), NOISY, at_most=0.5, unit=""),
    Bar(f"{GUARD}: error above that of {SUBSET}", _higher(GUARD, SUBSET), at_most=0.3),
    Bar(f"{GUARD}: error above that of {SUBSET}", _higher(GUARD, SUBSET), ("clean", "labels 50"), at_most=-0.5),
    Bar(f"{GUARD}: error above that of {SB}", _higher(GUARD, SB), CLEAN + SHUFFLED, at_most=0.3),
    Bar(f"{GUARD}: error above that of {SB}", _higher(GUARD, SB), HALF_SPOILT, below=0.0),
    Bar(f"{GUARDED_PRUNED}: error above {PRUNED}'s", _higher(GUARDED_PRUNED, PRUNED), CLEAN + SHUFFLED, at_most=0.3),
    Bar(f"{GUARDED_PRUNED}: error above {PRUNED}'s", _higher(GUARDED_PRUNED, PRUNED), HALF_SPOILT, below=0.0),
    Bar(f"{GUARD}: AUROC", _seen("auroc"), MISLABELLED, at_least=0.97, unit=""),
    Bar(f"{GUARD}: precision", _seen("precision"), MISLABELLED, at_least=0.85, unit=""),
    Bar(f"{GUARD}: recall", _seen("recall"), MISLABELLED, at_least=0.8, unit=""),
    Bar(f"{GUARD}: share of the unaltered set aside", _seen("aside_unaltered"), MISLABELLED, at_most=0.05, unit=""),
    Bar(f"{GUARD}: share of all set aside", _seen("aside_all"), CLEAN + SHUFFLED, at_most=0.01, unit=""),
    Bar(f"{GUARD}: balanced error above that of {SB}", _higher(GUARD, SB, balanced), RARE, at_most=1.0),
    Bar(f"{GUARD}: balanced error above that of {SUBSET}", _higher(GUARD, SUBSET, balanced), RARE, at_most=1.0),
    Bar("choosing: its largest share of a run's seconds", _choosing, at_most=0.01, unit="", seeds=1),
)


def judged(study: Study, bars: tuple[Bar, ...] = BARS) -> list[Record]:
    """Claim, column, bar, unit, measured, runs, wanted (how many of them), verdict: of every bar and its columns.

    verdict: "met", "missed", or "open" where there is nothing to measure: no runs, or a guard that has not decided.
    """
    records: list[Record] = []
    for bar in bars:
        for column in _columns(study.runs, study.timed) if bar.columns is None else bar.columns:
            measured, runs = bar.measure(study, column) or (None, 0)
            verdict = "open" if measured is None else "met" if bar.met(measured) else "missed"
            record: Record = {"claim": bar.claim, "column": column, "bar": bar.bar, "unit": bar.unit}
            records.append(record | {"measured": measured, "runs": runs, "wanted": bar.seeds, "verdict": verdict})
    return records


def _columns(*results: Results) -> list[str]:
    return list(dict.fromkeys(column for each in results for column in each.columns))
