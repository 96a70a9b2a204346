"""Promise: the draws follow their laws. Guards what the exact tests take for granted: the random bits and the wiring.

A pooled chi-square over stratified draws has far less variance than its law says and could not fail. So strata are
judged one by one, against the exact law given the stratum. Every statistic has a control beside it that fails.
"""

import itertools

import numpy as np
import pytest
from helpers import P_FAIL, filled, generator, masses_by_definition, p_value, shapes

from fastprio.reference import stratum_target

DRAWS = 10_000_000


def masses(tree):
    return masses_by_definition(tree.priorities, tree._core.scale)


def expected(tree, draws):
    return masses(tree) / tree.total * draws


# iid


@pytest.mark.parametrize("name", ["uniform", "Zipf", "eight decades", "alternating zeros"])
def test_iid_draws_follow_the_masses(name):
    for n in (2, 10, 1000):
        tree = filled(shapes(n, generator(1))[name])
        indices, _ = tree.sample(DRAWS // 3, seed=2)
        assert p_value(np.bincount(indices, minlength=n), expected(tree, DRAWS // 3)) > P_FAIL


def test_iid_draws_of_slightly_other_masses_are_noticed():
    priorities = shapes(1000, generator(1))["Zipf"]
    tree, other = filled(priorities), filled(priorities * np.where(np.arange(1000) % 2, 1.1, 1))
    indices, _ = other.sample(DRAWS, seed=2)
    assert p_value(np.bincount(indices, minlength=1000), expected(tree, DRAWS)) < P_FAIL


def lagged_pairs(indices, n, lag):
    return np.bincount(indices[:-lag] * n + indices[lag:], minlength=n * n)


@pytest.mark.parametrize("lag", [1, 2, 32])
def test_draws_are_independent_of_those_before(lag):
    n = 20
    tree = filled(shapes(n, generator(3))["Zipf"])
    indices, _ = tree.sample(DRAWS, seed=4)
    law = masses(tree) / tree.total
    pairs = np.outer(law, law) * (DRAWS - lag)
    assert p_value(lagged_pairs(indices, n, lag), pairs) > P_FAIL
    sticky = indices.copy()  # the control: one draw in a hundred repeats an earlier one; the marginals stay
    repeat = np.flatnonzero(generator(5).random(DRAWS - lag) < 0.01)
    sticky[repeat + lag] = sticky[repeat]
    assert p_value(np.bincount(sticky, minlength=n), law * DRAWS) > P_FAIL
    assert p_value(lagged_pairs(sticky, n, lag), pairs) < P_FAIL


# stratified and systematic


def stratum_laws(tree, group):
    """law[k, i] = P(leaf i | stratum k): the share of u in [0, total) with prefix(i) <= target < prefix(i + 1).

    The condition is prefix(i) * B <= k * total + u < prefix(i + 1) * B, so it is an overlap of two intervals.
    """
    end = np.concatenate([[0], np.cumsum(masses(tree))]) * group
    edges = np.arange(group + 1) * tree.total
    overlap = np.minimum(end[1:], edges[1:, None]) - np.maximum(end[:-1], edges[:-1, None])
    return np.maximum(overlap, 0) / tree.total


def by_stratum(indices, group):
    """Column k holds what the groups drew in stratum k: leaves come in the order of the strata."""
    return np.sort(indices.reshape(-1, group), axis=1)


def least_p(columns, laws):
    """The least p-value over the strata, corrected for their number."""
    counts = [np.bincount(column, minlength=laws.shape[1]) for column in columns.T]
    return min(p_value(c, law * len(columns)) for c, law in zip(counts, laws, strict=True)) * len(laws)


def test_the_laws_of_the_strata_are_the_enumeration_of_u():
    tree = filled([3.0, 0.0, 1.0, 7.0, 2.0], scale=0)
    laws, total = stratum_laws(tree, 4), tree.total
    for k in range(4):
        leaves = tree.find([stratum_target(k, u, 4, total) for u in range(total)])
        np.testing.assert_allclose(laws[k], np.bincount(leaves, minlength=5) / total, rtol=1e-12)


@pytest.mark.parametrize("scheme", ["stratified", "systematic"])
@pytest.mark.parametrize("name", ["uniform", "Zipf", "eight decades"])
def test_each_stratum_follows_its_law(scheme, name):
    n, group = 200, 16
    tree = filled(shapes(n, generator(6))[name])
    indices, _ = tree.sample(DRAWS // 3 // group * group, seed=7, scheme=scheme, group=group)
    assert least_p(by_stratum(indices, group), stratum_laws(tree, group)) > P_FAIL


def test_right_marginals_without_strata_are_noticed():
    n, group = 200, 16
    tree = filled(shapes(n, generator(6))["Zipf"])
    indices, _ = tree.sample(DRAWS // group * group, seed=7, scheme="iid")
    assert p_value(np.bincount(indices, minlength=n), expected(tree, indices.size)) > P_FAIL
    assert least_p(by_stratum(indices, group), stratum_laws(tree, group)) < P_FAIL


def test_right_strata_with_wrong_marginals_are_noticed():
    """One draw in each stratum, but always at its middle, or in its lower 98 %."""
    n, group = 200, 16
    tree = filled(shapes(n, generator(6))["Zipf"])
    groups = DRAWS // group
    u = generator(8).random((groups, group))
    for place in (np.full_like(u, 0.5), u * 0.98):
        indices = tree.find((((np.arange(group) + place) / group * tree.total).astype(np.int64)).ravel())
        assert least_p(by_stratum(indices, group), stratum_laws(tree, group)) < P_FAIL


def neighbours_p(tree, scheme, group):
    """Chi-square of what strata 2 and 3 of a group draw together, against the product of their laws."""
    indices, _ = tree.sample(DRAWS // group * group, seed=9, scheme=scheme, group=group)
    columns, laws, n = by_stratum(indices, group), stratum_laws(tree, group), len(tree)
    pairs = np.bincount(columns[:, 2] * n + columns[:, 3], minlength=n * n)
    return p_value(pairs, np.outer(laws[2], laws[3]) * len(columns))


def test_strata_of_a_group_are_independent_when_stratified_and_tied_when_systematic():
    tree = filled(np.ones(80))
    assert neighbours_p(tree, "stratified", 16) > P_FAIL
    assert neighbours_p(tree, "systematic", 16) < P_FAIL


def position_pairs_p(batches, first, second):
    """Chi-square of the ordered pair of strata at two positions, against all pairs equally likely."""
    size = batches.shape[1]
    counts = np.bincount(batches[:, first] * size + batches[:, second], minlength=size * size).reshape(size, size)
    assert counts.diagonal().sum() == 0
    off = ~np.eye(size, dtype=bool)
    return p_value(counts[off], np.full(off.sum(), len(batches) / off.sum()))


@pytest.mark.parametrize("scheme", ["stratified", "systematic"])
def test_positions_of_a_batch_hold_all_pairs_of_strata_equally_often(scheme):
    group = 8  # with as many equal leaves, a stratum is a leaf
    tree = filled(np.ones(group))
    batches = tree.sample(DRAWS // group * group, seed=10, scheme=scheme, group=group)[0].reshape(-1, group)
    for first, second in ((0, 1), (1, 0), (3, 6), (0, 7), (6, 7)):
        assert position_pairs_p(batches, first, second) > P_FAIL
    rotated = (np.arange(group) + generator(11).integers(0, group, len(batches))[:, None]) % group  # the control
    assert p_value(np.bincount(rotated[:, 0]), np.full(group, len(batches) / group)) > P_FAIL
    assert position_pairs_p(rotated, 0, 1) < P_FAIL


def fewest_classes(batches, ranks):
    """The fewest classes of ten in any slice r::R of a batch, the data set being sorted by class."""
    classes = batches * 10 // 1000
    return min(len(set(batch[r::ranks].tolist())) for batch in classes for r in range(ranks))


@pytest.mark.parametrize("scheme", ["stratified", "systematic"])
def test_batches_and_slices_of_a_class_sorted_data_set_hold_many_classes(scheme):
    group, batches = 64, 500
    tree = filled(np.ones(1000))
    drawn = tree.sample(batches * group, seed=12, scheme=scheme, group=group)[0].reshape(batches, group)
    assert fewest_classes(drawn, 1) == 10
    assert fewest_classes(drawn, 4) >= 5
    halves = drawn.reshape(batches * 4, group // 4)  # stretches of a batch, as gradient accumulation takes them
    assert fewest_classes(halves, 1) >= 5
    ordered = np.sort(drawn, axis=1)  # the control: strata in their own order
    assert fewest_classes(ordered.reshape(batches * 4, group // 4), 1) < 5
    dealt = ordered.reshape(batches, 4, group // 4).transpose(0, 2, 1).reshape(batches, group)
    assert fewest_classes(dealt, 4) < 5


# unique and epoch: successive sampling, by enumeration of all ordered outcomes


def successive(weights, length):
    """The exact probability of each ordered outcome."""
    law = {}
    for outcome in itertools.permutations(range(len(weights)), length):
        p, rest = 1.0, float(sum(weights))
        for i in outcome:
            p, rest = p * (weights[i] / rest if rest > 0 else 0.0), rest - weights[i]
        law[outcome] = p
    return law


def outcomes_p(drawn, weights):
    length, n = drawn.shape[1], len(weights)
    law = successive(weights, length)
    place = n ** np.arange(length)
    counts = np.bincount(drawn @ place, minlength=n**length)
    codes = np.array([np.dot(outcome, place) for outcome in law])
    assert counts[codes].sum() == len(drawn)  # no repeats
    return p_value(counts[codes], np.array(list(law.values())) * len(drawn))


WEIGHTS = [(1, 1, 1, 1), (1, 2, 3, 4, 5), (0, 3, 1, 0, 2), (1000, 1, 2, 3), (100_000, 300, 1, 1)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("length", [2, 3])
def test_unique_is_successive_sampling(weights, length):
    """The last two weights leave so little beside the first that eight redraws fail and the exact path decides."""
    tree = filled(weights, scale=0)
    drawn = tree.sample(150_000 * length, seed=13, scheme="unique", group=length)[0].reshape(-1, length)
    assert outcomes_p(drawn, weights) > P_FAIL


@pytest.mark.parametrize("weights", WEIGHTS)
def test_epoch_is_successive_sampling(weights):
    tree = filled(weights, scale=0)
    drawn = np.array([tree.sample(3, seed=14, epoch=e, scheme="epoch")[0] for e in range(40_000)])
    assert outcomes_p(drawn, weights) > P_FAIL


def test_other_laws_without_replacement_are_noticed():
    weights = (1, 2, 3, 4, 5)
    iid = filled(weights, scale=0).sample(1_000_000, seed=15)[0].reshape(-1, 2)
    whole = iid[iid[:, 0] != iid[:, 1]]  # a repeat rejects the whole group, not the draw
    assert outcomes_p(whole, weights) < P_FAIL
    drawn = filled(weights, scale=0).sample(400_000, seed=15, scheme="unique", group=2)[0].reshape(-1, 2)
    assert outcomes_p(drawn, weights) > P_FAIL
    assert outcomes_p(np.sort(drawn, axis=1), weights) < P_FAIL
