"""Several ranks: real processes under gloo draw one global sequence, and keep one store."""

import copy
import io
import os
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rank_helpers import interleaved, loss_of, on_ranks, state_of
from torch.utils.data import DataLoader

from fastprio import Checkpoint, PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore
from fastprio.policies import LossPower, Policy, register

N, BATCH = 96, 16


def loader_of(ranks, kind="own", workers=0, **arguments):
    """(loader, sampler) whose global batch is BATCH."""
    prefetch = {"num_workers": workers, **({"prefetch_factor": 2} if workers else {})}
    store = ScoreStore(N, copy.deepcopy(arguments.pop("policy", "loss")), epochs=4)
    if kind == "own":
        loader = PriorityLoader(range(N), BATCH // ranks, policy=store, seed=5, **arguments, **prefetch)
        return loader, loader.sampler
    sampler = PrioritySampler(store, batch_size=BATCH, seed=5, **arguments)
    if kind == "batches":
        return DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // ranks), **prefetch), sampler
    return DataLoader(range(N), BATCH // ranks, sampler=sampler, **prefetch), sampler


def train(loader, sampler, epochs, step=0, steps=None):
    """[(indices, weights)] of every batch; losses are a function of example and step."""
    trained = []
    for _ in range(epochs):
        for batch in loader:
            assert batch.tolist() == sampler.indices.tolist()
            trained.append((batch.tolist(), sampler.weights.tolist()))
            sampler.step(loss_of(batch, step))
            step += 1
            if steps is not None and len(trained) == steps:
                return trained
    return trained


def run(rank, ranks, kind, workers, arguments, epochs=3):
    loader, sampler = loader_of(ranks, kind, workers, **arguments)
    trained = train(loader, sampler, epochs)
    sampler.flush()
    return trained, state_of(sampler.store)


def together(results):
    """The global sequence of (indices, weights)."""
    trained = [found[0] for found in results]
    return [
        (interleaved([part[0] for part in parts]), interleaved([part[1] for part in parts]))
        for parts in zip(*trained, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "workers", "arguments"),
    [
        ("own", 0, {}),
        ("own", 2, {}),
        ("batches", 0, {"lag": 0}),
        ("batches", 2, {"lag": 5}),
        ("singles", 0, {}),
        ("singles", 2, {"lag": 4}),
        ("own", 0, {"scheme": "systematic", "num_samples": 80}),
        ("batches", 0, {"policy": LossPower(beta=0), "replacement": False}),
    ],
)
def test_any_number_of_ranks_draws_the_same_sequence_and_learns_the_same(kind, workers, arguments):
    loader, sampler = loader_of(1, kind, workers, **arguments)
    alone = train(loader, sampler, 3)
    sampler.flush()
    expected = state_of(sampler.store)
    for ranks in (2, 4):
        results = on_ranks(ranks, run, ranks, kind, workers, arguments)
        assert together(results) == alone
        for _, state in results:
            assert state == expected


def planned(rank, ranks):
    return train(*loader_of(ranks, policy="infobatch"), 2)


def test_planned_epochs_are_the_same_but_for_what_fills_up_the_last_batch():
    alone = train(*loader_of(1, policy="infobatch"), 2)
    assert len(alone[-1][0]) % 4 != 0  # or this would be the test above
    for ranks in (2, 4):
        sequence = together([(trained,) for trained in on_ranks(ranks, planned, ranks)])
        last, weights = sequence[-1]
        assert len(last) == -(-len(alone[-1][0]) // ranks) * ranks
        sequence[-1] = last[: len(alone[-1][0])], weights[: len(alone[-1][0])]
        assert sequence == alone


def save_at(rank, ranks, steps, arguments):
    loader, sampler = loader_of(ranks, "batches", 2, **arguments)
    trained = train(loader, sampler, 3, steps=steps)
    file = io.BytesIO()
    torch.save(Checkpoint(sampler).state_dict(), file)
    return trained, file.getvalue()


def go_on(rank, ranks, state, steps, epochs, arguments):
    loader, sampler = loader_of(ranks, "batches", 2, **arguments)
    Checkpoint(sampler).load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    trained = train(loader, sampler, epochs, step=steps)
    sampler.flush()
    return trained, state_of(sampler.store)


@pytest.mark.parametrize("arguments", [{}, {"lag": 5}])
def test_a_checkpoint_of_one_number_of_ranks_resumes_at_another(arguments):
    loader, sampler = loader_of(1, "batches", 2, **arguments)
    alone = train(loader, sampler, 3)
    sampler.flush()
    expected = state_of(sampler.store)
    for before, after, steps in ((2, 4, 3), (4, 1, 8), (1, 2, 9)):
        results = on_ranks(before, save_at, before, steps, arguments)
        begun = together(results)
        assert begun == alone[:steps]
        epochs = 3 - steps // (N // BATCH)
        rest = on_ranks(after, go_on, after, results[-1][1], steps, epochs, arguments)
        assert together(rest) == alone[steps:]
        assert all(state == expected for _, state in rest)


def real_model(rank, ranks):
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(N, 6), torch.randint(3, (N,)), torch.arange(N))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = PriorityLoader(data, BATCH // ranks, epochs=3, num_workers=1)
    trained = []
    for _ in range(3):
        for x, y, i in loader:
            trained.append(i.tolist())
            assert loader.indices.tolist() == i.tolist()
            loss = loader.step(torch.nn.functional.cross_entropy(model(x), y, reduction="none"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    loader.flush()
    return trained, state_of(loader.store), [p.detach().numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("ranks", [2, 4])
def test_with_a_real_model_all_ranks_agree(ranks):
    results = on_ranks(ranks, real_model, ranks)
    for _, state, parameters in results[1:]:
        assert state == results[0][1]
        assert parameters == results[0][2]
    batches = [interleaved(parts) for parts in zip(*[found[0] for found in results], strict=True)]
    assert len(batches) == 3 * N // BATCH
    assert sorted(i for batch in batches[: N // BATCH] for i in batch) == list(
        range(N)
    )  # the first epoch covers, each example on one rank
    for slices in zip(*[found[0] for found in results], strict=True):
        assert len({tuple(part) for part in slices}) == ranks


def skips(rank, ranks):
    loader, sampler = loader_of(ranks, "batches", lag=0)
    rows = []
    for number, batch in enumerate(loader):
        if number == 0 or (number == 2 and rank == 1):  # the first all, then one rank
            sampler.skip()
        else:
            rows += batch.tolist()
            sampler.step(loss_of(batch, 0))
    sampler.flush()
    return rows, np.flatnonzero(sampler.store.seen()).tolist(), state_of(sampler.store)


def test_every_rank_takes_part_in_a_skip_and_only_its_rows_are_left_out():
    results = on_ranks(2, skips, 2)
    expected = sorted(results[0][0] + results[1][0])
    assert len(expected) == N - BATCH - BATCH // 2
    for _, seen, state in results:
        assert seen == expected
        assert state == results[0][2]


def bad_loss(rank, ranks, lag):
    loader, sampler = loader_of(ranks, "batches", lag=lag)
    errors = []
    batches = iter(loader)
    for number in range(N // BATCH):
        try:
            batch = next(batches)
        except ValueError as error:
            errors.append((number, str(error)))
            batches, batch = iter(loader), None
        if batch is None:
            batch = next(batches)
        losses = loss_of(batch, 0)
        if number == 2 and rank == 1:
            losses[3] = float("nan")
        sampler.step(losses)
    sampler.flush()
    return errors, state_of(sampler.store)


@pytest.mark.parametrize(("lag", "found"), [(None, 3), (0, 3), (1, 4)])
def test_a_loss_that_is_not_finite_on_one_rank_raises_on_all_at_the_same_draw(lag, found):
    results = on_ranks(2, bad_loss, 2, lag)
    for errors, state in results:
        assert [number for number, _ in errors] == [found]
        assert "batch 2 of epoch 0" in errors[0][1]
        assert "losses[7] = nan" in errors[0][1]  # row 3 of rank 1 of 2
        assert (errors, state) == results[0]


@register("test-counting")
class Counting(Policy):
    """Remembers integers that a float would not hold."""

    columns = {"big": "int64", "pair": ("float32", 2), "flag": "bool"}  # noqa: RUF012
    requires = ("big", "pair", "flag")

    def observe(self, columns, indices, obs, clock, rng):
        columns["big"][indices] = obs.big
        columns["pair"][indices] = obs.pair.reshape(-1, 2)  # flat where there are no rows
        columns["flag"][indices] = obs.flag
        return np.ones(len(indices), np.float32)


def observing(rank, ranks):
    loader, sampler = loader_of(ranks, "batches", policy=Counting())
    for number, batch in enumerate(loader):
        if number == 0 and rank == 0:  # this rank does not know yet what observations there are
            sampler.skip()
            continue
        big = batch + (1 << 62) + 1
        pair = torch.stack([batch, -batch], 1).float()
        sampler.record(loss_of(batch, 0), big=big, pair=pair, flag=batch % 3 == 0)
    sampler.flush()
    store = sampler.store
    return store.seen(), store.column("big").copy(), store.column("pair").copy(), store.column("flag").copy()


def test_observations_travel_in_their_own_types():
    for seen, big, pair, flag in on_ranks(2, observing, 2):
        rows = np.flatnonzero(seen)
        assert len(rows) == N - BATCH // 2
        assert (big[rows] == rows + (1 << 62) + 1).all()
        assert (pair[rows] == np.stack([rows, -rows], 1)).all()
        assert (flag[rows] == (rows % 3 == 0)).all()


def other_observations(rank, ranks):
    loader, sampler = loader_of(ranks, "batches", policy=Counting())
    for number, batch in enumerate(loader):
        big = batch.float() if rank == 1 and number == 1 else batch
        pair = torch.zeros(len(batch), 2)
        try:
            sampler.record(loss_of(batch, 0), big=big, pair=pair, flag=batch > 3)
        except ValueError as error:
            return number, str(error)
    return None


def test_observations_that_change_raise_on_all_ranks():
    for found in on_ranks(2, draws_raise, 2, other_observations):
        assert "rank 1 passed other observations" in found


def draws_raise(rank, ranks, function):
    try:
        return function(rank, ranks)
    except (ValueError, RuntimeError) as error:
        return str(error)


def other_seed(rank, ranks):
    sampler = PrioritySampler(ScoreStore(N, "loss", epochs=4), batch_size=BATCH, seed=rank)
    return train(DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // ranks)), sampler, 1)


def other_store(rank, ranks):
    sampler = PrioritySampler(ScoreStore(N, "loss", epochs=4), batch_size=BATCH)
    sampler.store.update(range(N), torch.rand(N) + rank)
    return train(DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // ranks)), sampler, 3)


def other_prefetch(rank, ranks):
    loader, sampler = loader_of(ranks, "batches", workers=rank)
    return train(loader, sampler, 2)


@pytest.mark.parametrize("function", [other_seed, other_store, other_prefetch])
def test_ranks_that_draw_differently_find_out(function):
    for found in on_ranks(2, draws_raise, 2, function):
        assert "ranks have drawn differently. Rank 0:" in found


def dies(rank, ranks):
    loader, sampler = loader_of(ranks, "batches")
    for number, batch in enumerate(loader):
        if number == 2 and rank == 1:
            os._exit(1)
        begin = time.monotonic()
        try:
            sampler.step(loss_of(batch, number))
            sampler.flush()
        except RuntimeError:
            return number, time.monotonic() - begin
    return None


def test_a_rank_that_dies_makes_the_others_fail():
    found = on_ranks(2, dies, 2, group_seconds=10, dying=(1,))
    number, seconds = found[0]
    assert number == 2
    assert seconds < 60  # the group's timeout, and what it takes to notice


def refused(rank, ranks):
    found = {}
    for name, make in {
        "no batch size": lambda: PrioritySampler(N),
        "other ranks": lambda: PrioritySampler(N, batch_size=24, num_replicas=3, rank=rank),
        "does not divide": lambda: PrioritySampler(N, batch_size=9),
        "nobody deals": lambda: PrioritySampler(N, batch_size=BATCH, num_replicas=1, rank=0),
    }.items():
        try:
            next(iter(make()))
        except ValueError as error:
            found[name] = str(error)
    try:
        PriorityLoader(range(N), 4, num_workers=2, in_order=False)
    except ValueError as error:
        found["order"] = str(error)
    return found


def test_what_cannot_work_is_refused_before_training():
    for found in on_ranks(2, refused, 2):
        assert "pass batch_size=" in found["no batch size"]
        assert "its process group has 2" in found["other ranks"]
        assert "must divide by 2 ranks" in found["does not divide"]
        assert "leaves slicing to the loader" in found["nobody deals"]
        assert "in_order = False: 2 ranks" in found["order"]


def subgroups(rank, ranks):
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    sampler = PrioritySampler(
        ScoreStore(N, "loss", epochs=2), batch_size=BATCH, seed=rank // 2, process_group=groups[rank // 2]
    )
    loader = DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // 2))
    trained = train(loader, sampler, 2)
    return trained, state_of(sampler.store)


def test_a_process_group_of_its_own():
    results = on_ranks(4, subgroups, 4)
    assert results[0][1] == results[1][1] != results[2][1] == results[3][1]
    sampler = PrioritySampler(ScoreStore(N, "loss", epochs=2), batch_size=BATCH, seed=1)
    alone = train(DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH)), sampler, 2)
    assert together(results[2:]) == alone


def stateful(rank, ranks, saved):
    """Trains, saving after nine steps; or goes on from what was saved, on however many ranks."""
    module = pytest.importorskip("torchdata.stateful_dataloader")
    sampler = PrioritySampler(ScoreStore(N, "loss", epochs=4), batch_size=BATCH, seed=5)
    given = {
        "num_workers": 1,
        "snapshot_every_n_steps": 2,
        "batch_sampler": PriorityBatchSampler(sampler, BATCH // ranks),
    }
    loader = module.StatefulDataLoader(range(N), **given)
    state, trained, begin = None, [], 0
    if saved is not None:
        parts = torch.load(io.BytesIO(saved), weights_only=True)
        sampler.store.load_state_dict(parts["store"])
        loader.load_state_dict(parts["loader"])
        begin = 9
    for _ in range(begin // (N // BATCH), 3):
        for batch in loader:
            assert batch.tolist() == sampler.indices.tolist()
            trained.append((batch.tolist(), sampler.weights.tolist()))
            sampler.step(loss_of(batch, begin + len(trained) - 1))
            if begin + len(trained) == 9:
                file = io.BytesIO()
                torch.save({"store": sampler.store.state_dict(), "loader": loader.state_dict()}, file)
                state = file.getvalue()
    sampler.flush()
    return trained, state_of(sampler.store), state


def test_a_stateful_loader_goes_on_at_another_number_of_ranks():
    pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    whole = on_ranks(2, stateful, 2, None)
    for ranks in (2, 1, 4):
        rest = on_ranks(ranks, stateful, ranks, whole[0][2])
        assert together(rest) == together(whole)[9:]
        assert all(state == whole[0][1] for _, state, _ in rest)
