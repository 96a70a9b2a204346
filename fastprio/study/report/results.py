"""The runs of a study by column, row and seed, in the order in which tables and pictures have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastprio.study.corruptions import KINDS, RARE_CLASSES
from fastprio.study.grid import cell_of, protocol_of
from fastprio.study.methods import METHODS
from fastprio.study.presets import PRESETS, Preset
from fastprio.study.protocol import Cell

Result = dict[str, Any]
"""What ``training.Run.result`` gives."""
Record = dict[str, Any]
"""A line of a table: names and plain values, None for what is not known."""

UNIFORM = "uniform"
SUBSET = "random subset"
GUARDED = "guarded "
SB, VR, VR_HALF, AT_RANDOM, GUARD = "SB 33 %", "VR 33 %", "VR 50 %", "random subset 33 %", "guarded SB 33 %"
PRUNED, GUARDED_PRUNED = "InfoBatch", GUARDED + "InfoBatch"
FIRST = (UNIFORM, AT_RANDOM, SB, GUARD, VR, PRUNED, GUARDED_PRUNED)
"""The rows that a reader asks for first."""
RARE = "rare"


class Results:
    """Finished runs.

    Args: lines: as ``grid.read`` gives them. Of two of the same cell the later one counts.

    Attributes:
        lines: of each cell one. columns: the corruptions. rows: the methods; scaled: the rows with another learning
        rate, which no other list has. cells: a row's name -> one cell of it. classes: of the data, and examples that
        are trained on; 0 without a run.
    """

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        last = {cell_of(line): line for line in lines}
        cells = sorted(last, key=_place)
        self.lines = [last[cell] for cell in cells]
        self.columns = list(dict.fromkeys(cell.column for cell in sorted(cells, key=_column_place)))
        self.cells = {cell.row: cell for cell in cells}
        self.rows = [row for row, cell in self.cells.items() if cell.lr_scale == 1]
        self.scaled = [row for row, cell in self.cells.items() if cell.lr_scale != 1]
        self.level = {cell.column: (cell.kind, cell.level) for cell in cells}
        self._results: dict[tuple[str, str, int], Result] = {
            (cell.column, cell.row, cell.seed): last[cell]["result"] for cell in cells
        }
        self.classes = len(self.lines[0]["result"]["class_errors"]) if self.lines else 0
        self.examples: int = self.lines[0]["protocol"]["examples"] if self.lines else 0

    def get(self, column: str, row: str, seed: int) -> Result | None:
        """What a run measured, None if there is no such run."""
        return self._results.get((column, row, seed))

    def seeds(self, column: str, *rows: str) -> list[int]:
        """The seeds of which there are runs of all the rows."""
        have = [{seed for c, r, seed in self._results if (c, r) == (column, row)} for row in rows]
        return sorted(set.intersection(*have))

    def paired(self, column: str, *rows: str) -> list[tuple[Result, ...]]:
        """The runs of rows, for each seed that all of them have."""
        return [tuple(self._results[column, row, seed] for row in rows) for seed in self.seeds(column, *rows)]

    def of(self, column: str, row: str) -> list[Result]:
        """The runs of a row in a column, by seed."""
        return [run for (run,) in self.paired(column, row)]

    def budgets(self, column: str) -> list[str]:
        """The rows of uniform training, of whatever length, that have a run in the column."""
        return [row for row in self.rows if self.is_uniform(row) and self.seeds(column, row)]

    def is_uniform(self, row: str) -> bool:
        """Whether a row is uniform training, whole or shorter."""
        return self.cells[row].method in (UNIFORM, SUBSET)

    @property
    def preset(self) -> Preset | None:
        """The preset that they are of, None for runs with other settings."""
        named = PRESETS.get(self.lines[0]["protocol"]["name"]) if self.lines else None
        return named if named is not None and not self.changed else None

    @property
    def changed(self) -> dict[str, Any]:
        """What is set otherwise than in the preset that the protocol is named after."""
        if not self.lines or self.lines[0]["protocol"]["name"] not in PRESETS:
            return {}
        now = protocol_of(self.lines[0])
        preset = dataclasses.asdict(PRESETS[now.name].protocol)
        return {name: value for name, value in dataclasses.asdict(now).items() if value != preset[name]}

    def pairs(self) -> list[tuple[str, str]]:
        """Every column and row, of learning rate x 1, that has a run."""
        return [(column, row) for column in self.columns for row in self.rows if self.seeds(column, row)]

    def altered_share(self, column: str) -> float | None:
        """The share of the training examples whose label or image is another one; None where it is not known.

        A random label is the right one by a chance of 1 / classes. Of given labels only uniform training tells it,
        which back-propagates all examples alike.
        """
        kind, level = self.level[column]
        if kind == "labels":
            return level * (1 - 1 / self.classes)
        if kind in ("clean", RARE):
            return 0.0
        if kind in KINDS:
            return level
        found = self.of(column, UNIFORM)
        return float(found[0]["altered_share"]) if found else None


@dataclass(frozen=True)
class Study:
    """All that a report is made of: the runs, and those that were made in turns, whose seconds may be compared."""

    runs: Results
    timed: Results


def subset_of(cell: Cell) -> str:
    """The name of the row of random subset with a cell's budget."""
    return Cell(cell.kind, cell.level, SUBSET, cell.budget, cell.seed).row


def balanced(result: Result) -> float:
    """The mean of the classes' errors, in %."""
    errors: list[float] = result["class_errors"]
    return sum(errors) / len(errors)


def of_the_rare(result: Result) -> float:
    """The mean of the errors of the classes that "rare" makes rare, in %."""
    errors: list[float] = result["class_errors"][-RARE_CLASSES:]
    return sum(errors) / len(errors)


def plain(result: Result) -> float:
    """The error after the last step, in %."""
    return float(result["error"])


def _place(cell: Cell) -> tuple[Any, ...]:
    return list(METHODS).index(cell.method), -cell.budget, cell.lr_scale, _column_place(cell), cell.seed


def _column_place(cell: Cell) -> tuple[int, str, float]:
    """The paper's order, then labels from files, then the rare classes."""
    kinds = {kind: place for place, kind in enumerate((*KINDS, "", RARE))}
    return kinds.get(cell.kind, kinds[""]), cell.kind, cell.level
