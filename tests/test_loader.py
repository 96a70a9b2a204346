"""Promise: behind a torch loader, every loss is credited to the example it came from, and nothing else changes."""

import itertools
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
from loader_helpers import KINDS, build, counts, flat, loss_of, run
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore, WithIndex
from fastprio.policies import InfoBatch, LossPower, power

WORKERS = [(0, False), (2, False), (2, True)]
N, BATCH = 103, 8  # 103 = 12 * 8 + 7


class Noisy(Dataset):
    """Items that take augmentation noise from torch's generator."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index, torch.rand(())


class Batched(Dataset):
    """Fetches whole batches, and only so."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise AssertionError("fetched one by one")

    def __getitems__(self, indices):
        return [10 * i for i in indices]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "persistent"), WORKERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_loss_is_credited_to_the_example_it_came_from(kind, workers, persistent, drop_last):
    """Epoch 0 whole, 1 with a skipped batch, 2 broken off, 3 whole: 42 or so batches, each checked three ways."""
    loader, sampler = build(
        kind, N, BATCH, workers=workers, drop_last=drop_last, loader={"persistent_workers": persistent}
    )
    store, expected = sampler.store, np.zeros(N, np.float32)
    skips = kind != "singles"  # which have no batches
    for epoch in range(4):
        number = 0
        for number, batch in enumerate(loader):
            np.testing.assert_array_equal(sampler.indices[: len(batch)], batch.numpy())
            assert len(sampler.weights) == len(sampler.indices)
            if epoch == 1 and number == 5 and skips:
                sampler.skip()
                continue
            loss = loss_of(batch, epoch)
            sampler.step(loss)
            expected[batch.numpy()] = loss.numpy()
            np.testing.assert_array_equal(store.column("loss"), expected)
            if epoch == 2 and number == 3:
                break
        assert number == 3 if epoch == 2 else number + 1 == len(loader) == (12 if drop_last else 13)
    scored = np.flatnonzero(expected)
    assert len(scored) > 90
    priorities = [np.float32(power(float(loss) + 1e-6, 0.6)) for loss in expected[scored]]
    np.testing.assert_array_equal(store.priorities[scored], priorities)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_broken_off_at_any_batch_credits_the_next_epoch_rightly(kind, workers):
    for stop in (1, 2, 6, 7):  # 7 batches an epoch: in the prefetch, in the middle, at the last one
        loader, sampler = build(kind, 50, BATCH, workers=workers, seed=stop)
        expected = np.zeros(50, np.float32)
        for epoch in range(3):
            for number, batch in enumerate(loader):
                loss = loss_of(batch, epoch)
                sampler.step(loss)
                expected[batch.numpy()] = loss.numpy()
                if number + 1 == stop and epoch < 2:
                    break
            np.testing.assert_array_equal(sampler.store.column("loss"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_asking_for_an_iterator_three_times_changes_nothing(kind):
    def sequence(times):
        loader, sampler = build(kind, 30, 4)
        asked = []
        for part in (sampler, loader.batch_sampler, loader):
            asked += [iter(part) for _ in range(times)]
        before = torch.get_rng_state()
        asked += [iter(sampler) for _ in range(times)]
        assert torch.equal(before, torch.get_rng_state())
        return run(loader, sampler, 2), sampler.epoch

    assert sequence(3) == sequence(0)


def test_asking_a_priority_loader_with_workers_for_iterators_draws_nothing():
    def sequence(times):
        loader, sampler = build("loader", 30, 4, workers=2)
        asked = [iter(loader) for _ in range(times)]
        return run(loader, sampler, 2), sampler.epoch, len(asked)

    assert sequence(3)[:2] == sequence(0)[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_iterator_raises_once_a_newer_one_began(kind):
    loader, sampler = build(kind, 60, 4)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    next(newer)
    with pytest.raises(RuntimeError, match="newer iteration"):
        next(older)
    sampler.step(torch.ones(4))
    next(newer)  # and the newer one goes on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "persistent"), WORKERS)
def test_the_global_generator_is_used_as_a_random_sampler_uses_it(kind, workers, persistent):
    """So augmentation is the same, number for number, as in a uniform run; and so is the state after each epoch."""

    def noise(make):
        torch.manual_seed(7)
        loader, sampler = make()
        found, states = [], []
        for _ in range(3):
            for index, values in loader:
                found.append(values)
                if sampler is not None:
                    sampler.step(loss_of(index))
            states.append(torch.get_rng_state())
        return torch.cat(found), torch.stack(states)

    more = {"num_workers": workers, "persistent_workers": persistent}

    def uniform():
        sampler = RandomSampler(Noisy())
        if kind == "sampler":
            return DataLoader(Noisy(), batch_size=8, sampler=sampler, **more), None
        return DataLoader(Noisy(), batch_sampler=BatchSampler(sampler, 8, False), **more), None

    ours, theirs = noise(lambda: build(kind, 40, 8, dataset=Noisy(), loader=more)), noise(uniform)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_a_loader_with_its_own_generator_works_and_does_not_change_the_draws():
    def sequence(generator):
        loader, sampler = build("loader", 30, 4, loader={"generator": generator})
        return run(loader, sampler, 2)

    assert sequence(torch.Generator().manual_seed(3)) == sequence(None)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n", "batch"), [(1, 1), (1, 3), (5, 100), (64, 8), (65, 8), (1000, 1)])
def test_lengths_are_what_is_yielded(n, batch, drop_last):
    for kind in KINDS:
        loader, sampler = build(kind, n, batch, drop_last=drop_last)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            sizes = [len(b) for b in run(loader, sampler, 1)[0]]
        empty = f"epoch 0 has no batch: it has {n} examples, a batch {batch}, and drop_last leaves out what is not full"
        # Where torch makes the batches, it alone knows.
        assert [str(w.message) for w in said] == (
            [empty] if kind in ("loader", "batch_sampler") and n < batch and drop_last else []
        )
        assert len(loader) == len(sizes) == (n // batch if drop_last else -(-n // batch))
        assert sizes == [batch] * (n // batch) + ([n % batch] if n % batch and not drop_last else [])


@pytest.mark.parametrize("workers", [0, 2])
def test_infobatch_epochs_are_as_long_as_planned_and_weighted_as_planned(workers):
    n, batch, epochs = 203, 16, 6
    loader, sampler = build("loader", n, batch, workers=workers, policy=InfoBatch(0.5, 0.7), epochs=epochs)
    expected, pruned = np.zeros(n, np.float32), 0
    for epoch in range(epochs):
        before, indices = expected.copy(), []
        for batch_of in loader:
            plan = sampler.plan
            weights = np.asarray(plan.weights, np.float32)
            of_plan = np.ones(len(batch_of)) if plan.codes is None else weights[plan.codes[batch_of.numpy()]]
            np.testing.assert_array_equal(loader.weights.numpy(), of_plan.astype(np.float32))
            loss = loss_of(batch_of, epoch)
            np.testing.assert_allclose(float(loader.step(loss)), (loss.numpy() * of_plan).mean(), rtol=1e-6)
            expected[batch_of.numpy()] = loss.numpy()
            indices += batch_of.tolist()
        assert len(loader) == -(-n // batch)
        assert len(indices) == len(set(indices)) == sampler.planned
        np.testing.assert_array_equal(sampler.store.column("loss"), expected)
        below = before < before.mean(dtype=np.float64)
        if epoch == 0 or epoch + 1 > 0.7 * epochs:
            assert len(indices) == n
        else:
            pruned += 1
            kept = int(0.5 * below.sum())
            assert len(indices) == n - below.sum() + kept
            assert sampler.plan.weights[2] == below.sum() / kept
            assert set(np.flatnonzero(~below)) <= set(indices)
    assert pruned == 3


@pytest.mark.parametrize("kind", ["loader", "batch_sampler", "sampler"])
def test_a_loader_that_reorders_credits_by_the_index_in_the_batch(kind):
    """The first batch is held up by a slow example, so that batches do change places."""
    loader, sampler = build(
        kind, 96, 8, workers=2, dataset=WithIndex(Slow(96, first_of(96, 8))), loader={"in_order": False}
    )
    expected, order = np.zeros(96, np.float32), []
    for epoch in range(2):
        for index, item in loader:
            assert torch.equal(index * 3, item)
            loss = loss_of(index, epoch)
            sampler.step(loss, indices=index)
            expected[index.numpy()] = loss.numpy()
            order.append(index.tolist())
        np.testing.assert_array_equal(sampler.store.column("loss"), expected)
    issued = run(*build(kind, 96, 8), 1)[0]
    assert sorted(issued) == sorted(order[:12])
    assert issued != order[:12]


class Slow(Dataset):
    def __init__(self, n, slow):
        self.n, self.slow = n, slow

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.slow:
            time.sleep(0.3)
        return index * 3


def first_of(n, batch):
    return run(*build("batch_sampler", n, batch), 1)[0][0][0]


def test_an_index_that_no_outstanding_batch_has_is_refused():
    loader, sampler = build("batch_sampler", 32, 4, dataset=WithIndex(range(32)))
    index, _ = next(iter(loader))
    for wrong in (index.flip(0), index + 1, index[:3]):
        with pytest.raises(ValueError, match="indices"):
            sampler.step(torch.ones(4), indices=wrong)
    sampler.step(torch.ones(4), indices=index.tolist())
    with pytest.raises((RuntimeError, ValueError), match="outstanding"):
        sampler.step(torch.ones(4), indices=index)


def test_with_index_adds_the_index_and_passes_batched_fetching_on():
    assert WithIndex([5, 6])[1] == (1, 6)
    assert len(WithIndex([5, 6])) == 2
    assert not hasattr(WithIndex([5, 6]), "__getitems__")
    for index, item in DataLoader(WithIndex(Batched()), batch_size=8, num_workers=2):
        assert torch.equal(10 * index, item)


@pytest.mark.parametrize("dataset", [Noisy(), Batched(), Subset(Noisy(), range(5))])
def test_with_index_can_be_pickled_for_workers_that_are_not_forked(dataset):
    copy = pickle.loads(pickle.dumps(WithIndex(dataset)))
    assert len(copy) == len(dataset)
    assert hasattr(copy, "__getitems__") == hasattr(dataset, "__getitems__")


def test_long_epochs_of_single_draws_can_be_stepped_to_their_end():
    """100 000 draws, 3 125 steps, each of which makes the draws not yet taken anew."""
    n = 100_000
    loader, sampler = build("singles", n, 32, cover_first=False)
    steps = 0
    for batch in DataLoader(range(n), batch_size=32, sampler=sampler):
        sampler.step(loss_of(batch % 1009))
        steps += 1
    assert steps == len(loader) == 3125


def test_a_batch_larger_than_the_journals_depth_can_be_read_ahead():
    sampler = PrioritySampler(2_000_000, batch_size=300_000)
    batches = list(itertools.islice(PriorityBatchSampler(sampler, 300_000), 5))
    sampler.step(torch.ones(300_000))
    assert set(np.flatnonzero(sampler.store.seen())) == set(batches[0])


def test_a_priority_loader_takes_a_store_of_the_right_length_only():
    store = ScoreStore(20, LossPower(alpha=1.0))
    loader = PriorityLoader(range(20), 4, policy=store)
    assert loader.store is loader.sampler.store is store
    run(loader, loader.sampler, 1)
    assert store.all_seen()
    with pytest.raises(ValueError, match="20 examples, the data set 21"):
        PriorityLoader(range(21), 4, policy=store)


def test_a_priority_loader_refuses_what_it_does_itself():
    for name, value in [("shuffle", True), ("sampler", range(3)), ("batch_sampler", [[1]])]:
        with pytest.raises(TypeError, match=f"{name}: PriorityLoader"):
            PriorityLoader(range(20), 4, **{name: value})
    assert len(PriorityLoader(range(20), 4, shuffle=False, sampler=None)) == 5

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(TypeError, match="IterableDataset"):
        PriorityLoader(Stream(), 4)
    with pytest.raises(ValueError, match="batch_size = 0"):
        PriorityLoader(range(20), 0)
    with pytest.raises((TypeError, ValueError), match="batch_size = None"):
        PriorityLoader(range(20), None)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_uniform_loader_draws_everything_once_an_epoch_and_steps_with_weight_one(workers):
    loader, _ = build("loader", 50, 8, workers=workers, policy="uniform")
    epochs = [[], []]
    for epoch in range(2):
        for batch in loader:
            losses = loss_of(batch)
            assert torch.equal(loader.step(losses), losses.mean())
            epochs[epoch].append(batch.tolist())
        assert (counts(flat(epochs[epoch]), 50) == 1).all()
    assert epochs[0] != epochs[1]


def test_a_priority_loader_of_a_policy_that_does_not_learn_works_on_two_ranks(monkeypatch):
    seen = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None, rank=rank: rank)
        seen.append([batch.tolist() for batch in PriorityLoader(range(32), 4, policy="uniform")])
    assert [len(batch) for batch in seen[0]] == [len(batch) for batch in seen[1]]
    assert sorted(flat(seen[0]) + flat(seen[1])) == list(range(32))
