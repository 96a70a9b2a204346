"""Promise: exactness and zero hold at sizes where samplers in float32, or with 2^24 categories, have stopped."""

import numpy as np
import pytest
import torch
from helpers import P_FAIL, filled, generator, masses_by_definition, p_value
from scipy.stats import binom

from fastprio import _core
from fastprio.tree import SumTree

N = 2**24 + 1  # one more than torch.multinomial takes


@pytest.fixture(scope="module")
def large():
    """Priorities of every magnitude within eight decades, with zeros, on N leaves."""
    rng = generator(1)
    priorities = rng.random(N, np.float32) * np.float32(10) ** rng.integers(-4, 5, N).astype(np.float32)
    priorities[rng.integers(0, N, N // 10)] = 0
    return filled(priorities)


def test_torch_stops_here():
    """Why this size: should this ever pass, the comparison in the documentation is out of date."""
    with pytest.raises(RuntimeError, match=r"2\^24"):
        torch.multinomial(torch.ones(N), 1)


def test_every_leaf_is_found_at_both_ends_of_its_mass(large):
    mass = masses_by_definition(large.priorities, large._core.scale)
    end = np.cumsum(mass)
    assert int(end[-1]) == large.total
    found = 0
    for first in range(0, N, 1 << 20):
        part = mass[first : first + (1 << 20)]
        leaves = np.flatnonzero(part)
        last = end[first : first + part.size][leaves] - 1
        begin = last + 1 - part[leaves]
        np.testing.assert_array_equal(large.find(begin), first + leaves)
        np.testing.assert_array_equal(large.find(last), first + leaves)
        found += leaves.size
    assert found == np.count_nonzero(mass) == np.count_nonzero(large.priorities) > 0.9 * N


def two_sided(hits: int, draws: int, p: float) -> float:
    return min(2 * min(binom.cdf(hits, draws, p), binom.sf(hits - 1, draws, p)), 1.0)


def test_the_upper_part_is_drawn_as_often_as_it_should():
    """Sampling in float32 has given the upper part of 2^24 categories none of the draws that are a third of all."""
    tree, draws = filled(np.ones(N)), 1_000_000
    indices, probabilities = tree.sample(draws, seed=3)
    assert (probabilities == 1 / N).all()
    for part in (N // 2, N - N // 3, N - N // 100, N - N // 1000):
        hits = int((indices >= part).sum())
        assert two_sided(hits, draws, (N - part) / N) > P_FAIL
        assert two_sided(int(hits * 0.9), draws, (N - part) / N) < P_FAIL or part > N - N // 50  # the control
    assert two_sided(0, draws, 1 / 3) < P_FAIL


def test_neighbours_are_told_apart():
    """A uniform number of 24 bits has 2^24 values: of 3 * 2^23 equal leaves it can reach only two in three."""
    n, draws = 3 * 2**23, 1_000_000
    indices, _ = filled(np.ones(n)).sample(draws, seed=4)
    coarse = generator(5).integers(0, 2**24, draws) * n >> 24  # the control
    for sixteenth in range(16):
        for drawn, right in ((indices, True), (coarse, False)):
            inside = drawn[drawn * 16 // n == sixteenth] % 3
            assert (p_value(np.bincount(inside, minlength=3), np.full(3, inside.size / 3)) > P_FAIL) == right


def test_two_to_the_26_leaves_are_found():
    n = 2**26
    tree = SumTree(n)
    rng = generator(6)
    at = np.unique(np.concatenate([
        [0, 1, 15, 16, 255, 256, n // 2 - 1, n // 2, n - 17, n - 16, n - 2, n - 1],
        np.array([2**k + d for k in range(4, 26) for d in (-1, 0, 1)]),
        rng.integers(0, n, 100_000),
    ]))  # fmt: skip
    priorities = rng.random(at.size, np.float32) + np.float32(0.001)
    tree.update(at, priorities)
    mass = masses_by_definition(priorities, tree._core.scale)
    end = np.cumsum(mass)
    assert tree.total == end[-1]
    np.testing.assert_array_equal(tree.find(end - 1), at)
    np.testing.assert_array_equal(tree.find(end - mass), at)
    tree.fill(1)
    each = _core.mass(1.0, tree._core.scale)
    assert tree.total == n * each
    r = np.concatenate([at * each, at * each + each - 1])
    np.testing.assert_array_equal(tree.find(r), np.concatenate([at, at]))


@pytest.mark.parametrize("n", [1000, 65_537, 2**20, N])
def test_a_tree_takes_less_than_six_bytes_an_example(n):
    tree = SumTree(n)
    tree.fill(1)
    assert 4 * n < tree.nbytes <= 4.75 * n
    tree.sample(5, seed=1, scheme="epoch")
    assert tree.nbytes <= 6 * n
    assert SumTree(1).nbytes <= 16 * 4 + 16 * 8
