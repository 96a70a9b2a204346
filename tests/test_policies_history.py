"""Promise: the policies that decide by an example's history decide as their definitions say, over any history."""

import collections
import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value
from test_store import state_of

from fastprio import PrioritySampler, ScoreStore
from fastprio._kernels import get_bit, put_bit
from fastprio._random import Rng
from fastprio.policies import OUT, SCORE, TRAIN, make, schedules
from fastprio.policies.active_bias import ActiveBias
from fastprio.policies.dyn_unc import DynUnc
from fastprio.policies.el2n import EL2N
from fastprio.policies.forgetting_events import NEVER_LEARNED, ForgettingEvents
from fastprio.policies.late_stopping import LateStopping
from fastprio.policies.primitives import fetch, packed, unpacked
from fastprio.policies.recency_bias import RecencyBias
from fastprio.policies.second_split_forgetting import SecondSplitForgetting

ORIGINS = "train", "score", "reference"


def plan_of(store, epoch, seed=0):
    store.begin_epoch(epoch)
    return store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))


def trained(plan, size):
    return list(range(size)) if plan.codes is None else np.flatnonzero(plan.codes == TRAIN).tolist()


def rows(rng, size, most=12):
    """Some examples, with duplicates; at times none."""
    return rng.integers(0, size, rng.integers(0, most)).tolist()


def told(store, at, origin="train", **observations):
    store.update(at, np.zeros(len(at)), origin=origin, **{k: np.asarray(v) for k, v in observations.items()})


def share(n, keep):
    return max(1, int(Fraction(str(keep)) * n))


# What they share.


def test_bits_are_written_one_by_one_and_as_masks():
    rng = generator(0)
    for n in (1, 7, 8, 9, 200):
        bits, plain = np.zeros((n + 7) // 8, np.uint8), [False] * n
        for _ in range(300):
            i, value = int(rng.integers(n)), bool(rng.integers(2))
            put_bit(bits, i, value)
            plain[i] = value
            assert [get_bit(bits, k) for k in range(n)] == plain
        assert unpacked(bits, n).tolist() == plain
        assert unpacked(bits, n).dtype == bool
        assert packed(np.array(plain)).tobytes() == bits.tobytes()


def test_fetching_rows_changes_nothing():
    column, ring = np.arange(5.0), np.arange(10).reshape(5, 2)
    fetch(np.array([1, 1, 4]), column, ring)
    assert column.tolist() == [0, 1, 2, 3, 4]
    assert ring.ravel().tolist() == list(range(10))


@pytest.mark.parametrize("values", [(100.0, 1.0), (1.0, 100.0), (3.0, 3.0), (1e-3, 7.0)])
def test_an_exponential_schedule_goes_by_equal_factors_from_end_to_end(values):
    assert schedules.exponential(values, 0.0) == values[0]
    assert schedules.exponential(values, 1.0) == values[1]
    steps = [schedules.exponential(values, k / 10) for k in range(11)]
    for before, after in itertools.pairwise(steps):
        assert after / before == pytest.approx((values[1] / values[0]) ** 0.1, rel=1e-11)
    assert schedules.exponential(2.5, 0.3) == 2.5


MAKE = {
    "late_stopping": lambda: LateStopping(0.8, ((1, 2), (2, 2)), warm_up=0, most_epochs=5),
    "ssft": lambda: SecondSplitForgetting(4, swap=True),
    "forgetting": lambda: ForgettingEvents(3, 0.4),
    "el2n": lambda: EL2N(0.4, 0.2),
    "active_bias": lambda: ActiveBias(0.1, warm_up=3),
    "active_bias drawn": lambda: ActiveBias(0.1, warm_up=3, draws=True),
    "recency": lambda: RecencyBias(4, window=3, begin=3, end=9),
    "dyn_unc": lambda: DynUnc(3, 0.4, window=3),
}


def observed(rng, n):
    return {
        "correct": rng.integers(0, 2, n),
        "p_label": rng.random(n, np.float32),
        "error_norm": rng.random(n, np.float32),
        "prediction": rng.integers(0, 4, n),
    }


def epoch_of(store, epoch, rng):
    """What a plan is, with random observations after it: all that follows from the store's state."""
    plan, n = plan_of(store, epoch), len(store)
    for origin in ORIGINS:
        at = rng.permutation(n)[: int(rng.integers(1, n + 1))] if origin != "score" else np.arange(n)
        told(store, at, origin, **observed(rng, len(at)))
    at = np.arange(n)
    weights = store.policy.weights(store.columns, at, np.full(n, 1 / n), store.clock)
    codes = None if plan is None or plan.codes is None else plan.codes.tolist()
    made = None if plan is None else (plan.weights, plan.score, plan.info)
    return codes, made, store.priorities.tolist(), None if weights is None else weights.tolist(), state_of(store)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_a_loaded_state_is_followed_by_the_same_plans(name, stop):
    store, rng = ScoreStore(19, MAKE[name]()), generator(stop)
    for epoch in range(stop):
        epoch_of(store, epoch, rng)
    config = store.policy.config()
    again = ScoreStore(19, make(store.policy.name, **config))
    again.load_state_dict(store.state_dict())
    assert again.policy.config() == config
    first, second = generator(77), generator(77)
    for epoch in range(stop, stop + 6):
        assert epoch_of(store, epoch, first) == epoch_of(again, epoch, second)


@pytest.mark.parametrize("name", MAKE)
def test_a_saved_file_brings_the_policy_back_by_its_name(name, tmp_path):
    store, rng = ScoreStore(19, MAKE[name]()), generator(5)
    for epoch in range(4):
        epoch_of(store, epoch, rng)
    store.save(tmp_path / "store")
    assert state_of(ScoreStore.load(tmp_path / "store")) == state_of(store)


@pytest.mark.parametrize("name", MAKE)
def test_examples_that_the_store_grows_by_are_trained_on(name):
    store, rng = ScoreStore(11, MAKE[name]()), generator(6)
    for epoch in range(5):
        epoch_of(store, epoch, rng)
    store.resize(20)
    plan = plan_of(store, 5)
    if plan is None:
        assert (store.priorities[11:] > 0).all()
    else:
        assert set(range(11, 20)) <= set(trained(plan, 20))


@pytest.mark.parametrize("made", [LateStopping, SecondSplitForgetting, ForgettingEvents, EL2N, RecencyBias, DynUnc])
def test_the_example_arguments_make_one(made):
    assert made(**made.example).config().items() >= dict(made.example).items()
    with pytest.raises(ValueError, match="it has no defaults for"):
        make(made.name)


BAD = [
    (lambda: LateStopping(0.0), "keep = 0.0: expected 0 < keep <= 1"),
    (lambda: LateStopping(1.5), "keep = 1.5: expected"),
    (lambda: LateStopping(math.nan), "keep = nan: expected"),
    (lambda: LateStopping(0.9, ()), r"rounds = \(\): expected one round"),
    (lambda: LateStopping(0.9, ((1, 0),)), "expected one round"),
    (lambda: LateStopping(0.9, (1, 4)), "expected pairs"),
    (lambda: LateStopping(0.9, ((1, 4, 2),)), "expected pairs"),
    (lambda: LateStopping(0.9, ((0, 4),)), r"k = 0: expected an integer in \[1, 255\]"),
    (lambda: LateStopping(0.9, ((256, 4),)), r"k = 256: expected an integer in \[1, 255\]"),
    (lambda: LateStopping(0.9, ((1, -1),)), "number of rounds = -1: expected"),
    (lambda: LateStopping(0.9, warm_up=-2), "warm_up = -2: expected"),
    (lambda: LateStopping(0.9, most_epochs=0), "most_epochs = 0: expected"),
    (lambda: SecondSplitForgetting(0), r"first_epochs = 0: expected an integer in \[1, 65535\]"),
    (lambda: ScoreStore(1, SecondSplitForgetting(2)), "size = 1: policy 'ssft'"),
    (lambda: ForgettingEvents(0, 0.5), "after = 0: expected"),
    (lambda: ForgettingEvents(2, 0), "keep = 0: expected"),
    (lambda: EL2N(0.0), "keep = 0.0: expected"),
    (lambda: EL2N(0.5, 0.6), "skip = 0.6: expected 0 <= skip <= 1 - keep"),
    (lambda: EL2N(0.5, -0.1), "skip = -0.1: expected"),
    (lambda: ActiveBias(-1.0), "smoothness = -1.0: expected 0 <= smoothness <= 1000"),
    (lambda: ActiveBias(math.nan), "smoothness = nan: expected"),
    (lambda: ActiveBias(draws=True), "smoothness = 0.0: expected a number > 0 with draws=True"),
    (lambda: ActiveBias(1e-50, draws=True), "expected a number > 0 with draws=True"),
    (lambda: ActiveBias(warm_up=-1), "warm_up = -1: expected"),
    (lambda: RecencyBias(1), r"classes = 1: expected an integer in \[2, 65536\]"),
    (lambda: RecencyBias(65537), "classes = 65537: expected"),
    (lambda: RecencyBias(10, window=1), "window = 1: expected"),
    (lambda: RecencyBias(10, window=128), "window = 128: expected"),
    (lambda: RecencyBias(10, pressure=0.5), "pressure = 0.5: expected 1 <= pressure"),
    (lambda: RecencyBias(10, begin=5, end=4), "end = 4: expected an integer >= 5"),
    (lambda: DynUnc(2, 0.5, window=1), r"window = 1: expected an integer in \[2, 127\]"),
    (lambda: DynUnc(0, 0.5), "after = 0: expected"),
    (lambda: DynUnc(2, 1.1), "keep = 1.1: expected"),
    (lambda: DynUnc(9, 0.5), "after = 9: expected at least window = 10"),
    (lambda: told(ScoreStore(4, RecencyBias(3)), [0, 1], prediction=[2, 3]), r"prediction\[1\] = 3: expected a class"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_are_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


# LateStopping.


def first_learned(evaluations, k):
    """The epoch, from 1, at which the last k evaluations were all right for the first time; 0: none."""
    for end in range(k, len(evaluations) + 1):
        if all(right for _, right in evaluations[end - k : end]):
            return evaluations[end - 1][0] + 1
    return 0


@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.9])
@pytest.mark.parametrize(
    ("rounds", "warm_up", "most"), [(((1, 3),), -1, 30), (((1, 2), (3, 2)), 2, 8), (((2, 4),), 0, 5)]
)
def test_late_stopping_follows_its_definition_over_random_histories(size, keep, rounds, warm_up, most):
    rng = generator(size + most)
    store = ScoreStore(size, LateStopping(keep, rounds, warm_up, most))
    ks = [k for k, number in rounds for _ in range(number)]
    ease = rng.random(size)
    kept, number, begun, history = list(range(size)), 0, 0, [[] for _ in range(size)]
    ended = collections.Counter()
    for epoch in range(60):
        learned = [i for i in kept if number < len(ks) and first_learned(history[i], ks[number])]
        enough = number < len(ks) and len(learned) >= max(1, int(size * Fraction(str(keep)) ** (number + 1)))
        late = number < len(ks) and epoch - begun >= most
        plan = plan_of(store, epoch)
        if enough or late:
            ended["enough" if enough else "late"] += 1
            kept, number, begun, history = learned or kept, number + 1, epoch, [[] for _ in range(size)]
        assert trained(plan, size) == kept
        assert plan.codes.tolist().count(OUT) == size - len(kept)
        assert plan.info == {"round": number, "round_over": enough or late, "learned": len(learned)}
        assert plan.score == ((TRAIN,) if number < len(ks) else ())
        for origin in ("train", "reference"):
            at = rows(rng, size)
            told(store, at, origin, correct=rng.integers(0, 2, len(at)))
        at = [*rng.permutation(kept).tolist(), *rows(rng, size)]  # duplicates, and some that are out
        right = (rng.random(len(at)) < ease[at]).tolist()
        told(store, at, "score", correct=right)
        if number < len(ks) and epoch - begun > warm_up:
            for i, answer in zip(at, right, strict=True):
                history[i].append((epoch - begun, answer))
            assert store.column("first_learned").tolist() == [first_learned(h, ks[number]) for h in history]
    assert ended.total() == len(ks)


@pytest.mark.parametrize("keep", [0.98, 0.955, 0.7, 0.1])
def test_a_round_ends_at_the_first_epoch_with_enough_learned(keep):
    store = ScoreStore(1000, LateStopping(keep, ((1, 2),), warm_up=-1))
    enough = int(1000 * Fraction(str(keep)))
    plan_of(store, 0)
    told(store, np.arange(1000), "score", correct=np.arange(1000) < enough - 1)
    assert plan_of(store, 1).info == {"round": 0, "round_over": False, "learned": enough - 1}
    told(store, [enough - 1], "score", correct=[1])
    plan = plan_of(store, 2)
    assert plan.info == {"round": 1, "round_over": True, "learned": enough}
    assert trained(plan, 1000) == list(range(enough))


def test_a_round_without_a_learned_example_ends_in_time_and_keeps_all():
    store = ScoreStore(5, LateStopping(0.5, ((1, 1), (3, 1)), most_epochs=300))
    for epoch in range(300):
        assert not plan_of(store, epoch).info["round_over"]
        told(store, range(5), "score", correct=[epoch <= 6] * 5)  # right in the warm-up alone
    plan = plan_of(store, 300)
    assert plan.info == {"round": 1, "round_over": True, "learned": 0}
    assert trained(plan, 5) == list(range(5))
    for index in range(7 + 3):  # the next round has a warm-up of its own, and asks for three in a row
        assert plan_of(store, 300 + index).info["learned"] == 0
        told(store, range(5), "score", correct=[1] * 5)
    assert plan_of(store, 310).info == {"round": 2, "round_over": True, "learned": 5}


def test_late_stopping_counts_no_evaluations_from_before_its_first_plan():
    store = ScoreStore(3, LateStopping(0.9, ((1, 1),), warm_up=-1))
    told(store, range(3), "score", correct=[1, 1, 1])
    assert plan_of(store, 4).info == {"round": 0, "round_over": False, "learned": 0}
    told(store, [1], "score", correct=[1])
    assert store.column("first_learned").tolist() == [0, 1, 0]  # the round began with epoch 4


def test_a_sampler_draws_what_late_stopping_keeps_and_has_it_scored():
    store = ScoreStore(12, LateStopping(0.5, ((1, 1),), warm_up=-1))
    sampler = PrioritySampler(store, batch_size=4)
    drawn = []
    for _ in range(3):
        seen = []
        for index in sampler:
            seen.append(index)
            if len(seen) % 4 == 0 or len(seen) == sampler.planned:
                new = seen[(len(seen) - 1) // 4 * 4 :]
                sampler.step(torch.zeros(len(new)), correct=np.zeros(len(new)))
        drawn.append(sorted(seen))
        asked = sampler.to_score()
        told(store, asked, "score", correct=asked % 2)
    assert drawn == [list(range(12)), [1, 3, 5, 7, 9, 11], [1, 3, 5, 7, 9, 11]]
    assert sampler.to_score().size == 0


# SecondSplitForgetting.


def forgotten_at(answers):
    """The first epoch, from 1, after whose beginning all answers are wrong; the number of epochs plus one if none."""
    return next(e for e in range(1, len(answers) + 2) if not any(answers[e - 1 :]))


def learned_at(answers):
    if all(answers):
        return 0
    return next(e for e in range(1, len(answers) + 2) if all(answers[e - 1 :]))


@pytest.mark.parametrize("swap", [False, True])
def test_second_split_times_are_those_of_the_whole_history(swap):
    rng = generator(int(swap))
    for trial in range(200):
        size, first, second = int(rng.integers(2, 12)), int(rng.integers(1, 7)), int(rng.integers(0, 7))
        store = ScoreStore(size, SecondSplitForgetting(first, swap))
        told(store, range(size), "score", correct=rng.integers(0, 2, size))  # before anything began
        masks = [[[] for _ in range(size)] for _ in range(2)]
        leaning = rng.random(size)
        for epoch in range(first + second):
            phase = int(epoch >= first)
            plan = plan_of(store, epoch, seed=trial)
            half = np.flatnonzero(plan.codes == (SCORE if phase else TRAIN)).tolist()
            rest = sorted(set(range(size)) - set(half))
            assert len(half) == (size - size // 2 if swap else size // 2)
            assert (plan.codes[rest] == (TRAIN if phase else OUT)).all()
            assert plan.score == ((SCORE,) if phase else (TRAIN,))
            assert plan.info == {"phase": phase + 1, "phase_over": epoch == first}
            for origin in ("train", "reference"):
                at = rows(rng, size)
                told(store, at, origin, correct=rng.integers(0, 2, len(at)))
            right = (rng.random(size) < leaning).astype(int)
            told(store, half, "score", correct=right[half])
            for i in half:
                masks[phase][i].append(bool(right[i]))
        learned = [learned_at(masks[0][i]) if i in half else -1 for i in range(size)]
        forgotten = [forgotten_at(masks[1][i]) if i in half and second else -1 for i in range(size)]
        assert store.policy.learned_at(store).tolist() == learned
        assert store.policy.forgotten_at(store).tolist() == forgotten


def test_the_halves_are_the_seeds_whatever_the_epoch_and_swap_exchanges_them():
    first = trained(plan_of(ScoreStore(40, SecondSplitForgetting(9)), 0, seed=5), 40)
    assert trained(plan_of(ScoreStore(40, SecondSplitForgetting(9)), 3, seed=5), 40) == first
    other = trained(plan_of(ScoreStore(40, SecondSplitForgetting(9, swap=True)), 0, seed=5), 40)
    assert sorted(first + other) == list(range(40))
    assert trained(plan_of(ScoreStore(40, SecondSplitForgetting(9)), 0, seed=6), 40) != first


def test_every_half_is_equally_likely():
    n = 6000
    store = ScoreStore(5, SecondSplitForgetting(1))
    halves = collections.Counter()
    for seed in range(n):
        store.policy.state["split"] = False
        halves[tuple(trained(plan_of(store, 0, seed), 5))] += 1
    assert len(halves) == math.comb(5, 2)
    assert p_value(np.array(list(halves.values())), np.full(10, n / 10)) > P_FAIL


def test_second_split_knows_nothing_before_anything_was_evaluated():
    store = ScoreStore(4, SecondSplitForgetting(1))
    plan_of(store, 0)
    told(store, range(4), "train", correct=[0, 0, 1, 1])
    assert store.policy.learned_at(store).tolist() == [-1] * 4
    told(store, range(4), "score", correct=[0, 0, 0, 0])
    assert sorted(store.policy.learned_at(store).tolist()) == [-1, -1, 2, 2]
    assert store.policy.forgotten_at(store).tolist() == [-1] * 4


# ForgettingEvents.


def forgettings(answers):
    return sum(before and not after for before, after in itertools.pairwise(answers))


@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_forgetting_events_follow_their_definition_over_random_histories(size, keep):
    rng = generator(size)
    store, history = ScoreStore(size, ForgettingEvents(6, keep)), [[] for _ in range(size)]
    ease = rng.random(size)
    ease[0] = 0
    kept = None
    for epoch in range(9):
        plan = plan_of(store, epoch)
        counts = [forgettings(h) if any(h) else NEVER_LEARNED for h in history]
        assert store.policy.counts(store).tolist() == counts
        assert store.policy.counts(store).dtype == np.int64
        if epoch < 6:
            assert trained(plan, size) == list(range(size))
        elif kept is None:
            kept = trained(plan, size)
            border = sorted(counts, reverse=True)[share(size, keep) - 1]
            assert len(kept) == share(size, keep)
            assert {i for i in range(size) if counts[i] > border} <= set(kept)
            assert all(counts[i] >= border for i in kept)
        assert kept is None or trained(plan, size) == kept  # whatever is counted later
        for step in range(50):
            origin, at = ORIGINS[step % 3], rows(rng, size)
            right = (rng.random(len(at)) < ease[at]).tolist()
            told(store, at, origin, correct=right)
            for i, answer in zip(at, right, strict=True):
                if origin == "train":
                    history[i].append(answer)


def test_examples_never_learned_or_never_presented_count_as_the_most_forgotten():
    store = ScoreStore(5, ForgettingEvents(1, 0.4))
    told(store, [0, 1, 1, 1, 1, 2, 2], correct=[0, 1, 0, 1, 0, 1, 1])
    told(store, [0], "score", correct=[1])
    assert store.policy.counts(store).tolist() == [NEVER_LEARNED, 2, 0, NEVER_LEARNED, NEVER_LEARNED]
    told(store, [4], correct=[1])
    assert trained(plan_of(store, 1), 5) == [0, 3]


def test_forgettings_stop_at_their_largest_number_which_never_learned_is_above():
    store = ScoreStore(2, ForgettingEvents(1, 0.5))
    told(store, np.zeros(140_000, int), correct=np.arange(140_000) % 2 == 0)
    assert store.policy.counts(store).tolist() == [65535, NEVER_LEARNED]
    assert NEVER_LEARNED > 65535
    assert trained(plan_of(store, 1), 2) == [1]


@pytest.mark.parametrize("name", ["forgetting", "dyn_unc", "el2n"])
def test_equal_examples_are_kept_by_chance_each_subset_as_often(name):
    store = ScoreStore(
        5, {"forgetting": ForgettingEvents(1, 0.4), "el2n": EL2N(0.4), "dyn_unc": DynUnc(2, 0.4, 2)}[name]
    )
    for _ in range(3):
        told(
            store,
            range(5),
            "score" if name == "el2n" else "train",
            correct=[1] * 5,
            p_label=[0.3] * 5,
            error_norm=[0.3] * 5,
        )
    n, kept = 6000, collections.Counter()
    for seed in range(n):
        if "chosen" in store.policy.state:
            store.policy.state["chosen"] = False
        kept[tuple(trained(plan_of(store, 2, seed), 5))] += 1
    assert len(kept) == math.comb(5, 2)
    assert p_value(np.array(list(kept.values())), np.full(10, n / 10)) > P_FAIL


# EL2N.


@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize(("keep", "skip"), [(0.5, 0.0), (0.5, 0.2), (0.1, 0.9), (0.3, 0.7), (1.0, 0.0), (1e-9, 1.0)])
def test_el2n_follows_its_definition_over_random_histories(size, keep, skip):
    rng = generator(size)
    store, history = ScoreStore(size, EL2N(keep, skip)), [[] for _ in range(size)]
    both = set()
    for step in range(150):
        plan = plan_of(store, step)
        means = [math.fsum(h) / len(h) if h else 0.0 for h in history]
        assert store.column("mean").tolist() == pytest.approx(means, rel=2e-6)
        assert store.column("count").tolist() == [len(h) for h in history]
        both.add(all(history))
        if all(history):
            skipped = min(int(Fraction(str(skip)) * size), size - 1)
            order = sorted(range(size), key=lambda i: -means[i])
            assert trained(plan, size) == sorted(order[skipped : skipped + share(size, keep)])
            assert plan.score == ()
        else:
            assert trained(plan, size) == list(range(size))
            assert plan.score == (TRAIN,)
        origin, at = ORIGINS[step % 3], rows(rng, size, 6)
        norms = np.float32(rng.random(len(at)) * 1.4).tolist()
        told(store, at, origin, error_norm=norms)
        for i, norm in zip(at, norms, strict=True):
            if origin != "train":
                history[i].append(norm)
    assert both == {False, True}


def test_el2n_keeps_the_same_of_equal_examples_in_every_epoch():
    store = ScoreStore(50, EL2N(0.3, 0.3))
    told(store, range(50), "reference", error_norm=[0.5] * 50)
    plans = {tuple(trained(plan_of(store, epoch, seed=1), 50)) for epoch in range(20)}
    assert len(plans) == 1
    assert len(plans.pop()) == 15
    assert plan_of(store, 0, seed=2).codes.tolist() != plan_of(store, 0, seed=1).codes.tolist()


# ActiveBias.


def spread(history, smoothness):
    n = len(history)
    if n < 2:
        return smoothness
    variance = statistics.pvariance([Fraction(p) for p in history])
    return math.sqrt(variance + variance * variance / (n - 1)) + smoothness


@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize("smoothness", [0.0, 0.05])
@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("spreading", [1.0, 1e-4])
def test_active_bias_follows_its_definition_over_random_histories(size, smoothness, draw, spreading):
    if draw and smoothness == 0:
        return
    rng = generator(size)
    store = ScoreStore(size, ActiveBias(smoothness, warm_up=2, draws=draw))
    history, priority = [[] for _ in range(size)], [0.0] * size
    plan_of(store, 2)
    for step in range(300):
        origin, at = ORIGINS[step % 3], rows(rng, size)
        p = np.float32(0.9 + 0.1 * spreading * rng.random(len(at))).tolist()
        told(store, at, origin, p_label=p)
        for i, value in zip(at, p, strict=True):
            if origin == "train":
                history[i].append(value)
                priority[i] = spread(history[i], smoothness)
        if draw:
            assert store.priorities.tolist() == pytest.approx(priority, rel=1e-6)
        at = rng.integers(0, size, 7)
        weights = store.policy.weights(store.columns, at, np.full(7, 0.1), store.clock)
        if draw:
            assert weights is None
            continue
        expected = [spread(history[i], smoothness) for i in at]
        total = sum(expected)
        assert weights.dtype == np.float32
        assert weights.tolist() == pytest.approx(
            [w * 7 / total if total else 1.0 for w in expected], rel=1e-6, abs=1e-9
        )


def test_active_bias_begins_with_uniform_epochs():
    for draw in (False, True):
        store = ScoreStore(4, ActiveBias(0.1, draws=draw))
        told(store, [0, 0, 1], p_label=[0.1, 0.9, 0.5])
        for epoch in range(14):
            plan = plan_of(store, epoch)
            weights = store.policy.weights(store.columns, np.array([0, 1]), np.ones(2), store.clock)
            assert (plan is None) == (draw and epoch >= 10)
            assert plan is None or plan.codes is None
            assert (weights is None) == (draw or epoch < 10)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_batch_without_any_variance_has_weights_one(p):
    store = ScoreStore(4, ActiveBias(warm_up=0))
    for _ in range(5):
        told(store, [0, 1, 2], p_label=[p] * 3)
    for at in ([0, 1, 2], [3], []):
        weights = store.policy.weights(store.columns, np.array(at, int), np.ones(len(at)), store.clock)
        assert weights.tolist() == [1.0] * len(at)
    told(store, [0], p_label=[0.5])
    weights = store.policy.weights(store.columns, np.arange(4), np.ones(4), store.clock)
    assert weights.tolist() == [4, 0, 0, 0]


def test_active_bias_weighs_the_batches_of_a_sampler_with_mean_one():
    store = ScoreStore(64, ActiveBias(warm_up=3))
    sampler, rng = PrioritySampler(store, batch_size=16), generator(3)
    for epoch in range(5):
        batch = []
        for index in sampler:
            batch.append(index)
            if len(batch) == 16:
                weights = sampler.weights.numpy()
                assert weights.mean() == pytest.approx(1, rel=1e-6)
                assert (len(set(weights.tolist())) == 1) == (epoch < 3)
                sampler.step(torch.zeros(16), p_label=rng.random(16))
                batch = []


def test_drawing_by_variance_takes_the_unseen_for_the_most_varied():
    store = ScoreStore(3, ActiveBias(0.25, warm_up=0, draws=True))
    told(store, [0, 0], p_label=[0.0, 1.0])
    store.admit_unseen()
    # Two values as far apart as can be: var = 1/4, and the correction adds var^2.
    assert store.priorities.tolist() == pytest.approx([math.sqrt(0.25 + 0.0625) + 0.25, 0.75, 0.75])


def test_active_bias_stops_counting_where_its_counts_end():
    store = ScoreStore(1, ActiveBias(warm_up=0))
    told(store, np.zeros(65535, int), p_label=np.full(65535, 0.5))
    told(store, [0], p_label=[1.0])
    assert (store.column("n")[0], store.column("mean")[0], store.column("squares")[0]) == (65535, 0.5, 0.0)


# RecencyBias.


def certainty(labels, window, classes):
    if len(labels) < window:
        return 0.0
    counts = collections.Counter(labels[-window:]).values()
    entropy = -sum(m / window * math.log(m / window) for m in counts)
    return 1 - float(np.float32(entropy / math.log(classes)))


@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize(("classes", "window"), [(2, 2), (10, 10), (3, 6), (65536, 5)])
@pytest.mark.parametrize("pressure", [(100.0, 1.0), 7.0])
def test_recency_bias_follows_its_definition_over_random_histories(size, classes, window, pressure):
    rng = generator(size + window)
    store = ScoreStore(size, RecencyBias(classes, window, pressure, begin=2, end=6))
    history = [[] for _ in range(size)]
    for epoch in range(9):
        plan = plan_of(store, epoch)
        assert (plan is None) == (epoch >= 2)
        s = pressure if isinstance(pressure, float) else 100 ** (1 - min(1, max(0, (epoch - 2) / 4)))

        def priority(i, s=s):
            quantised = math.ceil(certainty(history[i], window, classes) * size)
            return s ** (-quantised / size)

        if plan is None:
            assert store.priorities.tolist() == pytest.approx([priority(i) for i in range(size)], rel=1e-6)
        for step in range(60):
            origin, at = ORIGINS[step % 3], rows(rng, size)
            labels = rng.integers(0, min(classes, 3 + epoch // 2), len(at)) * (1 if classes < 99 else 9000)
            told(store, at, origin, prediction=labels)
            if origin != "train":
                continue
            for i, label in zip(at, labels.tolist(), strict=True):
                history[i].append(label)
            assert store.priorities[at].tolist() == pytest.approx([priority(i) for i in at], rel=1e-6)
    expected = [certainty(h, window, classes) for h in history]
    assert store.column("certainty").tolist() == pytest.approx(expected, abs=2e-7)


def test_the_most_uncertain_are_as_much_likelier_as_the_pressure_says():
    store = ScoreStore(100, RecencyBias(4, window=8, begin=1, end=11))
    for label in range(8):
        told(store, [0, 1, 2], prediction=[label % 4, 3, label % 2])
    assert store.column("certainty")[:4].tolist() == [0, 1, 0.5, 0]
    plan_of(store, 1)
    assert store.priorities[:4].tolist() == pytest.approx([1, 1 / 100, 1 / 10, 1])
    plan_of(store, 6)
    assert store.priorities[:4].tolist() == pytest.approx([1, 1 / 10, 10**-0.5, 1])
    plan_of(store, 11)
    assert store.priorities.tolist() == [1.0] * 100
    plan_of(store, 500)
    assert store.priorities.tolist() == [1.0] * 100


def test_recency_bias_draws_without_repeats_in_a_batch():
    store = ScoreStore(30, RecencyBias(5, window=3, begin=2, end=50))
    sampler, rng = PrioritySampler(store, batch_size=10), generator(4)
    assert sampler.scheme == "unique"
    for epoch in range(5):
        drawn = []
        for index in sampler:
            drawn.append(index)
            if len(drawn) % 10 == 0:
                assert len(set(drawn[-10:])) == 10
                sampler.step(torch.zeros(10), prediction=rng.integers(0, 1 + np.array(drawn[-10:]) % 5))
        assert (len(set(drawn)) == 30) == (epoch < 2)


def test_each_label_that_a_ring_holds_is_counted():
    store = ScoreStore(2, RecencyBias(65536, window=127, begin=0))
    told(store, np.zeros(127, int), prediction=np.full(127, 65535))
    assert store.column("certainty").tolist() == [1, 0]
    told(store, np.zeros(127, int), prediction=np.arange(127))
    assert store.column("certainty")[0] == pytest.approx(1 - math.log(127) / math.log(65536), rel=1e-6)


# DynUnc.


def dynamic_uncertainty(history, window):
    ends = range(window, len(history) + 1)
    return [statistics.stdev(map(Fraction, history[end - window : end])) for end in ends]


@pytest.mark.parametrize("size", [1, 2, 23])
@pytest.mark.parametrize("keep", [0.2, 0.75, 1.0])
@pytest.mark.parametrize("window", [2, 10])
def test_dyn_unc_follows_its_definition_over_random_histories(size, keep, window):
    rng = generator(size + window)
    after = max(4, window)
    store, history = ScoreStore(size, DynUnc(after, keep, window)), [[] for _ in range(size)]
    kept = None
    for epoch in range(after + 3):
        plan = plan_of(store, epoch)
        scores = [[10 * d for d in dynamic_uncertainty(h, window)] for h in history]
        scores = [statistics.fmean(s) if s else math.nan for s in scores]
        assert store.policy.scores(store).tolist() == pytest.approx(scores, rel=1e-9, nan_ok=True)
        if epoch < after:
            assert trained(plan, size) == list(range(size))
        elif kept is None:
            kept = trained(plan, size)
            order = sorted((i for i in range(size) if history[i][window - 1 :]), key=lambda i: -scores[i])
            without = [i for i in range(size) if not history[i][window - 1 :]]
            assert kept == sorted(order[: share(len(order), keep) if order else 0] + without)
            assert order or size < 3
            assert without or size < 3
        assert kept is None or trained(plan, size) == kept
        for step in range(30):
            origin, at = ORIGINS[step % 3], rows(rng, size)
            if epoch < after:  # some have no score by then
                at = [i for k, i in enumerate(at) if i % 5 != 4 or len(history[i]) + at[:k].count(i) < window - 1]
            p = rng.random(len(at), np.float32).tolist()
            told(store, at, origin, p_label=p)
            for i, value in zip(at, p, strict=True):
                if origin == "train":
                    history[i].append(value)


def test_dyn_unc_adds_a_window_for_each_of_an_examples_rows():
    store = ScoreStore(2, DynUnc(3, 0.5, window=3))
    p = [0.1, 0.9, 0.4, 0.4, 0.4, 0.0]
    told(store, [1] * 6, p_label=p)
    expected = 10 * statistics.fmean(statistics.stdev(p[k : k + 3]) for k in range(4))
    assert store.policy.scores(store)[1] == pytest.approx(expected, rel=1e-6)
    assert store.column("windows").tolist() == [0, 4]
    assert trained(plan_of(store, 3), 2) == [0, 1]  # of one with a score one is kept, and the one without


def test_predictions_that_never_move_have_a_score_of_exactly_zero():
    store = ScoreStore(3, DynUnc(7, 0.5, window=7))
    for _ in range(20):
        told(store, range(3), p_label=[0.1, 1.0, 0.3333333])
    assert store.policy.scores(store).tolist() == [0, 0, 0]
