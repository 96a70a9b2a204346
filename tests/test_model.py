"""Promise: whatever is done to a tree, in whatever order, it stays what the reference is, bit for bit."""

import numpy as np
import pytest
from helpers import audit, floats, parked_leaves, state
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fastprio.reference import ReferenceTree
from fastprio.tree import SumTree

LARGEST = float(floats([0x7F7FFFFF])[0])
SMALLEST = float(floats([1])[0])
priority = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 0.5, 3.0, SMALLEST, 5 * SMALLEST, LARGEST, 1e-30, 1e30]),
    st.integers(0, 0x7F7FFFFF).map(lambda bits: float(floats([bits])[0])),
    st.floats(0.0078125, 100, width=32),
)
bad_priority = st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, -SMALLEST, 1e39, 1e-46])
seeds = st.integers(0, 2) | st.integers(0, 2**64 - 1)
groups = st.integers(1, 20)


class TreeMachine(RuleBasedStateMachine):
    @initialize(size=st.sampled_from([1, 2, 3, 15, 16, 17, 40]) | st.integers(1, 60))
    def begin(self, size):
        self.size = size
        self.tree, self.reference = SumTree(size), ReferenceTree(size)
        self.goes_on = None  # seed, epoch, offset of scheme "epoch"

    def index(self, number):
        return number % self.size

    @rule(pairs=st.lists(st.tuples(st.integers(0, 59), priority), max_size=40), as_float64=st.booleans())
    def update(self, pairs, as_float64):
        at, values = [self.index(i) for i, _ in pairs], [p for _, p in pairs]
        self.tree.update(at, np.array(values, np.float64 if as_float64 else np.float32))
        self.reference.update(at, values)

    @rule(
        values=st.lists(priority, min_size=60, max_size=60), cuts=st.none() | st.lists(st.integers(0, 60), max_size=4)
    )
    def fill(self, values, cuts):
        given = np.array(values[: self.size], np.float32)
        if cuts is None:
            self.tree.fill(given)
        else:
            self.tree.fill(iter(np.split(given, sorted(min(cut, self.size) for cut in cuts))))
        self.reference.fill(values[: self.size])

    @rule(value=priority)
    def fill_with_a_number(self, value):
        self.tree.fill(value)
        self.reference.fill(value)

    @rule()
    def refit(self):
        gain, before = self.tree.refit_gain(), self.tree._core.scale
        self.tree.refit()
        self.reference.refit()
        assert gain == self.tree._core.scale - before or self.tree.max_priority == 0

    @rule(shares=st.lists(st.floats(0, 1, exclude_max=True), max_size=20))
    def find(self, shares):
        total = self.reference.total
        masses = [0, total - 1, *(int(share * total) for share in shares)] if total else []
        assert self.tree.find(masses).tolist() == self.reference.find(masses)

    def same_sample(self, count, **arguments):
        try:
            expected = self.reference.sample(count, **arguments)
        except ValueError:
            before = state(self.tree)
            with pytest.raises(ValueError, match=r"nothing|multiple|goes on"):
                self.tree.sample(count, **arguments)
            assert state(self.tree) == before
            return False
        indices, probabilities = self.tree.sample(count, **arguments)
        assert (indices.tolist(), probabilities.tolist()) == expected
        return True

    @rule(
        count=st.integers(0, 40),
        seed=seeds,
        epoch=st.integers(0, 2**32 - 1),
        offset=st.integers(0, 2**40),
        scheme=st.sampled_from(["iid", "stratified", "systematic"]),
        group=groups,
    )
    def sample(self, count, seed, epoch, offset, scheme, group):
        self.same_sample(count, seed=seed, epoch=epoch, offset=offset, scheme=scheme, group=group)

    @rule(count=st.integers(0, 40), seed=seeds, place=st.integers(0, 100), group=groups, on_boundary=st.booleans())
    def sample_unique(self, count, seed, place, group, on_boundary):
        offset = place * group if on_boundary else place
        self.same_sample(count, seed=seed, offset=offset, scheme="unique", group=group)

    @rule(count=st.integers(0, 30), seed=seeds, epoch=st.integers(0, 3))
    def begin_epoch(self, count, seed, epoch):
        if self.same_sample(count, seed=seed, epoch=epoch, scheme="epoch") and count:
            self.goes_on = seed, epoch, count

    @rule(count=st.integers(0, 10), slip=st.sampled_from([0, 0, 0, 1]))
    def go_on_with_epoch(self, count, slip):
        if self.goes_on is None:
            return
        seed, epoch, offset = self.goes_on
        if self.same_sample(count, seed=seed, epoch=epoch, offset=offset + slip, scheme="epoch") and count:
            self.goes_on = seed, epoch, offset + slip + count

    @rule(
        pairs=st.lists(st.tuples(st.integers(0, 59), priority), max_size=20),
        place=st.integers(0, 20),
        bad=bad_priority,
        way=st.sampled_from(["priority", "index", "length", "fill", "pieces", "number", "find"]),
    )
    def bad_input(self, pairs, place, bad, way):
        at, values = [self.index(i) for i, _ in pairs], [p for _, p in pairs]
        before, place = state(self.tree), min(place, len(pairs))
        error = IndexError if way == "index" else ValueError
        many = np.ones(self.size)
        many[self.size // 2] = bad
        for tree in (self.tree, self.reference):
            calls = {
                "priority": lambda tree=tree: tree.update(
                    [*at[:place], 0, *at[place:]], [*values[:place], bad, *values[place:]]
                ),
                "index": lambda tree=tree: tree.update([*at[:place], self.size, *at[place:]], [*values, 1.0]),
                "length": lambda tree=tree: tree.update(at, [*values, 1.0]),
                "fill": lambda tree=tree: tree.fill(many),
                "pieces": lambda tree=tree: tree.fill(iter([many, many]) if tree is self.tree else many),
                "number": lambda tree=tree: tree.fill(bad),
                "find": lambda tree=tree: tree.find([0, self.reference.total]),
            }
            with pytest.raises(error):
                calls[way]()
        assert state(self.tree) == before

    @invariant()
    def same(self):
        tree, reference = self.tree, self.reference
        assert tree.priorities.tolist() == reference.priorities
        assert (tree.total, tree._core.scale) == (reference.total, reference.scale)
        assert tree.max_priority == reference.max_priority
        assert set(parked_leaves(tree).tolist()) == reference.parked
        active, seed, epoch, next_draw, _ = tree.parked
        assert (seed, epoch, next_draw) == (reference.next_draw or (0, 0, 0))
        assert active == (reference.next_draw is not None)

    def teardown(self):
        if hasattr(self, "tree"):
            audit(self.tree)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=200, stateful_step_count=50, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_the_machine_notices_a_reference_that_lets_the_first_duplicate_win():
    """The control: the same machine against a wrong rule."""

    class FirstWins(ReferenceTree):
        def update(self, indices, priorities):
            super().update(list(indices)[::-1], list(priorities)[::-1])

    machine = TreeMachine()
    machine.begin(5)
    machine.reference = FirstWins(5)
    machine.update([(1, 2.0), (1, 2.0)], False)
    machine.same()
    machine.update([(1, 2.0), (1, 3.0)], False)
    with pytest.raises(AssertionError):
        machine.same()
