"""Promise: what methods are made of (choices by value, rank, group, quota and chance; rings; schedules) is exact."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value

from fastprio._random import Rng
from fastprio.policies import OUT, SCORE, TRAIN, TRAIN_RESCALED, primitives, schedules

f32 = np.float32
DECIMALS = ["0", "0.1", "0.29", "0.3", "0.5", "0.57", "0.7", "0.9", "1"]


def rng_of(seed, step=0):
    return Rng(seed, 0, step, "plan")


def evenly(found, outcomes):
    """The chance of counts as uneven as these, if all ``outcomes`` (and no others) are equally likely."""
    counts = Counter(found)
    assert set(counts) <= set(outcomes)
    return p_value(np.array([counts[o] for o in outcomes]), np.full(len(outcomes), len(found) / len(outcomes)))


def values_of(kind, n, rng):
    if kind == "normal":
        return rng.normal(size=n).astype(f32)
    if kind == "equal":
        return np.full(n, rng.choice([0.0, -1.5, 3e38]), f32)
    if kind == "few":
        return rng.choice([-1.0, -0.0, 0.0, 2.0], n).astype(f32)
    return rng.choice([-math.inf, math.inf, -3e38, 1e-45, -1e-45, 0.0], n).astype(f32)


KINDS = ["normal", "equal", "few", "extreme"]


# Numbers of examples, and codes.


@pytest.mark.parametrize("share", DECIMALS)
def test_a_share_of_examples_is_that_of_the_decimal_that_was_written(share):
    for n in [*range(200), 10**6, 10**7 + 3]:
        assert primitives.share_of(n, float(share)) == math.floor(Fraction(share) * n)
        assert primitives.share_of(n, 1 - (1 - float(share))) == math.floor(Fraction(share) * n)


def test_codes_say_who_is_trained_on():
    trained = np.array([True, False, True])
    assert primitives.codes_of(trained).tolist() == [TRAIN, OUT, TRAIN]
    assert primitives.codes_of(trained, SCORE).tolist() == [TRAIN, SCORE, TRAIN]
    assert primitives.codes_of(trained).dtype == np.uint8


# By value.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [False, True])
def test_the_lowest_and_highest_are_those(kind, largest):
    rng = generator(len(kind))
    choose = primitives.highest if largest else primitives.lowest
    for trial in range(200):
        n = int(rng.integers(1, 30))
        values = values_of(kind, n, rng)
        among = None if trial % 2 else rng.random(n) < 0.6
        members = [i for i in range(n) if among is None or among[i]]
        count = int(rng.integers(-1, n + 3))
        given = values.copy()
        mask = choose(values, count, rng_of(trial), among)
        chosen = [i for i in range(n) if mask[i]]
        assert mask.dtype == bool
        assert set(chosen) <= set(members)
        assert len(chosen) == min(max(count, 0), len(members))
        inside = sorted((float(values[i]) for i in members), reverse=largest)[: len(chosen)]
        assert sorted(float(values[i]) for i in chosen) == sorted(inside)
        assert values.tobytes() == given.tobytes()


@pytest.mark.parametrize("largest", [False, True])
def test_of_equal_values_every_choice_is_equally_likely(largest):
    values = np.array([1, 3, 3, 1, 3, 5, 3, 3], f32) * (-1 if largest else 1)
    choose = primitives.highest if largest else primitives.lowest
    among = np.arange(8) != 7
    found = [tuple(np.flatnonzero(choose(values, 4, rng_of(seed), among))) for seed in range(3000)]
    assert evenly(found, [tuple(sorted((0, 3, *pair))) for pair in itertools.combinations([1, 2, 4, 6], 2)]) > P_FAIL


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("descending", [False, True])
def test_a_ranking_is_a_permutation_in_order(kind, descending):
    rng = generator(3)
    for seed, n in enumerate([1, 2, 3, 40, 1000]):
        values = values_of(kind, n, rng)
        order = primitives.ranking(values, rng_of(seed), descending)
        assert order.dtype == np.uint32
        assert sorted(order.tolist()) == list(range(n))
        ranked = [float(values[i]) for i in order.tolist()]
        assert ranked == sorted(ranked, reverse=descending)
    assert primitives.ranking(np.empty(0, f32), rng_of(0)).tolist() == []


@pytest.mark.parametrize("ties", [[-0.0, 0.0, 0.0], [2.5] * 4, [-math.inf] * 3])
def test_equal_values_are_ranked_in_random_order(ties):
    values = np.array([9.0, *ties, 9.5], f32)
    found = [tuple(primitives.ranking(values, rng_of(seed)).tolist()) for seed in range(6000)]
    orders = itertools.permutations(range(1, len(ties) + 1))
    assert evenly(found, [(len(ties) + 1, 0, *order) for order in orders]) > P_FAIL


@pytest.mark.parametrize("kind", KINDS)
def test_shares_below_are_those_by_counting(kind):
    rng = generator(4)
    for n in [1, 2, 7, 50, 200]:
        values = values_of(kind, n, rng)
        plain = values.tolist()
        shares = primitives.shares_below(values, rng_of(n))
        assert shares.tolist() == [float(f32(sum(other < value for other in plain) / n)) for value in plain]
    assert primitives.shares_below(np.empty(0, f32), rng_of(0)).tolist() == []


# By chance.


def test_every_subset_is_equally_likely():
    among = np.array([True, False, True, True, False, True, True])
    found = [tuple(np.flatnonzero(primitives.uniformly(2, rng_of(seed), among))) for seed in range(5000)]
    assert evenly(found, list(itertools.combinations([0, 2, 3, 5, 6], 2))) > P_FAIL


@pytest.mark.parametrize("count", [-1, 0, 1, 3, 4, 9])
def test_no_more_are_chosen_than_there_are(count):
    among = np.array([True, False, True, True])
    mask = primitives.uniformly(count, rng_of(1), among)
    assert mask.sum() == min(max(count, 0), 3)
    assert not mask[1]
    assert not primitives.uniformly(count, rng_of(1), np.zeros(4, bool)).any()


@pytest.mark.parametrize("ratio", ["0.1", "0.3", "0.5", "0.8", "0.9"])
@pytest.mark.parametrize("m", [0, 1, 2, 3, 6, 10])
def test_what_pruning_keeps_weighs_for_what_it_leaves_out(ratio, m):
    where = np.arange(12) < m
    kept = max(1, math.floor((1 - Fraction(ratio)) * m)) if m > 1 else 0
    met = set()
    for seed in range(50):
        codes, weights = primitives.pruned(where, float(ratio), rng_of(seed))
        assert (codes[m:] == TRAIN).all()
        assert weights[OUT] == 0
        assert weights[TRAIN] == 1
        if m < 2:
            assert (codes == TRAIN).all()
            continue
        assert Counter(codes[:m].tolist()) == Counter({TRAIN_RESCALED: kept, OUT: m - kept})
        # Each is kept with chance kept / m: its expected weight is one, exactly.
        assert Fraction(weights[TRAIN_RESCALED]).limit_denominator(1000) * Fraction(kept, m) == 1
        met.add(codes.tobytes())
    assert len(met) > 1 or kept in (0, m)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_acceptance_is_by_a_power_of_the_share(beta):
    rng = generator(6)
    shares, u = np.append([0.0, 0.0, 1.0], rng.random(300)), np.append([0.0, 0.5, 0.999], rng.random(300))
    expected = [b < a**beta for a, b in zip(shares.tolist(), u.tolist(), strict=True)]
    assert primitives.accepted(shares, beta, u).tolist() == expected
    assert primitives.accepted(torch.tensor(shares), beta, torch.tensor(u)).tolist() == expected
    assert expected[:3] == [beta == 0, beta == 0, True]


# By rank.


def geometric_law(n, pressure):
    powers = [pressure ** (-r / n) for r in range(n)]
    return [power / math.fsum(powers) for power in powers]


@pytest.mark.parametrize("pressure", [1.0, 1.0 + 1e-12, 1.5, 100.0, 1e8])
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_geometric_ranks_follow_their_law_border_by_border(n, pressure):
    law = geometric_law(n, pressure)
    probabilities = primitives.geometric_probabilities(np.arange(n), n, pressure)
    # One plus 1e-12 is known to four digits less.
    assert probabilities.tolist() == pytest.approx(law, rel=1e-9)
    assert probabilities.sum() == pytest.approx(1, rel=1e-9)
    assert probabilities[0] / probabilities[-1] == pytest.approx(pressure ** ((n - 1) / n))
    for r in range(n - 1):  # the ranks change where the running sums are
        border = math.fsum(law[: r + 1])
        near = np.array([border * (1 - 1e-9), border * (1 + 1e-9)])
        if near[1] < 1 and law[r + 1] > 1e-8 and pressure != 1.0 + 1e-12:
            assert primitives.geometric_ranks(near, n, pressure).tolist() == [r, r + 1]
    ends = primitives.geometric_ranks(np.array([0.0, 1 - 2.0**-53]), n, pressure)
    assert ends.tolist() == [0, n - 1]


@pytest.mark.parametrize(("n", "pressure"), [(1, 1.0000001), (2, 1.0000001), (7, 1.1)])
def test_no_rank_is_past_the_last_where_rounding_would_give_one(n, pressure):
    u = np.array([1 - 2.0**-53])
    assert primitives.geometric_ranks(u, n, pressure).tolist() == [n - 1]


@pytest.mark.parametrize("pressure", [1.0, 2.0, 100.0])
def test_geometric_ranks_of_random_numbers_follow_their_law(pressure):
    n, count = 20, 50_000
    ranks = primitives.geometric_ranks(rng_of(3).random(count), n, pressure)
    assert p_value(np.bincount(ranks, minlength=n), count * np.array(geometric_law(n, pressure))) > P_FAIL


def successive(law, count):
    """Ordered outcomes of drawing without replacement, and their probabilities."""
    found = {}
    for outcome in itertools.permutations(range(len(law)), count):
        p, left = 1.0, 1.0
        for i in outcome:
            p, left = p * law[i] / left, left - law[i]
        found[outcome] = p
    return found


LAW = [0.02, 0.3, 0.08, 0.1, 0.4, 0.1]
CONCENTRATED = [0.9, *[0.0125] * 8]


@pytest.mark.parametrize(
    ("law", "count", "rounds"),
    [
        (LAW, 2, 4),  # by clocks, as most are drawn
        ([*LAW[:4], 0.2, *[0.06] * 5], 2, 4),  # by drawing again
        (CONCENTRATED, 2, 1),  # by drawing, and clocks for the rest
        (CONCENTRATED, 2, 0),
    ],
)
def test_distinct_draws_follow_the_law_of_successive_sampling(monkeypatch, law, count, rounds):
    monkeypatch.setattr(primitives, "REDRAWS", rounds)
    rng, n, trials = generator(8), len(law), 20_000
    ends = np.cumsum(law)
    found = Counter()
    for seed in range(trials):
        drawn = primitives.distinct(
            lambda k: np.searchsorted(ends, rng.random(k) * ends[-1], side="right"),
            lambda: np.array(law),
            n,
            count,
            rng_of(seed),
        )
        found[tuple(drawn.tolist())] += 1
    expected = successive(law, count)
    assert set(found) <= set(expected)
    observed = np.array([found[outcome] for outcome in expected])
    assert p_value(observed, trials * np.array(list(expected.values()))) > P_FAIL


@pytest.mark.parametrize(("n", "count"), [(1, 1), (1, 5), (3, 8), (40, 40), (40, 81), (5, 0)])
def test_distinct_draws_come_once_each_before_any_comes_twice(n, count):
    drawn = primitives.distinct(
        lambda k: rng_of(1).integers(n, k), lambda: np.full(n, 1 / n), n, count, rng_of(2)
    ).tolist()
    assert len(drawn) == count
    for begin in range(0, count, n):
        assert len(set(drawn[begin : begin + n])) == len(drawn[begin : begin + n])


@pytest.mark.parametrize("pressure", [1e30, 1e300])
def test_distinct_draws_end_however_uneven_the_law_is(pressure):
    rng = rng_of(5)
    drawn = primitives.distinct(
        lambda k: primitives.geometric_ranks(rng.random(k), 1000, pressure),
        lambda: primitives.geometric_probabilities(np.arange(1000), 1000, pressure),
        1000,
        250,
        rng,
    )
    assert len(set(drawn.tolist())) == len(drawn) == 250


# By group and by source.


def test_examples_are_sorted_by_group_in_the_order_in_which_they_stand():
    rng = generator(9)
    for n, count in [(1, 1), (1, 5), (50, 7), (300, 300)]:
        groups = rng.integers(0, count, n)
        order, begins = primitives.by_group(groups.astype(np.uint16), count)
        assert (order.dtype, begins.dtype, len(begins)) == (np.uint32, np.int64, count + 1)
        for k in range(count):
            of = [i for i, group in enumerate(groups.tolist()) if group == k]
            assert order[begins[k] : begins[k + 1]].tolist() == of


@pytest.mark.parametrize(
    ("groups", "p"),
    [
        ([0, 0, 0, 1], [0.5, 0.5]),
        ([1, 1, 3, 3, 3, 4], [0.3, 0.2, 0.0, 0.4, 0.1, 0.9]),  # groups 0, 2 and 5 are empty
        ([2, 0, 2, 1], [0.0, 7.0, 0.0]),
        ([2, 0, 2, 1], [0.0, 0.0, 0.0]),  # nothing to go by: every example alike
        ([0, 2, 2, 2], [0.0, 9.0, 0.0]),  # so too where only an empty group has a share
    ],
)
def test_groups_are_drawn_by_p_and_their_examples_evenly(groups, p):
    order, begins = primitives.by_group(np.array(groups), len(p))
    sizes = [groups.count(k) for k in range(len(p))]
    left = [share if size else 0.0 for share, size in zip(p, sizes, strict=True)]
    left = left if sum(left) else [float(size) for size in sizes]
    law = [left[k] / sum(left) / sizes[k] for k in groups]
    count = 20_000
    indices, probabilities = primitives.draw_in_groups(order, begins, np.array(p), count, rng_of(11))
    assert indices.dtype == np.int64
    assert probabilities.tolist() == pytest.approx([law[i] for i in indices.tolist()], rel=1e-12)
    assert p_value(np.bincount(indices, minlength=len(groups)), count * np.array(law)) > P_FAIL


class Ends:
    """Gives the same number every time."""

    def __init__(self, u):
        self.u = u

    def random(self, count):
        return np.full(count, self.u)


@pytest.mark.parametrize("p", [[0.0, 1.5, 0.0], [0.1] * 3, [1 / 3, 1e-300, 0.0]])
@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_smallest_and_largest_random_number_draw_an_example_that_has_a_share(p, u):
    order, begins = primitives.by_group(np.array([0, 0, 1, 1, 2]), 3)
    indices, probabilities = primitives.draw_in_groups(order, begins, np.array(p), 4, Ends(u))
    assert (probabilities > 0).all()
    assert set(indices.tolist()) < set(range(5))


@pytest.mark.parametrize("share", DECIMALS)
def test_a_quota_is_exact_over_any_stretch(share):
    rng = generator(12)
    for begin, count in [*rng.integers(0, 10**6, (300, 2)).tolist(), (0, 0), (0, 1), (99, 1), (0, 100)]:
        exact = math.floor(Fraction(share) * (begin + count)) - math.floor(Fraction(share) * begin)
        assert primitives.quota(begin, count, float(share)) == exact
        assert 0 <= exact <= count


def test_quotas_of_stretches_add_up():
    for share in (0.1, 1 / 3, 0.999):
        ones = [primitives.quota(begin, 1, share) for begin in range(1000)]
        assert set(ones) <= {0, 1}
        assert sum(ones) == primitives.quota(0, 1000, share)
        assert sum(ones[217:600]) == primitives.quota(217, 383, share)


# Rings.


@pytest.mark.parametrize("width", [1, 2, 5, 127])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_ring_has_the_last_values_in_order(width, dtype):
    n, rng = 3, generator(width)
    ring, counts, plain = np.zeros((n, width), dtype), np.zeros(n, np.uint8), [[] for _ in range(n)]
    for _ in range(150):
        at = rng.integers(0, n, int(rng.integers(0, 20)))  # duplicates
        values = rng.integers(0, 250, at.size).astype(dtype)
        primitives.push(ring, counts, at, values)
        for i, value in zip(at.tolist(), values.tolist(), strict=True):
            plain[i].append(value)
        for i in range(n):
            c, pushed = int(counts[i]), len(plain[i])
            assert c == (pushed if pushed < width else width + (pushed - width) % width)
            place, held = c % width, min(c, width)
            assert [ring[i, (place - held + k) % width] for k in range(held)] == plain[i][-width:]
    assert max(map(len, plain)) > 2 * width


def test_powers_of_e_are_accurate():
    rng = generator(13)
    values = np.concatenate([rng.uniform(-50, 50, 500), rng.uniform(-1e-6, 1e-6, 50), [0.0, -700.0, 700.0]])
    for rate in (1.0, -1.0, 0.25):
        out = np.empty(len(values))
        primitives.exponential(values, rate, out)
        assert out.tolist() == pytest.approx([math.exp(rate * v) for v in values.tolist()], rel=1e-11)
    out = np.empty(4)
    primitives.exponential(np.array([-math.inf, -1e9, 1e9, 0.0]), 1.0, out)
    assert out.tolist() == [0, 0, math.inf, 1]


# Schedules.


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 26.0), ("exponential", 10.0 * math.sqrt(4.2)), ("cosine", 26.0)]
)
def test_schedules_go_from_the_first_value_to_the_second(schedule, middle):
    go = getattr(schedules, schedule)
    assert go((10.0, 42.0), 0.0) == pytest.approx(10)
    assert go((10.0, 42.0), 1.0) == pytest.approx(42)
    assert go((10.0, 42.0), 0.5) == pytest.approx(middle)
    assert go((42.0, 10.0), 0.5) == pytest.approx(middle)
    assert go(3.5, 0.7) == 3.5
    steps = [go((10.0, 42.0), k / 20) for k in range(21)]
    assert steps == sorted(set(steps))


def test_schedules_have_the_shape_of_their_names():
    assert schedules.linear((0.0, 8.0), 0.25) == 2
    assert schedules.exponential((1.0, 16.0), 0.25) == pytest.approx(2)
    assert schedules.exponential((16.0, 1.0), 0.75) == pytest.approx(2)
    assert schedules.cosine((0.0, 8.0), 0.25) == pytest.approx(4 - 4 * math.cos(math.pi / 4))
    assert schedules.cosine((0.0, 8.0), 0.01) < 0.01  # flat at its ends


@pytest.mark.parametrize(("values", "expected"), [(0.5, 0.5), (2, 2), ([0, 1], (0, 1)), ((0.5, 0.5), (0.5, 0.5))])
def test_a_span_is_a_number_or_two(values, expected):
    found = schedules.span("beta", values, least=0, most=2)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (-0.5, r"beta = -0.5: expected 0 <= beta <= 2"),
        ((0, 3), r"beta = \(0, 3\): expected 0 <= beta <= 2"),
        (math.nan, "beta = nan: expected 0 <= beta <= 2"),
        ((1, 2, 1), r"beta = \(1, 2, 1\): expected a number, or two"),
        ((), "expected a number, or two"),
        (True, "beta = True: expected 0 <= beta <= 2"),
        ((0.25,), r"beta = \(0.25,\): expected a number, or two"),
        ("1", "beta = 1: expected"),
        (None, "beta = None: expected"),
    ],
)
def test_a_span_that_is_none_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        schedules.span("beta", values, least=0, most=2)


def test_a_span_without_limits_is_finite():
    with pytest.raises(ValueError, match="beta = inf: expected finite numbers"):
        schedules.span("beta", math.inf)


def test_steps_hold_from_their_epoch_on():
    steps = [(2, 0.8), (5, 0.5)]
    assert [schedules.stepwise(steps, epoch) for epoch in range(7)] == [1.0, 1.0, 0.8, 0.8, 0.8, 0.5, 0.5]
    assert schedules.stepwise(steps, 0, before=9.0) == 9
    assert schedules.stepwise([], 3, before=0.25) == 0.25


def test_between_two_epochs_is_a_share():
    assert [schedules.between(epoch, 2, 6) for epoch in (0, 2, 3, 4, 6, 9)] == [0, 0, 0.25, 0.5, 1, 1]
    assert [schedules.between(epoch, 4, 4) for epoch in (3, 4, 5)] == [0, 1, 1]
    assert [schedules.between(epoch, 4, 2) for epoch in (3, 4, 5)] == [0, 1, 1]


@pytest.mark.parametrize("epochs", [1, 7, 10, 90, 100])
@pytest.mark.parametrize("delta", [*DECIMALS, "0.875", "0.35"])
def test_annealing_begins_once_and_where_the_decimal_says(delta, epochs):
    last = math.floor(Fraction(delta) * epochs)  # epochs 1 to last are before it, counted from 1
    assert [schedules.annealing(epoch, float(delta), epochs) for epoch in range(epochs)] == [
        number > last for number in range(1, epochs + 1)
    ]


# The random permutations beneath.


@pytest.mark.parametrize("n", [1, 2, 1000, 1 << 16, (1 << 16) + 1, 200_000])
def test_a_permutation_is_the_same_in_pieces(n):
    whole = Rng(3, 1, 4, "draw").permutation(n, 0, n)
    assert len(whole) == n
    assert len(np.unique(whole)) == n
    assert (whole.min(), whole.max()) == (0, n - 1)
    for begin, count in [(0, min(n, 9)), (n // 3, n // 2), (n - 1, 1), (n, 0)]:
        part = Rng(3, 1, 4, "draw").permutation(n, begin, count)
        assert part.tolist() == whole[begin : begin + count].tolist()
    assert Rng(3, 1, 4, "draw").choose(n, n + 5).tolist() == whole.tolist()
    assert n < 1000 or Rng(3, 1, 5, "draw").permutation(n, 0, n).tolist() != whole.tolist()


def test_permutations_of_few_are_all_equally_likely_and_follow_each_other():
    found = []
    for seed in range(3000):
        rng = Rng(seed, 0, 7, "draw")
        assert (rng.seed, rng.epoch, rng.step) == (seed, 0, 7)
        found.append((*rng.permutation(3, 0, 3).tolist(), *rng.permutation(2, 0, 2).tolist()))
    orders = [a + b for a in itertools.permutations(range(3)) for b in itertools.permutations(range(2))]
    assert evenly(found, orders) > P_FAIL


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [(10, 1 - 0.8, 2), (10**8, 1 - 0.8, 2 * 10**7), (4 * 10**9, 1 - 0.9, 4 * 10**8), (3 * 10**9, 0.7, 2_100_000_000),
     (1 << 32, 1.0, 1 << 32), (7, 0.5, 3), (3, 0.33, 0)],
)  # fmt: skip
def test_a_share_is_what_it_means_at_every_size(n, share, expected):
    assert primitives.share_of(n, share) == expected
