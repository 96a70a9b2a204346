"""Wall-clock figures: one process, one thread, methods in turns, so that what else the machine does slows all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastprio.study.grid import line
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.training import Run, as_a_study


def in_turns(
    protocol: Protocol, cells: Sequence[Cell], told: Callable[[float], None] = lambda share: None
) -> list[dict[str, Any]]:
    """Trains all of the cells at once, always going on with the one that is furthest behind: their lines.

    Args: told: called after every step with the share of the whole that is done, while no run's clock goes.
    """
    with as_a_study():
        runs = [Run(protocol, cell) for cell in cells]
        running = {number: run.steps() for number, run in enumerate(runs)}
        while running:
            number = min(running, key=lambda number: runs[number].progress)
            if next(running[number], running) is running:  # its end
                del running[number]
            told(sum(run.progress for run in runs) / len(runs))
        return [line(protocol, cell, run.result()) for cell, run in zip(cells, runs, strict=True)]
