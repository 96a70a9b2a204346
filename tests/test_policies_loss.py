"""Promise: the policies that choose by loss, and the random subsets they must beat, do what their definitions say."""

import copy
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value
from test_store import state_of

from fastprio import PriorityLoader, PrioritySampler, ScoreStore
from fastprio._kernels import get_bit, put_bit
from fastprio._random import Rng
from fastprio.policies import OUT, TRAIN, Clock, InfoBatch, LossPower, make
from fastprio.policies.batch_loss_score import BatchLossScore
from fastprio.policies.loss_ema import LossEMA
from fastprio.policies.orderdp import OrderDP
from fastprio.policies.primitives import clusters, distinct, geometric_probabilities, geometric_ranks, uniformly
from fastprio.policies.random_subset import RandomSubset
from fastprio.policies.rank_based import RankBased
from fastprio.policies.rank_power import RankPower
from fastprio.policies.repb import RePB
from fastprio.policies.schedules import annealing
from fastprio.policies.seta import SeTa

f32 = np.float32
SIZES = [1, 2, 23]
POLICIES = {
    "random_subset": RandomSubset(0.3),
    "fresh subset": RandomSubset(0.3, fresh=True),
    "rank": RankBased(),
    "rank, seldom": RankBased(refresh=3, warm_up=1),
    "rank_power": RankPower(0.7, (0.5, 1.0)),
    "evolved": LossEMA(),
    "evolved, pruned": LossEMA(prune=0.3, burn_in=1, anneal=0.2),
    "seta": SeTa(),
    "bls": BatchLossScore(),
    "bls of seta": BatchLossScore(alpha=0.7, host="seta", host_config={"groups": 3}),
    "repb": RePB(0.5),
    "repb, windows": RePB(0.5, window=3),
    "orderdp": OrderDP(),
}


def plan_of(store, epoch, seed=0):
    store.begin_epoch(epoch)
    return store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))


def trained(plan, size):
    """The examples of a plan, as a list."""
    if plan.codes is None:
        return list(range(size))
    assert set(plan.codes.tolist()) <= {OUT, TRAIN}
    assert plan.weights[:2] == (0.0, 1.0)
    return [i for i, code in enumerate(plan.codes.tolist()) if code == TRAIN]


def batches(size, rng, count, most=9, whole=False):
    """Random batches: (indices, losses as the store keeps them, origin). Some have duplicates, one example or none."""
    for number in range(count):
        among = size if whole or number > count // 4 else max(1, size // 2)  # some are unseen for a while
        at = rng.integers(0, among, rng.integers(0, most)).tolist()
        losses = rng.choice(
            [rng.exponential(size=len(at)), rng.integers(0, 3, len(at)), 10 ** rng.uniform(-6, 6, len(at))]
        )
        origin = str(rng.choice(["train", "train", "score", "reference"]))
        yield at, [float(f32(loss)) for loss in losses], origin


def last_losses(store, seed, count=60, whole=False):
    """Updates the store at random and returns what is known of each example: its last loss, or None."""
    known = [None] * len(store)
    for at, losses, origin in batches(len(store), generator(seed), count, whole=whole):
        store.update(at, losses, origin=origin)
        if origin != "reference":
            for i, loss in zip(at, losses, strict=True):
                known[i] = loss
    return known


def keys(known):
    """The losses as they are ranked: without one, an example comes first."""
    return [math.inf if loss is None else loss for loss in known]


def plain_sum(values):
    total = 0.0  # sum() rounds less from Python 3.12 on
    for value in values:
        total += value
    return total


def flags(packed, size):
    return [bool(packed[i // 8] & (1 << i % 8)) for i in range(size)]


# What they share.


@pytest.mark.parametrize("name", POLICIES)
def test_a_saved_policy_is_made_again_and_goes_on_with_the_same_plans(name, tmp_path):
    size, rng = 41, generator(5)
    store = ScoreStore(size, make(POLICIES[name].name, **POLICIES[name].config()), epochs=8)
    later = [list(batches(size, rng, 12)) for _ in range(6)]

    def go_on(store, epochs):
        seen = []
        for epoch in epochs:
            plan = plan_of(store, epoch, seed=3)
            seen.append(None if plan is None or plan.codes is None else plan.codes.tolist())
            for number, (at, losses, origin) in enumerate(later[epoch]):
                store.update(at, losses, origin=origin)
                drawn = store.policy.draw(store, 4, store.clock, Rng(3, epoch, number, "draw"))
                if drawn is None and store.tree.total:
                    drawn = store.tree.sample(4, seed=number)
                seen.append(None if drawn is None else [array.tolist() for array in drawn])
        return seen, state_of(store)

    go_on(store, range(3))
    for number, (at, losses, origin) in enumerate(later[5]):  # in the middle of an epoch
        if number < 5:
            store.update(at, losses, origin=origin)
    store.save(tmp_path / "store")
    loaded, other = (
        ScoreStore.load(tmp_path / "store"),
        ScoreStore(size, make(store.policy.name, **store.policy.config()), epochs=8),
    )
    other.load_state_dict(store.state_dict())
    assert state_of(loaded) == state_of(other) == state_of(store)
    assert loaded.policy.config() == store.policy.config()
    expected = go_on(store, range(3, 6))
    assert go_on(loaded, range(3, 6)) == expected
    assert go_on(other, range(3, 6)) == expected


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: RandomSubset(0.0), "keep = 0.0: expected 0 < keep <= 1"),
        (lambda: RandomSubset(1.1), "keep = 1.1"),
        (lambda: RandomSubset(math.nan), "keep = nan"),
        (lambda: RankBased(0.5), "pressure = 0.5: expected 1 <= pressure"),
        (lambda: RankBased((100.0, 0.0)), "pressure = "),
        (lambda: RankBased(math.inf), "pressure = inf"),
        (lambda: RankBased(refresh=0), "refresh = 0: expected"),
        (lambda: RankBased(warm_up=-1), "warm_up = -1: expected"),
        (lambda: RankPower(-0.1, 0.5), "alpha = -0.1: expected a finite number >= 0"),
        (lambda: RankPower(0.7, (0.5, -1.0)), "beta = "),
        (lambda: make("rank_power"), "no defaults for alpha=, beta="),
        (lambda: LossEMA(beta1=1.5), "beta1 = 1.5: expected 0 <= beta1 <= 1"),
        (lambda: LossEMA(beta2=-0.1), "beta2 = -0.1"),
        (lambda: LossEMA(prune=1.0), "prune = 1.0: expected 0 <= prune < 1"),
        (lambda: LossEMA(burn_in=-1), "burn_in = -1"),
        (lambda: LossEMA(anneal=1.1), "anneal = 1.1"),
        (lambda: ScoreStore(4, LossEMA(anneal=0.1)), "pass epochs="),
        (lambda: SeTa(ratio=1.0), "ratio = 1.0: expected 0 <= ratio < 1"),
        (lambda: SeTa(groups=0), "groups = 0"),
        (lambda: SeTa(window=0.0), "window = 0.0: expected 0 < window <= 1"),
        (lambda: SeTa(delta=1.5), "delta = 1.5"),
        (lambda: ScoreStore(4, "seta"), "pass epochs="),
        (lambda: ScoreStore(4, "rank"), "pass epochs="),
        (lambda: ScoreStore(4, "bls"), "pass epochs="),
        (lambda: BatchLossScore(alpha=1.0), "alpha = 1.0: expected 0 <= alpha < 1"),
        (lambda: BatchLossScore(host="no such"), "'no such': expected a Policy"),
        (lambda: BatchLossScore(host=InfoBatch()), "expected a policy's name"),
        (lambda: BatchLossScore(host_config={"ratio": 2}), "ratio = 2"),
        *[
            (
                lambda host=host, config=config: BatchLossScore(host=host, host_config=config),
                f"host = '{host}': expected",
            )
            for host, config in [
                ("loss", {}),
                ("uniform", {}),
                ("rank", {}),
                ("rank_power", {"alpha": 1, "beta": 1}),
                ("repb", {"ratio": 0.5}),
                ("random_subset", {"keep": 0.5}),
            ]
        ],
        (lambda: make("repb"), "no defaults for ratio="),
        (lambda: RePB(1.0), "ratio = 1.0: expected 0 <= ratio < 1"),
        (lambda: RePB(0.5, window=0), "window = 0"),
        (lambda: OrderDP(pool=0.0), "pool = 0.0: expected 0 < pool <= 1"),
        (lambda: OrderDP(keep=1.2), "keep = 1.2: expected 0 < keep <= 1"),
    ],
)
def test_bad_arguments_are_named_with_what_was_expected(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_policies_by_average_refuse_losses_below_zero():
    with pytest.raises(ValueError, match=r"losses\[1\] = -0.5: policy 'evolved' expects losses >= 0"):
        ScoreStore(4, LossEMA()).update([0, 1], [1.0, -0.5])


@pytest.mark.parametrize("policy", [RankBased(), RankPower(0.7, 0.0), SeTa(), OrderDP()])
@pytest.mark.parametrize("size", SIZES)
def test_the_last_loss_of_training_or_scoring_is_remembered(policy, size):
    store = ScoreStore(size, copy.deepcopy(policy), epochs=4)
    known = last_losses(store, size, count=300)
    assert store.column("loss").tolist() == [loss or 0.0 for loss in known]


def test_one_bit_is_set_or_cleared_and_no_other():
    bits, plain, rng = np.zeros(4, np.uint8), [False] * 32, generator(1)
    for _ in range(500):
        i, value = int(rng.integers(32)), bool(rng.integers(2))
        put_bit(bits, i, value)
        plain[i] = value
        assert [get_bit(bits, j) for j in range(32)] == plain


@pytest.mark.parametrize(("delta", "epochs", "last"), [(0.29, 100, 29), (0.875, 90, 78), (0.1, 3, 0), (0.58, 50, 29)])
def test_annealing_begins_after_the_share_that_delta_means(delta, epochs, last):
    assert math.floor(Fraction(str(delta)) * epochs) == last
    assert [annealing(epoch, delta, epochs) for epoch in range(epochs)] == [epoch >= last for epoch in range(epochs)]


# Random orders, and RandomSubset.


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 65536, 65537, 100_003])
def test_parts_of_a_random_order_fit_together(n):
    def order(begin, count, seed=5):
        return Rng(seed, 7, 1, "plan").permutation(n, begin, count).tolist()

    whole = order(0, n)
    assert sorted(whole) == list(range(n))
    assert Rng(5, 7, 1, "plan").choose(n, n).tolist() == whole
    for begin in {0, n // 3, n - 1, n}:
        assert order(begin, n // 2 + 1) == whole[begin : begin + n // 2 + 1]
    assert order(0, n, seed=6) != whole or n < 10


@pytest.mark.parametrize(
    ("size", "keep"), [(1, 0.5), (7, 0.01), (10, 0.3), (23, 0.5), (23, 0.7), (9, 1.0), (70_000, 0.3)]
)
def test_the_parts_of_a_round_are_disjoint_and_of_equal_size(size, keep):
    count = max(1, math.floor(Fraction(str(keep)) * size))
    parts = size // count
    store = ScoreStore(size, RandomSubset(keep))
    rounds = [[trained(plan_of(store, turn * parts + part), size) for part in range(parts)] for turn in range(3)]
    for one in rounds:
        assert all(len(part) == count for part in one)
        assert len(set().union(*one)) == parts * count
    assert rounds[0] != rounds[1] or math.comb(size, count) < 50
    assert rounds[1] != rounds[2] or math.comb(size, count) < 50


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_random_subset_takes_every_subset_equally_often(fresh, epoch):
    store, n = ScoreStore(5, RandomSubset(0.4, fresh)), 4000
    counts = Counter(tuple(trained(plan_of(store, epoch, seed), 5)) for seed in range(n))
    subsets = list(itertools.combinations(range(5), 2))
    assert p_value(np.array([counts[s] for s in subsets]), np.full(10, n / 10)) > P_FAIL


def test_fresh_subsets_do_not_depend_on_the_epoch_before():
    store, n = ScoreStore(5, RandomSubset(0.4, fresh=True)), 3000
    both = Counter()
    for seed in range(n):
        first, second = (set(trained(plan_of(store, epoch, seed), 5)) for epoch in (0, 1))
        both[len(first & second)] += 1
    expected = [math.comb(2, k) * math.comb(3, 2 - k) / 10 * n for k in range(3)]  # hypergeometric
    assert p_value(np.array([both[k] for k in range(3)]), np.array(expected)) > P_FAIL


def test_random_subset_keeps_nothing_so_that_a_resume_needs_nothing():
    store = ScoreStore(100, RandomSubset(0.3))
    plans = [plan_of(store, epoch).codes.tolist() for epoch in range(7)]
    assert not store.policy.observes
    assert not store.types
    assert not store.policy.state
    for epoch in (6, 2, 4):  # a new store, with no history, at any epoch
        assert plan_of(ScoreStore(100, RandomSubset(0.3)), epoch).codes.tolist() == plans[epoch]


def test_a_sampler_trains_on_the_subset_alone():
    sampler = PrioritySampler(ScoreStore(40, RandomSubset(0.25)), batch_size=5, seed=1)
    epochs = [list(sampler) for _ in range(8)]
    assert all(len(epoch) == 10 for epoch in epochs)
    assert sorted(itertools.chain(*epochs[:4])) == sorted(itertools.chain(*epochs[4:])) == list(range(40))
    assert set(epochs[0]) != set(epochs[4])


# RankBased.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(8))
def test_ranks_go_from_the_largest_loss_down_after_those_never_scored(size, seed):
    store = ScoreStore(size, RankBased(), epochs=9)
    known = keys(last_losses(store, seed, count=30))
    assert plan_of(store, 2) is None
    order = store.column("order").tolist()
    assert sorted(order) == list(range(size))
    assert [known[i] for i in order] == sorted(known, reverse=True)
    assert store.policy.state["ranked"] == size


@pytest.mark.parametrize("unseen", [False, True])
def test_equal_losses_rank_in_random_order(unseen):
    store, n = ScoreStore(5, RankBased(), epochs=9), 3000
    store.update([4] if unseen else [0, 1, 2, 3, 4], [0.1] if unseen else [0.5, 0.5, 0.5, 0.5, 0.1])
    counts = Counter()
    for seed in range(n):
        plan_of(store, seed + 1, seed)
        *first, last = store.column("order").tolist()
        assert last == 4
        counts[tuple(first)] += 1
    orders = list(itertools.permutations(range(4)))
    assert p_value(np.array([counts[o] for o in orders]), np.full(24, n / 24)) > P_FAIL


def law_of_ranks(n, pressure):
    """pressure^(-r / n), normalised."""
    raw = [pressure ** (-r / n) for r in range(n)]
    return [p / math.fsum(raw) for p in raw]


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("pressure", [1.0, 1.0001, 2.0, 100.0, 1e12])
def test_the_closed_form_has_the_law_of_ranks(n, pressure):
    law = law_of_ranks(n, pressure)
    probabilities = geometric_probabilities(np.arange(n), n, pressure).tolist()
    assert probabilities == pytest.approx(law, rel=1e-9)
    assert math.fsum(probabilities) == pytest.approx(1, abs=1e-9)
    for r in range(n - 1):
        assert probabilities[r] / probabilities[r + 1] == pytest.approx(pressure ** (1 / n), rel=1e-12)
    # Rank r has the u between what all ranks before it have and what they have with it.
    ends = list(itertools.accumulate(law))
    slack = 1e-12
    borders = [(r, end) for r, end in enumerate(ends[:-1]) if law[r] > 4 * slack and law[r + 1] > 4 * slack]
    below = geometric_ranks(np.array([end - slack for _, end in borders]), n, pressure)
    above = geometric_ranks(np.array([end + slack for _, end in borders]), n, pressure)
    assert below.tolist() == [r for r, _ in borders]
    assert above.tolist() == [r + 1 for r, _ in borders]
    assert geometric_ranks(np.array([0.0, 1 - 2**-53]), n, pressure).tolist() == [0, n - 1]


@pytest.mark.parametrize("pressure", [1.0, 5.0, 100.0])
def test_single_draws_follow_the_law_and_say_it(pressure):
    store = ScoreStore(30, RankBased(pressure))
    losses = generator(1).permutation(30)
    store.update(range(30), losses)
    plan_of(store, 0)
    law = law_of_ranks(30, pressure)
    counts, n = [0] * 30, 20_000
    for offset in range(n):
        indices, probabilities = store.policy.draw(store, 1, store.clock, Rng(1, 0, offset, "draw"))
        rank = 29 - int(losses[indices[0]])
        assert probabilities[0] == pytest.approx(law[rank], rel=1e-9)
        counts[rank] += 1
    assert p_value(np.array(counts), n * np.array(law)) > P_FAIL


def successive(law, count):
    """The probability of each sequence of draws without replacement."""
    chances = {}
    for sequence in itertools.permutations(range(len(law)), count):
        chance, left = 1.0, 1.0
        for i in sequence:
            chance *= law[i] / left
            left -= law[i]
        chances[sequence] = chance
    return chances


@pytest.mark.parametrize(("size", "count"), [(3, 2), (4, 3), (4, 4), (12, 2)])
def test_batches_are_successive_draws_without_replacement(size, count):
    store, n = ScoreStore(size, RankBased(20.0)), 30_000
    store.update(range(size), -np.arange(size))  # example i has rank i
    plan_of(store, 0)
    counts, law = Counter(), law_of_ranks(size, 20.0)
    for offset in range(n):
        indices, probabilities = store.policy.draw(store, count, store.clock, Rng(2, 0, offset, "draw"))
        counts[tuple(indices.tolist())] += 1
        assert probabilities.tolist() == pytest.approx([law[i] for i in indices.tolist()], rel=1e-9)
    chances = successive(law, count)
    assert set(counts) <= set(chances)
    expected = np.array([n * chances[s] for s in chances])
    assert p_value(np.array([counts[s] for s in chances]), expected) > P_FAIL
    if count < size:  # draws with replacement, of which those with repeats are left out, are another law
        raw = np.array([math.prod(law[i] for i in s) for s in chances])
        assert p_value(np.array([counts[s] for s in chances]), n * raw / raw.sum()) < P_FAIL


def test_a_batch_above_the_size_has_everything_before_anything_twice():
    store = ScoreStore(5, RankBased(100.0))
    store.update(range(5), range(5))
    plan_of(store, 0)
    indices, _ = store.policy.draw(store, 13, store.clock, Rng(0, 0, 0, "draw"))
    assert sorted(indices[:5].tolist()) == sorted(indices[5:10].tolist()) == list(range(5))
    assert len(set(indices[10:].tolist())) == 3


def test_draws_without_replacement_end_where_one_has_nearly_all_the_probability():
    law, n = np.array([1 - 11e-9] + [1e-9] * 11), 3000
    counts = Counter()
    for seed in range(n):
        rng = Rng(seed, 0, 0, "draw")
        drawn = distinct(lambda k, rng=rng: (rng.random(k) > law[0]) * 11, lambda: law, 12, 3, rng).tolist()
        assert len(set(drawn)) == 3
        counts[tuple(drawn)] += 1
    pairs = [(0, *pair) for pair in itertools.permutations(range(1, 12), 2)]
    assert sum(counts[p] for p in pairs) == n
    assert p_value(np.array([counts[p] for p in pairs]), np.full(110, n / 110)) > P_FAIL


@pytest.mark.parametrize(("warm_up", "epochs"), [(0, 10), (2, 10), (10, 100)])
def test_pressure_falls_by_equal_factors_from_the_warm_up_to_the_end(warm_up, epochs):
    store = ScoreStore(50, RankBased((100.0, 2.0), warm_up=warm_up), epochs=epochs)
    store.update(range(50), range(50))
    for epoch in range(epochs):
        plan = plan_of(store, epoch)
        if epoch < warm_up:
            assert plan.codes is None
            continue
        assert plan is None
        for share in (0.0, 0.5):
            store.set_progress(share)
            indices, probabilities = store.policy.draw(store, 50, store.clock, Rng(0, epoch, 0, "draw"))
            found = dict(zip(indices.tolist(), probabilities.tolist(), strict=True))
            pressure = 100 * (2 / 100) ** ((epoch + share - warm_up) / (epochs - warm_up))
            assert found[49] / found[0] == pytest.approx(pressure ** (49 / 50), rel=1e-9)


def test_ranks_stay_until_it_is_time_to_refresh_them():
    store = ScoreStore(6, RankBased(4.0, refresh=3, warm_up=1))
    store.update(range(6), range(6))
    firsts = []
    for epoch in range(8):
        store.update(range(6), np.arange(6) * (-1) ** epoch)
        plan_of(store, epoch)
        firsts.append(int(store.column("order")[0]))
    assert firsts == [0, 0, 0, 0, 5, 5, 5, 0]  # not ranked in epoch 0; ranked in epochs 1, 4 and 7


def test_examples_that_come_in_an_epoch_are_drawn_from_the_next_one_on():
    store = ScoreStore(6, RankBased(4.0, refresh=5))
    store.update(range(6), range(6))
    plan_of(store, 0)
    store.resize(9)
    drawn = store.policy.draw(store, 6, store.clock, Rng(0, 0, 0, "draw"))[0]
    assert sorted(drawn.tolist()) == list(range(6))
    plan_of(store, 1)  # not yet time to refresh
    assert sorted(store.column("order")[:3].tolist()) == [6, 7, 8]
    drawn = store.policy.draw(store, 9, store.clock, Rng(0, 1, 0, "draw"))[0]
    assert sorted(drawn.tolist()) == list(range(9))
    store.resize(3)  # what was ranked is gone in part
    drawn, probabilities = store.policy.draw(store, 3, store.clock, Rng(0, 1, 9, "draw"))
    assert sorted(drawn.tolist()) == list(range(3))
    assert probabilities.tolist() == [1 / 3] * 3


def test_before_the_first_ranking_draws_are_uniform():
    store, n = ScoreStore(8, RankBased(100.0)), 4000
    store.update(range(8), range(8))
    counts = [0] * 8
    for offset in range(n):
        indices, probabilities = store.policy.draw(store, 1, store.clock, Rng(4, 0, offset, "draw"))
        counts[int(indices[0])] += 1
        assert probabilities.tolist() == [1 / 8]
    assert p_value(np.array(counts), np.full(8, n / 8)) > P_FAIL


def test_a_sampler_draws_batches_by_rank_after_a_first_epoch_over_everything():
    sampler = PrioritySampler(ScoreStore(64, RankBased(1e6)), batch_size=8, seed=2)
    for epoch in range(3):
        drawn = []
        for index in sampler:
            drawn.append(index)
            if len(drawn) % 8 == 0:
                sampler.step(torch.tensor(drawn[-8:]).float())
                assert len(set(drawn[-8:])) == 8
        if epoch == 0:
            assert sorted(drawn) == list(range(64))
        else:
            assert np.mean(drawn) > 50


# RankPower.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.5])
def test_priorities_are_powers_of_the_ranks(size, alpha):
    store = ScoreStore(size, RankPower(alpha, 0.5))
    known = keys(last_losses(store, int(10 * alpha), count=40))
    assert plan_of(store, 1) is None
    met = sorted(range(size), key=lambda i: (-known[i], -store.priorities[i]))  # equal losses: as chance had it
    assert store.priorities[met].tolist() == pytest.approx([(k + 1) ** -alpha for k in range(size)], rel=1e-6)


def test_the_unseen_have_the_first_ranks_and_ties_any_order():
    store, n = ScoreStore(5, RankPower(1.0, 0.0)), 2000
    store.update([1, 3], [7.0, 7.0])
    counts = Counter()
    for seed in range(n):
        plan_of(store, 1, seed)
        counts[tuple(round(1 / p) for p in store.priorities.tolist())] += 1
    possible = [(a, x, b, y, c) for a, b, c in itertools.permutations((1, 2, 3)) for x, y in ((4, 5), (5, 4))]
    assert sum(counts[p] for p in possible) == n
    assert p_value(np.array([counts[p] for p in possible]), np.full(12, n / 12)) > P_FAIL


def test_losses_within_an_epoch_leave_the_priorities_until_the_next():
    store = ScoreStore(4, RankPower(1.0, 0.0))
    store.update(range(4), [4.0, 3.0, 2.0, 1.0])
    plan_of(store, 1)
    before = [1, 1 / 2, 1 / 3, 1 / 4]
    assert store.priorities.tolist() == pytest.approx(before)
    store.update(range(4), [1.0, 2.0, 3.0, 4.0])
    assert store.priorities.tolist() == pytest.approx(before)
    plan_of(store, 2)
    assert store.priorities.tolist() == pytest.approx(before[::-1])
    store.resize(6)  # what came new has the priority of the first rank, in this epoch already
    assert store.priorities.tolist() == pytest.approx([*before[::-1], 1, 1])


def test_no_rank_is_too_low_to_be_drawn():
    store = ScoreStore(1000, RankPower(80.0, 0.0))
    plan_of(store, 1)
    assert (store.priorities > 0).all()
    assert store.priorities.max() == 1


@pytest.mark.parametrize("beta", [0.0, 0.5, (0.5, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("normalized", [False, True])
def test_weights_by_rank_are_those_of_losspower(beta, progress, normalized):
    store = ScoreStore(200, RankPower(0.7, beta, normalized), epochs=4)
    store.update(range(200), range(200))
    plan_of(store, int(4 * progress))
    indices, probabilities = store.tree.sample(40, seed=1)
    weights = store.policy.weights(store.columns, indices, probabilities, store.clock)
    b = beta if isinstance(beta, float) else beta[0] + (beta[1] - beta[0]) * progress
    assert store.policy.needs_unbiased == (beta != 0.0)
    total = math.fsum(k**-0.7 for k in range(1, 201))
    if b == 0:
        assert weights is None
        return
    expected = [(200 * (200 - i) ** -0.7 / total) ** -b for i in indices.tolist()]
    largest = max(expected) if normalized else 1
    assert weights.tolist() == pytest.approx([w / largest for w in expected], rel=1e-5)
    same = LossPower(beta=beta, max_normalize=normalized)
    assert weights.tolist() == same.weights(store.columns, indices, probabilities, store.clock).tolist()


# LossEMA.


class PlainEvolved:
    """The definition, in lists."""

    def __init__(self, size, beta1, beta2):
        self.beta1, self.beta2 = beta1, beta2
        self.s, self.w, self.seen = [1 / size] * size, [0.0] * size, [False] * size
        self.priority, self.aside = [0.0] * size, [False] * size

    def update(self, at, losses):
        for i, loss in zip(at, losses, strict=True):
            self.w[i] = float(f32(self.beta1 * self.s[i] + (1 - self.beta1) * loss))
            self.s[i] = float(f32(self.beta2 * self.s[i] + (1 - self.beta2) * loss))
            self.seen[i] = True
            self.priority[i] = 0.0 if self.aside[i] else self.w[i]


def check_evolved(store, plain):
    assert [s if seen else None for s, seen in zip(store.column("average").tolist(), plain.seen, strict=True)] == [
        s if seen else None for s, seen in zip(plain.s, plain.seen, strict=True)
    ]
    assert store.column("score").tolist() == plain.w
    assert store.priorities.tolist() == plain.priority


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("beta1", "beta2"), [(0.2, 0.8), (0.0, 1.0), (0.9, 0.3)])
def test_evolved_sampling_follows_its_definition_over_random_histories(size, beta1, beta2):
    store, plain = ScoreStore(size, LossEMA(beta1, beta2)), PlainEvolved(size, beta1, beta2)
    for at, losses, origin in batches(size, generator(size), 300):
        losses = [loss + 1e-3 for loss in losses]
        losses = [float(f32(loss)) for loss in losses]
        store.update(at, losses, origin=origin)
        if origin != "reference":
            plain.update(at, losses)
        check_evolved(store, plain)
    assert plan_of(store, 3) is None
    check_evolved(store, plain)


@pytest.mark.parametrize("prune", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("size", [1, 2, 23])
def test_pruning_sets_the_lowest_averages_aside_until_the_next_epoch(prune, size):
    store, plain, rng = ScoreStore(size, LossEMA(prune=prune)), PlainEvolved(size, 0.2, 0.8), generator(size)
    for epoch in range(12):
        assert plan_of(store, epoch, seed=epoch) is None
        aside = flags(store.column("aside"), size)
        scored = [i for i in range(size) if plain.seen[i]]
        out = [i for i in range(size) if aside[i]]
        assert len(out) == (math.floor(Fraction(str(prune)) * len(scored)) if epoch else 0)
        assert set(out) <= set(scored)
        stay = [plain.s[i] for i in scored if i not in out]
        assert max((plain.s[i] for i in out), default=-1) <= min(stay, default=math.inf)
        for i in scored:
            plain.aside[i] = aside[i]
            plain.priority[i] = 0.0 if aside[i] else plain.w[i]
        check_evolved(store, plain)
        for at, losses, origin in batches(size, rng, 10):
            losses = [float(f32(loss + 1e-3)) for loss in losses]
            store.update(at, losses, origin=origin)
            if origin != "reference":
                plain.update(at, losses)
            check_evolved(store, plain)  # also of those aside, whatever losses come


def test_equal_averages_are_set_aside_equally_often_and_the_unseen_never():
    store, n = ScoreStore(6, LossEMA(prune=0.5)), 2000
    store.update([0, 1, 2, 3], [0.5] * 4)
    store.admit_unseen()
    counts = Counter()
    for seed in range(n):
        plan_of(store, 1, seed)
        counts[tuple(np.flatnonzero(store.priorities == 0).tolist())] += 1
        assert store.priorities[[4, 5]].tolist() == [1, 1]
    pairs = list(itertools.combinations(range(4), 2))
    assert sum(counts[p] for p in pairs) == n
    assert p_value(np.array([counts[p] for p in pairs]), np.full(6, n / 6)) > P_FAIL


@pytest.mark.parametrize(
    ("epochs", "burn_in", "anneal", "uniform"),
    [
        (10, 0, 0.0, []),
        (10, 2, 0.0, [0, 1]),
        (10, 1, 0.3, [0, 7, 8, 9]),
        (10, 0, 0.9, range(1, 10)),
        (4, 0, 1.0, range(4)),
    ],
)
def test_the_first_and_the_last_epochs_train_uniformly(epochs, burn_in, anneal, uniform):
    store = ScoreStore(20, LossEMA(prune=0.5, burn_in=burn_in, anneal=anneal), epochs=epochs)
    store.update(range(20), range(1, 21))
    for epoch in range(epochs):
        plan = plan_of(store, epoch)
        assert (plan is not None) == (epoch in uniform)
        assert plan is None or plan.codes is None
        none = epoch in uniform or epoch == 0
        assert int((store.priorities == 0).sum()) == (0 if none else 10)


def test_an_example_whose_losses_are_zero_stays_drawable():
    store = ScoreStore(3, LossEMA(prune=0.3))
    for _ in range(700):
        store.update([0, 1], [0.0, 1.0])
    assert store.column("score")[0] == 0
    assert store.priorities[0] > 0
    plan_of(store, 1)
    assert store.priorities[0] > 0
    assert ScoreStore(1, LossEMA()).policy.columns == {"average": "float32", "score": "float32"}


# k-means, and SeTa.


def plain_clusters(values, count):
    """Lloyd's iteration over lists: (values of each group that has any)."""
    m = len(values)
    count = min(count, m)
    groups = [values[m * g // count : m * (g + 1) // count] for g in range(count)]
    centres = [0.0] * count
    for _ in range(1000):
        centres = [sum(group) / len(group) if group else centre for group, centre in zip(groups, centres, strict=True)]
        borders = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
        found = [[] for _ in range(count)]
        for value in values:
            found[sum(value >= border for border in borders)].append(value)
        if found == groups:
            return [group for group in groups if group]
        groups = found
    raise AssertionError("no end")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_clusters_are_those_of_lloyds_iteration(count):
    rng, fewer = generator(count), 0
    for _ in range(150):
        n = int(rng.integers(1, 60))
        # Multiples of 1/64, of which sums are exact.
        values = sorted(
            (rng.choice([rng.integers(0, 5, n), rng.integers(0, 640, n), rng.integers(1, 9, n) ** 5]) / 64).tolist()
        )
        begins = clusters(np.array(values, f32), count).tolist()
        assert [values[a:b] for a, b in itertools.pairwise(begins)] == plain_clusters(values, count)
        assert begins[0] == 0
        assert begins[-1] == n
        fewer += len(begins) - 1 < min(count, n)
    assert fewer > 10 or count < 5  # some have too few different values


@pytest.mark.parametrize("value", [0.1, 1e-45, 3e38, -0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 1000, 4097])
def test_equal_values_are_one_cluster(value, n):
    assert clusters(np.full(n, value, f32), 5).tolist() == [0, n]


def test_clusters_find_the_clumps_of_many_values():
    rng = generator(3)
    parts = [rng.normal(centre, 0.1, size) for centre, size in [(0, 30_000), (5, 40_000), (9, 30_000)]]
    assert clusters(np.sort(np.concatenate(parts).astype(f32)), 3).tolist() == [0, 30_000, 70_000, 100_000]


def plain_seta(kept, known, epoch, groups, window):
    """Of the examples kept, those of the epoch's window and the unseen."""
    values = sorted(known[i] for i in kept if known[i] is not None)
    if epoch == 0 or not values:
        return kept
    found = plain_clusters(values, groups)
    width = max(1, round(len(found) * window))
    first = epoch % (len(found) - width + 1)
    inside = set(itertools.chain.from_iterable(found[first : first + width]))
    return [i for i in kept if known[i] is None or known[i] in inside]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(("groups", "window"), [(5, 0.9), (10, 0.5), (3, 0.1), (1, 1.0)])
def test_seta_plans_follow_their_definition(ratio, groups, window):
    rng, less = generator(groups), 0
    for trial in range(60):
        n = int(rng.choice([1, 2, 23, 40]))
        known = (rng.choice([rng.integers(0, 640, n), rng.integers(0, 3, n)]) / 64).tolist()
        for i in rng.choice(n, rng.integers(0, n // 2 + 1), replace=False).tolist():
            known[i] = None
        store = ScoreStore(n, SeTa(ratio, groups, window), epochs=100)
        at = [i for i in range(n) if known[i] is not None]
        store.update(at, [known[i] for i in at])
        kept = trained(store.policy.plan(store, Clock(0), Rng(trial, 0, 0, "plan")), n)
        assert len(kept) == max(1, math.floor((1 - Fraction(str(ratio))) * n))
        for epoch in (0, 1, 2, 7, 86, 87, 99):
            plan = store.policy.plan(store, Clock(epoch), Rng(trial, 0, 0, "plan"))  # the same uniform part
            expected = kept if epoch >= 87 else plain_seta(kept, known, epoch, groups, window)
            assert trained(plan, n) == expected
            less += len(expected) < len(kept)
    assert less > 10 or window == 1


def test_the_window_goes_from_easy_to_hard_and_begins_again():
    store = ScoreStore(50, SeTa(0.0, 5, 0.4, 1.0), epochs=100)
    store.update(range(50), np.repeat([1, 2, 3, 4, 5], 10))
    windows = [sorted({i // 10 for i in trained(plan_of(store, epoch), 50)}) for epoch in range(9)]
    assert windows == [[0, 1, 2, 3, 4], *[[first, first + 1] for first in (1, 2, 3, 0, 1, 2, 3, 0)]]


def test_seta_keeps_every_subset_equally_often():
    store, n = ScoreStore(5, SeTa(0.6), epochs=100), 3000
    for epoch, losses in [(0, [1, 2, 3, 4, 5]), (1, [2] * 5), (99, [1, 2, 3, 4, 5])]:
        store.update(range(5), losses)
        counts = Counter(tuple(trained(plan_of(store, epoch, seed), 5)) for seed in range(n))
        subsets = list(itertools.combinations(range(5), 2))
        assert p_value(np.array([counts[s] for s in subsets]), np.full(10, n / 10)) > P_FAIL


# BatchLossScore.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 0.9])
def test_scores_move_towards_the_batches_means(size, alpha):
    store, scores = ScoreStore(size, BatchLossScore(alpha), epochs=9), [0.0] * size
    for at, losses, origin in batches(size, generator(size), 300):
        store.update(at, losses, origin=origin)
        if origin != "reference":
            for j, i in enumerate(at):  # one that is there twice moves twice
                new = plain_sum(losses) / len(losses) if origin == "train" else losses[j]
                scores[i] = float(f32(alpha * scores[i] + (1 - alpha) * new))
        assert store.column("loss").tolist() == scores


@pytest.mark.parametrize(
    ("host", "config"),
    [("infobatch", None), ("infobatch", {"ratio": 0.8}), ("seta", {"groups": 3}), ("orderdp", {"keep": 0.5})],
)
def test_plans_are_the_hosts_by_the_scores(host, config):
    store = ScoreStore(60, BatchLossScore(host=host, host_config=config), epochs=9)
    alone = ScoreStore(60, make(host, **(config or {})), epochs=9)
    for at, losses, _ in batches(60, generator(3), 40):
        store.update(at, losses)
        alone.update(at, store.column("loss")[at])
    assert store.column("loss").tolist() == alone.column("loss").tolist()
    assert store.seen().tolist() == alone.seen().tolist()
    sizes = set()
    for epoch in range(9):
        mine, theirs = plan_of(store, epoch), plan_of(alone, epoch)
        assert mine.weights == theirs.weights
        assert (mine.codes is None) == (theirs.codes is None)
        assert mine.codes is None or mine.codes.tolist() == theirs.codes.tolist()
        sizes.add(60 if mine.codes is None else int((mine.codes > 0).sum()))
    assert min(sizes) < 60
    again = make("bls", **store.policy.config())
    assert again.config() == {"alpha": 0.9, "host": host, "host_config": config}


class Mine(InfoBatch):
    pass


class NeedsMore(InfoBatch):
    requires = ("correct",)


class HasColumns(InfoBatch):
    columns = {"loss": "float32", "more": "int8"}  # noqa: RUF012


class HasState(InfoBatch):
    def __init__(self):
        super().__init__()
        self.state = {"rounds": 0}


def test_a_host_of_ones_own_is_named_by_its_module_and_may_need_no_more_than_scores():
    assert BatchLossScore(host=f"{__name__}:Mine").needs_epochs
    for host in (NeedsMore, HasColumns, HasState):
        with pytest.raises(
            ValueError, match=f"host = '.*{host.__name__}': expected a policy that does no more than plan"
        ):
            BatchLossScore(host=f"{__name__}:{host.__name__}")


def test_a_loop_that_knows_only_the_mean_passes_it_expanded():
    sampler = PrioritySampler(ScoreStore(12, BatchLossScore(0.5), epochs=5), batch_size=4)
    drawn = list(itertools.islice(sampler, 8))
    loss = torch.tensor(3.0, requires_grad=True)
    mean = sampler.step(loss.expand(4))
    mean.backward()
    assert mean.item() == 3
    assert loss.grad.item() == 1
    assert sampler.store.column("loss")[drawn[:4]].tolist() == [1.5] * 4
    assert not sampler.store.seen()[drawn[4:]].any()


# RePB.


class PlainRePB:
    """The definition, in lists. u is given in the order of the decisions: in a window the newest example first."""

    def __init__(self, size, ratio, window):
        self.ratio, self.window, self.epochs = ratio, window, 0
        self.seen, self.members, self.stay, self.counts = ([x] * size for x in (False, True, True, 0))
        self.rows, self.last, self.batches = [], {}, 0

    def update(self, at, losses, origin, u):
        if origin == "train" and at:
            self.rows += losses
            for i, loss in zip(at, losses, strict=True):
                self.last.setdefault(i, loss)
                self.last[i] = loss
            self.batches += 1
            if self.batches == self.window:
                self.close(u, list(zip(at, losses, strict=True)) if self.window == 1 else reversed(self.last.items()))
        if origin != "reference":
            for i in at:
                self.seen[i] = True

    def close(self, u, examples):
        if self.rows:
            mean = plain_sum(self.rows) / len(self.rows)
            for i, loss in examples:
                chance = next(u)
                self.stay[i] = loss >= mean or chance >= self.ratio
        self.rows, self.last, self.batches = [], {}, 0

    def plan(self, u):
        self.close(u, reversed(self.last.items()))
        if self.epochs:
            back = [next(u) >= self.ratio for _ in self.members]
            old = zip(self.members, self.stay, back, self.seen, strict=True)
            self.members = [(stay if member else b) or not seen for member, stay, b, seen in old]
            if not any(self.members):
                self.members = [True] * len(self.members)
        self.stay = list(self.members)
        self.counts = [c + member for c, member in zip(self.counts, self.members, strict=True)]
        self.epochs += 1


def numbers(rng):
    while True:
        yield float(rng.random(1)[0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.95])
def test_repb_follows_its_definition_over_random_histories(size, window, ratio):
    store, plain, rng = ScoreStore(size, RePB(ratio, window)), PlainRePB(size, ratio, window), generator(size + window)
    for epoch in range(25):
        plan = plan_of(store, epoch, seed=7)
        plain.plan(numbers(Rng(7, epoch, 0, "plan")))
        members = [i for i in range(size) if plain.members[i]]
        assert trained(plan, size) == members
        assert store.column("selected").tolist() == plain.counts
        weights = store.policy.weights(store.columns, np.array(members), np.ones(len(members)), store.clock)
        assert weights.tolist() == [float(f32((epoch + 1) / plain.counts[i])) for i in members]
        for at, losses, origin in batches(size, rng, int(rng.integers(0, 14))):
            u = numbers(Rng(store.seed, epoch, store.clock.step, "observe"))
            store.update(at, losses, origin=origin)
            plain.update(at, losses, origin, u)
            assert flags(store.column("kept"), size) == plain.stay


@pytest.mark.parametrize("window", [1, 2, 10])
def test_windows_of_batches_are_decided_by_their_own_mean(window):
    store = ScoreStore(8, RePB(1 - 1e-12, window))  # whoever is below the mean goes
    plan_of(store, 0)
    for at, losses in [([0, 1], [1, 2]), ([2, 3], [5, 6]), ([4, 5], [9, 10]), ([6, 7], [1, 2])]:
        store.update(at, losses)
    expected = {1: [1, 3, 5, 7], 2: [2, 3, 4, 5], 10: [2, 3, 4, 5]}[window]  # means 1.5 5.5 9.5 1.5; 3.5 5.5; 4.5
    assert trained(plan_of(store, 1), 8) == expected


def test_below_the_mean_the_share_that_goes_and_the_share_that_comes_back_are_those_of_the_ratio():
    size, ratio = 20_000, 0.3
    store = ScoreStore(size, RePB(ratio))
    assert trained(plan_of(store, 0), size) == list(range(size))
    losses = np.arange(size) % 2  # half are above the mean
    store.update(range(size), losses)
    first = store.policy.plan(store, Clock(1), Rng(3, 1, 0, "plan")).codes == TRAIN
    assert first[losses == 1].all()
    stayed = int(first[losses == 0].sum())
    assert p_value(np.array([stayed, size / 2 - stayed]), size / 2 * np.array([1 - ratio, ratio])) > P_FAIL
    out, second = ~first, store.policy.plan(store, Clock(2), Rng(3, 2, 0, "plan")).codes == TRAIN
    assert second[first].all()  # their losses did not come
    back, were = int(second[out].sum()), int(out.sum())
    assert p_value(np.array([back, were - back]), were * np.array([1 - ratio, ratio])) > P_FAIL
    never = ~first & ~second
    weights = store.policy.weights(store.columns, np.arange(size), np.ones(size), store.clock)
    assert set(weights[first & second].tolist()) == {1.0}
    assert set(weights[~first & second].tolist()) == {1.5}
    assert set(weights[never].tolist()) == {3.0}


@pytest.mark.parametrize("origin", ["score", "reference"])
@pytest.mark.parametrize("window", [1, 2])
def test_losses_from_beside_training_decide_nothing(origin, window):
    store = ScoreStore(4, RePB(1 - 1e-12, window))
    plan_of(store, 0)
    for _ in range(4):
        store.update(range(4), [1.0, 2.0, 3.0, 9.0], origin=origin)
    assert trained(plan_of(store, 1), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("loss", [0.0, 0.1, 1e-45, 3e38, -0.3])
def test_repb_leaves_none_out_where_all_losses_are_alike(loss, window):
    store = ScoreStore(1000, RePB(1 - 1e-12, window))
    plan_of(store, 0)
    for begin in range(0, 1000, 70):
        at = range(begin, min(1000, begin + 70))
        store.update(at, np.full(len(at), loss))
    assert trained(plan_of(store, 1), 1000) == list(range(1000))


def test_if_nobody_is_left_all_are():
    store = ScoreStore(2, RePB(1 - 1e-12))
    plan_of(store, 0)
    store.update([0, 1], [1.0, 2.0])
    store.update([0, 1, 1], [1.0, 9.0, 2.0])  # the last row of each is below the mean
    assert trained(plan_of(store, 1), 2) == [0, 1]
    assert store.column("selected").tolist() == [2, 2]


def test_an_update_without_rows_does_not_end_a_window():
    store = ScoreStore(4, RePB(1 - 1e-12, window=2), on_nonfinite="skip")
    plan_of(store, 0)
    store.update([0, 1], [1.0, 2.0])
    store.update([], [])
    store.update([2], [math.nan])
    store.update([2, 3], [5.0, 6.0])
    assert trained(plan_of(store, 1), 4) == [2, 3]


def test_examples_that_come_later_are_in_the_set_and_weigh_one():
    store = ScoreStore(4, RePB(1 - 1e-12))
    for epoch in range(3):
        plan_of(store, epoch)
        store.update(range(4), [1.0, 1.0, 1.0, 9.0])
    store.resize(6)
    assert trained(plan_of(store, 3), 6) == [3, 4, 5]
    assert store.policy.weights(store.columns, np.arange(6), np.ones(6), store.clock).tolist() == [4, 4, 4, 1, 1, 1]


def test_a_store_that_shrinks_in_a_window_loses_no_more_than_the_windows_decisions():
    store = ScoreStore(40, RePB(1 - 1e-12, window=3))
    plan_of(store, 0)
    store.update([3, 30, 5, 39], [1.0, 1.0, 1.0, 9.0])
    store.resize(10)
    store.update([4, 6], [1.0, 9.0])
    store.update([7], [1.0])  # 4, 6 and 7 are decided; the chain goes no further than to 39
    assert trained(plan_of(store, 1), 10) == [0, 1, 2, 3, 5, 6, 8, 9]
    store.resize(40)
    for _ in range(3):
        store.update([3, 5], [1.0, 9.0])  # they can wait again
    assert 3 not in trained(plan_of(store, 2), 40)


def test_counts_of_epochs_end_at_the_largest_they_can_be():
    store = ScoreStore(2, RePB(0.5))
    plan_of(store, 0)
    store.column("selected")[:] = [65535, 65534]
    plan_of(store, 1)
    assert store.column("selected").tolist() == [65535, 65535]


def test_a_sampler_weighs_by_the_epochs_in_the_set():
    sampler = PrioritySampler(ScoreStore(60, RePB(0.9)), batch_size=6, seed=1)
    counts = [0] * 60
    for epoch in range(5):
        drawn = []
        for index in sampler:
            drawn.append(index)
            if len(drawn) % 6 == 0 or len(drawn) == sampler.planned:
                at = sampler.indices.tolist()
                for i in at:
                    counts[i] += 1
                assert sampler.weights.tolist() == pytest.approx([(epoch + 1) / counts[i] for i in at])
                sampler.step(torch.tensor(at).float())
        assert len(set(drawn)) == len(drawn)
        assert (len(drawn) == 60) == (epoch == 0)


# OrderDP.


@pytest.mark.parametrize(("pool", "keep"), [(0.5, 0.6), (1.0, 0.3), (0.3, 1.0), (0.01, 0.01), (0.8, 0.7)])
@pytest.mark.parametrize("size", [*SIZES, 7])  # 7: a share of the pool of 3 is not the product of shares
def test_orderdp_trains_on_the_largest_losses_of_a_uniform_pool(pool, keep, size):
    for trial in range(60):
        store = ScoreStore(size, OrderDP(pool, keep))
        known = keys(last_losses(store, trial, count=12))
        plan = store.policy.plan(store, Clock(1), Rng(trial, 1, 0, "plan"))
        pooled = max(1, math.floor(Fraction(str(pool)) * size))
        members = np.flatnonzero(uniformly(pooled, Rng(trial, 1, 0, "plan"), np.ones(size, bool))).tolist()
        assert len(members) == pooled
        chosen = trained(plan, size)
        assert len(chosen) == max(1, math.floor(Fraction(str(keep)) * pooled))
        assert set(chosen) <= set(members)
        best = sorted((known[i] for i in members), reverse=True)[: len(chosen)]
        assert sorted((known[i] for i in chosen), reverse=True) == best


def test_the_chance_of_a_loss_is_that_of_its_place_in_a_random_pool():
    store, n = ScoreStore(6, OrderDP(0.5, 0.4)), 4000  # pools of 3, the largest of each
    store.update(range(6), [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    counts = Counter(tuple(trained(plan_of(store, 1, seed), 6)) for seed in range(n))
    expected = [n * math.comb(5 - i, 2) / math.comb(6, 3) for i in range(4)]
    assert sum(counts[(i,)] for i in range(4)) == n
    assert p_value(np.array([counts[(i,)] for i in range(4)]), np.array(expected)) > P_FAIL


@pytest.mark.parametrize("unseen", [False, True])
def test_orderdp_lets_chance_decide_between_equals(unseen):
    store, n = ScoreStore(5, OrderDP(0.8, 0.5)), 3000  # 4, and 2 of them
    if not unseen:
        store.update(range(5), [0.3] * 5)
    counts = Counter(tuple(trained(plan_of(store, 1, seed), 5)) for seed in range(n))
    pairs = list(itertools.combinations(range(5), 2))
    assert p_value(np.array([counts[p] for p in pairs]), np.full(10, n / 10)) > P_FAIL


def test_ranks_are_made_when_there_is_something_to_rank_and_refresh_epochs_later():
    store = ScoreStore(50, RankBased(pressure=1e4, refresh=3), epochs=20)
    ranked = []
    for epoch in (0, 1, 2, 3, 4, 5, 8, 9, 11):
        before = store.column("order").tolist()
        plan_of(store, epoch)
        if store.column("order").tolist() != before:
            ranked.append(epoch)
        store.update(range(50), generator(epoch).exponential(size=50))
    assert ranked == [1, 4, 8, 11]  # nothing was scored before epoch 1; epoch 7 was passed over


def test_a_host_that_learns_in_its_own_way_is_refused():
    for host in ("bls", "stale_sb"):
        with pytest.raises(ValueError, match="expected a policy that does no more than plan by column 'loss'"):
            BatchLossScore(host=host)


def test_a_score_pass_has_the_means_of_its_own_batches():
    store = ScoreStore(100, BatchLossScore(0.0), epochs=9)
    loader = PriorityLoader(range(100), 10, policy=store)
    loader.score(torch.nn.Identity(), lambda model, batch: batch.float().mean().expand(len(batch)))
    assert store.column("loss").tolist() == [10 * (i // 10) + 4.5 for i in range(100)]
