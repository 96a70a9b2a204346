"""A study's folder: runs are made by worker processes, and each finished one is a line of a file.

``cells.jsonl`` has a line of JSON for each run: what it was made from, the hash of that, versions, machine and date,
and the result. A line is written whole and synced before the next run of its worker begins, so that a study that is
stopped at any moment has lost at most the runs under way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from fastprio.bench import stamp
from fastprio.study.files import StudyError
from fastprio.study.methods import find
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.provenance import key_of, made_from
from fastprio.study.training import Run, as_a_study

FILE = "cells.jsonl"
TIMES = "times.jsonl"
"""The same, of runs that were made in turns: their seconds may be compared."""
MADE_FROM = "protocol", "cell", "method", "data", "labels", "code"
COMMON = "protocol", "data", "code"
"""What all runs of a folder have in common."""


def read(folder: Path, name: str = FILE) -> list[dict[str, Any]]:
    """The finished runs of a folder, in the order in which they were finished; none if there is no file.

    A last line that was cut short is passed over: the run is made again.

    Raises: StudyError: a line that is not a run's, or runs that do not have ``COMMON`` in common.
    """
    path = folder / name
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            run = json.loads(line)
        except ValueError as error:
            again = "take the line away, and its run is made again"
            raise StudyError(f"{path}, line {number}: damaged, {error}: {again}") from error
        try:
            key, made, _ = run["key"], {name: run[name] for name in MADE_FROM}, run["result"]
            protocol_of(run), find(cell_of(run).method)
        except (ValueError, TypeError, KeyError, StudyError) as error:
            raise StudyError(f"{path}, line {number}: not a run of this version: {error}") from error
        if key != key_of(made):
            raise StudyError(f"{path}, line {number}: its key is not that of its settings")
        found.append(run)
        for part in COMMON:
            if run[part] != found[0][part]:
                raise StudyError(f"{path}, line {number}: another {part} than in line 1: a folder has the runs of one")
    return found


def protocol_of(run: dict[str, Any]) -> Protocol:
    """The protocol that a line states."""
    return Protocol(**{**run["protocol"], "drops": tuple(run["protocol"]["drops"])})


def cell_of(run: dict[str, Any]) -> Cell:
    """The cell that a line states."""
    return Cell(**run["cell"])


@contextlib.contextmanager
def appending(folder: Path, protocol: Protocol, name: str = FILE) -> Iterator[Callable[..., None]]:
    """The folder for writing, by one process at a time: gives a function that adds runs, of one call in one write.

    A folder that was made for it and a file without a run are taken away in the end.

    Raises: StudyError: another process has it, it has runs that would be made from something else now, or it cannot be
    written.
    """
    with contextlib.ExitStack() as stack:
        try:
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                stack.callback(_rmdir, folder)
            whole = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, whole)
            # The whole folder: seconds are not to be measured while other runs are made.
            fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = stack.enter_context((folder / name).open("a+b", buffering=0))
        except BlockingIOError as error:
            raise StudyError(f"{folder}: another process is at work in it") from error
        except OSError as error:
            raise _unwritable(folder / name, error) from error
        stack.callback(_drop_empty, folder / name)
        check(folder, protocol)
        _drop_cut_line(file)

        def add(*runs: dict[str, Any]) -> None:
            lines = b"".join(json.dumps(run).encode() + b"\n" for run in runs)
            try:
                if file.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:
                raise _unwritable(folder / name, error) from error

        yield add


def _unwritable(path: Path, error: OSError) -> StudyError:
    return StudyError(f"{path}: cannot be written: {error.strerror}")


def check(folder: Path, protocol: Protocol) -> None:
    """Raises StudyError if a folder has a run of another protocol, or that would be made from something else now."""
    for run in (*read(folder), *read(folder, TIMES)):
        # As it comes back from a file: lists for tuples.
        now = json.loads(json.dumps(made_from(protocol, cell_of(run))))
        differ = [
            f"{name} = {before!r} there, {after!r}"
            for part in MADE_FROM
            for name, before, after in _differences(part, run[part], now[part])
        ]
        if differ:
            raise StudyError(f"{folder} has runs made from something else ({'; '.join(differ)}): use another folder")


def _differences(name: str, before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        return [found for key in before for found in _differences(key, before[key], after[key])]
    return [] if before == after else [(name, before, after)]


def _rmdir(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()


def _drop_empty(path: Path) -> None:
    if path.exists() and not path.stat().st_size:
        path.unlink()


def _drop_cut_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def finish(protocol: Protocol, cell: Cell) -> dict[str, Any]:
    """Makes a run, on one thread: its line."""
    begin = time.perf_counter()
    with as_a_study():
        run = Run(protocol, cell)
        for _ in run.steps():
            pass
        result = run.result()
    return line(protocol, cell, {**result, "whole_seconds": time.perf_counter() - begin})


def line(protocol: Protocol, cell: Cell, result: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a run."""
    made = made_from(protocol, cell)
    return {"key": key_of(made), **made, **stamp("fastprio study"), "result": result}


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the end. Processes that are begun within never see it: the parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot end its workers, and their queue would not tell them.
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def run_all(
    folder: Path,
    protocol: Protocol,
    cells: Sequence[Cell],
    workers: int,
    told: Callable[[dict[str, Any], int, int], None],
) -> int:
    """Makes the runs that the folder does not have yet, in order, ``workers`` at a time, each in a process.

    Args: told: called with each finished line, how many are done and how many there are.

    Returns: how many were made. KeyboardInterrupt stops at once; what was finished is stored.

    Raises: StudyError: a worker that was killed; or what a run raised. What was finished is stored.
    """
    with appending(folder, protocol) as add:
        have = {cell_of(run) for run in read(folder)}
        waiting = [cell for cell in cells if cell not in have]
        done = len(cells) - len(waiting)
        if not waiting:
            return 0
        # Not forked: torch's and Numba's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
        try:
            under_way: set[Future[dict[str, Any]]] = set()
            ahead = iter(waiting)
            while True:
                while len(under_way) < workers and (cell := next(ahead, None)) is not None:
                    with _interrupts_later():
                        under_way.add(pool.submit(finish, protocol, cell))
                if not under_way:
                    return len(waiting)
                ready, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                made = [future.result() for future in ready if future.exception() is None]
                add(*made)
                for run in made:
                    done += 1
                    told(run, done, len(cells))
                for future in ready:
                    future.result()  # raises what it raised
        except BrokenProcessPool as error:
            raise StudyError(
                f"a worker process was killed, perhaps for want of memory; {folder} has the runs that were finished: "
                "start it again to go on"
            ) from error
        finally:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)
