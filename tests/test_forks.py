"""Promise: a child that is forked, or started anew, while other threads are at work neither hangs nor disturbs them."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from helpers import audit, generator
from test_store import lived_in
from torch.utils.data import DataLoader, Dataset

from fastprio import PriorityLoader, PrioritySampler, ScoreStore

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    # Now and then torch aborts a worker that is told to end, which has nothing of fastprio in it if it was not forked.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
multiprocessing.set_forkserver_preload(["fastprio", "torch.utils.data"])  # else each worker imports them for seconds
HANGS = 60  # seconds


def status_of_child(work):
    """The exit status of a forked child that does the work: None if it hangs, 1 if it raises."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class Held:
    """A thread that holds a lock for as long as the block lasts: the narrowest window, held wide open."""

    def __init__(self, lock):
        self.lock, self.held, self.release = lock, threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.hold)

    def hold(self):
        with self.lock:
            self.held.set()
            self.release.wait(2 * HANGS)

    def __enter__(self):
        self.thread.start()
        self.held.wait()

    def __exit__(self, *_):
        self.release.set()
        self.thread.join()


@pytest.mark.parametrize("which", ["store", "tree", "journal"])
def test_a_child_can_use_what_a_thread_of_its_parent_held_locked(which):
    store = lived_in()
    loader = PriorityLoader(range(len(store)), 5, policy=store)
    next(iter(loader))
    locks = {"store": store.lock, "tree": store.tree._lock, "journal": loader.sampler.journal._lock}

    def work():
        store.update([1, 2], [3.0, 4.0])
        store.tree.sample(5, seed=1)
        store.stats()
        loader.skip()

    with Held(locks[which]):
        assert status_of_child(work) == 0
    work()


def test_a_lock_that_is_inherited_held_is_noticed(monkeypatch):  # the control
    monkeypatch.setitem(globals(), "HANGS", 1)
    lock = threading.Lock()
    with Held(lock):
        assert status_of_child(lock.acquire) is None


class Looked(Dataset):
    """Data whose worker asks the store, as it was when the worker was forked."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, index):
        with contextlib.suppress(ValueError):  # the fork may have come in the middle of a change of the sums
            self.store.tree.sample(2, seed=index)
        return index


class Busy:
    """A thread that draws from a store and updates it without pause."""

    def __init__(self, store):
        self.store, self.rounds, self.over, self.error = store, 0, threading.Event(), None
        self.thread = threading.Thread(target=self.work)

    def work(self):
        rng = generator(0)
        try:
            while not self.over.is_set():
                at = rng.integers(0, len(self.store), 64)
                self.store.update(at, rng.random(64).astype(np.float32))
                self.store.tree.sample(64, seed=self.rounds)
                self.store.stats()
                self.rounds += 1
        except Exception as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


STARTS = {"fork": 200, "spawn": 20, "forkserver": 20}
"""How many workers are started, two at a time."""


@pytest.mark.parametrize(
    ("method", "starts"),
    [*STARTS.items(), *(pytest.param(method, 1000, marks=pytest.mark.long) for method in STARTS)],
)
def test_workers_start_while_another_thread_draws_and_updates(method, starts):
    store = ScoreStore(1000, "loss")
    data = Looked(store) if method == "fork" else range(len(store))  # no other start hands a store on
    loader = DataLoader(
        data,
        4,
        sampler=PrioritySampler(store, cover_first=False),
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(method),
        timeout=HANGS,  # a worker that hangs is an error then
    )
    with Busy(store) as busy:
        for _ in range(starts // 2):
            before = busy.rounds
            batches = iter(loader)
            assert len(next(batches)) == 4
            del batches
    assert busy.error is None
    assert busy.rounds > before
    audit(store.tree)
