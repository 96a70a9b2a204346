"""Promise: the score-only pass tells the store what an evaluation would, and leaves no trace in model or randomness."""

import random

import numpy as np
import pytest
import torch
from loader_helpers import loss_of
from rank_helpers import on_ranks, state_of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from fastprio import PriorityLoader, ScoreStore
from fastprio.policies import OUT, SCORE, TRAIN, Plan, Policy

N, BATCH = 103, 16


class Asks(Policy):
    """Remembers losses and where they came from; its plans are given."""

    columns = {"loss": "float32", "origin": "int8", "times": "int32"}  # noqa: RUF012

    def __init__(self, *plans):
        self.plans = plans

    def observe(self, columns, indices, obs, clock, rng):
        columns["loss"][indices] = obs.loss
        columns["origin"][indices] = ("train", "score", "reference").index(obs.origin)
        np.add.at(columns["times"], indices, 1)

    def plan(self, store, clock, rng):
        return self.plans[clock.epoch] if clock.epoch < len(self.plans) else Plan()

    def config(self):
        return {}


class Noisy(Dataset):
    """Draws from all three global generators for every item."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return index, random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002


class Net(nn.Module):
    """Everything that a pass could disturb: batch norm, dropout, a part that is in eval mode for good."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.frozen = nn.BatchNorm1d(4)
        self.frozen.eval()

    def forward(self, x):
        return self.layers(self.frozen(x))


def of_index(model, batch):
    return loss_of(batch)


def codes(*trained, of=N, others=SCORE):
    made = np.full(of, others, np.uint8)
    made[list(trained)] = TRAIN
    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_every_example_gets_the_loss_of_an_evaluation_and_the_model_is_as_it_was(workers):
    torch.manual_seed(1)
    x, y, model = torch.randn(N, 4), torch.randint(0, 3, (N,)), Net()
    loader = PriorityLoader(TensorDataset(x, y), BATCH, policy=Asks(), num_workers=workers)
    modes, before = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    grads = []

    def losses(model, batch):
        grads.append(torch.is_grad_enabled())
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    assert loader.score(model, losses) == N
    assert [m.training for m in model.modules()] == modes
    assert model.layers.training
    assert not model.frozen.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(grads)
    model.eval()
    with torch.no_grad():
        expected = F.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(torch.from_numpy(loader.store.column("loss")), expected)
    assert (loader.store.column("origin") == 1).all()
    assert loader.store.all_seen()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_as_if_nothing_had_been(workers):
    def epoch(scored, seed):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        loader = PriorityLoader(Noisy(), BATCH, policy=Asks(), num_workers=workers, seed=5)
        if scored:
            passed.append([])
            loader.score(nn.Dropout(0.5), lambda model, batch: (passed[-1].append(batch[1]), loss_of(batch[0]))[1])
        seen = []
        for index, values in loader:
            loader.step(loss_of(index))
            seen += values.tolist()
        return seen, float(torch.rand(())), np.random.rand(), random.random()  # noqa: NPY002

    passed = []
    for seed in (3, 4):
        values, *following = epoch(scored=True, seed=seed)
        assert [values, *following] == list(epoch(scored=False, seed=seed))
    for first, second in zip(*passed, strict=True):  # the pass itself has the same numbers, whatever the globals' seeds
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not set(torch.cat(passed[0]).tolist()) & set(values)


def test_a_failing_pass_leaves_model_randomness_and_store_as_they_were():
    model, loader = Net(), PriorityLoader(range(N), BATCH, policy=Asks())
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    def fails(model, batch):
        torch.rand(3)
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        loader.score(model, fails)
    assert model.training
    assert not model.frozen.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]  # noqa: NPY002
    assert loader.store.clock.step == 0


def test_by_default_what_the_plan_asks_for_is_scored_and_nothing_else():
    policy = Asks(Plan(), Plan(codes(3, 5, 7), score=(SCORE,)), Plan(codes(3, 5, others=OUT), score=(TRAIN,)), Plan())
    loader = PriorityLoader(range(N), BATCH, policy=policy, epochs=9)
    assert loader.score(nn.Identity(), of_index) == N  # before the first epoch
    expected = np.ones(N, int)
    for asked in ([], [i for i in range(N) if i not in (3, 5, 7)], [3, 5], [], []):
        for batch in loader:
            loader.skip()
            assert len(batch) <= BATCH
        assert loader.score(nn.Identity(), of_index) == len(asked)
        expected[asked] += 1
        np.testing.assert_array_equal(loader.store.column("times"), expected)


def test_chosen_examples_and_losses_of_another_model():
    loader = PriorityLoader(range(N), BATCH, policy=Asks())
    assert loader.score(nn.Identity(), of_index, indices=[5, 2, 99, 5]) == 4
    assert np.flatnonzero(loader.store.column("times")).tolist() == [2, 5, 99]
    assert loader.store.column("loss")[[5, 2, 99]].tolist() == loss_of([5, 2, 99]).tolist()
    assert loader.score(nn.Identity(), of_index, indices=[]) == 0
    for _ in loader:
        loader.skip()
    assert loader.score(nn.Identity(), of_index) == 0
    seen = loader.store.seen().sum()
    assert loader.score(nn.Identity(), of_index, origin="reference") == N
    assert (loader.store.column("origin") == 2).all()
    assert loader.store.seen().sum() == seen


def test_a_plan_may_leave_out_everything_if_it_scores_some():
    policy = Asks(Plan(codes(), score=(SCORE,)), Plan(codes(2), score=(SCORE,)))
    loader = PriorityLoader(range(N), BATCH, policy=policy, epochs=9)
    for expected in ([], [2]):
        assert [i for batch in loader for i in (loader.skip(), batch.tolist())[1]] == expected
        assert loader.sampler.planned == len(expected)
        assert loader.score(nn.Identity(), of_index) == N - len(expected)
    assert list(PriorityLoader(range(N), BATCH, policy=Asks(Plan(codes(), score=(SCORE,))), drop_last=True)) == []
    with pytest.raises(ValueError, match="leaves out every example, and scores none"):
        next(iter(PriorityLoader(range(N), BATCH, policy=Asks(Plan(codes())))))


@pytest.mark.parametrize("given", ["observations", "none"])
def test_policies_that_need_more_than_the_loss_get_it_from_the_same_function(given):
    class Needs(Policy):
        columns = {"correct": "uint8"}  # noqa: RUF012
        requires = ("correct",)

        def observe(self, columns, indices, obs, clock, rng):
            columns["correct"][indices] = obs.correct

    loader = PriorityLoader(range(N), BATCH, policy=Needs())
    if given == "none":
        with pytest.raises(TypeError, match="also needs correct"):
            loader.score(nn.Identity(), of_index)
        assert loader.store.clock.step == 0
        return
    loader.score(nn.Identity(), lambda model, batch: (loss_of(batch), {"correct": batch % 2 == 0}))
    np.testing.assert_array_equal(loader.store.column("correct"), np.arange(N) % 2 == 0)


BAD = {
    "a mean": (lambda model, batch: loss_of(batch).mean(), ValueError, r"losses of shape \[16\].*got \[\]"),
    "one too few": (lambda model, batch: loss_of(batch)[1:], ValueError, r"losses of shape \[16\].*got \[15\]"),
    "nan": (lambda model, batch: torch.where(batch == 40, np.nan, loss_of(batch)), ValueError, r"losses\[40\] = nan"),
    "labels": (lambda model, batch: batch, TypeError, r"floating-point losses, got torch\.int64"),
    "integers": (lambda model, batch: [1] * len(batch), TypeError, "floating-point losses, got list"),
    "text": (lambda model, batch: ["a"] * len(batch), TypeError, "losses"),
    "observations of some batches": (
        lambda model, batch: (loss_of(batch), {"x": batch} if batch[0] == 0 else {}), ValueError, "of some only"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_losses_that_do_not_fit_are_refused_and_nothing_is_recorded(bad):
    function, error, message = BAD[bad]
    loader = PriorityLoader(range(N), BATCH, policy=Asks())
    with pytest.raises(error, match=message):
        loader.score(nn.Identity(), function)
    assert loader.store.clock.step == 0
    assert not loader.store.seen().any()


def test_nothing_is_recorded_where_only_the_last_of_many_parts_has_a_bad_loss(monkeypatch):
    monkeypatch.setattr("fastprio.scoring.ROWS", 16)
    loader = PriorityLoader(range(N), BATCH, policy=Asks())
    with pytest.raises(ValueError, match=rf"losses\[{N - 1}\] = inf"):
        loader.score(nn.Identity(), lambda model, batch: torch.where(batch == N - 1, torch.inf, loss_of(batch)))
    assert loader.store.clock.step == 0
    assert not loader.store.column("times").any()
    assert loader.score(nn.Identity(), of_index) == N
    assert loader.store.column("loss").tolist() == loss_of(range(N)).tolist()


def test_indices_out_of_range_and_unknown_origins_are_refused_before_the_pass():
    loader = PriorityLoader(range(N), BATCH, policy=Asks())
    with pytest.raises(IndexError, match=rf"indices\[1\] = {N}: expected 0 <= index < {N}"):
        loader.score(None, None, indices=[1, N])
    with pytest.raises(ValueError, match="origin = 'valid': expected 'score' or 'reference'"):
        loader.score(None, None, origin="valid")


def test_with_lag_a_pass_in_the_middle_of_an_epoch_is_refused():
    loader = PriorityLoader(range(N), BATCH, policy=Asks(), lag=1)
    for batch in loader:
        loader.step(loss_of(batch))
        if loader.sampler.journal.consumed_batches < 7:
            with pytest.raises(RuntimeError, match=r"lag = 1: .* score at its end"):
                loader.score(nn.Identity(), of_index)
    assert loader.score(nn.Identity(), of_index, indices=[1]) == 1
    assert loader.store.column("times").sum() == N + 1  # what waited was applied before
    free = PriorityLoader(range(N), BATCH, policy=Asks())
    for batch in free:
        free.step(loss_of(batch))
        assert free.score(nn.Identity(), of_index, indices=[1]) == 1


# Several ranks.


def of_ranks(rank, ranks, workers):
    plans = Plan(), Plan(codes(*range(0, N, 3)), score=(SCORE,)), Plan(codes(*range(99)), score=(SCORE,))
    loader = PriorityLoader(range(N), 24 // ranks, policy=Asks(*plans), epochs=5, num_workers=workers)
    forwarded = []

    def losses(model, batch):
        forwarded.extend(batch.tolist())
        return loss_of(batch)

    for _ in range(3):
        for batch in loader:
            loader.step(loss_of(batch, 1))
        loader.score(nn.Identity(), losses)
    store = loader.store
    return store.column("loss").tolist() + store.column("origin").tolist(), sorted(forwarded), state_of(store)


def test_ranks_share_a_pass_and_end_with_the_same_store():
    alone = of_ranks(0, 1, 0)
    found = on_ranks(2, of_ranks, 2, 0)
    assert found[0][2] == found[1][2]
    assert found[0][0] == alone[0]
    together = sorted(found[0][1] + found[1][1])
    assert set(together) == set(alone[1])
    assert len(together) - len(alone[1]) <= 2  # at most one twice a pass, to have equal parts
    assert len(found[0][1]) == len(found[1][1])


def of_shards(rank, ranks):
    loader = PriorityLoader(range(N), 8, policy=Asks(), shard="sharded")
    loader.score(nn.Identity(), of_index)
    return loader.store.column("loss").tolist()


def test_a_rank_scores_the_shard_that_it_owns():
    found = on_ranks(2, of_shards, 2)
    assert found[0] + found[1] == loss_of(range(N)).tolist()


def other_names(rank, ranks):
    loader = PriorityLoader(range(N), 8, policy=Asks())
    with pytest.raises(ValueError, match="ranks have other rows"):
        loader.score(nn.Identity(), lambda model, batch: (loss_of(batch), {"ab"[rank]: batch}))
    return loader.store.clock.step


def test_ranks_with_other_observations_find_out():
    assert on_ranks(2, other_names, 2) == [0, 0]


def test_a_store_of_its_own_is_scored_through_the_loader():
    store = ScoreStore(N, Asks())
    PriorityLoader(range(N), BATCH, policy=store).score(nn.Identity(), of_index)
    assert store.column("loss").tolist() == loss_of(range(N)).tolist()
