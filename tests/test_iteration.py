"""Iterations of a sampler, where they are easy to get wrong: threads, peeks, half-scored stores, odd sizes."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore, WithIndex
from fastprio.policies import LossPower, Policy, register, registered


def test_an_epoch_begun_while_a_thread_still_draws_for_the_last_one_starts_with_its_own_first_batch():
    sampler = PrioritySampler(ScoreStore(4096), batch_size=8)
    batches = PriorityBatchSampler(sampler, 8)
    current, stop = [iter(batches)], threading.Event()

    def draw():
        while not stop.is_set():
            try:
                next(current[0])
            except (RuntimeError, StopIteration):  # a newer iteration has begun, or this one is over
                continue

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(300):
            newer = iter(batches)
            first = next(newer)  # the thread goes on with the older one meanwhile
            oldest = sampler.journal.oldest()
            assert oldest.first == 0
            assert oldest.indices.tolist() == first
            current[0] = newer
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_look_at_one_batch_costs_the_first_epoch_no_example(workers):
    loader = PriorityLoader(torch.arange(100), 10, num_workers=workers)
    peeked = next(iter(loader))
    seen = []
    for batch in loader:
        seen += batch.tolist()
        loader.step(batch.float())
    assert sorted(seen) == list(range(100))
    assert seen[:10] == peeked.tolist()


def test_a_batch_that_is_never_stepped_does_not_block_covering():
    sampler = PrioritySampler(ScoreStore(100), batch_size=10)
    batches = PriorityBatchSampler(sampler, 10)
    first = [tuple(next(iter(batches))) for _ in range(12)]  # a loop that breaks off before its first step
    assert len(set(first)) >= 5


@pytest.mark.parametrize("scored", [0, 1, 60, 95, 99, 100])
def test_a_store_that_was_scored_before_is_covered_where_it_is_not(scored):
    store = ScoreStore(100)
    store.update(np.arange(scored), np.ones(scored))
    sampler = PrioritySampler(store, batch_size=7)
    covered = []
    for indices in PriorityBatchSampler(sampler, 7):
        covered += [i for i, p in zip(indices, sampler.probabilities, strict=True) if i >= scored and p == 0.01]
        sampler.step(torch.ones(len(indices)))
    assert sorted(set(covered)) == list(range(scored, 100))
    assert store.all_seen()


def test_scheme_unique_repeats_nothing_where_covering_ends_inside_a_batch():
    for size, batch in ((10, 4), (9, 8), (101, 8), (7, 7)):
        sampler = PrioritySampler(ScoreStore(size, LossPower(beta=0)), 3 * size, batch_size=batch, scheme="unique")
        drawn = []
        for indices in PriorityBatchSampler(sampler, batch):
            assert len(set(indices)) == len(indices)
            drawn += indices
            sampler.step(torch.rand(len(indices), generator=torch.Generator().manual_seed(len(drawn))) + 0.1)
        assert sorted(drawn[:size]) == list(range(size))
        assert len(drawn) == 3 * size


def test_a_plan_may_be_much_shorter_than_a_batch():
    sampler = PrioritySampler(ScoreStore(2, "uniform"), 10_000, batch_size=4096)
    counts = np.bincount([i for batch in PriorityBatchSampler(sampler, 4096) for i in batch])
    assert counts.tolist() == [5000, 5000]


def test_further_passes_over_a_plan_have_other_orders():
    order = list(PrioritySampler(ScoreStore(50, "uniform"), 150))
    passes = {tuple(order[k : k + 50]) for k in (0, 50, 100)}
    assert len(passes) == 3
    assert all(sorted(one) == list(range(50)) for one in passes)


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), (0, ValueError), ("a", TypeError), (True, TypeError)])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_bad_count_to_skip_changes_nothing(count, error, batch_size):
    sampler = PrioritySampler(ScoreStore(40), batch_size=batch_size)
    iterator = iter(sampler)
    drawn = [next(iterator) for _ in range(4)]
    with pytest.raises(error, match="count = "):
        sampler.skip(count)
    assert sampler.indices.tolist() == drawn
    sampler.skip(4)
    assert sampler.journal.outstanding == 0


def test_batches_that_come_in_any_order_are_credited_only_by_their_indices():
    loader = PriorityLoader(WithIndex(torch.arange(60)), 6, num_workers=2, in_order=False)
    for index, batch in loader:
        for refused in (lambda b=batch: loader.step(b.float()), lambda: loader.skip(), lambda: loader.weights):
            with pytest.raises(ValueError, match="WithIndex"):
                refused()
        loader.step(batch.float(), indices=index)
    np.testing.assert_array_equal(loader.store.column("loss"), np.arange(60))


@pytest.mark.parametrize("policy", ["loss", "uniform", "infobatch"])
def test_losses_that_are_not_finite_are_refused_under_every_policy(policy):
    loader = PriorityLoader(torch.arange(8), 4, policy=policy, epochs=2)
    for _ in loader:
        with pytest.raises(ValueError, match=r"losses\[1\] = nan"):
            loader.step(torch.tensor([1.0, float("nan"), 1.0, 1.0]))
        loader.skip()


def test_a_generator_given_to_the_loader_leaves_torchs_global_numbers_alone():
    state = torch.get_rng_state()
    loader = PriorityLoader(torch.arange(20), 5, generator=torch.Generator().manual_seed(1))
    for batch in loader:
        loader.step(batch.float())
    assert torch.equal(torch.get_rng_state(), state)


def test_flush_applies_what_lag_holds_back():
    loader = PriorityLoader(torch.arange(20), 5, lag=3)
    for batch in loader:
        loader.step(batch.float())
    assert loader.store.stats()["coverage"] == 0.0
    loader.flush()
    assert loader.store.stats()["coverage"] == 1.0


def test_a_name_that_is_taken_is_not_taken_again():
    with pytest.raises(ValueError, match="policy 'loss' is fastprio"):

        @register("loss")
        class Other(Policy):
            pass

    assert registered()["loss"] is LossPower


def test_a_policy_that_returns_what_is_no_priority_is_named():
    class Short(Policy):
        name = "short"

        def observe(self, columns, indices, obs, clock, rng):
            return obs.loss[:-1]

    with pytest.raises(ValueError, match=r"policy 'short': observe\(\) returned"):
        ScoreStore(5, Short()).update([0, 1], [1.0, 2.0])


def test_large_arrays_of_a_policys_state_are_not_copied_at_every_update():
    class Keeps(Policy):
        def __init__(self):
            self.state["order"] = np.arange(1 << 16)

        def observe(self, columns, indices, obs, clock, rng):
            assert self.state["order"] is kept
            return obs.loss

    policy = Keeps()
    kept = policy.state["order"]
    store = ScoreStore(4, policy)
    store.update([0], [1.0])
    assert store.policy.state["order"] is kept


def test_a_plain_loader_of_single_draws_cut_by_updates_yields_what_is_journalled():
    sampler = PrioritySampler(ScoreStore(500), num_samples=2000)
    seen = 0
    for batch in DataLoader(torch.arange(500), batch_size=7, sampler=sampler):
        assert sampler.indices.tolist() == batch.tolist()
        sampler.step(batch.float() + 1)
        seen += len(batch)
    assert seen == 2000


def test_epochs_that_are_over_hear_of_no_changes_and_leave_nothing_behind():
    sampler = PrioritySampler(ScoreStore(500), num_samples=100, cover_first=False)
    sampler.store.tree.fill(1.0)
    held = iter(sampler)
    next(held)
    for _ in range(20):
        current = iter(sampler)
        first = [next(current) for _ in range(3)]
        sampler.store.set_priorities([1], [2.0])  # both epochs hear of it; only this one's draws are made anew
        assert sampler.journal.outstanding == 3
        sampler.step(torch.ones(3))
        assert sampler.journal.outstanding == 0
        assert len(first + list(current)) == 100
    del held, current
    gc.collect()
    sampler.store.set_priorities([1], [2.0])
    assert len(sampler.store._listeners) == 1
