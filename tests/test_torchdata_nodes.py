"""Promise: under torchdata.nodes, which draw in a thread, nothing is lost, mixed up, or other after a resume."""

import os
import runpy
import time

import pytest
import torch
from loader_helpers import loss_of
from rank_helpers import interleaved, on_ranks, state_of

pytest.importorskip("torchdata.nodes", reason="torchdata is not installed")

from torchdata.nodes import Batcher, Loader, Mapper, ParallelMapper, Prefetcher, SamplerWrapper

from fastprio import PriorityBatchSampler, PrioritySampler, ScoreStore, WithIndex
from fastprio.testing import assert_same_after_resume

N, BATCH = 101, 8
EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "examples", "torchdata_nodes.py")


def make(
    kind="batches", workers=1, prefetch=2, *, lag=None, snapshot=1, restart=True, fetch=torch.tensor, ranks=1, **more
):
    """A Loader, with its sampler as an attribute, by which ``fastprio.testing`` finds it."""
    sampler = PrioritySampler(ScoreStore(N, "loss", epochs=3), N + 1, batch_size=BATCH * ranks, seed=3, lag=lag)
    if kind == "batches":
        node = SamplerWrapper(PriorityBatchSampler(sampler, BATCH))
    else:
        node = Batcher(SamplerWrapper(sampler), BATCH, drop_last=False)
    if workers:
        node = ParallelMapper(node, fetch, num_workers=workers, snapshot_frequency=snapshot, **more)
    else:
        node = Mapper(node, fetch)
    if prefetch:
        node = Prefetcher(node, prefetch, snapshot_frequency=snapshot)
    loader = Loader(node, restart_on_stop_iteration=restart)
    loader.sampler = sampler
    return loader


def step(loader, batch, at=0):
    assert batch.tolist() == loader.sampler.indices[: len(batch)].tolist()
    loader.sampler.step(loss_of(batch, at))


def train_step(loader, batch):
    step(loader, batch, int(torch.randint(1000, ())))  # the harness has set torch's seed to the step's number


def ahead_of(loader, expected):
    """How many batches were drawn beyond this one, once the threads have had all the time they want."""
    sampler, end = loader.sampler, time.monotonic() + 1
    while time.monotonic() < end and sampler.journal.outstanding < (expected + 1) * BATCH:
        time.sleep(0.001)
    time.sleep(0.002)  # for one too many to be seen
    return -(-sampler.journal.outstanding // BATCH) - 1


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (1, 0), (0, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["batches", "singles"])
def test_draws_run_ahead_by_two_a_worker_and_what_is_prefetched(kind, workers, prefetch):
    expected = 2 * workers + prefetch
    loader = make(kind, workers, prefetch)
    for epoch in range(2):
        most = []
        for number, batch in enumerate(loader):
            if number < 3:
                most.append(ahead_of(loader, expected))
            step(loader, batch, epoch)
        assert most == [expected] * 3
        assert loader.sampler.epoch == epoch
        assert loader.sampler.store.all_seen()


def trained(loader, epochs, pause):
    found = []
    for _ in range(epochs):
        for batch in loader:
            time.sleep(pause())
            found.append((loader.sampler.epoch, batch.tolist(), loader.sampler.weights.tolist()))
            step(loader, batch, len(found))
    loader.sampler.flush()
    return found, state_of(loader.sampler.store)


@pytest.mark.parametrize("kind", ["batches", "singles"])
def test_with_lag_no_timing_changes_anything(kind):
    noise = torch.Generator().manual_seed(1)

    def now_and_then():
        return 0.003 * (torch.rand((), generator=noise) < 0.3).item()

    def slow_fetch(batch):
        time.sleep(now_and_then())
        return torch.tensor(batch)

    expected = trained(make(kind, 0, 0, lag=4), 3, lambda: 0)
    assert [epoch for epoch, _, _ in expected[0]] == [0] * 13 + [1] * 13 + [2] * 13
    assert trained(make(kind, 1, 2, lag=4), 3, lambda: 0) == expected
    assert trained(make(kind, 1, 2, lag=4, fetch=slow_fetch), 3, now_and_then) == expected


def on_each(rank):
    noise = torch.Generator().manual_seed(rank)
    return trained(make(lag=4, ranks=2), 3, lambda: 0.004 * torch.rand((), generator=noise).item())


def test_two_processes_whose_threads_draw_agree_with_lag():
    (first, store), (second, its_store) = on_ranks(2, on_each)
    plain, step = PrioritySampler(ScoreStore(N, "loss", epochs=3), N + 1, batch_size=2 * BATCH, seed=3, lag=4), 0
    for epoch in range(3):
        for batch in PriorityBatchSampler(plain, 2 * BATCH):
            (at, mine, _), (its, theirs, _) = first[step], second[step]
            assert at == its == epoch
            assert interleaved((mine, theirs)) == batch
            step += 1
            plain.step(loss_of(batch, step))
    plain.flush()
    assert len(first) == len(second) == step
    assert store == its_store == state_of(plain.store)


def go_on(loader, forgotten=None):
    """An epoch in which the threads have all the time they want, and one batch is not stepped."""
    for number, batch in enumerate(loader):
        ahead_of(loader, 4)
        if number != forgotten:
            loader.sampler.step(loss_of(batch))


def test_a_lag_below_what_is_read_ahead_is_an_error_that_says_so():
    loader = make(workers=1, prefetch=2, lag=3)
    with pytest.raises(RuntimeError, match="pass as lag what the loader reads ahead"):
        go_on(loader)


@pytest.mark.parametrize(
    ("kind", "workers", "prefetch", "snapshot", "lag"),
    [
        ("batches", 0, 0, 1, None),
        ("singles", 0, 0, 1, None),
        ("batches", 0, 2, 1, 2),
        ("singles", 0, 2, 3, 2),
        ("batches", 1, 2, 1, 4),
        ("batches", 1, 2, 5, 4),
        ("singles", 1, 2, 3, 4),
        ("batches", 2, 0, 50, 4),
    ],
)
def test_a_run_goes_on_as_if_nothing_had_happened(kind, workers, prefetch, snapshot, lag):
    def make_loader():
        # restart: an iteration that goes on from an epoch's end is the next epoch. Here the loop counts it as empty.
        return make(kind, workers, prefetch, lag=lag, snapshot=snapshot, restart=False)

    assert_same_after_resume(make_loader, train_step, epochs=3, at=[0, 1, 7, 13, 20])


@pytest.mark.parametrize("at", [5, 12, 13, 14, 26])
def test_the_nodes_count_the_epochs_on(at):
    loader, found, saved = make(lag=4), [], None
    for _ in range(3):
        for batch in loader:
            found.append((loader.sampler.epoch, batch.tolist()))
            step(loader, batch, len(found))
            if len(found) == at:
                saved = loader.state_dict(), loader.sampler.store.state_dict()
    again, rest = make(lag=4), []
    again.load_state_dict(saved[0])
    again.sampler.store.load_state_dict(saved[1])
    while at + len(rest) < 3 * 13:
        for batch in again:
            rest.append((again.sampler.epoch, batch.tolist()))
            step(again, batch, at + len(rest))
    assert rest == found[at:]


def test_without_lag_what_was_in_flight_comes_again():
    loader, found, rest = make(), [], []
    for batch in loader:
        assert ahead_of(loader, min(4, 12 - len(found))) == min(4, 12 - len(found))
        step(loader, batch)
        found.append(batch.tolist())
        if len(found) == 6:
            saved = loader.state_dict(), loader.sampler.store.state_dict()
    again = make()
    again.load_state_dict(saved[0])
    again.sampler.store.load_state_dict(saved[1])
    for batch in again:
        step(again, batch)
        rest.append(batch.tolist())
    assert rest[:4] == found[6:10]
    assert len(rest) == 7


def test_batches_that_carry_their_indices_are_credited_in_any_order():
    data = WithIndex(list(range(N)))

    def fetch(batch):
        time.sleep(0.001 * (batch[0] % 4))
        return torch.utils.data.default_collate([data[index] for index in batch])

    loader, last, out_of_order = make(workers=3, prefetch=1, fetch=fetch, in_order=False), {}, 0
    for epoch in range(2):
        for number, (indices, items) in enumerate(loader):
            assert indices.tolist() == items.tolist()
            out_of_order += indices.tolist() != loader.sampler.indices.tolist()
            if number % 5 == 4:
                loader.sampler.skip(indices=indices)
                continue
            loader.sampler.step(loss_of(indices, epoch), indices=indices)
            last.update(zip(indices.tolist(), loss_of(indices, epoch).tolist(), strict=True))
    assert out_of_order
    store = loader.sampler.store
    found = store.seen().nonzero()[0]
    assert dict(zip(found.tolist(), store.column("loss")[found].tolist(), strict=True)) == last


def test_a_forgotten_step_is_an_error_with_lag():
    loader = make(workers=1, prefetch=2, lag=4)
    with pytest.raises(RuntimeError, match=r"call step\(losses\) or skip\(\) once for every batch"):
        go_on(loader, forgotten=2)


def test_an_abandoned_epoch_leaves_nothing_behind():
    loader = make(workers=1, prefetch=2)
    for epoch in range(6):
        for number, batch in enumerate(loader):
            step(loader, batch, epoch)
            if number == epoch:
                break
        assert loader.sampler.epoch == epoch
    assert loader.sampler.store.clock.step == 1 + 2 + 3 + 4 + 5 + 6


def test_the_example_learns():
    assert runpy.run_path(EXAMPLE, run_name="__main__")["accuracy"] > 0.9
