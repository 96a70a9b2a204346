"""Promise: with lag=d, batch t sees exactly the losses of the batches up to t - 1 - d, whatever reads ahead."""

import numpy as np
import pytest
import torch
from loader_helpers import Raw, build, loss_of, run

from fastprio import PrioritySampler, SumTree, WithIndex
from fastprio.policies import LossPower

N, BATCH = 90, 8  # 11 whole batches and one of 2


def oracle(lag, epochs, loss, *, n=N, batch=BATCH, seed=0, stop=None):
    """The sequence of policy Raw without covering, from the definition. Epochs begin with everything applied."""
    tree, seen, sequence = SumTree(n), np.zeros(n, bool), []
    tree.fill(1.0)
    waiting = []
    for epoch in range(epochs):
        while waiting:
            apply(tree, seen, waiting.pop(0))
        if tree.refit_gain() >= 8:
            tree.refit()
        if not seen.all():
            tree.update(np.flatnonzero(~seen), np.ones(int((~seen).sum())))
        sequence.append([])
        for t, first in enumerate(range(0, n, batch)):
            while waiting and waiting[0][0] <= t - 1 - lag:
                apply(tree, seen, waiting.pop(0))
            drawn, _ = tree.sample(
                min(batch, n - first), seed=seed, epoch=epoch, offset=first, scheme="stratified", group=batch
            )
            sequence[-1].append(drawn.tolist())
            waiting.append((t, drawn, loss(drawn, epoch)))
            if stop == (epoch, t + 1):
                break
    return sequence


def apply(tree, seen, update):
    _, indices, losses = update
    tree.update(indices, losses)
    seen[indices] = True


@pytest.mark.parametrize("kind", ["loader", "batch_sampler", "sampler"])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("lag", [4, 5])
def test_the_sequence_is_that_of_the_definition_for_any_number_of_workers(kind, workers, lag):
    loader, sampler = build(kind, N, BATCH, workers=workers, policy=Raw(), cover_first=False, lag=lag)
    assert run(loader, sampler, 3) == oracle(lag, 3, loss_of)


@pytest.mark.parametrize("lag", [0, 1, 2, 3, 11, 12, 1000])
def test_every_lag_without_workers_is_that_of_the_definition(lag):
    for seed in range(3):
        loader, sampler = build("batch_sampler", N, BATCH, policy=Raw(), cover_first=False, lag=lag, seed=seed)
        assert run(loader, sampler, 4) == oracle(lag, 4, loss_of, seed=seed)


def test_different_lags_draw_differently():
    sequences = [oracle(lag, 1, loss_of)[0] for lag in (0, 1, 4, 5, 11)]
    assert all(a != b for i, a in enumerate(sequences) for b in sequences[:i])
    assert [s[0] for s in sequences] == [sequences[0][0]] * 5


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_sequence_after_a_break_is_that_of_the_definition(workers):
    for stop in [(0, 1), (1, 5), (1, 11)]:
        loader, sampler = build("loader", N, BATCH, workers=workers, policy=Raw(), cover_first=False, lag=4)
        assert run(loader, sampler, 3, stop=stop) == oracle(4, 3, loss_of, stop=stop)


@pytest.mark.parametrize("stop", [None, (0, 4), (1, 3)])
def test_indices_and_weights_are_the_same_for_workers_0_1_and_2_with_the_default_policy(stop):
    """Covering, weights and a schedule of beta included; the break leaves some examples to a second pass."""

    def sequence(workers, lag):
        loader, sampler = build("loader", N, BATCH, workers=workers, lag=lag, epochs=4)
        found = []
        for epoch in range(4):
            for number, batch in enumerate(loader):
                found.append((epoch, batch.tolist(), loader.weights.tolist()))
                loader.step(loss_of(batch, epoch))
                if stop == (epoch, number + 1):
                    break
        sampler.flush()
        return found, sampler.store.priorities.tolist()

    alone = sequence(0, 4)
    assert len({tuple(weights) for _, _, weights in alone[0]}) > 20
    assert sequence(1, 4) == sequence(2, 4) == alone
    assert sequence(0, None)[0] != sequence(2, None)[0]  # the control: without lag they differ


def test_skipped_batches_count_as_passed():
    loader, sampler = build("batch_sampler", N, BATCH, policy=Raw(), cover_first=False, lag=2)
    for number, batch in enumerate(loader):
        if number % 3 == 1:
            sampler.skip()
        else:
            sampler.step(loss_of(batch))
    assert number == 11


def test_without_workers_no_lag_is_lag_zero_when_all_is_stepped():
    loader, sampler = build("batch_sampler", N, BATCH, policy=Raw(), cover_first=False)
    assert run(loader, sampler, 3) == oracle(0, 3, loss_of)


def test_without_lag_the_next_batch_sees_the_losses_of_the_last():
    """Losses of zero: what was drawn is not drawn again from the very next batch on."""

    def overlap(lag):
        loader, sampler = build("batch_sampler", 64, 8, policy=Raw(), cover_first=False, lag=lag)
        drawn, again = set(), 0
        for number, batch in enumerate(loader):
            again += len(drawn & set(batch.tolist()))
            drawn |= set(batch.tolist())
            sampler.step(torch.zeros(len(batch)))
            if number == 6:
                return again

    assert overlap(None) == overlap(0) == 0
    assert overlap(1) > 0  # the control


def test_losses_held_back_by_lag_are_not_in_the_store_until_their_draw_or_a_flush():
    loader, sampler = build("batch_sampler", 40, 8, lag=2)
    passed = []
    for batch in loader:
        passed.append(batch.numpy())
        sampler.step(loss_of(batch))
        known = np.concatenate([np.empty(0, np.int64), *passed[:-3]])
        np.testing.assert_array_equal(np.flatnonzero(sampler.store.seen()), np.sort(known))
    sampler.flush()
    assert sampler.store.all_seen()
    np.testing.assert_array_equal(sampler.store.column("loss"), loss_of(np.arange(40)).numpy())


def test_losses_may_be_overwritten_after_step():
    loader, sampler = build("batch_sampler", 40, 8, lag=2, policy=Raw())
    buffer = torch.empty(8)
    for batch in loader:
        buffer[:] = loss_of(batch)
        sampler.step(buffer)
        buffer[:] = -1
    sampler.flush()
    np.testing.assert_array_equal(sampler.store.priorities, loss_of(np.arange(40)).numpy())


def test_a_lag_below_what_the_loader_reads_ahead_is_an_error_that_names_the_minimum():
    for workers, factor, least in [(1, None, 2), (2, None, 4), (2, 3, 6), (3, 1, 3)]:
        more = {} if factor is None else {"prefetch_factor": factor}
        with pytest.raises(ValueError, match=f"lag = {least - 1}: .*lag >= {least}$"):
            build("loader", N, BATCH, workers=workers, lag=least - 1, loader=more)
        loader, sampler = build("loader", N, BATCH, workers=workers, lag=least, loader=more)
        assert len(run(loader, sampler, 1)[0]) == 12
    build("loader", N, BATCH, lag=0)


@pytest.mark.parametrize("kind", ["batch_sampler", "sampler"])
def test_a_bare_sampler_finds_a_lag_too_small_at_the_draw(kind):
    for lag in range(4):
        loader, _ = build(kind, N, BATCH, workers=2, lag=lag)
        with pytest.raises(RuntimeError, match=f"lag = {lag}: .*num_workers.*at least {lag + 1}"):
            next(iter(loader))
    loader, sampler = build(kind, N, BATCH, workers=2, lag=4)
    assert len(run(loader, sampler, 1)[0]) == 12


def test_a_batch_neither_stepped_nor_skipped_is_found_by_lag():
    loader, _ = build("batch_sampler", N, BATCH, lag=1)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    with pytest.raises(RuntimeError, match=r"only 0 batches were stepped or skipped; .*step\(losses\) or skip\(\)"):
        next(iterator)


def test_lag_without_a_batch_size_is_an_error():
    with pytest.raises(ValueError, match=r"lag = 2: .*pass batch_size="):
        PrioritySampler(N, lag=2)


def test_lag_on_a_loader_that_reorders_is_refused_or_exact():
    """Losses that come as 0, 2, 1: a later batch sees all that its lag says, or lag is refused."""
    try:
        loader, sampler = build(
            "loader", N, BATCH, policy=Raw(), cover_first=False, lag=4, workers=2, dataset=WithIndex(range(N)),
            loader={"in_order": False},
        )  # fmt: skip
    except ValueError as error:
        assert "lag" in str(error)  # noqa: PT017
        return
    batches, iterator = [], iter(loader.batch_sampler)
    for _ in range(5):
        batches.append(next(iterator))
    for number in (0, 2, 1):
        sampler.step(torch.full((BATCH,), 2.0 + number), indices=batches[number])
    next(iterator)
    next(iterator)  # batch 6 sees 0 and 1
    unique = [i for i in batches[1] if i not in batches[2]]
    assert unique
    assert (sampler.store.priorities[unique] == 3).all()


@pytest.mark.parametrize("lag", [None, 0, 3])
def test_losses_that_the_policy_refuses_are_refused_by_step_and_consume_nothing(lag):
    """The message comes at the batch that has them, where skip() still helps."""
    loader, sampler = build("batch_sampler", 40, 8, lag=lag, policy=LossPower())
    for number, batch in enumerate(loader):
        if number == 1:
            with pytest.raises(ValueError, match="expects losses >= 0"):
                sampler.step(-loss_of(batch))
            sampler.skip()
        else:
            sampler.step(loss_of(batch))
    sampler.flush()
    assert sampler.store.seen().sum() == 32
