"""Promise: one thread may draw while another trains, saves and edits: no deadlock, nothing torn, nothing mixed up."""

import contextlib
import faulthandler
import queue
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import audit, generator

from fastprio import Checkpoint, PriorityBatchSampler, PrioritySampler, ScoreStore
from fastprio.policies import Policy

SECONDS = 120


@pytest.fixture(autouse=True)
def _nothing_hangs():
    """Threads change places as often as they can, and a deadlock ends the run, with every thread's stack."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    sys.setswitchinterval(before)


class Credit(Policy):
    """Losses say whose they are: index + a part below 1, which is the priority. Counts how often each was stepped."""

    columns = {"loss": "float32", "count": "int64"}  # noqa: RUF012

    def observe(self, columns, indices, obs, clock, rng):
        wrong = np.floor(obs.loss) != indices
        assert not wrong.any(), f"losses of {obs.loss[wrong][:4]} credited to {indices[wrong][:4]}"
        columns["loss"][indices] = obs.loss
        np.add.at(columns["count"], indices, 1)
        return obs.loss - np.floor(obs.loss)


def losses_of(indices, at):
    return torch.as_tensor(indices, dtype=torch.float32) + (at % 7 + 1) / 8


def make(n, batch, kind="batches", lag=None):
    """(sampler, what to iterate over)."""
    sampler = PrioritySampler(ScoreStore(n, Credit()), batch_size=None if kind == "free" else batch, seed=1, lag=lag)
    return sampler, PriorityBatchSampler(sampler, batch) if kind == "batches" else sampler


def in_batches(drawn, batch):
    """The lists that a loader makes of single draws; those of a batch sampler as they are."""
    whole = []
    for item in drawn:
        if isinstance(item, list):
            yield item
            continue
        whole.append(item)
        if len(whole) == batch:
            yield whole
            whole = []
    if whole:
        yield whole


@contextlib.contextmanager
def threads(*targets):
    """Runs them meanwhile, again and again if they ask for no more than that; what one raises is raised here."""
    stop, errors = threading.Event(), []

    def run(target):
        try:
            while not stop.is_set() and not errors:
                if target() is False:
                    return
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in running:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in running:
            thread.join(SECONDS)
        if errors:
            raise errors[0]


def drawn_elsewhere(source, batch, ahead=3):
    """The batches of one iteration, drawn in a thread up to ``ahead`` before they are asked for."""
    between, given_up = queue.Queue(ahead), threading.Event()

    def put(item):
        while not given_up.is_set():
            with contextlib.suppress(queue.Full):
                between.put(item, timeout=0.01)
                return True
        return False

    def draw():
        all(put(item) for item in in_batches(source, batch))
        put(None)
        return False

    with threads(draw) as errors:
        try:
            while True:
                try:
                    item = between.get(timeout=0.1)
                except queue.Empty:
                    if errors:
                        return
                    continue
                if item is None:
                    return
                yield item
        finally:
            given_up.set()


def train(sampler, source, batch, epochs, each_step=lambda step: None):
    """Steps every batch that was drawn elsewhere; every third epoch is broken off. Returns how often each came."""
    came, step = np.zeros(len(sampler.store), np.int64), 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches = drawn_elsewhere(source, batch)
        for number, indices in enumerate(batches):
            assert sampler.indices[: len(indices)].tolist() == indices
            sampler.step(losses_of(indices, step))
            step += 1
            each_step(step)
            came = np.pad(came, (0, len(sampler.store) - len(came)))
            np.add.at(came, indices, 1)
            if epoch % 3 == 2 and number == 4:
                break
        batches.close()
    sampler.flush()
    return came, step


def check_whole(sampler, came):
    """Every step was credited once, to its own rows; sums are those of the priorities; the journal is empty."""
    store = sampler.store
    np.testing.assert_array_equal(store.column("count"), came)
    np.testing.assert_array_equal(store.seen(), came > 0)
    seen = came > 0
    np.testing.assert_array_equal(np.floor(store.column("loss")[seen]), np.flatnonzero(seen))
    audit(store.tree)
    assert not sampler._feedback.waiting


@pytest.mark.parametrize("lag", [None, 5])
@pytest.mark.parametrize(
    ("kind", "batch", "n", "epochs"),
    [
        ("batches", 16, 2000, 60),
        ("singles", 16, 2000, 40),
        ("batches", 4096, 1 << 16, 60),
        ("singles", 4096, 1 << 16, 40),
    ],
)
def test_others_save_read_and_edit_while_one_draws_and_one_trains(kind, batch, n, epochs, lag):
    sampler, source = make(n, batch, kind, lag)
    store, rng, calls = sampler.store, generator(1), [0]

    def others():
        Checkpoint(sampler).state_dict()
        sampler.state_dict()
        sampler.stats()
        store.state_dict()
        rows = rng.integers(0, n, 1 + batch // 4)
        store.set_priorities(rows, rng.random(rows.size, np.float32) + np.float32(0.1))
        calls[0] += 5

    with threads(others):
        came, steps = train(sampler, source, batch, epochs)
    assert steps > epochs * 5
    assert calls[0] > 50
    check_whole(sampler, came)


def test_single_draws_are_taken_back_while_they_are_taken():
    sampler, source = make(3000, 8, "free")
    store, rng = sampler.store, generator(2)

    def edits():
        rows = rng.integers(0, 3000, 5)
        store.set_priorities(rows, rng.random(5, np.float32) + np.float32(0.1))
        sampler.state_dict()

    with threads(edits):
        came, steps = train(sampler, source, 8, 24)
    assert steps > 24 * 100
    check_whole(sampler, came)


@pytest.mark.parametrize("kind", ["batches", "singles"])
def test_the_training_thread_saves_reads_edits_and_grows_the_store(kind):
    sampler, source = make(5000, 32, kind)
    store, rng = sampler.store, generator(3)

    def each_step(step):
        rows = rng.integers(0, len(store), 40)
        store.set_priorities(rows, rng.random(40, np.float32) + np.float32(0.1))
        if step % 5 == 0:
            Checkpoint(sampler).state_dict()
            sampler.stats()
        if step % 50 == 0:
            store.resize(len(store) + 100)

    came, steps = train(sampler, source, 32, 12, each_step)
    assert steps > 12 * 50
    assert len(store) >= 5000 + 100 * (steps // 50)
    check_whole(sampler, came)


@pytest.mark.parametrize("lag", [None, 4])
def test_a_state_saved_at_any_moment_has_whole_steps(lag, monkeypatch):
    sampler, source = make(1000, 16, lag=lag)
    checkpoint, consume, never, states = Checkpoint(sampler), sampler.journal.consume, threading.Event(), []

    def slowly(taken):
        never.wait(0.001)  # widens what lies between telling the store and noting that it was told
        consume(taken)

    monkeypatch.setattr(sampler.journal, "consume", slowly)

    def save():
        states.append(checkpoint.state_dict())

    with threads(save):
        train(sampler, source, 16, 1)
    positions = {state["sampler"]["position"] for state in states}
    assert len(positions) > 10
    for state in states:
        arrays = state["store"]["arrays"]
        waiting = sum(len(array) for name, array in arrays.items() if name.endswith(".losses"))
        assert int(arrays["column.count"].sum()) + waiting == state["sampler"]["position"]


@pytest.mark.parametrize("lag", [None, 4])
def test_from_any_state_training_goes_on_exactly(lag):
    sampler, source = make(1000, 16, lag=lag)
    checkpoint, saved, trained, saves = Checkpoint(sampler), {}, [], [0]

    def save():
        state = checkpoint.state_dict()
        if not state["sampler"]["over"]:
            saved[state["sampler"]["position"] // 16] = state
        saves[0] += 1

    with threads(save):
        for step, indices in enumerate(drawn_elsewhere(source, 16, ahead=2)):
            trained.append(indices)
            sampler.step(losses_of(indices, step))
            if step % 4 == 0:
                before = saves[0]
                while saves[0] < before + 2:
                    time.sleep(0.0002)
    chosen = sorted(step for step in saved if step > 0)[::4]
    assert len(chosen) > 2
    for step in chosen:
        again, its_source = make(1000, 16, lag=lag)
        Checkpoint(again).load_state_dict(saved[step])
        in_flight = saved[step]["store"]["kept"]["batches"]  # drawn by then; with lag the others are the same as well
        rest = []
        for indices in its_source if lag is None else drawn_elsewhere(its_source, 16, ahead=2):
            rest.append(indices)
            again.step(losses_of(indices, step + len(rest) - 1))
        end = in_flight if lag is None else len(trained)
        assert rest[: end - step] == trained[step:end]
        assert len(rest) == len(trained) - step


def test_a_sampler_that_is_saved_with_every_draw_counts_them_in_order():
    sampler, source = make(4000, 16)
    positions = []

    def save_after_each():  # as torchdata.nodes does, from the thread that draws
        for indices in source:
            positions.append(sampler.state_dict()["position"])
            yield indices

    came, _ = train(sampler, save_after_each(), 16, 1)
    assert positions == list(range(16, 4001, 16))
    check_whole(sampler, came)


@pytest.mark.parametrize("kind", ["batches", "singles", "free"])
def test_a_thread_that_still_draws_for_the_last_epoch_is_told_so(kind):
    sampler, source = make(20_000, 16, kind)
    errors = []

    def draw_on(iterator):
        try:
            for _ in iterator:
                pass
            errors.append(None)  # its draws were taken back, and it found nothing more
        except RuntimeError as error:
            errors.append(str(error))

    for epoch in range(20):
        iterator = iter(source)
        next(iterator)
        left_over = threading.Thread(target=draw_on, args=(iterator,), daemon=True)
        left_over.start()
        came = np.zeros(len(sampler.store), np.int64)
        for number, indices in enumerate(in_batches(source, 16)):
            assert sampler.indices[: len(indices)].tolist() == indices
            sampler.step(losses_of(indices, epoch))
            np.add.at(came, indices, 1)
            if number == 20:
                break
        left_over.join(SECONDS)
        assert not left_over.is_alive()
        assert sampler.journal.consumed_batches == 21
    assert len(errors) == 20
    told = [error for error in errors if error is not None]
    assert all("a newer iteration of this sampler has begun" in error for error in told)
    assert told


def test_what_goes_wrong_in_the_thread_that_draws_is_raised_where_it_is_asked_for():
    sampler, source = make(1000, 16, lag=0)
    with pytest.raises(RuntimeError, match="lag = 0: batch 1 is drawn when only 0"):
        list(drawn_elsewhere(source, 16))  # without a step
    assert sampler.journal.outstanding == 16
