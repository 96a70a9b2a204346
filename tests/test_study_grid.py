"""Promise: a study that is stopped in whatever way has every run that was finished, and goes on to the same results."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ALL_COMPLETED
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import generator

from fastprio import policies, selectors
from fastprio.cli import main
from fastprio.study import command, grid, provenance
from fastprio.study.data import load
from fastprio.study.files import StudyError
from fastprio.study.methods import METHODS
from fastprio.study.presets import PRESETS
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.provenance import key_of, made_from
from fastprio.study.report.results import Results
from fastprio.study.timing import in_turns

SETTINGS = {"model": "small-cnn-2", "examples": 60, "validation": 10, "epochs": 10, "batch_size": 16, "evaluations": 3}
SET = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
TINY = Protocol(**{**vars(PRESETS["quick"].protocol), **SETTINGS})
ROWS = (("uniform", 1.0), ("SB", 1 / 3), ("guarded SB", 1 / 3), ("SB", 1 / 2))
CELLS = [Cell("labels", 0.5, method, budget, seed) for seed in range(4) for method, budget in ROWS]
RUN = [
    "study", "run", "quick", "--methods", "uniform,SB,guarded SB", "--columns", "labels:0.5", "--seeds", "0-3", *SET,
]  # fmt: skip


def said_of(run):
    """What a run says but for dates, seconds and where it was made."""
    result = {k: v for k, v in run["result"].items() if k not in ("seconds", "whole_seconds")}
    result["curve"] = [{k: v for k, v in at.items() if k != "seconds"} for at in result["curve"]]
    return json.dumps({"key": run["key"], "protocol": run["protocol"], "cell": run["cell"], "result": result})


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    """Whether a process is there, and not just its number until somebody asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted():
    """Every run, made one by one in this process."""
    return {cell: grid.finish(TINY, cell) for cell in CELLS}


def started(folder, workers=2):
    return subprocess.Popen(
        [sys.executable, "-m", "fastprio", *RUN, "--out", str(folder), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # also where the tests run in the background
    )


class Here:
    """In place of a pool of processes: a run is over as soon as it is submitted."""

    def __init__(self, *arguments, **options):
        pass

    def submit(self, function, *arguments):
        future = grid.Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, cancel_futures):
        pass


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux' /proc, to find workers")
def test_a_study_that_is_killed_or_interrupted_goes_on_to_what_it_would_have_been(tmp_path, uninterrupted, monkeypatch):
    rng, file, finished = generator(3), tmp_path / grid.FILE, 0

    def lines():
        return file.read_bytes().count(b"\n") if file.exists() else 0

    for how in (signal.SIGKILL, signal.SIGINT):
        study = started(tmp_path)
        enough = finished + int(rng.integers(1, 4))
        wait_for(lambda enough=enough: lines() >= enough)
        workers = children_of(study.pid)
        assert workers
        time.sleep(rng.random() / 10)
        if how == signal.SIGKILL:
            study.kill()
        else:
            os.killpg(study.pid, how)  # as a terminal does
        _, errors = study.communicate(timeout=60)
        if how == signal.SIGINT:
            stopped = f"fastprio study: stopped; {tmp_path} has what was finished: start it again to go on\n"
            assert (study.returncode, errors) == (130, stopped)
        wait_for(lambda workers=workers: not any(running(pid) for pid in workers))
        assert finished < lines() < len(CELLS)
        finished = lines()
        assert len(grid.read(tmp_path)) == finished
    made, left = [], len(CELLS) - finished
    monkeypatch.setattr(grid, "ProcessPoolExecutor", Here)  # what real workers made is in the file, and is compared too
    assert grid.run_all(tmp_path, TINY, CELLS, 1, lambda run, done, total: made.append((done, total))) == left
    assert made == [(finished + k, len(CELLS)) for k in range(1, left + 1)]
    found = grid.read(tmp_path)
    assert sorted(map(said_of, found)) == sorted(map(said_of, uninterrupted.values()))
    assert main([*RUN, "--out", str(tmp_path)]) == 0  # nothing is left to be made


def test_a_worker_that_dies_is_said_so_and_what_was_finished_is_there(tmp_path, uninterrupted):
    def kill_workers(run, done, total):
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(StudyError, match=r"^a worker process was killed, .*: start it again to go on$") as error:
        grid.run_all(tmp_path, TINY, CELLS, 1, kill_workers)
    assert "\n" not in str(error.value)
    found = grid.read(tmp_path)
    assert [said_of(run) for run in found] == [said_of(uninterrupted[cell]) for cell in CELLS[: len(found)]]
    assert 0 < len(found) < len(CELLS)
    assert not multiprocessing.active_children()


class Failing(Here):
    """And some runs fail."""

    def submit(self, function, protocol, cell):
        if cell.seed != 1:
            return super().submit(lambda: {"cell": vars(cell)})
        future = grid.Future()
        future.set_exception(StudyError("a run that cannot be made"))
        return future


def test_of_runs_that_are_over_together_the_finished_are_stored_before_a_failure_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "ProcessPoolExecutor", Failing)
    told = []
    with pytest.raises(StudyError, match=r"^a run that cannot be made$"):
        grid.run_all(tmp_path, TINY, CELLS, len(CELLS), lambda run, *_: told.append(run["cell"]))
    stored = [json.loads(line)["cell"] for line in (tmp_path / grid.FILE).read_text().splitlines()]
    assert stored == told
    assert sorted(map(str, stored)) == sorted(str(vars(cell)) for cell in CELLS if cell.seed != 1)


# The file.


@pytest.fixture
def folder(tmp_path, uninterrupted):
    """A folder with two runs."""
    with grid.appending(tmp_path, TINY) as add:
        for cell in CELLS[:2]:
            add(uninterrupted[cell])
    return tmp_path


def test_a_file_gives_back_what_was_added(folder, uninterrupted):
    assert grid.read(folder) == [json.loads(json.dumps(uninterrupted[cell])) for cell in CELLS[:2]]
    assert [grid.cell_of(run) for run in grid.read(folder)] == CELLS[:2]
    assert grid.protocol_of(grid.read(folder)[0]) == TINY
    assert grid.read(folder / "nowhere") == []


def test_a_last_line_that_was_cut_anywhere_is_made_again(folder, uninterrupted):
    file = folder / grid.FILE
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in {0, 1, first - 1, first, first + 1, *generator(1).integers(0, len(whole), 20).tolist(), len(whole) - 1}:
        file.write_bytes(whole[:cut])
        kept = 2 if cut == len(whole) else int(cut >= first)
        assert len(grid.read(folder)) == kept
        with grid.appending(folder, TINY) as add:
            for cell in CELLS[kept:2]:
                add(uninterrupted[cell])
        assert file.read_bytes() == whole


def changed(line, **values):
    return json.dumps({**json.loads(line), **values})


def rekeyed(line, **values):
    """A line as it would be, had it been made from something else."""
    run = {**json.loads(line), **values}
    return json.dumps({**run, "key": key_of({name: run[name] for name in grid.MADE_FROM})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: "", "line 2: damaged, .*: take the line away"),
        (lambda line: "seven", "line 2: damaged, .*: take the line away"),
        (lambda line: "7", "line 2: not a run of this version: "),
        (lambda line: "[]", "line 2: not a run of this version: "),
        (lambda line: "{}", "line 2: not a run of this version: "),
        (lambda line: "\x00\udcff", "line 2: damaged, .*: take the line away"),
        *(
            (lambda line, name=name: json.dumps({k: v for k, v in json.loads(line).items() if k != name}), "not a run")
            for name in ("key", *grid.MADE_FROM, "result")
        ),
        (lambda line: changed(line, cell={"kind": "clean"}), "line 2: not a run of this version: "),
        (lambda line: changed(line, protocol={"drops": 5}), "line 2: not a run of this version: "),
        (lambda line: changed(line, key="0" * 16), "line 2: its key is not that of its settings$"),
        (lambda line: changed(line, cell=vars(CELLS[2])), "line 2: its key is not that of its settings$"),
        (lambda line: changed(line, data="0" * 16), "line 2: its key is not that of its settings$"),
        (lambda line: rekeyed(line, protocol={**vars(TINY), "lr": 1.0}), "line 2: another protocol than in line 1"),
        (lambda line: rekeyed(line, data="0" * 16), "line 2: another data than in line 1"),
        (lambda line: rekeyed(line, code=1), "line 2: another code than in line 1"),
        (
            lambda line: rekeyed(line, cell={**vars(CELLS[1]), "method": "none"}),
            "not a run of this version: method = 'n",
        ),
    ],
)
def test_a_foreign_line_is_refused_by_its_number_and_nothing_is_changed(folder, change, message):
    file = folder / grid.FILE
    first, second = file.read_text().splitlines()
    file.write_bytes(f"{first}\n{change(second)}\n".encode(errors="surrogateescape"))
    before = file.read_bytes()
    with pytest.raises(StudyError, match=message) as error:
        grid.read(folder)
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert "\n" not in str(error.value)
    with pytest.raises(StudyError, match=message), grid.appending(folder, TINY):
        pass
    assert file.read_bytes() == before


def test_a_folder_with_runs_of_another_protocol_is_refused_with_what_differs(folder):
    other = Protocol(**{**vars(TINY), "lr": 1.0, "shift": 2})
    for have in (grid.FILE, grid.TIMES):
        before = (folder / grid.FILE).rename(folder / have).read_bytes()
        for name in (grid.FILE, grid.TIMES):
            message = r"\(lr = 0.05 there, 1.0; shift = 0 there, 2\): use another folder$"
            with pytest.raises(StudyError, match=message), grid.appending(folder, other, name):
                pass
        assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(have, before)]


def test_a_start_that_is_refused_leaves_nothing_behind(tmp_path):
    for changes in ({"model": "none"}, {"examples": 10**6}, {"data": str(tmp_path / "absent")}):
        with pytest.raises(StudyError):
            grid.run_all(tmp_path / "new", Protocol(**{**vars(TINY), **changes}), CELLS[:1], 1, lambda *_: None)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / grid.FILE).mkdir()
    with pytest.raises(StudyError, match=r"cells.jsonl: cannot be read: Is a directory$"):
        grid.read(tmp_path)


def test_two_processes_are_never_at_work_in_one_folder(folder):
    for name in (grid.FILE, grid.TIMES):  # and so none is timed while another one makes runs
        with grid.appending(folder, TINY, name):
            for other in (grid.FILE, grid.TIMES):
                with pytest.raises(StudyError, match=r"another process is at work in it$"):
                    grid.appending(folder, TINY, other).__enter__()
            assert len(grid.read(folder)) == 2  # to read is allowed


def test_where_nothing_can_be_written_one_line_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be written: "), grid.appending(tmp_path / "file", TINY):
        pass


def test_the_key_is_of_every_setting():
    cell = CELLS[0]
    others = {
        **{name: value + 1 for name, value in vars(TINY).items() if type(value) in (int, float)},
        **{name: value + "x" for name, value in vars(TINY).items() if type(value) is str},
        "drops": (0.5,),
        "flip": True,
    }
    assert set(others) == set(vars(TINY))
    made = made_from(TINY, cell)
    keys = [key_of({**made, "protocol": {**made["protocol"], name: value}}) for name, value in others.items()]
    changed_cells = {"kind": "clean", "level": 0.25, "method": "SB", "budget": 0.5, "seed": 9, "lr_scale": 2.0}
    assert set(changed_cells) == set(vars(cell))
    keys += [key_of({**made, "cell": {**made["cell"], name: value}}) for name, value in changed_cells.items()]
    keys += [key_of({**made, name: 0}) for name in grid.MADE_FROM]
    assert set(made) == set(grid.MADE_FROM)
    assert len({key_of(made), *keys}) == 1 + len(keys)


def test_what_a_run_was_made_from_is_more_than_its_settings(tmp_path, monkeypatch):
    """The arguments of its policy and its selector, the data, a file's labels, and the code."""
    labels = tmp_path / "labels.npy"
    np.save(labels, np.arange(1437) % 10)
    cell = Cell(f"file:{labels}", 1.0, "guarded SB", 1 / 3, 0)
    before = made_from(TINY, cell)
    assert before == made_from(TINY, cell)
    np.save(labels, np.arange(1437) % 9)
    assert differing(before, made_from(TINY, cell)) == {"labels"}
    before = made_from(TINY, cell)
    row = METHODS["guarded SB"]
    other_policy = dataclasses.replace(row, policy=lambda s: policies.NoiseGuard("uniform", s.chance, tau=2.0))
    other_selector = dataclasses.replace(row, selector=lambda s: selectors.NoiseGuard(selectors.TopLoss(16)))
    for other in (other_policy, other_selector, dataclasses.replace(row, pooled=False)):
        with monkeypatch.context() as patch:
            patch.setitem(METHODS, "guarded SB", other)
            assert differing(before, made_from(TINY, cell)) == {"method"}
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "CODE", provenance.CODE + 1)
        assert differing(before, made_from(TINY, cell)) == {"code"}
    digits = load("digits")
    for split in (digits.train, digits.test):
        for tensor in (split.images, split.labels):
            provenance._data.cache_clear()
            with monkeypatch.context() as patch:
                patch.setattr(provenance, "whole", lambda source: digits)
                tensor[-1] += 1
                assert differing(before, made_from(TINY, cell)) == {"data"}
                tensor[-1] -= 1
    provenance._data.cache_clear()
    assert before == made_from(TINY, cell)


def differing(before, after):
    return {name for name in before if before[name] != after[name]}


def test_a_folder_with_runs_made_from_something_else_is_refused_with_what_differs(folder, monkeypatch):
    before = (folder / grid.FILE).read_bytes()
    monkeypatch.setattr(provenance, "CODE", provenance.CODE + 1)
    sb = dataclasses.replace(METHODS["SB"], selector=lambda s: selectors.SelectiveBackprop(16, 2.0, 512))
    monkeypatch.setitem(METHODS, "SB", sb)
    code = f"code = {provenance.CODE - 1} there, {provenance.CODE}"
    with pytest.raises(StudyError, match=rf"made from something else \({code}\): use another folder$"):
        grid.run_all(folder, TINY, CELLS, 1, lambda *_: None)
    monkeypatch.setattr(provenance, "CODE", provenance.CODE - 1)
    with pytest.raises(StudyError, match=r"\(history = 1024 there, 512\): use another folder$"):
        grid.run_all(folder, TINY, CELLS, 1, lambda *_: None)
    assert (folder / grid.FILE).read_bytes() == before


def test_what_no_longer_fits_on_the_disk_is_one_line_and_the_part_that_did_is_dropped(folder):
    first, run = grid.read(folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (folder / grid.FILE).stat().st_size
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with grid.appending(folder, TINY) as add:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limit[1]))
            with pytest.raises(StudyError, match=r"cells.jsonl: cannot be written: "):
                add(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert grid.read(folder) == [first, run]
    with grid.appending(folder, TINY) as add:
        add(run)
    assert grid.read(folder) == [first, run, run]


def test_runs_that_were_finished_together_are_stored_before_any_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "FIRST_COMPLETED", ALL_COMPLETED)

    def told(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid.run_all(tmp_path, TINY, CELLS[:2], 2, told)
    assert {grid.cell_of(run) for run in grid.read(tmp_path)} == set(CELLS[:2])


# In turns.


def test_runs_in_turns_have_the_results_of_runs_alone(uninterrupted):
    torch.manual_seed(1)
    shares = []
    lines = in_turns(TINY, CELLS[:8], shares.append)
    assert [said_of(line) for line in lines] == [said_of(uninterrupted[cell]) for cell in CELLS[:8]]
    assert shares == sorted(shares)
    assert len(shares) > len(CELLS[:8])
    assert 0 < shares[0] < 0.05
    assert shares[-1] == 1.0


def test_the_share_that_is_done_is_said_once_in_half_a_minute(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    told, lines = command.Share("labels 50, seed 0"), []
    for second in range(1, 101):
        now[0] = 100.0 + second
        told(second / 250)
        lines += [(second, line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [(30 * k, f"labels 50, seed 0: {12 * k} %") for k in (1, 2, 3)]


# What a column is called.


def test_a_column_is_called_by_its_kind_and_its_share_and_of_rare_classes_by_what_is_kept():
    names = {
        ("clean", 0.0): "clean",
        ("labels", 0.5): "labels 50",
        ("gauss", 0.125): "gauss 12.5",
        ("rare", 0.98): "rare 2",
        ("rare", 0.5): "rare 50",
        ("rare", 1.0): "rare 0",
        ("file:a.npy", 1.0): "file:a.npy",
    }
    assert {of: Cell(*of, "uniform", 1.0, 0).column for of in names} == names


# The presets.


def test_every_run_of_a_preset_can_be_made_and_comes_once():
    for name, preset in PRESETS.items():
        preset.protocol.check()
        cells = preset.cells()
        assert preset.protocol.name == name
        assert len(set(cells)) == len(cells)
        assert {cell.method for cell in cells} <= set(METHODS)
        assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


# The command.


def said(capsys, *words):
    """(status, stdout, stderr) of ``fastprio study``."""
    try:
        status = main(["study", *map(str, words)])
    except SystemExit as exit:
        status = exit.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "lr"], "--set lr: expected NAME=VALUE with NAME one of data, model, "),
        (["--set", "speed=9"], "--set speed=9: expected NAME=VALUE"),
        (["--set", "name=mine"], "--set name=mine: expected NAME=VALUE"),
        (["--set", "epochs=ten"], "--set epochs=ten: expected a value like 20"),
        (["--set", "epochs=2.5"], "--set epochs=2.5: expected a value like 20"),
        (["--set", "flip=maybe"], "--set flip=maybe: expected a value like False"),
        (["--set", "drops=a,b"], "--set drops=a,b: expected a value like 0.6,0.8"),
        (["--set", "epochs=0"], "epochs = 0: expected at least 1"),
        (["--set", "lr=nan"], "lr = nan: expected a finite number above 0"),
        (["--set", "shift=-1"], "shift = -1: expected at least 0"),
        (["--set", "evaluate=training"], "evaluate = 'training': expected test or validation"),
        (["--methods", "magic"], "method = 'magic': expected one of uniform, "),
        (["--methods", ""], "method = '': expected one of uniform, "),
        (
            ["--columns", "salt"],
            "--columns salt: expected clean, file:PATH, or KIND:LEVEL with KIND one of labels, symmetric, pair, "
            "shuffle, gauss, rare and 0 <= LEVEL <= 1\n",
        ),
        *(
            (["--columns", f"clean,{text}"], f"--columns {text}: expected clean, file:PATH, or KIND:LEVEL")
            for text in (
                *("labels", "symmetric", "pair", "shuffle", "gauss", "rare", "rare:", "rare:-0.1", "labels:2"),
                *("labels:nan", "labels:half", "salt:0.5", "clean:0", "clean:0.5", ":0.5", "0.5", ":", "file:"),
            )
        ),
        (["--columns", ""], "--columns : expected clean, "),
        (["--seeds", "one"], "--seeds one: expected a number below 2^63, or two as in 100-102"),
        (["--seeds", "99999999999999999999"], "--seeds 99999999999999999999: expected a number below 2^63"),
        (["--seeds", "5-3"], "--seeds 5-3: expected a number"),
        (["--seeds", "-1"], "--seeds -1: expected a number"),
    ],
)
@pytest.mark.parametrize("action", ["run", "time"])
def test_misuse_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, action, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "run_all", None)  # is not reached
    monkeypatch.setattr(command, "in_turns", None)
    words = [f"{words[0]}={words[1]}"]
    status, out, err = said(capsys, action, "quick", *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"fastprio study: {message}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())  # and nothing was begun


def test_workers_are_one_at_least(tmp_path, capsys):
    for number in (0, -1):
        expected = f"fastprio study: --workers {number}: expected at least 1\n"
        assert said(capsys, "run", "quick", "--out", tmp_path, f"--workers={number}") == (2, "", expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [[], ["walk"], ["run"], ["run", "slow"], ["run", "quick", "--workers", "two"], ["time", "quick", "--fast"]]
)
def test_what_the_command_does_not_know_is_status_2(capsys, words):
    status, out, err = said(capsys, *words)
    assert (status, out) == (2, "")
    assert "error: " in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set=data=nowhere"], "nowhere: no such folder"),
        (["--set=model=small"], "model = 'small': expected one of"),
        (["--set=examples=2000"], "examples + validation = 2200: digits has 1437 training examples"),
        (["--set=device=abacus"], "device = 'abacus': "),
        (["--columns=file:nowhere.npy"], "nowhere.npy: cannot be read as labels"),
    ],
)
def test_what_does_not_fit_the_data_is_one_line_too(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = said(capsys, "time", "quick", "--methods", "uniform", "--seeds", "0", *words)
    assert status == 2
    assert err.startswith(f"fastprio study: {message}")
    assert err.count("\n") == 1
    assert grid.read(tmp_path / "fastprio-study" / "quick", grid.TIMES) == []


def test_the_list_is_of_what_is_wanted_and_what_is_done_and_nothing_is_made(folder, capsys):
    before = (folder / grid.FILE).read_bytes()
    status, out, err = said(capsys, *RUN[1:], "--out", folder, "--list")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == len(CELLS)
    done = [line[4:].strip() for line in out.splitlines() if line.startswith("done")]
    assert done == ["labels 50, uniform, seed 0", "labels 50, SB 33 %, seed 0"]
    assert (folder / grid.FILE).read_bytes() == before
    # The folder is not one for other settings, and the runs that may be compared in seconds are other ones.
    status, out, err = said(capsys, *RUN[1:], "--set", "lr=1", "--out", folder, "--list")
    assert (status, out) == (2, "")
    assert "has runs made from something else (lr = " in err
    _, out, _ = said(capsys, "time", *RUN[2:], "--out", folder, "--list")
    assert len(out.splitlines()) == len(CELLS)
    assert "done" not in out
    assert sorted(path.name for path in folder.iterdir()) == [grid.FILE]


def chosen(*words):
    parser = command.argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["run", *words])
    return command.protocol_for(args), command.cells_for(args)


def test_methods_columns_and_seeds_choose_among_the_runs():
    protocol, cells = chosen("quick")
    assert (protocol, cells) == (PRESETS["quick"].protocol, PRESETS["quick"].cells())
    assert chosen(*RUN[2:]) == (TINY, CELLS)
    _, some = chosen("quick", "--methods", "SB,VR")
    assert some == [cell for cell in cells if cell.method in ("SB", "VR")]
    _, some = chosen("quick", "--methods", "uniform", "--columns", "clean,pair:0.25,rare:1", "--seeds", "7-9")
    assert {(cell.kind, cell.level, cell.seed) for cell in some} == {
        (kind, level, seed) for kind, level in (("clean", 0), ("pair", 0.25), ("rare", 1)) for seed in (7, 8, 9)
    }
    assert [cell.seed for cell in some] == sorted(cell.seed for cell in some)
    assert len(set(some)) == len(some) == 9
    _, some = chosen("quick", "--methods", "uniform", "--columns", "file:/a/b.npy,file:c:0.5", "--seeds", "3")
    assert {(cell.kind, cell.level, cell.seed) for cell in some} == {("file:/a/b.npy", 1, 3), ("file:c:0.5", 1, 3)}


def test_choosing_takes_away_and_adds_only_what_the_preset_does_not_have():
    _, cells = chosen("paper-small")
    columns = {(cell.kind, cell.level) for cell in cells}
    words = ",".join("clean" if kind == "clean" else f"{kind}:{level}" for kind, level in columns)
    assert chosen("paper-small", "--columns", words)[1] == cells
    assert chosen("paper-small", "--seeds", "0-5")[1] == cells
    _, some = chosen("paper-small", "--columns", "shuffle:0.25,labels:0.5", "--seeds", "1-4")
    wanted = (("shuffle", 0.25), ("labels", 0.5))
    assert some == [cell for cell in cells if (cell.kind, cell.level) in wanted and 1 <= cell.seed <= 4]
    _, some = chosen("paper-small", "--columns", "pair:0.25", "--seeds", "0")
    rows = {cell.row for cell in cells if cell.kind == "clean" and cell.seed == 0 and cell.lr_scale == 1}
    assert {cell.row for cell in some} == rows
    assert len(some) == len(rows)
    _, some = chosen("paper-small", "--columns", "clean", "--seeds", "9")
    first = [cell for cell in cells if cell.kind == "clean" and cell.seed == 0]
    assert some == [dataclasses.replace(cell, seed=9) for cell in first]


def test_settings_are_of_the_kind_that_they_had():
    given = {"lr": "1", "drops": "0.5", "flip": "TRUE", "evaluate": "validation", "epochs": "3", "data": "a=b"}
    protocol, _ = chosen("quick", *(word for name, text in given.items() for word in ("--set", f"{name}={text}")))
    read = {"lr": 1.0, "drops": (0.5,), "flip": True, "evaluate": "validation", "epochs": 3, "data": "a=b"}
    assert vars(protocol) == {**vars(PRESETS["quick"].protocol), **read}
    assert type(protocol.lr) is float
    assert chosen("quick", "--set", "drops=")[0].drops == ()


def test_times_are_of_whole_columns_and_not_made_twice(tmp_path, capsys, uninterrupted):
    words = ["time", *RUN[2:], "--seeds", "0-1", "--out", tmp_path]
    status, out, err = said(capsys, *words)
    assert (status, err) == (0, "")
    end = f"{tmp_path / grid.TIMES} has 8. For the report: fastprio study report {tmp_path}"
    turns = [f"labels 50, seed {seed}: 4 runs in turns" for seed in (0, 1)]
    assert out.splitlines() == [*turns, f"8 of 8 made now; {end}"]
    times = grid.read(tmp_path, grid.TIMES)
    assert [said_of(run) for run in times] == [said_of(uninterrupted[cell]) for cell in CELLS if cell.seed < 2]
    assert said(capsys, *words) == (0, f"0 of 8 made now; {end}\n", "")
    assert grid.read(tmp_path, grid.TIMES) == times


def test_the_command_says_how_much_of_a_group_is_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "SILENCE", 0.0)
    status, out, err = said(capsys, "time", *RUN[2:], "--seeds", "0", "--out", tmp_path)
    first, *shares, _ = out.splitlines()
    assert (status, err, first) == (0, "", "labels 50, seed 0: 4 runs in turns")
    assert len(shares) > 4
    assert shares[-1] == "labels 50, seed 0: 100 %"
    numbers = [int(line.removeprefix("labels 50, seed 0: ").removesuffix(" %")) for line in shares]
    assert numbers == sorted(numbers)


def test_a_group_of_times_is_written_at_once_and_where_it_was_cut_the_report_has_what_was_made_together(
    tmp_path, capsys, monkeypatch, uninterrupted
):
    turn, file = [0], tmp_path / grid.TIMES

    def in_turns(protocol, cells, told):
        assert not file.read_bytes() or file.read_bytes().endswith(b"\n")
        turn[0] += 1
        return [{**uninterrupted[cell], "result": {**uninterrupted[cell]["result"], "turn": turn[0]}} for cell in cells]

    monkeypatch.setattr(command, "in_turns", in_turns)
    words = ["time", *RUN[2:], "--seeds", "0", "--out", tmp_path]
    syncs, fsync = [], os.fsync
    monkeypatch.setattr(grid.os, "fsync", lambda at: syncs.append(file.read_bytes().count(b"\n")) or fsync(at))
    assert said(capsys, *words)[0] == 0
    assert syncs == [4]  # all of them, or none
    whole = file.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {0, 1, *ends, *(end - 1 for end in ends), *generator(2).integers(0, len(whole), 10).tolist()}:
        file.write_bytes(whole[:cut])
        turn[0] = 1
        assert said(capsys, *words)[0] == 0
        kept = Results(grid.read(tmp_path, grid.TIMES))
        assert [grid.cell_of(line) for line in kept.lines] == sorted(
            CELLS[:4], key=lambda cell: (list(METHODS).index(cell.method), -cell.budget)
        )
        assert {line["result"]["turn"] for line in kept.lines} == {1 if cut == len(whole) else 2}


def test_a_study_does_not_warn_of_epochs_without_a_batch(recwarn):
    protocol = Protocol(**{**vars(TINY), "examples": 15})
    for make in (grid.finish, lambda protocol, cell: in_turns(protocol, [cell])):
        with pytest.raises(StudyError, match="no whole batch came of 15 examples"):
            make(protocol, Cell("clean", 0.0, "InfoBatch", 1.0, 0))
    assert not recwarn.list
