"""Promise: what was never scored comes first, once; what is not scored then, once more; and then not for ever."""

import itertools

import numpy as np
import pytest
import torch
from helpers import p_value
from loader_helpers import KINDS, Raw, build, counts, flat, loss_of, run

from fastprio import PriorityBatchSampler, PrioritySampler, ScoreStore, SumTree
from fastprio.policies import LossPower


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_epoch_covers_every_example_once_and_the_second_repeats_some(kind, workers):
    for n, batch in [(1, 1), (7, 8), (64, 8), (103, 8)]:
        loader, sampler = build(kind, n, batch, workers=workers)
        first, second = run(loader, sampler, 2)
        assert sorted(flat(first)) == list(range(n))
        assert sampler.store.all_seen()
        if n > 10:
            assert len(set(flat(second))) < n
            assert flat(first) != sorted(flat(first))


def test_the_order_of_covering_is_a_random_one_of_the_seed():
    """Who is covered first: uniform over 4 000 seeds."""
    n = 20
    first = [next(iter(PrioritySampler(n, seed=seed))) for seed in range(4000)]
    assert p_value(counts(first, n), np.full(n, 200.0)) > 1e-6
    orders = {tuple(PrioritySampler(n, seed=seed)) for seed in range(200)}
    assert len(orders) == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [1, 9, 24, 33, 50])
def test_fewer_draws_an_epoch_spread_the_covering_over_epochs(kind, wanted):
    n, batch = 50, 8
    loader, sampler = build(kind, n, batch, num_samples=wanted)
    epochs = run(loader, sampler, -(-n // wanted))
    drawn = flat(itertools.chain.from_iterable(epochs))
    assert sorted(drawn[:n]) == list(range(n))
    assert sampler.store.all_seen()
    assert all(len(flat(epoch)) == wanted for epoch in epochs)


def test_more_draws_an_epoch_than_examples_cover_first_and_draw_by_priority_then():
    n = 30
    loader, sampler = build("loader", n, 8, policy=Raw(), num_samples=200)
    (epoch,) = run(loader, sampler, 1, loss=lambda batch, epoch: (batch == 4).float())
    drawn = flat(epoch)
    assert sorted(drawn[:30]) == list(range(30))
    assert set(drawn[32:]) == {4}


def test_a_batch_that_ends_covering_draws_its_rest_by_priority_as_those_draws_of_the_epoch():
    n, batch = 30, 8
    loader, sampler = build("loader", n, batch, policy=Raw(), num_samples=40)
    (epoch,) = run(loader, sampler, 1)
    tree = SumTree(n)
    tree.fill(1.0)
    for number, first in ((3, 30), (4, 32)):
        for earlier in epoch[:number]:
            tree.update(earlier, loss_of(earlier))
        if number == 3:
            tree.update(epoch[3][:6], np.ones(6))
        rest = 40 - first if number == 4 else 2
        expected, _ = tree.sample(rest, seed=0, epoch=0, offset=first, scheme="stratified", group=batch)
        assert epoch[number][-rest:] == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_covering_draws_have_weight_one_and_probability_one_over_n(kind):
    n, batch = 45, 8
    loader, sampler = build(kind, n, batch, policy=LossPower(beta=1.0), num_samples=90)
    drawn = 0
    for of_batch in loader:
        weights = sampler.weights.numpy()
        entries = list(sampler.journal._entries)
        probabilities = np.concatenate([draws.probabilities[draws.consumed : draws.issued] for draws in entries])
        covered = np.arange(drawn, drawn + len(of_batch)) < n
        assert len(weights) == len(of_batch) == len(probabilities)
        assert (weights[covered] == 1).all()
        assert (probabilities[covered] == 1 / n).all()
        np.testing.assert_allclose(weights[~covered], 1 / (n * probabilities[~covered]), rtol=1e-6)
        assert covered.any() or (weights != 1).any()
        drawn += len(of_batch)
        sampler.step(loss_of(of_batch))


@pytest.mark.parametrize("kind", ["loader", "batch_sampler", "sampler"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loss_that_never_came_is_asked_for_once_more_and_then_not_for_ever(kind, workers):
    """Batch 2 of every epoch is skipped. Its eight come first in epoch 1; those skipped again do not in epoch 2."""
    n, batch = 64, 8
    policy = Raw()
    policy.unseen = lambda: 0.0  # what is not covered is never drawn
    loader, sampler = build(kind, n, batch, workers=workers, policy=policy)
    epochs, skipped = [], []
    for epoch in range(4):
        epochs.append([])
        for number, of_batch in enumerate(loader):
            epochs[-1].append(of_batch.tolist())
            if (epoch, number) in {(0, 2), (0, 5), (1, 1)}:
                skipped.append(of_batch.tolist())
                sampler.skip()
            else:
                sampler.step(loss_of(of_batch, epoch))
    assert sorted(flat(epochs[0])) == list(range(n))
    assert sorted(flat(epochs[1][:2])) == sorted(skipped[0] + skipped[1])
    left = set(skipped[2])
    assert len(left) == 8
    assert not left & set(flat(epochs[1][2:] + epochs[2] + epochs[3]))
    np.testing.assert_array_equal(np.flatnonzero(~sampler.store.seen()), sorted(left))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_breaking_off_while_covering_loses_nothing(kind, workers):
    """Two epochs broken off after 48 draws each; one more covers the rest, and what was in flight has its turn then."""
    n, batch = 200, 8
    loader, sampler = build(kind, n, batch, workers=workers)
    drawn = []
    for epoch in range(4):
        drawn.append([])
        for number, of_batch in enumerate(loader):
            sampler.step(loss_of(of_batch))
            drawn[-1] += of_batch.tolist()
            if epoch < 2 and number == 5:
                break
    passed = drawn[0] + drawn[1]
    assert len(passed) == len(set(passed)) == 96
    first = drawn[2][:32]
    assert not set(first) & set(passed)
    assert sampler.store.all_seen()


def test_what_is_scored_elsewhere_is_not_covered():
    store = ScoreStore(60)
    store.update(np.arange(0, 60, 2), np.ones(30), origin="score")
    drawn = list(itertools.islice(PrioritySampler(store), 30))
    assert sorted(drawn) == list(range(1, 60, 2))


def test_without_covering_the_first_epoch_repeats_some_and_misses_some():
    for kind in KINDS:
        loader, sampler = build(kind, 200, 8, cover_first=False)
        (epoch,) = run(loader, sampler, 1)
        assert 80 < len(set(flat(epoch))) < 185
        assert not sampler.store.all_seen()


def test_priorities_set_by_hand_stay_over_epochs_where_nothing_is_covered():
    """A loop that computes priorities itself: set_priorities, no step, cover_first=False."""
    store = ScoreStore(20)
    sampler = PrioritySampler(store, cover_first=False)
    next(iter(sampler))
    store.set_priorities(np.arange(20), np.eye(20)[3])
    for _ in range(3):
        assert set(sampler) == {3}


def test_the_unseen_have_the_policys_priority_once_covering_is_over():
    loader, sampler = build("loader", 40, 8, policy=LossPower(alpha=1.0, eps=0.0))
    for number, of_batch in enumerate(loader):
        if number == 1:
            missing = of_batch.tolist()
            sampler.skip()
        else:
            sampler.step(torch.full((8,), 9.0 if number == 0 else 2.0))
    assert (sampler.store.priorities[missing] == 9).all()
    assert sorted(set(sampler.store.priorities.tolist())) == [2, 9]


def test_a_store_that_grew_is_covered_where_it_grew():
    store = ScoreStore(30)
    sampler = PrioritySampler(store)
    for index in sampler:
        sampler.step(loss_of([index]))
    store.resize(45)
    drawn = []
    for index in sampler:
        drawn.append(index)
        sampler.step(loss_of([index]))
    assert sorted(drawn[:15]) == list(range(30, 45))
    assert len(drawn) == len(sampler) == 45
    assert store.all_seen()


@pytest.mark.parametrize("stop", [None, 2])
@pytest.mark.parametrize("wanted", [6, 10])
def test_without_replacement_an_epoch_has_no_repeats_also_while_covering(wanted, stop):
    """Where a break, or fewer draws than examples, leave an epoch that covers first and draws the rest."""
    sampler = PrioritySampler(ScoreStore(10, LossPower(beta=0.0)), wanted, False, batch_size=2)
    seen = set()
    for epoch in range(4):
        drawn = []
        for number, batch in enumerate(PriorityBatchSampler(sampler, 2)):
            drawn += batch
            sampler.step(loss_of(batch))
            if epoch == 0 and number + 1 == stop:
                break
        assert len(drawn) == len(set(drawn))
        assert len(drawn) == (wanted if stop is None or epoch else 2 * stop)
        seen |= set(drawn)
    assert seen == set(range(10)) or wanted == 6
