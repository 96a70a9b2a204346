"""Promise: an example whose priority is zero is never drawn, and everything above zero can be."""

import numpy as np
import pytest
from helpers import ISAS, audit, filled, floats, generator, parked_leaves, random_floats, state, using

from fastprio.tree import SumTree

SCHEMES = ("iid", "stratified", "systematic", "unique", "epoch")
N = 100_003


def layouts():
    """What has drawn zeros from other trees: zeros beside giants, at the ends, in long runs, in whole blocks."""
    rng, i = generator(1), np.arange(N)
    values = random_floats(N, rng)
    return {
        "first only": np.where(i == 0, 1, 0),
        "last only": np.where(i == N - 1, 1, 0),
        "all but the first": np.where(i > 0, values, 0),
        "all but the last": np.where(i < N - 1, values, 0),
        "alternating": np.where(i % 2, values, 0),
        "one in sixteen": np.where(i % 16 == 7, values, 0),
        "whole blocks": np.where(i // 16 % 2, values, 0),
        "whole nodes": np.where(i // 256 % 3 == 1, values, 0),
        "a long run between two": np.where((i == 0) | (i == N - 1), 1, 0),
        "subnormals among zeros": np.where(i % 5 == 0, floats(rng.integers(1, 9, N, dtype=np.uint32)), 0),
        "a giant among the least": np.where(i == N // 2, 3e38, np.where(i % 3 == 0, floats(np.ones(N, int)), 0)),
        "at random": np.where(rng.random(N) < 0.9, 0, rng.random(N)),
    }


LAYOUTS = layouts()


def zeros_drawn(tree, zero, count, scheme="iid", **arguments):
    indices, probabilities = tree.sample(count, scheme=scheme, **arguments)
    assert (probabilities > 0).all()
    return int(zero[indices].sum())


@pytest.mark.parametrize("name", LAYOUTS)
def test_zero_is_never_drawn(name):
    priorities = LAYOUTS[name].astype(np.float32)
    tree, zero = filled(priorities), priorities == 0
    draws = 10_000_000 // len(LAYOUTS)
    assert zeros_drawn(tree, zero, draws, seed=2) == 0
    positive = int((~zero).sum())
    for scheme in ("stratified", "systematic"):
        assert zeros_drawn(tree, zero, draws // 10, scheme, seed=3, group=1000) == 0
    for scheme in ("unique", "epoch"):
        assert zeros_drawn(tree, zero, min(positive, 3000), scheme, seed=4) == 0


def test_a_search_that_is_off_by_one_draws_zeros():
    """The control: with < for <= in the prefix search, and masses of one, the same count finds the zeros."""
    priorities = np.arange(N) % 2
    end = np.cumsum(priorities)
    drawn = np.searchsorted(end, generator(5).integers(0, end[-1], 1_000_000), side="left")
    assert (priorities[drawn] == 0).sum() > 5
    right = np.searchsorted(end, generator(5).integers(0, end[-1], 1_000_000), side="right")
    assert (priorities[right] == 0).sum() == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_and_the_last_integer_find_the_first_and_the_last_leaf_above_zero(name):
    priorities = LAYOUTS[name].astype(np.float32)
    tree, above = filled(priorities), np.flatnonzero(priorities)
    assert tree.find([0, tree.total - 1]).tolist() == [above[0], above[-1]]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_everything_above_zero_can_be_drawn(name, isa):
    priorities = LAYOUTS[name].astype(np.float32)
    with using(isa):
        assert audit(filled(priorities)) == 2 * np.count_nonzero(priorities)


def test_what_is_set_to_zero_is_not_drawn_any_more():
    rng, n = generator(6), 5000
    tree = filled(rng.random(n) + 0.1)
    zero = np.zeros(n, bool)
    for step in range(40):
        at = rng.integers(0, n, 100)
        tree.update(at, np.zeros(100))
        zero[at] = True
        back = rng.integers(0, n, 30)
        tree.update(back, rng.random(30) + 1e-30)
        zero[back] = False
        assert zeros_drawn(tree, zero, 5000, seed=step) == 0
        assert audit(tree) == 2 * int((~zero).sum())


def test_what_is_parked_is_not_drawn_by_any_scheme():
    n = 400
    tree = filled(generator(7).random(n) + 0.01)
    first, _ = tree.sample(n // 2, seed=1, scheme="epoch")
    parked = np.zeros(n, bool)
    parked[first] = True
    assert parked_leaves(tree).tolist() == np.sort(first).tolist()
    tree.update(first[:50], np.full(50, 9.0))  # a new priority does not bring it back
    audit(tree)
    for scheme in ("iid", "stratified", "systematic", "unique"):
        assert zeros_drawn(tree, parked, 150, scheme, seed=2) == 0
    rest, _ = tree.sample(n - n // 2, seed=1, scheme="epoch", offset=n // 2)
    assert np.sort(np.concatenate([first, rest])).tolist() == list(range(n))
    assert tree.total == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_can_be_drawn_from_zeros(scheme):
    for tree in (SumTree(1), SumTree(1000), filled(np.full(50, -0.0)), filled(np.zeros(N))):
        before = state(tree)
        with pytest.raises(ValueError, match="above zero"):
            tree.sample(3, seed=1, scheme=scheme)
        assert state(tree) == before
        indices, probabilities = tree.sample(0, seed=1, scheme=scheme)
        assert indices.size == probabilities.size == 0


def test_nothing_can_be_found_among_zeros():
    with pytest.raises(ValueError, match="above zero"):
        SumTree(20).find([0])
    assert SumTree(20).find([]).size == 0
