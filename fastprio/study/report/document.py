"""Puts the report together: report.md, its tables as CSV, and its pictures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fastprio.study import grid
from fastprio.study.files import StudyError
from fastprio.study.report import errors, findings, pictures, sections, setting
from fastprio.study.report.results import Results, Study
from fastprio.study.report.sections import Section
from fastprio.study.report.tables import write_csv


def write(folder: Path) -> list[Path]:
    """Writes the report of the runs in a folder beside them, over an earlier one, which stays until all of it is there.

    Returns: the files: ``report.md`` first, then CSV files, then PNG files.

    Raises: StudyError: a folder without finished runs, files that ``grid.read`` refuses, times of something else, or
    a folder that cannot be written to.
    """
    study = load(folder)
    parts = arranged(study)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="report-") as made:
            written = _written(study, parts, Path(made))
            return [path.replace(folder / path.name) for path in written]
    except OSError as error:
        raise StudyError(f"{folder}: the report cannot be written: {error.strerror}") from error


def _written(study: Study, parts: list[Section], folder: Path) -> list[Path]:
    report = folder / "report.md"
    report.write_text(markdown(study, parts))
    written = [report, write_csv(folder / "cells.csv", errors.every_run(study))]
    for part in parts:
        written += [write_csv(folder / f"{name}.csv", records) for name, records in part.files.items() if records]
    for part in parts:
        for name in part.pictures:
            pictures.PICTURES[name](study, folder / f"{name}.png")
            written.append(folder / f"{name}.png")
    return written


def load(folder: Path) -> Study:
    """The runs of a folder, and its times if there are any. Raises: as ``write``."""
    lines, times = grid.read(folder), grid.read(folder, grid.TIMES)
    if not lines:
        raise StudyError(f"{folder / grid.FILE}: no finished runs: expected those of fastprio study run")
    for part in grid.COMMON:
        if times and times[0][part] != lines[0][part]:
            raise StudyError(f"{folder / grid.TIMES}: another {part} than in {grid.FILE}: a folder has the runs of one")
    return Study(Results(lines), Results(times))


def arranged(study: Study) -> list[Section]:
    """The sections in their order, with the pictures that there is something for."""
    runs = study.runs
    table, every, law = sections.paper_table(runs), sections.error_tables(runs), findings.law(runs)
    seconds = sections.seconds(study)
    table.pictures["learning_curves"] = (
        "Error while training, against backprops. A line is the mean over seeds, its band from the least to the "
        "most of them, its marker where it ends; the guard's is wide, to be seen beneath that of what it guards."
    )
    every.pictures["final_errors"] = "Final errors: a dot a seed, a bar their mean. Each panel has its own scale."
    if law.files:
        law.pictures["altered_share"] = "How much of what is back-propagated is altered, against what the law predicts."
    if study.timed.lines:
        seconds[-1].pictures["seconds"] = "Seconds of training, in turns on one thread, by what they went to."
    return [
        sections.in_short(study),
        findings.bars(study),
        setting.setting(study),
        table,
        sections.curve_table(study),
        *seconds,
        sections.cost_table(runs),
        every,
        law,
        findings.guards(runs),
        findings.rates(runs),
    ]


def _changed(settings: dict[str, Any]) -> str:
    listed = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return f" with {listed}" if listed else ""


def markdown(study: Study, parts: list[Section]) -> str:
    """The report's text."""
    protocol = study.runs.lines[0]["protocol"]
    text = [
        f"# When does loss-based prioritization fail? The study “{protocol['name']}”" + _changed(study.runs.changed),
        "After arXiv 2107.07741, Table 1. Made by `fastprio study report` from `cells.jsonl` (every run, with its "
        "curve) and `times.jsonl` (those made in turns). `cells.csv` has all numbers of a run in a line; the numbers "
        "of each section, unrounded, are in the CSV files named at its end.",
    ]
    for part in parts:
        text += [f"## {part.title}", part.text]
        text += [f"![{words}]({name}.png)\n\n*{words}*" for name, words in part.pictures.items()]
        if part.files:
            text.append("Numbers: " + ", ".join(f"[{name}.csv]({name}.csv)" for name in part.files))
    return "\n\n".join(text) + "\n"
