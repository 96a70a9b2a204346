"""Promise: ``fastprio study report`` writes what there is, in files that read back, and says what is missing."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
from dataclasses import replace

import pytest
from report_helpers import UNIFORM, WHOLE, guarded, made, study, uniforms

from fastprio.cli import main
from fastprio.study import grid
from fastprio.study.files import StudyError
from fastprio.study.grid import line
from fastprio.study.presets import PRESETS
from fastprio.study.protocol import Cell
from fastprio.study.provenance import key_of
from fastprio.study.report import document, pictures, setting, write
from fastprio.study.report.results import Results, balanced
from fastprio.study.report.tables import NONE, markdown, write_csv

THIRD = 1 / 3


def store(folder, lines, name="cells.jsonl"):
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_report_has_every_section_and_names_files_that_are_there(tmp_path):
    lines = [
        *uniforms(),
        *uniforms("labels", 0.5),
        *(made("labels", 0.5, "SB", 0.5, seed, [50.0, 40.0, 30.0, 20.0]) for seed in range(2)),
        guarded("rare", 0.98, 0, 9.0, aside_unaltered=0.0),
        made("clean", 0.0, "SB", 0.5, 0, [50.0, 12.0], 0.5),
    ]
    store(tmp_path, lines)
    store(tmp_path, [*uniforms(seeds=1), made("clean", 0.0, "SB", 0.5, 0, [50.0, 12.0])], "times.jsonl")
    paths = write(tmp_path)
    text = paths[0].read_text()
    assert paths[0] == tmp_path / "report.md"
    assert len(set(paths)) == len(paths)
    for path in paths[1:]:
        assert path.stat().st_size > 0
        assert path.name == "cells.csv" or f"({path.name})" in text
    pictures = {path.name for path in paths if path.suffix == ".png"}
    assert pictures == {"learning_curves.png", "final_errors.png", "altered_share.png", "seconds.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert f"| SB 50 % | {NONE} | {NONE} (20.00) | {NONE} | 2 |" in text
    assert "### rare 2, balanced" in text
    assert "### rare 2, the rare classes" in text
    assert "### rare 2\n" in text
    assert "Missing" not in text


def test_the_numbers_in_cells_csv_are_those_of_the_runs(tmp_path):
    lines = [*uniforms(), made("clean", 0.0, "SB", 0.25, 1, [12.0, 12.0, 11.0, 12.0])]
    lines.append(made("clean", 0.0, "SB", 0.25, 0, [12.0, 9.0]))  # better than any uniform run
    store(tmp_path, lines)
    write(tmp_path)
    with (tmp_path / "cells.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(lines)
    for run in lines:
        row, result = rows[run["key"]], run["result"]
        assert float(row["error"]) == result["error"]
        assert float(row["balanced"]) == balanced(result)
        assert int(row["backprops"]) == result["backprops"]
        assert (row["method"], float(row["budget"]), int(row["seed"])) == tuple(
            run["cell"][name] for name in ("method", "budget", "seed")
        )
        assert row["auroc"] == ""
    sb = rows[lines[-2]["key"]]
    assert float(sb["backprops_to_1.2"]) == pytest.approx(62, abs=1)
    assert float(sb["speed_up_over_curve"]) == pytest.approx(WHOLE / math.sqrt(2) / 250)
    assert (sb["sign"], rows[lines[-1]["key"]]["sign"]) == ("", ">")
    assert float(sb["altered_share_late"]) == 1.0  # the second half of a made-up run


def test_any_part_of_a_study_makes_a_report_that_says_what_is_missing(tmp_path):
    lines = [
        made("clean", 0.0, "uniform", 1.0, 0, UNIFORM),
        made("labels", 0.5, "SB", THIRD, 3, [50.0]),
        made("gauss", 0.5, "guarded SB", 0.5, 1, [50.0, 0.0], 2.0),
        guarded("file:labels.txt", 1.0, 0, 9.0),
    ]
    for number, run in enumerate(lines):
        folder = tmp_path / str(number)
        folder.mkdir()
        store(folder, [run])
        text = write(folder)[0].read_text()
        assert text.count("Missing: ") >= 3
        assert "nan" not in text
        assert "None" not in text


def test_the_report_says_what_each_row_was_made_of_and_which_runs_diverged(tmp_path):
    runs = [made("clean", 0.0, "SB", THIRD, seed, [50.0, 40.0], diverged=seed == 1) for seed in (0, 1)]
    store(tmp_path, [*runs, made("clean", 0.0, "InfoBatch", 1.0, 0, UNIFORM)])
    text = write(tmp_path)[0].read_text()
    made_of = (
        "Uniform(); SelectiveBackprop(batch_size=10, beta=2.0, history=1024, accept_all_epochs=1, least_chance=0.0)"
    )
    assert f"| SB 33 % | {made_of} |" in text
    assert "| InfoBatch | InfoBatch(ratio=0.5, delta=0.875) |" in text
    assert "measured as it was): clean, SB 33 %, seed 1.\n" in text
    (tmp_path / "whole").mkdir()
    store(tmp_path / "whole", runs[:1])
    assert "iverged" not in write(tmp_path / "whole")[0].read_text()


def test_a_preset_that_is_not_finished_has_the_rest_listed(tmp_path):
    preset = PRESETS["quick"]
    result = guarded("clean", 0.0, 0, 9.0, aside_unaltered=0.0)["result"]
    store(tmp_path, [line(preset.protocol, cell, result) for cell in preset.cells()[:-1]])
    text = write(tmp_path)[0].read_text()
    last, n = preset.cells()[-1], len(preset.cells())
    assert f"| runs | {n - 1} of the {n} of the preset quick |" in text
    assert text.startswith("# When does loss-based prioritization fail? The study “quick”\n")
    assert f"\n- {last.column}: {last.row} (seed {last.seed})\n" in text


def test_a_study_with_other_settings_is_not_taken_for_the_preset(tmp_path):
    preset = PRESETS["quick"]
    other, cell = dataclasses.replace(preset.protocol, lr=0.5), preset.cells()[0]
    store(tmp_path, [line(other, cell, made("clean", 0.0, "uniform", 1.0, 0, UNIFORM)["result"])])
    text = write(tmp_path)[0].read_text()
    assert text.startswith("# When does loss-based prioritization fail? The study “quick” with lr = 0.5\n")
    assert "| runs | 1 |" in text
    assert "Missing of the preset" not in text


def test_dates_and_machines_are_those_of_all_runs():
    lines = uniforms(seeds=1)
    for run, day, machine in zip(lines, ("02", "01", "03"), ("a", "b", "a"), strict=True):
        run |= {"date": f"2026-01-{day}T10:00:00+00:00", "machine": machine, "versions": {"torch": "9"}}
    cell = Cell("clean", 0.0, "uniform", 1.0, 0)
    few = [line(PRESETS["quick"].protocol, replace(cell, seed=seed), lines[0]["result"]) for seed in (0, 7)]
    assert setting.counted(study(few)) == f"1 of the {len(PRESETS['quick'].cells())} of the preset quick, and 1 others"
    assert setting.made_when(study(lines)) == "2026-01-01 to 2026-01-03; a; b; torch 9"


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(StudyError, match=r"cells.jsonl: no finished runs: expected those of fastprio study run"):
        document.load(tmp_path / "absent")
    assert main(["study", "report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_times_of_another_protocol_or_other_data_are_refused(tmp_path):
    preset, run = PRESETS["quick"], made("clean", 0.0, "uniform", 1.0, 0, UNIFORM)
    store(tmp_path, [run])
    store(tmp_path, [line(preset.protocol, preset.cells()[0], run["result"])], "times.jsonl")
    with pytest.raises(StudyError, match=r"times.jsonl: another protocol than in cells.jsonl"):
        write(tmp_path)
    other = {**run, "data": "0" * 16}
    store(tmp_path, [{**other, "key": key_of({name: other[name] for name in grid.MADE_FROM})}], "times.jsonl")
    with pytest.raises(StudyError, match=r"times.jsonl: another data than in cells.jsonl"):
        write(tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_a_report_that_cannot_be_written_is_said_in_one_line_and_an_earlier_one_stays(tmp_path, capsys, monkeypatch):
    def full(study, path):
        path.write_bytes(b"cut short")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    store(tmp_path, uniforms())
    assert main(["study", "report", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store(tmp_path, uniforms(seeds=3))
    before["cells.jsonl"] = (tmp_path / "cells.jsonl").read_bytes()
    monkeypatch.setitem(pictures.PICTURES, "final_errors", full)
    capsys.readouterr()
    assert main(["study", "report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"fastprio study: {tmp_path}: the report cannot be written: No space left on device\n"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_tables_keep_every_digit_and_no_cell_breaks_a_row(tmp_path):
    records = [{"row": "a", "x": 0.1 + 0.2}, {"row": "b, c", "y": None}]
    with write_csv(tmp_path / "t.csv", records).open() as file:
        back = list(csv.DictReader(file))
    assert back == [{"row": "a", "x": repr(0.1 + 0.2), "y": ""}, {"row": "b, c", "x": "", "y": ""}]
    assert markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_columns_come_in_the_papers_order_and_rows_in_that_of_the_methods():
    kinds = (
        ("rare", 0.98),
        ("rare", 0.5),
        ("file:a.txt", 1.0),
        ("gauss", 0.5),
        ("labels", 0.5),
        ("labels", 0.25),
        ("clean", 0.0),
    )
    results = Results([line for kind, level in kinds for line in uniforms(kind, level, 1)[::-1]])
    assert results.columns == ["clean", "labels 25", "labels 50", "gauss 50", "file:a.txt", "rare 50", "rare 2"]
    assert results.rows == ["uniform", "random subset 50 %", "random subset 25 %"]


def test_the_altered_share_of_given_labels_is_what_uniform_training_met():
    given = made("file:a.txt", 1.0, "uniform", 1.0, 0, UNIFORM, altered_share=0.375)
    shuffled = made("shuffle", 0.25, "SB", 0.5, 0, UNIFORM)
    assert Results([given]).altered_share("file:a.txt") == 0.375
    assert Results([made("file:a.txt", 1.0, "SB", 0.5, 0, UNIFORM)]).altered_share("file:a.txt") is None
    assert Results([shuffled]).altered_share("shuffle 25") == 0.25
