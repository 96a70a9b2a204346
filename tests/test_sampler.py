"""Promise: what a sampler draws, in which epoch, on which rank; and that misuse is named."""

import itertools

import numpy as np
import pytest
import torch
from helpers import generator
from loader_helpers import Correct, Raw, build, flat, loss_of, run
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore, SumTree
from fastprio.policies import Given, LossPower


def batches(sampler, size, drop_last=False):
    return list(PriorityBatchSampler(sampler, size, drop_last))


# Single draws.


class Twin:
    """The tree that a store of policy Raw should have, drawn one at a time."""

    def __init__(self, n, seed):
        self.tree, self.seed, self.epoch, self.drawn = SumTree(n), seed, -1, 0
        self.tree.fill(1.0)

    def begin(self):
        self.epoch, self.drawn = self.epoch + 1, 0
        if self.tree.refit_gain() >= 8:
            self.tree.refit()

    def draw(self):
        (index,), (probability,) = self.tree.sample(1, seed=self.seed, epoch=self.epoch, offset=self.drawn)
        self.drawn += 1
        return index, probability


@pytest.mark.parametrize("seed", range(4))
def test_single_draws_are_one_at_a_time_from_the_live_tree_whatever_changes_in_between(seed):
    """Some 12 500 draws; between two of them, at random: nothing, update, set_priorities; step or record every 20."""
    n, rng = 300, generator(seed)
    store = ScoreStore(n, Raw())
    store.update(np.arange(n), np.ones(n))
    sampler, twin = PrioritySampler(store, 2500, cover_first=False, seed=seed), Twin(n, seed)
    changes = 0
    for _ in range(1 + (seed == 0)):
        twin.begin()
        waiting = []
        for index in sampler:
            assert index == twin.draw()[0]
            waiting.append(index)
            action = rng.integers(30)
            at, values = rng.integers(0, n, 5), rng.choice([0, 0.5, 1, 30, 1e4], 5).astype(np.float32)
            at[0], values[0] = 7, 1.0  # never nothing left
            if action == 0:
                store.update(at, values)
                twin.tree.update(at, values)
            elif action == 1:
                store.set_priorities(at, values)
                twin.tree.update(at, values)
            if len(waiting) == 20:
                losses = loss_of(waiting, seed)
                np.testing.assert_array_equal(sampler.indices, waiting)
                (sampler.step if action % 2 else sampler.record)(losses)
                twin.tree.update(waiting, losses)
                waiting = []
            changes += action < 2 or not waiting
        assert twin.drawn == 2500
    assert changes > 200


def test_single_draws_may_be_gathered_into_batches_of_any_size():
    """As a sampler of batches with a budget of tokens does."""
    sampler, rng, waiting = PrioritySampler(500), generator(0), []
    for index in sampler:
        waiting.append(index)
        if rng.random() < 0.1:
            np.testing.assert_array_equal(sampler.indices, waiting)
            sampler.step(loss_of(waiting))
            waiting = []
    assert sampler.store.seen().sum() == 500 - len(waiting)


def test_single_draws_over_a_store_that_has_seen_everything_are_live_from_the_first():
    store = ScoreStore(100, Raw())
    store.update(np.arange(100), np.ones(100))
    sampler = iter(PrioritySampler(store))
    next(sampler)
    store.set_priorities(np.arange(100), (np.arange(100) == 7).astype(float))
    assert [next(sampler) for _ in range(99)] == [7] * 99


def test_single_draws_carry_the_probability_and_weight_of_the_moment_they_were_drawn():
    n = 50
    store = ScoreStore(n, LossPower(beta=1.0))
    store.update(np.arange(n), loss_of(np.arange(n)))
    sampler = PrioritySampler(store, 400, cover_first=False)
    expected, iterator = [], iter(sampler)
    for k in range(400):
        before = store.priorities.astype(np.float64)
        index = next(iterator)
        expected.append(before.sum() / (n * before[index]))
        if k % 7 == 0:
            store.update([index], [k / 10])
    np.testing.assert_allclose(sampler.weights.numpy(), expected, rtol=1e-5)


def test_skip_of_single_draws_read_ahead_never_shifts_the_credit():
    """Single draws have no batches: where more than one is in flight, skip() raises or takes the right number."""
    loader, sampler = build("singles", 64, 4, workers=2)
    for number, batch in enumerate(loader):
        if number == 0:
            sampler.step(loss_of(batch))
        elif number == 1:
            try:
                sampler.skip()
            except (RuntimeError, TypeError, ValueError):
                return
        else:
            np.testing.assert_array_equal(sampler.indices[:4], batch.numpy())
            sampler.step(loss_of(batch))


# Epochs.


def test_the_same_seed_and_epoch_draw_the_same_and_others_draw_otherwise():
    def epoch(seed, number, **options):
        sampler = PrioritySampler(weights=np.arange(1, 101), seed=seed, **options)
        sampler.set_epoch(number)
        sampler.set_epoch(number)  # twice is harmless
        return list(sampler)

    for options in ({}, {"batch_size": 8}, {"batch_size": 8, "scheme": "systematic"}, {"replacement": False}):
        all_of_them = [tuple(epoch(seed, number, **options)) for seed in (0, 1, 2**64 - 1) for number in (0, 1, 1000)]
        assert len(set(all_of_them)) == 9
        assert all_of_them[0] == tuple(epoch(0, 0, **options))


def test_every_iteration_is_the_next_epoch_unless_one_was_set():
    sampler = PrioritySampler(weights=np.ones(50))
    by_number = {}
    for number in range(12):
        sampler.set_epoch(number)
        by_number[number] = list(sampler)
    fresh = PrioritySampler(weights=np.ones(50))
    assert list(fresh) == by_number[0]
    assert list(fresh) == by_number[1]
    assert list(itertools.islice(fresh, 3)) == by_number[2][:3]  # broken off
    assert list(fresh) == by_number[3]  # and begun again: a new epoch
    fresh.set_epoch(9)
    iter(fresh)  # lazy: begins nothing
    assert list(fresh) == by_number[9]
    assert list(fresh) == by_number[10]
    fresh.set_epoch(10)
    assert list(fresh) == by_number[10]
    fresh.set_epoch(0)
    assert list(fresh) == by_number[0]


def test_set_epoch_reaches_the_sampler_through_batch_sampler_and_loader():
    for kind in ("loader", "batch_sampler"):
        loader, sampler = build(kind, 40, 8, policy="uniform")
        (loader if kind == "loader" else loader.batch_sampler).set_epoch(5)
        assert sampler.epoch == 5
        ours = [b.tolist() for b in loader]
        other = PrioritySampler(ScoreStore(40, "uniform"))
        other.set_epoch(5)
        assert flat(ours) == list(other)


@pytest.mark.parametrize("size", [None, 4])
def test_the_epoch_is_fixed_at_an_iterations_first_draw(size):
    """A trainer that names the next epoch while this one still runs changes only the next."""

    def sequence(meddle):
        sampler = PrioritySampler(weights=np.arange(1, 5001), num_samples=4000, batch_size=size)
        first = []
        for k, index in enumerate(sampler):
            first.append(index)
            if k == 5 and meddle:
                sampler.set_epoch(7)
        if not meddle:
            sampler.set_epoch(7)
        return first, list(sampler)

    assert sequence(True) == sequence(False)


def test_len_does_not_change_over_covering_breaks_and_epochs():
    loader, sampler = build("loader", 50, 8)
    lengths = set()
    for epoch in range(3):
        for number, batch in enumerate(loader):
            lengths.add((len(loader), len(sampler), sampler.planned))
            sampler.step(loss_of(batch))
            if epoch == 1 and number == 2:
                break
    assert lengths == {(7, 50, 50)}


def test_num_samples_is_the_number_of_draws_also_above_the_size():
    for policy in ("loss", "uniform", "given"):
        for wanted in (1, 9, 10, 11, 25):
            for size in (None, 4):
                made = Given(np.ones(10)) if policy == "given" else policy
                sampler = PrioritySampler(ScoreStore(10, made), wanted, batch_size=size)
                assert len(list(sampler)) == len(sampler) == wanted


# Kinds of object, and misuse.


def test_a_sampler_is_torchs_distributed_sampler_and_has_its_attributes():
    sampler = PrioritySampler(range(10), 7, batch_size=2)
    assert isinstance(sampler, DistributedSampler)
    assert isinstance(PriorityBatchSampler(sampler, 2), torch.utils.data.Sampler)
    assert (sampler.dataset, sampler.num_samples, sampler.total_size) == (range(10), 7, 7)
    assert (sampler.epoch, sampler.seed, sampler.shuffle, sampler.drop_last) == (0, 0, True, False)
    assert sampler.generator is None
    assert PriorityLoader(range(10), 2).sampler.dataset == range(10)
    assert isinstance(PriorityLoader(range(10), 2).sampler, DistributedSampler)


def test_an_epoch_of_a_store_that_grows_grows_with_it():
    for sampler in PrioritySampler(20), PrioritySampler(list(range(20))), PrioritySampler(ScoreStore(20)):
        sampler.store.resize(35)
        assert sampler.num_samples == len(sampler) == 35
        assert sorted(sampler) == list(range(35))


def test_what_is_yielded_are_fresh_lists_of_python_integers():
    for part in batches(PrioritySampler(10), 3) + batches(PrioritySampler(10, batch_size=3), 3):
        assert type(part) is list
        assert all(type(index) is int for index in part)
    assert all(type(index) is int for index in PrioritySampler(10))
    assert all(type(index) is int for index in PrioritySampler(10, batch_size=3))
    store = ScoreStore(10)
    iterator = iter(PriorityBatchSampler(sampler := PrioritySampler(store), 3))
    mine = next(iterator)
    drawn = list(mine)
    mine.clear()  # the list is the caller's
    np.testing.assert_array_equal(sampler.indices, drawn)


def test_a_batch_sampler_takes_a_priority_sampler_only():
    for other in (RandomSampler(range(4)), BatchSampler(RandomSampler(range(4)), 2, False), range(4), None):
        with pytest.raises(TypeError, match=f"expected a PrioritySampler, got {type(other).__name__}"):
            PriorityBatchSampler(other, 2)


def test_a_batch_sampler_gives_its_batch_size_to_a_sampler_without_one():
    with_it = batches(PrioritySampler(20, batch_size=4), 4)
    assert batches(PrioritySampler(20), 4) == with_it
    with pytest.raises(ValueError, match="batch_size = 5 on 1 ranks: the sampler's global one is 4"):
        PriorityBatchSampler(PrioritySampler(20, batch_size=4), 5)
    sampler = PrioritySampler(weights=np.ones(20), batch_size=8, num_replicas=2, rank=0)
    assert [len(b) for b in PriorityBatchSampler(sampler, 4)] == [4, 4, 2]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: PrioritySampler(10, seed=-1), "seed = -1"),
        (lambda: PrioritySampler(10, seed=2**64), f"seed = {2**64}"),
        (lambda: PrioritySampler(10, seed=1.5), "seed = 1.5"),
        (lambda: PrioritySampler(10, 0), "num_samples = 0"),
        (lambda: PrioritySampler(10, -4), "num_samples = -4"),
        (lambda: PrioritySampler(10, 2.0), "num_samples = 2.0"),
        (lambda: PrioritySampler(10, True), "num_samples = True"),
        (lambda: PrioritySampler(10, batch_size=0), "batch_size = 0"),
        (lambda: PrioritySampler(10, batch_size=True), "batch_size = True"),
        (lambda: PrioritySampler(10, batch_size=2, lag=-1), "lag = -1"),
        (lambda: PrioritySampler(10, lag=1), "lag = 1.*batch_size="),
        (lambda: PrioritySampler(10, scheme="best"), "scheme = 'best'.*stratified"),
        (lambda: PrioritySampler(10, scheme="stratified"), "scheme = 'stratified'.*batch_size="),
        (lambda: PrioritySampler(10, scheme="systematic"), "scheme = 'systematic'.*batch_size="),
        (lambda: PrioritySampler(10, None, False, scheme="iid"), "scheme = 'iid'.*replacement=False"),
        (lambda: PrioritySampler(10, None, False), "scheme = 'epoch'.*LossPower"),
        (lambda: PrioritySampler(10, batch_size=2, scheme="unique"), "scheme = 'unique'.*LossPower"),
        (lambda: PrioritySampler(10, weights=[1.0]), "weights: give either"),
        (lambda: PrioritySampler(), "source: expected .* got NoneType"),
        (lambda: PrioritySampler(4.0), "source: .* got float"),
        (lambda: PrioritySampler(True), "source: .* got bool"),
        (lambda: PrioritySampler(Stream()), "source: .* got Stream"),
        (lambda: PrioritySampler(0), "source = 0"),
        (lambda: PrioritySampler(-3), "source = -3"),
        (lambda: PrioritySampler([]), "source: the data set is empty"),
        (lambda: PrioritySampler(weights=[]), "weights: expected at least one"),
        (lambda: PrioritySampler(10, num_replicas=2), "num_replicas and rank"),
        (lambda: PrioritySampler(10, rank=0), "num_replicas and rank"),
        (lambda: PrioritySampler(10, num_replicas=2, rank=2), "rank = 2"),
        (lambda: PrioritySampler(10, num_replicas=2, rank=-1), "rank = -1"),
        (lambda: PrioritySampler(10, num_replicas=0, rank=0), "num_replicas = 0"),
        (lambda: PriorityBatchSampler(PrioritySampler(10), 0), "batch_size = 0"),
        (lambda: PriorityBatchSampler(PrioritySampler(10), True), "batch_size = True"),
        (lambda: PriorityBatchSampler(PrioritySampler(10), 2.0), "batch_size = 2.0"),
        (lambda: ScoreStore(10, "best"), "policy = 'best'.*loss"),
        (lambda: ScoreStore(10, "infobatch"), "epochs="),
    ],
)
def test_misuse_is_named_with_its_value(call, named):
    with pytest.raises((ValueError, TypeError), match=named):
        call()


def test_integers_of_numpy_are_taken_as_sizes():
    i = np.int64
    sampler = PrioritySampler(10, i(6), batch_size=i(2), seed=i(3), lag=i(0))
    found = []
    for batch in PriorityBatchSampler(sampler, np.int32(2)):
        found.append(batch)
        sampler.step(loss_of(batch))
    assert found == batches(PrioritySampler(10, 6, seed=3), 2)


def test_degenerate_losses_and_priorities():
    """All equal and all zero draw uniformly (eps); all priorities zero is an error that says so."""
    for loss in (0.0, 3.0):
        loader, sampler = build("loader", 40, 8)
        run(loader, sampler, 3, loss=lambda batch, epoch, loss=loss: torch.full((len(batch),), loss))
        assert len(set(sampler.store.priorities.tolist())) == 1
    loader, sampler = build("loader", 16, 8, policy=LossPower(eps=0.0))
    with pytest.raises(ValueError, match="no priority is above zero"):
        run(loader, sampler, 2, loss=lambda batch, epoch: torch.zeros(len(batch)))


def test_a_policy_with_further_observations_gets_them():
    loader, sampler = build("loader", 32, 8, policy=Correct())
    for batch in loader:
        with pytest.raises(TypeError, match="needs correct"):
            loader.step(loss_of(batch))
        loader.step(loss_of(batch), correct=batch % 2)
    np.testing.assert_array_equal(sampler.store.column("correct"), np.arange(32) % 2)


def test_a_loader_over_a_batch_sampler_can_be_made_twice_from_one_store():
    """Two samplers of one store: what one learns, the other draws by."""
    store = ScoreStore(20, Raw())
    first, second = PrioritySampler(store, seed=1), PrioritySampler(store, 200, batch_size=10, seed=2)
    for batch in DataLoader(range(20), batch_sampler=PriorityBatchSampler(first, 5)):
        first.step((batch < 3).float())
    assert set(second) <= {0, 1, 2}
