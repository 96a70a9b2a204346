"""A saved store survives whatever happens while it is saved: a kill, a loss of power, a disk that fails."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import platform
import random
import signal
import time

import numpy as np
import pytest
from helpers import generator, in_both

from fastprio import ScoreStore, _file

SIZE = 40


def generation(number):
    """A store of which every byte that can differ follows from its generation."""
    store = ScoreStore(SIZE, "loss")
    rng = generator(number)
    for _ in range(3):
        store.update(rng.permutation(SIZE)[:9], rng.random(9).astype(np.float32))
    store.seed = number
    return store


def bytes_of(number, folder):
    path = folder / "of a generation"
    generation(number).save(path)
    content = path.read_bytes()
    path.unlink()
    return content


# Kills.


def save_for_ever(path, first, acknowledge):
    """What the child does: a generation after the other, each told of when it is saved."""
    for number in itertools.count(first):
        generation(number).save(path)
        os.write(acknowledge, number.to_bytes(4, "little"))


def killed_while_saving(path, first, saves, after):
    """The generation that was last acknowledged by a process that was killed; ``first`` - 1 if none was.

    saves: how many it is let make. after: seconds from then on.
    """
    ours, theirs = os.pipe()
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            save_for_ever(path, first, theirs)
        os._exit(1)
    os.close(theirs)
    told = b"".join(os.read(ours, 4) for _ in range(saves))
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    told += os.read(ours, 1 << 20)
    os.close(ours)
    assert os.WIFSIGNALED(status), "the child has ended by itself"
    return int.from_bytes(told[-4:], "little") if told else first - 1


@in_both(300, 10_000)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_kill_the_file_is_the_last_acknowledged_generation_or_a_newer_one(count, tmp_path):
    path, rng, last, midway = tmp_path / "store", random.Random(0), 9, 0
    begin = time.perf_counter()
    for number in range(last + 1):
        generation(number).save(path)
    each = (time.perf_counter() - begin) / (last + 1)
    for _ in range(count):
        acknowledged = killed_while_saving(path, last + 1, rng.randrange(3), rng.uniform(0, 2 * each))
        store = ScoreStore.load(path)
        assert acknowledged <= store.seed <= acknowledged + 1
        assert path.read_bytes() == bytes_of(store.seed, tmp_path)
        beside = [other for other in tmp_path.iterdir() if other != path]
        midway += len(beside)
        assert len(beside) <= 1, "what the one before has left was not taken away"
        last = store.seed
    assert last > count // 2
    assert midway > count // 50, "no kill has come in the middle of a save"
    generation(last).save(path)
    assert os.listdir(tmp_path) == [path.name]


def test_only_what_the_dead_have_left_is_taken_away(tmp_path):
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    path, mark = tmp_path / "store", f".store.{platform.node()}"
    kept = [
        f"{mark}.{os.getpid()}.0123abcd",
        f"{mark}.1.0123abcd",
        f"{mark}.{process}.0123abcd.bak",
        f"{mark}.{10**30}.0123abcd",
        f".other.{platform.node()}.{process}.0123abcd",
        f".store.another machine.{process}.0123abcd",
        "another file",
    ]
    for name in (*kept, f"{mark}.{process}.0123abcd"):
        (tmp_path / name).touch()
    generation(1).save(path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "store"])


# Loss of power, and failing calls: a disk that keeps a log of what was asked of it.


class Disk:
    """In place of ``os`` in ``fastprio._file``: does what it is asked to, and notes what a disk would be told.

    Args: failing: the number of the operation that fails, from 0; code: with which errno. most: bytes a write takes.
    """

    def __init__(self, failing=None, code=errno.EIO, most=1 << 20):
        self.log, self.failing, self.code, self.most, self.files = [], failing, code, most, {}

    def __getattr__(self, name):
        return getattr(os, name)

    def note(self, *operation):
        if len(self.log) == self.failing:
            self.log.append(("failed",))
            raise OSError(self.code, "injected")
        self.log.append(operation)

    def open(self, path, flags, mode=0o777):
        creates = flags & os.O_CREAT
        if creates:
            self.note("create", os.path.basename(path))
        handle = os.open(path, flags, mode)
        self.files[handle] = os.path.basename(path) if creates else None
        return handle

    def fdopen(self, handle, mode):
        return io.BufferedWriter(Raw(self, handle), buffer_size=500)

    def fsync(self, handle):
        self.note("sync", self.files[handle])
        os.fsync(handle)

    def replace(self, before, after):
        self.note("rename", os.path.basename(before), os.path.basename(after))
        os.replace(before, after)


class Raw(io.FileIO):
    """The file under the buffer, as far as its writes go."""

    def __init__(self, disk, handle):
        super().__init__(handle, "wb")
        self.disk, self.handle = disk, handle

    def write(self, data):
        piece = bytes(data)[: self.disk.most]
        self.disk.note("write", self.disk.files[self.handle], self.tell(), piece)
        return super().write(piece)


def after_a_crash(log, folder):
    """Every content of the folder {name: bytes} that a loss of power at the end of the log may leave.

    Of what was not synced each write is there, is not, or left garbage; of the names' changes since the folder was
    synced the first few.
    """
    done, waiting = {}, {}  # writes of each file, by the name that it was made with
    names, pending = {name: name for name in folder}, []
    for operation, *what in log:
        if operation == "create":
            done[what[0]], waiting[what[0]] = [], []
            pending.append((what[0], what[0]))
        elif operation == "write":
            waiting[what[0]].append((what[1], what[2]))
        elif operation == "rename":
            pending.append((what[0], what[1]))
        elif what[0] is not None:
            done[what[0]] += waiting[what[0]]
            waiting[what[0]] = []
        else:
            for change in pending:
                renamed(names, *change)
            pending = []
    unsynced = [(name, *write) for name, writes in waiting.items() for write in writes]
    for fates in itertools.product(("there", "absent", "garbage"), repeat=len(unsynced)):
        contents = {name: bytearray(content) for name, content in folder.items()}
        contents |= {name: bytearray() for name in done}
        kept = [(name, *write) for name, writes in done.items() for write in writes]
        kept += [
            (name, at, data if fate == "there" else b"\xa5" * len(data))
            for (name, at, data), fate in zip(unsynced, fates, strict=True)
            if fate != "absent"
        ]
        for name, at, data in kept:
            content = contents[name]
            content.extend(bytes(max(0, at + len(data) - len(content))))
            content[at : at + len(data)] = data
        for count in range(len(pending) + 1):
            there = dict(names)
            for change in pending[:count]:
                renamed(there, *change)
            yield {name: bytes(contents[made_as]) for name, made_as in there.items()}


def renamed(names, before, after):
    """``names``: name in the folder -> the name that its file was made with."""
    names[after] = names.pop(before, before)


def logged(path, monkeypatch, number, **arguments):
    """The log of saving a generation, and what was raised."""
    disk = Disk(**arguments)
    with monkeypatch.context() as patch:
        patch.setattr(_file, "os", disk)
        try:
            generation(number).save(path)
        except OSError as error:
            return disk.log, error
    return disk.log, None


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "store"
    generation(1).save(path)
    return path


def outcomes(log, old, new):
    """What crashes leave, by how many operations were done: a set of "old", "new" and "damaged" for each."""
    found = []
    for count in range(len(log) + 1):
        states = after_a_crash(log[:count], {"store": old})
        found.append({{old: "old", new: "new"}.get(state.get("store"), "damaged") for state in states})
    return found


def test_after_a_loss_of_power_the_file_is_the_old_or_the_new_one_and_the_new_one_once_it_is_saved(
    saved, tmp_path, monkeypatch
):
    old, new = saved.read_bytes(), bytes_of(2, tmp_path)
    log, error = logged(saved, monkeypatch, 2)
    assert error is None
    assert saved.read_bytes() == new
    assert len([operation for operation in log if operation[0] == "write"]) >= 3
    found = outcomes(log, old, new)
    assert found[0] == {"old"}
    assert found[-1] == {"new"}
    assert set().union(*found) == {"old", "new"}


@pytest.mark.parametrize(("left_out", "bad"), [(0, "damaged"), (1, "old")])
def test_without_either_sync_that_would_not_hold(left_out, bad, saved, tmp_path, monkeypatch):
    old, new = saved.read_bytes(), bytes_of(2, tmp_path)
    log, _ = logged(saved, monkeypatch, 2)
    syncs = [number for number, operation in enumerate(log) if operation[0] == "sync"]
    assert len(syncs) == 2
    del log[syncs[left_out]]
    assert bad in outcomes(log, old, new)[-1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_whatever_operation_fails_a_whole_file_is_left_and_nothing_beside(code, saved, tmp_path, monkeypatch):
    old, new = saved.read_bytes(), bytes_of(2, tmp_path)
    log, _ = logged(saved, monkeypatch, 2)
    for failing, operation in enumerate(log):
        saved.write_bytes(old)
        _, error = logged(saved, monkeypatch, 2, failing=failing, code=code)
        assert error is not None, operation
        assert error.errno == code
        assert saved.read_bytes() == (new if operation == ("sync", None) else old), operation
        assert os.listdir(tmp_path) == ["store"], operation


def test_an_interrupted_write_is_tried_again(saved, tmp_path, monkeypatch):
    new = bytes_of(2, tmp_path)
    log, _ = logged(saved, monkeypatch, 2)
    for failing in (number for number, operation in enumerate(log) if operation[0] == "write"):
        generation(1).save(saved)
        log, error = logged(saved, monkeypatch, 2, failing=failing, code=errno.EINTR)
        assert (error, log[failing]) == (None, ("failed",))
        assert saved.read_bytes() == new


@pytest.mark.parametrize("most", [1, 7, 499])
def test_a_disk_that_takes_little_at_a_time_gets_it_all(most, saved, tmp_path, monkeypatch):
    log, error = logged(saved, monkeypatch, 2, most=most)
    assert error is None
    assert max(len(operation[3]) for operation in log if operation[0] == "write") == most
    assert saved.read_bytes() == bytes_of(2, tmp_path)
