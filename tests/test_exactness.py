"""Promise: P(i) = mass(i) / total exactly, for any size, layout and history of updates. No draw is needed to see it."""

import hashlib
import itertools
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from helpers import (
    INFINITY_BITS,
    ISAS,
    MAX_MASS,
    audit,
    filled,
    floats,
    flushed_denormals,
    generator,
    levels,
    masses_by_definition,
    random_floats,
    reference_of,
    rounding,
    shapes,
    state,
    using,
)

from fastprio import _core
from fastprio.reference import ReferenceTree, mass
from fastprio.tree import SumTree

SIZES = sorted(
    {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000, 100_000}
    | {2**k + d for k in (5, 8, 12, 16) for d in (-1, 0, 1)}
)


@pytest.mark.parametrize("n", SIZES)
def test_every_leaf_owns_exactly_its_mass(n):
    looked_up = sum(audit(filled(priorities)) for priorities in shapes(n, generator(n)).values())
    assert looked_up >= 2 * 16


def test_the_audit_notices_a_wrong_sum_and_a_wrong_leaf():
    tree = filled(shapes(1000, generator(0))["eight decades"])
    audit(tree)

    class Shifted:  # the same tree, looked up one unit of mass too far to the right
        priorities = tree.priorities
        _core, parked, total = tree._core, tree.parked, tree.total

        def find(self, masses):
            return tree.find(np.minimum(masses + 1, tree.total - 1))

    with pytest.raises(AssertionError):
        audit(Shifted())
    stale = filled(np.ones(1000))

    class Stale:  # leaves of one tree under the sums of another
        priorities = tree.priorities
        _core, parked, total = stale._core, stale.parked, stale.total
        find = stale.find

    with pytest.raises(AssertionError):
        audit(Stale())


def test_all_small_trees_equal_the_reference():
    """All 65,536 vectors of masses 0 to 3 on eight leaves, and every integer below the total."""
    tree, reference = SumTree(8, _scale=0), ReferenceTree(8, _scale=0)
    for vector in itertools.product((0.0, 1.0, 2.0, 3.0), repeat=8):
        tree.fill(np.array(vector, np.float32))
        reference.fill(vector)
        assert tree.total == sum(vector)
        if tree.total:
            assert tree.find(np.arange(tree.total)).tolist() == reference.find(range(tree.total))


@pytest.mark.parametrize("isa", ISAS)
def test_all_subsets_of_a_node_are_searched_right(isa):
    """All 65,536 subsets of the sixteen children of a node; leaves 0 to 15 and, one level up, blocks 0 to 15."""
    with using(isa):
        for stride in (1, 16):
            tree = SumTree(16 * stride, _scale=0)
            for subset in range(1, 1 << 16, 1 if stride == 1 else 7):
                members = np.flatnonzero(subset >> np.arange(16) & 1)
                priorities = np.zeros(16 * stride, np.float32)
                priorities[members * stride] = 1
                tree.fill(priorities)
                assert tree.find(np.arange(members.size)).tolist() == (members * stride).tolist()


def by_fractions(priority: float, scale: int) -> int:
    if priority == 0:
        return 0
    return max(1, min(MAX_MASS, round(Fraction(priority) * Fraction(2) ** scale)))


def test_mass_is_the_definition_in_fractions():
    """At random bits under every scale near which the mass is neither 0 nor all bits, and at the edges of rounding."""
    rng = generator(1)
    cases = [
        (bits, scale)
        for bits in (0, 1, 2, 3, 0x7FFFFF, 0x800000, 0x800001, INFINITY_BITS - 1)
        for scale in range(-97, 180)
    ]
    for bits in rng.integers(1, INFINITY_BITS, 20_000).tolist():
        unit = 150 - max(bits >> 23, 1)  # p * 2^unit is its significand
        cases.append((bits, unit + int(rng.integers(-27, 9))))
    for exponent, places in itertools.product((0, 1, 2, 100, 200, 254), range(1, 26)):  # exact halves, and one off
        for half in (1, 3, 5, 7):
            significand = half << (places - 1)
            for s in (significand - 1, significand, significand + 1):
                if 0 < s < 1 << 23:
                    cases.append((exponent << 23 | s, 150 - max(exponent, 1) - places))
    checked = 0
    for bits, scale in cases:
        if -97 <= scale <= 179:
            priority = float(floats([bits])[0])
            expected = by_fractions(priority, scale)
            assert _core.mass(priority, scale) == expected == mass(priority, scale), (hex(bits), scale)
            checked += 1
    assert checked > 5_000


@pytest.mark.parametrize("isa", ISAS)
def test_mass_is_the_definition_under_every_scale(isa):
    """In bulk, through the vector code: a block with a single leaf has that leaf's mass for a sum."""
    rng, n = generator(2), 1 << 15
    with using(isa):
        for scale in range(-97, 180):
            leaves = random_floats(n, rng)
            # Half of them where the mass is neither 1 nor the largest.
            exponents = np.clip(150 - scale + rng.integers(-27, 9, n // 2), 0, 254).astype(np.uint32)
            leaves[: n // 2] = floats(exponents << 23 | leaves[: n // 2].view(np.uint32) & 0x7FFFFF)
            tree = SumTree(16 * n, _scale=scale)
            at = 16 * np.arange(n)
            tree.update(at + rng.integers(0, 16, n), leaves)
            np.testing.assert_array_equal(levels(tree)[0][:n], masses_by_definition(leaves, scale))


def test_mass_is_monotone_and_above_zero():
    bits = np.sort(generator(3).integers(1, INFINITY_BITS, 100_000, dtype=np.uint32))
    for scale in (-97, -20, 0, 27, 100, 179):
        masses = masses_by_definition(floats(bits), scale)
        in_core = np.array([_core.mass(p, scale) for p in floats(bits[::50]).tolist()])
        assert (np.diff(in_core) >= 0).all()
        assert in_core.min() >= 1
        np.testing.assert_array_equal(in_core, masses[::50])


def life(n: int, seed: int) -> str:
    """Fills, updates and draws with subnormals among the priorities; a hash of every bit that comes of it."""
    rng = generator(seed)
    out = hashlib.sha256()
    tree = SumTree(n)
    for low, high in ((0, 1 << 23), (0, INFINITY_BITS)):
        tree.fill(floats(rng.integers(low, high, n, dtype=np.uint32)))
        out.update(state(tree).encode())
        tree.update(rng.integers(0, n, 3 * n), floats(rng.integers(low, high, 3 * n, dtype=np.uint32)))
        for scheme in ("iid", "stratified", "systematic", "unique", "epoch"):
            out.update(tree.sample(48, seed=7, scheme=scheme, group=16)[0].tobytes())
        out.update(state(tree).encode())
        tree.refit()
        out.update(state(tree).encode())
    return out.hexdigest()


@pytest.mark.parametrize(
    "mode",
    [flushed_denormals, lambda: rounding("up"), lambda: rounding("down"), lambda: rounding("zero")],
    ids=["flush", "up", "down", "zero"],
)
def test_floating_point_modes_change_no_bit(mode):
    expected = life(500, 4)
    with mode():
        found = life(500, 4)
    assert found == expected
    assert life(500, 5) != expected


def test_a_number_is_filled_in_bit_for_bit_with_subnormals_flushed():
    tree, smallest = SumTree(3), floats([1])
    with flushed_denormals():
        tree.fill(smallest.reshape(()))
    assert tree.priorities.view(np.uint32).tolist() == [1, 1, 1]
    assert tree.total == 3 * 2**30  # 2^-149 under the scale 179


def random_updates(rng, n, count, priorities):
    """(indices, priorities) with many duplicates: half of them fall on a hundredth of the leaves."""
    some = rng.integers(0, n, max(n // 100, 1))
    at = np.where(rng.random(count) < 0.5, rng.choice(some, count), rng.integers(0, n, count))
    return at, priorities(rng, count)


def decades(rng, count):
    return np.where(rng.random(count) < 0.1, 0, 10.0 ** rng.uniform(-6, 6, count)).astype(np.float32)


@pytest.mark.parametrize("values", [decades, lambda rng, count: random_floats(count, rng)], ids=["decades", "all bits"])
def test_a_million_updates_and_a_refit_equal_a_fresh_tree(values):
    rng, n = generator(6), 10_007
    tree, expected = SumTree(n), np.zeros(n, np.float32)
    left = 1_000_000 // 2
    while left > 0:
        count = min(int(rng.choice([1, 7, 255, 256, 257, 5000, 60_000])), left)
        at, priorities = random_updates(rng, n, count, values)
        tree.update(at, priorities)
        for i, p in zip(at.tolist(), priorities, strict=True):
            expected[i] = p
        left -= count
    audit(tree)
    np.testing.assert_array_equal(tree.priorities.view(np.uint32), expected.view(np.uint32))
    tree.refit()
    assert state(tree) == state(filled(expected))
    audit(tree)


def test_order_and_split_of_updates_change_no_bit():
    """Between two refits only the set of updates counts, as long as each index keeps its last value."""
    rng, n, count = generator(8), 700, 5000
    start = shapes(n, rng)["eight decades"]
    at, priorities = random_updates(rng, n, count, decades)
    last = dict(zip(at.tolist(), range(count), strict=True))
    once = filled(start)
    once.update(at, priorities)
    for _ in range(20):
        order = rng.permutation(count)
        place = {int(at[j]): p for p, j in enumerate(order)}  # where each index comes last in the new order
        for i, p in place.items():
            q = int(np.flatnonzero(order == last[i])[0])
            order[p], order[q] = order[q], order[p]
        other = filled(start)
        for piece in np.split(order, np.sort(rng.integers(0, count + 1, int(rng.integers(0, 40))))):
            other.update(at[piece], priorities[piece])
        assert state(other) == state(once)
    swapped = filled(start)
    swapped.update(at[::-1], priorities[::-1])  # the control: here the first of duplicates comes last
    assert state(swapped) != state(once)


def test_the_last_of_duplicates_wins():
    tree = SumTree(40)
    tree.update([3, 39, 3, 3], [9.0, 1.0, 8.0, 2.0])
    assert tree[[3, 39]].tolist() == [2.0, 1.0]
    audit(tree)
    assert tree.max_priority == 9.0


def test_the_largest_priority_decides_the_scale_in_groups_of_four_bits():
    tree = SumTree(50)
    reference = ReferenceTree(50)
    rng = generator(9)
    seen = set()
    for log2 in range(-149, 128):
        for largest in (2.0**log2, float(np.nextafter(np.float32(2.0**log2) * 1.5, np.float32(0)))):
            log2 = int(np.frexp(largest)[1]) - 1
            i = int(rng.integers(0, 50))
            tree.update([i], [largest])
            reference.update([i], [largest])
            assert tree._core.scale == 27 - 4 * (log2 // 4) == reference.scale
            assert tree._core.total == reference.total
            assert 2**27 <= _core.mass(largest, tree._core.scale) <= MAX_MASS
        seen.add(tree._core.scale)
        audit(tree)
    assert len(seen) == 70


def test_a_losing_duplicate_counts_for_the_scale_until_the_refit():
    tree = filled(np.full(30, 0.01))
    before = tree._core.scale
    tree.update([4, 4], [1000.0, 0.01])
    assert tree.max_priority == 1000.0
    assert tree._core.scale < before
    audit(tree)
    assert tree.refit_gain() == before - tree._core.scale
    tree.refit()
    assert tree._core.scale == before
    assert state(tree) == state(filled(np.full(30, 0.01)))


def test_refit_gain_is_what_refit_wins():
    rng = generator(10)
    won = set()
    for _ in range(500):
        n = int(rng.integers(1, 600))
        tree = filled(10.0 ** rng.uniform(-3, 3, n) * (rng.random(n) < 0.5))
        tree.update([int(rng.integers(0, n))] * 2, [10.0 ** rng.uniform(-3, 12), 10.0 ** rng.uniform(-3, 3)])
        gain, before = tree.refit_gain(), tree._core.scale
        tree.refit()
        assert gain == tree._core.scale - before or tree.max_priority == 0
        won.add(gain)
    assert len(won) >= 4
    crowd = np.full(32, 15.0)  # many just below M's group outweigh the one that is in it
    crowd[16:] = 0
    crowd[20] = 16.0
    assert filled(crowd).refit_gain() == 0


def test_fill_from_pieces_and_from_a_number_equal_a_fill():
    rng, n = generator(11), 5003
    priorities = shapes(n, rng)["eight decades"]
    tree = SumTree(n)
    tree.update([5], [1e30])
    tree.sample(10, seed=1, scheme="iid")
    tree.fill(iter(np.split(priorities, [1, 16, 17, 4000])))
    assert state(tree) == state(filled(priorities))
    tree.fill(0.3)
    assert state(tree) == state(filled(np.full(n, 0.3)))


def test_a_view_of_the_priorities_outlives_a_fill_from_pieces():
    """In a process of its own, which would not survive a read of memory that is gone."""
    code = """if True:
        import numpy as np
        from fastprio.tree import SumTree
        tree = SumTree(1 << 20)  # large enough that a freed array is unmapped
        view = tree.priorities
        tree.fill(iter([np.full(1 << 20, 2.0)]))
        print(view[-1] in (0.0, 2.0), tree.priorities[-1])
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "True 2.0\n"), ran.stderr


def test_the_reference_agrees_on_every_shape():
    for n in (1, 2, 17, 300):
        for priorities in shapes(n, generator(n)).values():
            tree = filled(priorities)
            reference = reference_of(tree)
            assert (tree.total, tree._core.scale, tree.max_priority) == (
                reference.total,
                reference.scale,
                reference.max_priority,
            )
            if tree.total:
                r = sorted({0, tree.total - 1, *(generator(n).random(40) * tree.total).astype(np.int64).tolist()})
                assert tree.find(r).tolist() == reference.find(r)
