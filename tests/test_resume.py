"""A run interrupted anywhere and resumed goes on with the same batches, weights and store, to the bit."""

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fastprio
from fastprio import Checkpoint, PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore
from fastprio.policies import SCORE, Kakurenbo, LossPower, MultiplicativeReweighting, Plan
from fastprio.policies.primitives import codes_of
from fastprio.testing import assert_same_after_resume, sampler_of

N, BATCH = 101, 8


def train_step(loader, batch):
    """Losses that depend on the examples and on the step, so that the order of updates shows."""
    sampler = sampler_of(loader)
    assert batch.tolist() == sampler.indices.tolist()
    losses = (batch.double() * 0.6180339887 % 1.0 + torch.rand(len(batch), dtype=torch.float64)).float()
    (loader if hasattr(loader, "step") else sampler).step(losses)


def make(kind, *, workers=0, snapshot=1, policy="loss", batch_size=BATCH, **arguments):
    def make_loader():
        prefetch = {"num_workers": workers, **({"prefetch_factor": 2} if workers else {})}
        store = ScoreStore(N, policy() if callable(policy) else policy, epochs=3)
        if kind == "own":
            return PriorityLoader(range(N), BATCH, policy=store, seed=3, **arguments, **prefetch)
        sampler = PrioritySampler(store, batch_size=batch_size, seed=3, **arguments)
        given = {"sampler": sampler, "batch_size": BATCH}
        if kind.endswith("batches"):
            given = {"batch_sampler": PriorityBatchSampler(sampler, BATCH)}
        if kind.startswith("stateful"):
            stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
            return stateful.StatefulDataLoader(range(N), snapshot_every_n_steps=snapshot, **given, **prefetch)
        return DataLoader(range(N), **given, **prefetch)

    return make_loader


KINDS = ["own", "plain batches", "plain singles", "stateful batches", "stateful singles"]


@pytest.mark.parametrize("lag", [None, 4])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_loader_goes_on_as_if_nothing_had_happened(kind, workers, lag):
    assert_same_after_resume(make(kind, workers=workers, lag=lag), train_step, epochs=3, at=[0, 1, 7, 12, 13, 20, 39])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_of_the_way(workers):
    assert_same_after_resume(make("own", workers=workers), train_step, epochs=2, at=range(27))


@pytest.mark.parametrize("lag", [None, 4])
@pytest.mark.parametrize("kind", ["stateful batches", "stateful singles"])
@pytest.mark.parametrize("snapshot", [5, 50])
def test_rare_snapshots_replay_what_was_drawn(kind, snapshot, lag):
    assert_same_after_resume(
        make(kind, workers=2, snapshot=snapshot, lag=lag), train_step, epochs=3, at=[0, 3, 5, 12, 13, 16, 22, 39]
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        ("infobatch", {}),
        ("uniform", {}),
        ("loss", {"scheme": "systematic"}),
        ("loss", {"scheme": "iid"}),
        ("loss", {"cover_first": False}),
        ("loss", {"num_samples": 37}),
        (lambda: LossPower(beta=0), {"scheme": "unique"}),
        (lambda: LossPower(beta=0), {"replacement": False}),
    ],
)
@pytest.mark.parametrize("kind", ["own", "stateful batches"])
def test_every_policy_and_scheme(kind, policy, arguments, workers):
    assert_same_after_resume(make(kind, workers=workers, policy=policy, **arguments), train_step, epochs=3)


@pytest.mark.parametrize("kind", ["plain singles", "stateful singles"])
@pytest.mark.parametrize("replacement", [True, False])
def test_single_draws_without_a_batch_size(kind, replacement):
    make_loader = make(kind, policy=lambda: LossPower(beta=0), batch_size=None, replacement=replacement)
    assert_same_after_resume(make_loader, train_step, epochs=3)


# With something to do at each epoch's end.


class HidesAll(Kakurenbo):
    """All of epoch 1 is scored only."""

    def plan(self, store, clock, rng):
        return Plan(codes_of(np.full(len(store), clock.epoch != 1), SCORE), score=(SCORE,))


def observed(loader, batch, epoch):
    losses = (batch.double() * 0.6180339887 % 1.0 + torch.rand(len(batch), dtype=torch.float64) + epoch).float()
    known = {"correct": batch % 3 > 0, "confidence": 1 - batch / 400}
    return losses, {name: known[name] for name in loader.store.policy.requires}


def observing_step(loader, batch):
    losses, others = observed(loader, batch, loader.sampler.epoch)
    loader.step(losses, **others)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("policy", "scored", "at", "calls"),
    [
        (lambda: Kakurenbo(warm_up=1), [0, 23, 17], [0, 1, 12, 13, 14, 22, 23, 24, 34], 26),
        (MultiplicativeReweighting, [N, N, N], [0, 1, 12, 13, 14, 20, 26, 39], 25),
        (lambda: HidesAll(warm_up=1), [0, N, 0], [0, 12, 13, 14, 26], 18),
    ],
)
def test_scoring_at_each_epochs_end_goes_on_too(policy, scored, at, calls, workers):
    counts = []

    def score(loader):
        epoch = loader.sampler.epoch
        counts.append(loader.score(torch.nn.Identity(), lambda model, batch: observed(loader, batch, epoch + 0.5)))

    make_loader = make("own", workers=workers, policy=policy)
    assert_same_after_resume(make_loader, observing_step, epochs=3, at=at, after_epoch=score)
    assert counts[:3] == scored  # the run without interruption
    assert counts[3:6] == scored  # the run that only saves
    assert len(counts) == calls  # and once for every epoch whose end came after the state


class Count:
    """Something else whose state is saved."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_at_an_epochs_end_is_done_once_and_before_the_state_is_saved(kind, workers):
    def step(loader, batch, count):
        assert count.value == sampler_of(loader).epoch
        train_step(loader, batch)

    def after_epoch(loader, count):
        ended.append(count.value)
        count.value += 1

    ended = []
    make_loader = make(kind, workers=workers)
    at = [0, 12, 13, 14, 39]
    assert_same_after_resume(lambda: (make_loader(), Count()), step, epochs=3, at=at, after_epoch=after_epoch)
    # Twice whole; from 0 and 12; from 13, the end of epoch 0, and 14; interrupted at all of them.
    assert ended == [0, 1, 2] * 2 + [0, 1, 2] * 2 + [1, 2] * 2 + [0, 1, 2]


def test_an_epochs_end_that_is_another_after_a_resume_is_found():
    def make_loader():
        calls.clear()  # what the hook goes by is not saved
        return make("own", policy=MultiplicativeReweighting)()

    def score(loader):
        calls.append(0)
        loader.score(torch.nn.Identity(), lambda model, batch: observed(loader, batch, len(calls)))

    calls = []
    assert_same_after_resume(make_loader, observing_step, at=[0, 12], after_epoch=score)
    with pytest.raises(
        AssertionError, match=r"a run resumed after step 13: the store ends with other column\.cumulative"
    ):
        assert_same_after_resume(make_loader, observing_step, at=[13], after_epoch=score)


def test_a_chain_of_resumes_whose_epochs_are_shorter_is_found():
    def make_loader():
        made.append(0)
        return make("own", num_samples=37 if len(made) > 3 else None)()

    made = []
    with pytest.raises(AssertionError, match=r"a run resumed after each of the steps \[20\]: step 4 of epoch 0"):
        assert_same_after_resume(make_loader, train_step, at=[20])


# In a new process, through files, and in ways that are not the harness's.

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_resume import make, train_step
from fastprio.testing import sampler_of
torch.manual_seed(0)
loader = make("own", workers=2)()
begin, stop, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if begin:
    loader.load_state_dict(torch.load(path, weights_only=True))
step = begin
while step < stop:
    for batch in loader:
        print(sampler_of(loader).indices.tolist(), sampler_of(loader).weights.tolist())
        torch.manual_seed(step)
        train_step(loader, batch)
        step += 1
        if step == stop:
            break
torch.save(loader.state_dict(), path)
"""


def test_new_processes_go_on(tmp_path):
    def process(begin, stop, name):
        script = SCRIPT.format(tests=str(Path(__file__).parent))
        run = [sys.executable, "-c", script, str(begin), str(stop), str(tmp_path / name)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    whole = process(0, 30, "whole")
    parts = process(0, 9, "parts") + process(9, 17, "parts") + process(17, 30, "parts")
    assert len(whole) == 30
    assert parts == whole
    one, other = (torch.load(tmp_path / name, weights_only=True) for name in ("whole", "parts"))
    for name, array in one["store"]["arrays"].items():
        assert torch.equal(array, other["store"]["arrays"][name]), name


def begun(steps=5, **arguments):
    """A PriorityLoader in the middle of its first epoch."""
    loader = make("own", **arguments)()
    batches = iter(loader)
    for _ in range(steps):
        train_step(loader, next(batches))
    return loader, batches


def rest_of(loader):
    torch.manual_seed(1)
    trained = []
    for batch in loader:
        trained.append(batch.tolist())
        train_step(loader, batch)
    return trained


def test_the_file_of_a_store_has_the_journal(tmp_path):
    loader, _ = begun(workers=2)
    loader.store.save(tmp_path / "store")
    state = loader.state_dict()
    sampler = PrioritySampler(ScoreStore.load(tmp_path / "store"), batch_size=BATCH)
    sampler.load_state_dict(state["sampler"])
    again = make("own")()
    again.load_state_dict(state)
    assert list(PriorityBatchSampler(sampler, BATCH))[:3] == rest_of(again)[:3]


def test_what_was_loaded_and_not_begun_is_saved_again(tmp_path):
    loader, _ = begun(workers=2)
    state = loader.state_dict()
    first, second = make("own")(), make("own", workers=2)()
    first.load_state_dict(state)
    second.load_state_dict(first.state_dict())
    third = make("own")()
    third.load_state_dict(state)
    assert rest_of(second) == rest_of(third)


def test_a_run_goes_back_to_an_earlier_state_of_its_own():
    loader, batches = begun(workers=2)
    state = loader.state_dict()
    for _ in range(3):
        train_step(loader, next(batches))
    loader.load_state_dict(state)
    once = rest_of(loader)
    loader.load_state_dict(state)
    assert rest_of(loader) == once
    assert len(once) == 13 - 5


def test_a_store_that_is_loaded_alone_starts_a_new_run():
    loader, _ = begun(workers=2)
    again = make("own")()
    again.store.load_state_dict(loader.store.state_dict())
    epochs = [rest_of(again) for _ in range(2)]
    assert len(epochs[0]) == 13
    assert set(range(N)) - {i for batch in epochs[0] for i in batch} <= set(np.flatnonzero(loader.store.seen()))


def test_a_batch_that_was_yielded_and_not_stepped_when_saving_comes_again():
    loader, batches = begun()
    following = next(batches).tolist()
    again = make("own")()
    again.load_state_dict(loader.state_dict())
    assert next(iter(again)).tolist() == following


def test_single_draws_go_on_in_the_middle_of_a_batch():
    """Gradient accumulation: the loader's batches are halves of the sampler's."""
    sampler = PrioritySampler(ScoreStore(N), batch_size=BATCH, seed=3)
    batches = iter(DataLoader(range(N), BATCH // 2, sampler=sampler))
    for _ in range(5):
        batch = next(batches)
        assert batch.tolist() == sampler.indices.tolist()[: BATCH // 2]
        sampler.step(torch.rand(len(batch)))
    state = Checkpoint(sampler).state_dict()
    expected = [next(batches).tolist()]
    again = PrioritySampler(ScoreStore(N), batch_size=BATCH, seed=3)
    Checkpoint(again).load_state_dict(state)
    batches = iter(DataLoader(range(N), BATCH // 2, sampler=again))
    assert next(batches).tolist() == expected[0]
    assert again.indices.tolist()[: BATCH // 2] == expected[0]


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_state_is_a_few_numbers_whatever_is_in_flight(size):
    sampler = PrioritySampler(ScoreStore(size), batch_size=64)
    batches = iter(PriorityBatchSampler(sampler, 64))
    for _ in range(10):
        next(batches)
    state = sampler.state_dict()
    assert state["position"] == 640
    assert all(type(value) in (int, bool, type(None)) for value in state.values())
    for _ in range(5):
        next(batches)
    assert state["position"] == 640  # and does not change afterwards
    assert sampler.consumed_state()["position"] == 0


def test_set_epoch_does_not_undo_a_state(caplog):
    loader, _ = begun()
    state = loader.state_dict()
    expected = make("own")()
    expected.load_state_dict(state)
    again = make("own")()
    again.load_state_dict(state)
    again.set_epoch(7)
    again.set_epoch(7)
    with caplog.at_level(logging.WARNING, "fastprio"):
        assert rest_of(again) == rest_of(expected)
    assert "set_epoch(7) is passed over: a state of epoch 0 was loaded, which goes on" in caplog.text
    again.set_epoch(7)
    next(iter(again))
    assert again.sampler.epoch == 7


@pytest.mark.parametrize("kind", ["own", "plain batches"])
def test_a_state_of_an_epochs_last_step_leads_to_the_epoch_that_is_named(kind):
    make_loader = make(kind, workers=1)
    loader, state = make_loader(), None
    for number, batch in enumerate(loader):
        train_step(loader, batch)
        if number == 12:
            state = loader.state_dict() if kind == "own" else Checkpoint(sampler_of(loader)).state_dict()
    sampler_of(loader).set_epoch(1)
    expected = next(iter(loader)).tolist()
    again = make_loader()
    (again if kind == "own" else Checkpoint(sampler_of(again))).load_state_dict(state)
    sampler_of(again).set_epoch(1)
    assert next(iter(again)).tolist() == expected


@pytest.mark.parametrize("kept", [False, True])
def test_batches_consumed_in_any_order_are_not_issued_again(kept):
    def drawn_of(sampler):
        batches = iter(PriorityBatchSampler(sampler, BATCH))
        return [np.array(next(batches)) for _ in range(4)]

    sampler = PrioritySampler(ScoreStore(N, epochs=3), batch_size=BATCH, seed=3)
    if kept:
        sampler.state_dict()  # of a loader that may go back to it: what is consumed stays in the journal
    drawn = drawn_of(sampler)
    for number in (1, 3):
        sampler.step(torch.rand(BATCH), indices=drawn[number])
    state = Checkpoint(sampler).state_dict()
    again = PrioritySampler(ScoreStore(N, epochs=3), batch_size=BATCH, seed=3)
    Checkpoint(again).load_state_dict(state)
    batches = iter(PriorityBatchSampler(again, BATCH))
    assert next(batches) == drawn[0].tolist()
    again.step(torch.rand(BATCH))
    assert next(batches) == drawn[2].tolist()
    again.step(torch.rand(BATCH))
    rest = [i for batch in batches for i in batch]
    assert sorted([*rest, *np.concatenate(drawn).tolist()]) == list(range(N))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("policy", ["uniform", "given"])
def test_a_loop_that_need_not_step_goes_on_where_it_stands(policy, workers):
    def store():
        return ScoreStore(N, fastprio.policies.Given(np.arange(1.0, N + 1)) if policy == "given" else policy)

    def loader():
        return PriorityLoader(range(N), BATCH, policy=store(), seed=2, num_workers=workers)

    whole = loader()
    drawn = [batch.tolist() for batch in whole] + [batch.tolist() for batch in whole]
    begun = loader()
    for number, _ in enumerate(begun):
        if number == 6:
            break
    again = loader()
    again.load_state_dict(begun.state_dict())
    assert [batch.tolist() for _ in range(2) for batch in again] == drawn[7:]
    sampler = PrioritySampler(store(), batch_size=BATCH, seed=2)
    batches = iter(DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH), num_workers=workers))
    for _ in range(7):
        next(batches)
    if workers:
        with pytest.raises(ValueError, match="nothing was stepped in this epoch and its loader reads ahead"):
            Checkpoint(sampler).state_dict()
        return
    again = PrioritySampler(store(), batch_size=BATCH, seed=2)
    Checkpoint(again).load_state_dict(Checkpoint(sampler).state_dict())
    assert list(PriorityBatchSampler(again, BATCH)) == drawn[7 : len(drawn) // 2]


def test_loading_forgets_what_was_under_way():
    fresh = make("own", lag=2)()
    start = fresh.state_dict()
    loader, batches = begun(lag=2)
    loader.load_state_dict(start)
    with pytest.raises(RuntimeError, match="nothing is outstanding"):
        loader.step(torch.rand(BATCH))
    with pytest.raises(RuntimeError, match="a newer iteration of this sampler has begun"):
        next(batches)
    loader.flush()
    assert loader.store.stats()["updates"] == 0
    assert rest_of(loader) == rest_of(fresh)
    assert loader.store.stats()["coverage"] == fresh.store.stats()["coverage"]


def test_an_epoch_that_fails_to_begin_after_a_load_takes_nothing_twice():
    """What waited in the state is applied when the next epoch begins, once, though its plan fails the first time."""

    class Fails(LossPower):
        failing = False

        def plan(self, store, clock, rng):
            if self.failing:
                raise OverflowError("no plan today")

    def loader():
        return PriorityLoader(range(N), BATCH, policy=ScoreStore(N, Fails(), epochs=3), lag=2)

    begun = loader()
    for batch in begun:
        train_step(begun, batch)
    state = begun.state_dict()
    again = loader()
    again.load_state_dict(state)
    again.store.policy.failing = True
    for _ in range(2):
        with pytest.raises(OverflowError):
            next(iter(again))
        assert again.store.stats()["updates"] == 13
    again.store.policy.failing = False
    expected = loader()
    expected.load_state_dict(state)
    assert next(iter(again)).tolist() == next(iter(expected)).tolist()


def test_a_second_sampler_on_a_store_saves_its_own_state():
    store = ScoreStore(N, epochs=3)
    first = PrioritySampler(store, batch_size=BATCH)
    for batch in PriorityBatchSampler(first, BATCH):
        first.step(torch.rand(len(batch)))
    second = PrioritySampler(store, batch_size=BATCH, seed=9)
    state = Checkpoint(second).state_dict()
    expected = next(iter(PriorityBatchSampler(second, BATCH)))
    again = PrioritySampler(ScoreStore(N, epochs=3), batch_size=BATCH, seed=9)
    Checkpoint(again).load_state_dict(state)
    assert next(iter(PriorityBatchSampler(again, BATCH))) == expected


def test_a_state_that_its_loader_could_not_load_is_announced_when_saved():
    loader = make("stateful batches", workers=2, snapshot=50, depth=4)()
    for number, batch in enumerate(loader):
        train_step(loader, batch)
        if number == 3:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                sampler_of(loader).store.state_dict()
    with pytest.warns(UserWarning, match="Pass more than depth=4 to the sampler"):
        sampler_of(loader).store.state_dict()


def test_single_draws_in_parts_whose_last_batch_is_not_full():
    sampler = PrioritySampler(ScoreStore(N), batch_size=BATCH)  # 101 = 12 * 8 + 5, in fours
    for batch in DataLoader(range(N), BATCH // 2, sampler=sampler):
        assert batch.tolist() == sampler.indices.tolist()[: len(batch)]
        sampler.step(torch.rand(len(batch)))
    assert sampler.store.stats()["coverage"] == 1


def test_saving_changes_nothing_and_single_draws_ahead_are_made_anew():
    def drawn(save):
        sampler = PrioritySampler(weights=np.arange(1.0, 50.0), num_samples=300, seed=4)
        found = []
        for number, index in enumerate(sampler):
            found.append(index)
            if save and number % 7 == 0:
                sampler.store.state_dict()
        return found

    assert drawn(True) == drawn(False)


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 8}, {"replacement": False}])
def test_fixed_weights_need_no_journal(arguments):
    def sampler():
        return PrioritySampler(weights=np.arange(1.0, 50.0), num_samples=40, seed=4, **arguments)

    whole = sampler()
    drawn = list(whole) + list(whole)
    halfway = sampler()
    batches = iter(halfway)
    for _ in range(13):
        next(batches)
    again = sampler()
    again.load_state_dict(halfway.state_dict())
    assert list(again) + list(again) == drawn[13:]


# Bad input.


def state_with(**changes):
    loader, _ = begun()
    state = loader.state_dict()
    for name, value in changes.items():
        part, _, key = name.partition("__")
        (state[part]["kept"] if part == "store" else state[part])[key] = value
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler__format": 2}, "format 2: this version of fastprio reads up to 1; upgrade it"),
        ({"store__format": 2}, "format 2: this version of fastprio reads up to 1; upgrade it"),
        ({"sampler__position": -1}, "position = -1"),
        ({"sampler__epoch": 1 << 32}, "epoch = 4294967296"),
        ({"sampler__seed": "x"}, "seed"),
        ({"sampler__position": 4000}, "they were not saved at the same moment"),
        ({"sampler__iteration": 5}, "of iteration 5, the store's of 1: they were not saved at the same moment"),
        ({"store__entries": 3}, None),
        ({"store__cover": None}, "no journal that can be read"),
        ({"store__waiting": [[0, ["x"]]]}, "no journal that can be read"),
        ({"store__drawn": "many"}, "no journal that can be read"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_the_first_batch(changes, message):
    if message is None:
        state = begun(workers=2)[0].state_dict()
        state["store"]["arrays"]["kept.entries"][0, 2] += 1000
        message = "no journal that can be read"
    else:
        state = state_with(**changes)
    again = make("own")()

    def load_and_draw():
        again.load_state_dict(state)
        next(iter(again))

    with pytest.raises(ValueError, match=re.escape(message)):
        load_and_draw()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "iid"}, "the state is of scheme = 'stratified', this sampler has 'iid'"),
        ({"num_samples": 50}, "the state is of num_samples = None, this sampler has 50"),
    ],
)
def test_other_settings_are_refused(arguments, message):
    again = make("own", **arguments)()
    again.load_state_dict(state_with())
    with pytest.raises(ValueError, match=re.escape(message)):
        next(iter(again))
    with pytest.raises(ValueError, match=re.escape(message)):  # and again: it does not begin anew instead
        next(iter(again))


def test_another_batch_size_is_refused():
    sampler = PrioritySampler(ScoreStore(N, epochs=3), batch_size=4)
    Checkpoint(sampler).load_state_dict(state_with())
    with pytest.raises(ValueError, match="the state is of batch_size = 8, this sampler has 4"):
        next(iter(sampler))


def test_a_loader_state_without_the_store_is_refused():
    again = make("own")()
    again.sampler.load_state_dict(state_with()["sampler"])
    with pytest.raises(
        ValueError, match="the state of the store that was saved at the same moment has not been loaded"
    ):
        next(iter(again))


@pytest.mark.parametrize("state", [None, {}, {"store": {}}, {"format": 1}, [1], {"store": {}, "sampler": {}}])
def test_what_is_no_state_is_refused_and_changes_nothing(state):
    loader, batches = begun()
    for target in (loader, loader.sampler, Checkpoint(loader.sampler)):
        with pytest.raises(ValueError, match="not a state of a"):
            target.load_state_dict(state)
    train_step(loader, next(batches))


def test_a_checkpoint_is_of_a_sampler():
    with pytest.raises(TypeError, match="sampler: expected a PrioritySampler, got DataLoader"):
        Checkpoint(DataLoader(range(N)))


def test_a_snapshot_older_than_the_journal_is_refused_with_the_depth_that_is_needed():
    def loaded(depth):
        make_loader = make("stateful batches", workers=2, snapshot=50, depth=depth)
        loader = make_loader()
        for number, batch in enumerate(loader):
            train_step(loader, batch)
            if number == 9:
                state, store = loader.state_dict(), sampler_of(loader).store.state_dict()
                expected = [batch.tolist() for batch in loader._iterator]
                break
        again = make_loader()
        sampler_of(again).store.load_state_dict(store)
        again.load_state_dict(state)
        return next(iter(again)).tolist(), expected[0]

    with pytest.raises(ValueError, match=r"draw 0 of epoch 0, .* keeps those from 56 on: .* depth=10, .* is 3\."):
        loaded(3)
    with pytest.raises(ValueError, match="depth=10"):
        loaded(9)
    got, expected = loaded(10)
    assert got == expected
    with pytest.raises(ValueError, match="depth = 0"):
        PrioritySampler(N, depth=0)
