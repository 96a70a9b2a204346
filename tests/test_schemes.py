"""Promise: what each scheme draws. Bit for bit the reference, however calls are split; the laws by enumeration."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from helpers import ISAS, filled, floats, generator, reference_of, shapes, state, using

from fastprio.reference import ReferenceTree, stratum_target
from fastprio.tree import SumTree

SCHEMES = ("iid", "stratified", "systematic", "unique", "epoch")


def laws_of_stratified(masses, group):
    """For each stratum, the exact probability of each leaf: all u in [0, total), looked up by the definition."""
    total, end = sum(masses), np.cumsum(masses)
    laws = np.zeros((group, len(masses)), np.int64)
    for k in range(group):
        targets = [stratum_target(k, u, group, total) for u in range(total)]
        np.add.at(laws[k], np.searchsorted(end, targets, side="right"), 1)
    return [[Fraction(int(c), total) for c in row] for row in laws]


def test_every_unit_of_mass_is_expected_group_over_total_times():
    for masses in [(1,), (3,), (1, 2), (0, 5, 1), (2, 0, 0, 7), (1, 1, 1, 1, 1), (4, 3, 0, 2, 1), (17, 1, 5)]:
        total = sum(masses)
        for group in range(1, 14):
            laws = laws_of_stratified(masses, group)
            for i, m in enumerate(masses):
                assert sum(law[i] for law in laws) == Fraction(group * m, total)


def test_strata_of_equal_integers_alone_would_not_give_the_right_counts():
    """The control: cutting [0, total) at floor(k * total / B) and drawing an integer in each piece is biased."""
    masses, group = (4, 3, 0, 2, 1), 3
    total, end = sum(masses), np.cumsum(masses)
    counts = [Fraction(0)] * len(masses)
    for k in range(group):
        piece = range(k * total // group, (k + 1) * total // group)
        for r in piece:
            counts[int(np.searchsorted(end, r, side="right"))] += Fraction(1, len(piece))
    assert counts != [Fraction(group * m, total) for m in masses]


def test_targets_of_a_group_fall_in_their_strata_and_share_u_when_systematic():
    """With a leaf to each unit of mass, a draw shows its target."""
    total = 1009
    tree = SumTree(total, _scale=0)
    tree.fill(1)
    for group, seed in itertools.product((1, 2, 7, 64, 1000, 1009, 1500), range(5)):
        for scheme in ("stratified", "systematic"):
            targets = np.sort(tree.sample(3 * group, seed=seed, scheme=scheme, group=group)[0].reshape(3, group))
            k = np.arange(group)
            assert (k * total // group <= targets).all()
            assert (targets <= ((k + 1) * total - 1) // group).all()
            u_low, u_high = (targets * group - k * total).max(1), ((targets + 1) * group - k * total).min(1)
            if scheme == "systematic":  # one u fits all strata of a group
                assert (u_low < u_high).all()
            elif group == 64:  # the control: several u do not
                assert (u_low >= u_high).all()


def matrix():
    """(n, shape, scheme, group, count, offset, seed, epoch): 300 of them."""
    rng = generator(1)

    def one_of(*options):
        return options[int(rng.integers(0, len(options)))]

    for _ in range(300):
        n, name = one_of(1, 2, 5, 16, 17, 40, 257), one_of(*shapes(2, rng))
        scheme, group = one_of(*SCHEMES), one_of(1, 2, 3, 7, 16, 33, 64)
        seed, epoch = one_of(0, 1, 2**64 - 1, int(rng.integers(0, 2**63))), one_of(0, 1, 2**32 - 1)
        offset, count = one_of(0, 1, 5, 31, 2**31, 2**33 + 3, 2**61), one_of(0, 1, 2, 33, 100)
        if scheme == "unique":
            offset -= offset % group
        yield n, name, scheme, group, count, 0 if scheme == "epoch" else offset, seed, epoch


@pytest.mark.parametrize("isa", ISAS)
def test_every_sequence_equals_the_reference(isa):
    drawn = raised = 0
    with using(isa):
        for number, (n, name, scheme, group, count, offset, seed, epoch) in enumerate(matrix()):
            tree = filled(shapes(n, generator(number))[name])
            reference = reference_of(tree)
            arguments = {"seed": seed, "epoch": epoch, "offset": offset, "scheme": scheme, "group": group}
            try:
                expected = reference.sample(count, **arguments)
            except ValueError:
                with pytest.raises(ValueError, match="nothing"):
                    tree.sample(count, **arguments)
                raised += 1
            else:
                indices, probabilities = tree.sample(count, **arguments)
                assert (indices.tolist(), probabilities.tolist()) == expected, (n, name, arguments)
                drawn += count
            assert tree.total == reference.total
    assert drawn > 10 * 300
    assert raised > 300 // 50


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_instruction_sets_draw_the_same(scheme):
    outcomes = set()
    for isa in ISAS:
        with using(isa):
            tree = filled(shapes(3001, generator(2))["eight decades"])
            tree.update(np.arange(0, 3001, 7), np.arange(429.0))
            indices, probabilities = tree.sample(2048, seed=3, scheme=scheme, group=256)
            outcomes.add((indices.tobytes(), probabilities.tobytes(), state(tree)))
    assert len(outcomes) == 1


def test_the_probability_is_that_of_the_draw():
    tree = filled(shapes(500, generator(3))["Zipf"])
    mass = np.diff(np.searchsorted(tree.find(np.arange(0, tree.total, tree.total // 100_000)), np.arange(501)))
    indices, probabilities = tree.sample(2000, seed=1, scheme="iid")
    own = np.array(reference_of(tree).masses)
    assert (probabilities == own[indices] / tree.total).all()
    assert abs(mass / mass.sum() - own / tree.total).max() < 1e-4  # and that mass is what find gives the leaf
    total = tree.total
    for scheme in ("unique", "epoch"):
        indices, probabilities = tree.sample(300, seed=1, scheme=scheme)
        taken = np.cumsum(own[indices]) - own[indices]
        assert (probabilities == own[indices] / (total - taken)).all()


# Splits: sample(a) then sample(b) gives what sample(a + b) gives.


def sampled_in_pieces(tree, sizes, **arguments):
    offset, pieces = arguments.pop("offset", 0), []
    for size in sizes:
        pieces.append(tree.sample(size, offset=offset, **arguments))
        offset += size
    return np.concatenate([p[0] for p in pieces]), np.concatenate([p[1] for p in pieces])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [(240, 0), (0, 240), (1, 239), (16,) * 15, (7, 100, 33, 100), (1,) * 240, (96, 144)])
def test_calls_may_be_split(scheme, sizes):
    group = 16
    if scheme == "unique":
        sizes = [size // group * group for size in sizes]
    for offset in (0,) if scheme == "epoch" else (0, 32, 2**40):
        tree = filled(shapes(300, generator(4))["eight decades"])
        arguments = {"seed": 5, "epoch": 6, "scheme": scheme, "group": group, "offset": offset}
        whole = tree.sample(sum(sizes), **arguments)
        after = state(tree)
        indices, probabilities = sampled_in_pieces(tree, sizes, **arguments)
        np.testing.assert_array_equal(indices, whole[0])
        np.testing.assert_array_equal(probabilities, whole[1])
        assert state(tree) == after


@pytest.mark.parametrize("scheme", ["stratified", "systematic", "unique"])
def test_the_group_belongs_to_the_sequence(scheme):
    """The control for splits: with another group the draws differ."""
    tree = filled(shapes(300, generator(4))["Zipf"])
    outcomes = {tree.sample(96, seed=1, scheme=scheme, group=g)[0].tobytes() for g in (16, 24, 32)}
    assert len(outcomes) == 3
    assert (
        tree.sample(96, seed=1, scheme=scheme)[0].tolist()
        == tree.sample(96, seed=1, scheme=scheme, group=96)[0].tolist()
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seed_epoch_and_offset_belong_to_the_sequence(scheme):
    tree = filled(shapes(300, generator(4))["uniform"])
    places = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1 << 32 | 1, 0, 0)] + [(1, 0, 64)] * (scheme != "epoch")
    outcomes = {tree.sample(64, seed=s, epoch=e, offset=o, scheme=scheme, group=16)[0].tobytes() for s, e, o in places}
    assert len(outcomes) == len(places)


@pytest.mark.parametrize("offset", [1, 15, 17, 2**40 + 1])
def test_unique_off_a_group_boundary_raises(offset):
    tree = filled(np.ones(100))
    before = state(tree)
    with pytest.raises(ValueError, match="multiple of group"):
        tree.sample(16, seed=1, scheme="unique", group=16, offset=offset)
    assert state(tree) == before


@pytest.mark.parametrize("place", [(1, 2, 9), (1, 2, 11), (1, 3, 10), (2, 2, 10), (1, 2, 2**50)])
def test_epoch_goes_on_only_where_it_was(place):
    seed, epoch, offset = place
    tree = filled(np.ones(100))
    with pytest.raises(ValueError, match="goes on where it was"):
        tree.sample(1, seed=1, epoch=2, offset=10, scheme="epoch")  # nothing has begun
    tree.sample(10, seed=1, epoch=2, scheme="epoch")
    before = state(tree)
    with pytest.raises(ValueError, match="goes on where it was"):
        tree.sample(5, seed=seed, epoch=epoch, offset=offset, scheme="epoch")
    assert state(tree) == before
    tree.sample(5, seed=1, epoch=2, offset=10, scheme="epoch")


# What parks, and what brings back.


def test_an_epoch_visits_everything_once_and_begins_again():
    for n in (1, 16, 17, 1000):
        tree = filled(shapes(n, generator(5))["Zipf"])
        fresh = state(tree)
        for epoch in range(3):
            indices, _ = tree.sample(n, seed=1, epoch=epoch, scheme="epoch")
            assert sorted(indices.tolist()) == list(range(n))
            assert tree.total == 0
        tree.refit()
        assert state(tree) == fresh


@pytest.mark.parametrize("offset", [0, 10])
def test_an_exhausted_epoch_leaves_what_was_parked_as_it_was(offset):
    tree = filled(np.arange(40.0))  # 39 above zero
    tree.sample(10, seed=1, scheme="epoch")
    before = state(tree)
    with pytest.raises(ValueError, match=f"draw {39 - offset} of this call"):
        tree.sample(40, seed=1, scheme="epoch", offset=offset)
    assert state(tree) == before
    rest, _ = tree.sample(29, seed=1, scheme="epoch", offset=10)
    assert len(set(rest.tolist())) == 29


def test_an_update_while_parked_counts_from_the_next_epoch():
    tree = filled(np.ones(64))
    reference = ReferenceTree(64)
    reference.fill(1.0)
    for step, offset in enumerate(range(0, 60, 12)):
        drawn, _ = tree.sample(12, seed=2, offset=offset, scheme="epoch")
        assert drawn.tolist() == reference.sample(12, seed=2, offset=offset, scheme="epoch")[0]
        at, priorities = np.append(drawn, [1, 2]), 10.0 ** (step - np.arange(14.0))
        tree.update(at, priorities)
        reference.update(at.tolist(), priorities.tolist())
        assert tree.total == reference.total
    again, _ = tree.sample(64, seed=2, epoch=1, scheme="epoch")
    assert again.tolist() == reference.sample(64, seed=2, epoch=1, scheme="epoch")[0]


def test_unique_never_repeats_within_a_group_even_where_mass_is_concentrated():
    for priorities in ([1e6] + [1e-3] * 40, [1.0] * 41, floats(np.arange(41) + 1), [3e38] + [1e-38] * 40):
        tree = filled(priorities)
        reference = reference_of(tree)
        for group in (1, 2, 17, 40, 41):
            indices, probabilities = tree.sample(3 * group, seed=7, scheme="unique", group=group)
            assert all(len(set(g)) == group for g in indices.reshape(3, group).tolist())
            assert (indices.tolist(), probabilities.tolist()) == reference.sample(
                3 * group, seed=7, scheme="unique", group=group
            )
        with pytest.raises(ValueError, match="draw 41 of this call"):
            tree.sample(42, seed=7, scheme="unique")
