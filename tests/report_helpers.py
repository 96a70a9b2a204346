"""What the tests of the study's report share: made-up runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastprio.bench import stamp
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.provenance import key_of, made_from
from fastprio.study.report.results import Results, Study

PROTOCOL = Protocol("made up", "digits", "small-cnn", 100, 0, epochs=10, batch_size=10, lr=0.1)
WHOLE = 1000
"""Uniform's backprops."""
UNIFORM = [50.0, 30.0, 11.0, 10.0]
"""Its errors."""


def made(
    kind: str,
    level: float,
    method: str,
    budget: float,
    seed: int,
    errors: list[float],
    lr_scale: float = 1.0,
    **changed: Any,
) -> dict[str, Any]:
    """A finished run's line: with these errors at its evaluations, and ``budget`` of the backprops.

    A backprop takes a millisecond; a quarter of the examples of the first half, and all of the second, are altered.
    """
    spent = [round(budget * WHOLE * (turn + 1) / len(errors)) for turn in range(len(errors))]
    half = spent[(len(errors) - 1) // 2]
    curve = [
        {
            "backprops": at,
            "scored": 0,
            "error": error,
            "loss": 1.0,
            "altered": at // 4 if at <= half else half // 4 + at - half,
            "seconds": at / 1000,
        }
        for at, error in zip(spent, errors, strict=True)
    ]
    seconds = {"loading": 0.0, "choosing": 0.25, "scoring": 0.0, "forward": 0.25, "backward": 0.5, "evaluation": 9.0}
    result = {
        "error": errors[-1],
        "diverged": False,
        "class_errors": [errors[-1], errors[-1] + 3.0, errors[-1] + 6.0, errors[-1] + 3.0],
        "curve": curve,
        "epochs": 10,
        "backprops": spent[-1],
        "scored": 0,
        "altered_share": curve[-1]["altered"] / spent[-1],
        "seconds": {name: value * spent[-1] / 1000 for name, value in seconds.items()},
        "detection": dict.fromkeys(("auroc", "precision", "recall", "aside_unaltered")),
        "guard": None,
    }
    cell = Cell(kind, level, method, budget, seed, lr_scale)
    # Made up: a file of labels need not be there.
    made = {**made_from(PROTOCOL, dataclasses.replace(cell, kind="clean")), "cell": dataclasses.asdict(cell)}
    return {"key": key_of(made), **made, **stamp("tests"), "result": {**result, **changed}}


def study(lines: list[dict[str, Any]], timed: list[dict[str, Any]] | None = None) -> Study:
    """A study of made-up runs."""
    return Study(Results(lines), Results(timed or []))


def uniforms(kind: str = "clean", level: float = 0.0, seeds: int = 2) -> list[dict[str, Any]]:
    """Uniform training that ends at 10 % with all, 14 % with a half and 18 % with a quarter of the backprops."""
    return [
        made(kind, level, method, budget, seed, [*UNIFORM[:3], error])
        for seed in range(seeds)
        for method, budget, error in (
            ("uniform", 1.0, 10.0),
            ("random subset", 0.5, 14.0),
            ("random subset", 0.25, 18.0),
        )
    ]


def guarded(
    kind: str, level: float, seed: int, error: float, most: dict[str, float] | None = None, **detection: float | None
) -> dict[str, Any]:
    """A run with the guard, and what it saw; most: what it set aside in the worst epoch, of "all" and "unaltered"."""
    seen = dict.fromkeys(("auroc", "precision", "recall", "aside_unaltered")) | detection
    aside = dict.fromkeys(("all", "unaltered"), 0.0)
    guard = {"verdict": "clean", "tau": 2.0, "aside": [aside, {**aside, **(most or {})}, aside]}
    return made(kind, level, "guarded SB", 1 / 3, seed, [50.0, error], detection=seen, guard=guard)
