"""Promise: bad input raises the documented exception, names the value and its place, and changes nothing."""

import re

import numpy as np
import pytest
import torch
from helpers import filled, floats, generator, shapes, state

from fastprio.tree import SumTree

N = 100
NAN, INF = float("nan"), float("inf")
f32, f64, i64 = np.float32, np.float64, np.int64


@pytest.fixture(params=["fresh", "lived in", "parked"])
def tree(request):
    tree = filled(shapes(N, generator(1))["eight decades"])
    if request.param != "fresh":
        tree.update([3, 3, 7], [1e9, 2.0, 0.0])
    if request.param == "parked":
        tree.sample(30, seed=1, epoch=2, scheme="epoch")
    return tree


def raises_and_changes_nothing(tree, call, error, message):
    before = state(tree)
    with pytest.raises(error, match=message):
        call(tree)
    assert state(tree) == before
    tree.update([0], [tree[[0]][0]])  # and the tree still works
    assert state(tree) == before


UPDATES = [
    # indices, priorities, exception, message
    ([1, -1], [1, 1], IndexError, r"indices\[1\] = -1: expected 0 <= index < 100"),
    ([1, 2, N], [1, 1, 1], IndexError, r"indices\[2\] = 100: expected 0 <= index < 100"),
    ([2**62], [1], IndexError, r"indices\[0\] = 4611686018427387904"),
    ([-(2**63)], [1], IndexError, r"indices\[0\] = -9223372036854775808"),
    (np.array([2**63], np.uint64), [1], IndexError, "9223372036854775808"),
    ([2**64], [1], TypeError, "integers"),
    ([1.0], [1], TypeError, "indices: expected integers, got dtype float64"),
    ([True], [1], TypeError, "indices: expected integers, got dtype bool"),
    (["1"], [1], TypeError, "indices: expected integers"),
    ([None], [1], TypeError, "indices: expected integers"),
    (torch.tensor([1.5]), [1], TypeError, "indices: expected integers, got dtype float32"),
    (torch.tensor([1 + 2j]), [1], TypeError, "indices: expected integers"),
    (1, [1], ValueError, "indices: expected one dimension"),
    ([[1, 2]], [1, 1], ValueError, r"indices: expected one dimension, got shape \(1, 2\)"),
    ([1, 2], [1], ValueError, "one length"),
    ([1], [1, 1], ValueError, "one length"),
    ([], [1], ValueError, "one length"),
    ([1, 2], [1, NAN], ValueError, r"priorities\[1\] = -?nan: expected a finite number >= 0"),
    ([1, 2], [1, INF], ValueError, r"priorities\[1\] = inf: expected a finite number >= 0"),
    ([1, 2], [-INF, 1], ValueError, r"priorities\[0\] = -inf"),
    ([1, 2, 3], [1, 1, -1], ValueError, r"priorities\[2\] = -1"),
    ([1], floats([0x80000001]), ValueError, r"priorities\[0\] = -"),  # the least negative number
    ([1], floats([0x7F800001]), ValueError, r"priorities\[0\] = -?nan"),  # a signalling NaN
    ([1], floats([0xFFC00000]), ValueError, r"priorities\[0\] = -?nan"),
    ([1, 1], [NAN, 1], ValueError, r"priorities\[0\]"),  # a duplicate that would lose counts too
    ([1, 2], f64([1, 1e39]), ValueError, r"priorities\[1\] = 1e\+39: float32 cannot hold it"),
    ([1, 2], f64([1, 1e-46]), ValueError, r"priorities\[1\] = 1e-46: float32 cannot hold it"),
    ([1, 2], f64([1, -1e-46]), ValueError, r"priorities\[1\] = -1e-46"),
    ([1], torch.tensor([1e39], dtype=torch.float64), ValueError, r"priorities\[0\] = 1e\+39"),
    ([1], [True], TypeError, "priorities: expected real numbers, got dtype bool"),
    ([1], [1j], TypeError, "priorities: expected real numbers, got dtype complex128"),
    ([1], ["1"], TypeError, "priorities: expected real numbers"),
    ([1], [None], TypeError, "priorities: expected real numbers"),
    ([1], 1.0, ValueError, "priorities: expected one dimension"),
    ([1, 2], [[1.0], [2.0]], ValueError, r"priorities: expected one dimension, got shape \(2, 1\)"),
    (np.arange(300) % N, np.where(np.arange(300) == 299, NAN, 1), ValueError, r"priorities\[299\]"),
    (np.where(np.arange(300) == 299, N, 0), np.ones(300), IndexError, r"indices\[299\] = 100"),
]


@pytest.mark.parametrize(("indices", "priorities", "error", "message"), UPDATES)
def test_a_bad_update_changes_nothing(tree, indices, priorities, error, message):
    raises_and_changes_nothing(tree, lambda tree: tree.update(indices, priorities), error, message)


def one_bad(value, at=57, dtype=f64):
    priorities = np.ones(N, dtype)
    priorities[at] = value
    return priorities


def pieces(*arrays):
    """A fresh iterator at each call."""
    return lambda: iter(arrays)


FILLS = [
    (np.ones(N - 1), ValueError, "expected 100 of them, got 99"),
    (np.ones(N + 1), ValueError, "expected 100 of them, got 101"),
    ([], ValueError, "expected 100 of them, got 0"),
    (np.ones((N, 1)), ValueError, "one dimension"),
    (one_bad(NAN), ValueError, r"priorities\[57\] = -?nan"),
    (one_bad(-1), ValueError, r"priorities\[57\] = -1"),
    (one_bad(INF, 99), ValueError, r"priorities\[99\] = inf"),
    (one_bad(1e300), ValueError, r"priorities\[57\] = 1e\+300: float32 cannot hold it"),
    (one_bad(1e-300), ValueError, r"priorities\[57\] = 1e-300: float32 cannot hold it"),
    (NAN, ValueError, r"nan: expected a finite number >= 0"),
    (-1.0, ValueError, r"-1.*: expected a finite number >= 0"),
    (1e39, ValueError, r"1e\+39: float32 cannot hold it"),
    (1e-46, ValueError, r"1e-46: float32 cannot hold it"),
    (None, TypeError, "real numbers"),
    ("1", TypeError, "real numbers"),
    (True, TypeError, "real numbers"),
    (pieces(), ValueError, "expected 100 of them, got 0"),
    (pieces(np.ones(40), np.ones(59)), ValueError, "expected 100 of them, got 99"),
    (pieces(np.ones(40), np.ones(61)), ValueError, "100"),
    (pieces(np.ones(40), one_bad(NAN)[:60]), ValueError, r"\[97\] = -?nan"),
    (pieces(np.ones(40), np.ones((30, 2))), ValueError, r"priorities \(piece 1\): expected one dimension"),
    (pieces(np.ones(40), ["1"] * 60), TypeError, r"priorities \(piece 1\): expected real numbers"),
]


@pytest.mark.parametrize(("priorities", "error", "message"), FILLS)
def test_a_bad_fill_changes_nothing(tree, priorities, error, message):
    def call(tree):
        tree.fill(priorities() if callable(priorities) else priorities)

    raises_and_changes_nothing(tree, call, error, message)


def test_pieces_that_raise_change_nothing(tree):
    def failing():
        yield np.ones(N // 2)
        raise OSError("the disk is gone")

    raises_and_changes_nothing(tree, lambda tree: tree.fill(failing()), OSError, "the disk is gone")


SAMPLES = [
    ({"scheme": "uniform"}, ValueError, "scheme = 'uniform': expected one of iid, stratified"),
    ({"scheme": None}, ValueError, "scheme = None"),
    ({"count": -1}, ValueError, "count = -1: expected an integer in"),
    ({"count": 2**62}, ValueError, "count = 4611686018427387904"),
    ({"count": 1.5}, TypeError, None),
    ({"seed": -1}, ValueError, "seed = -1: expected an integer in"),
    ({"seed": 2**64}, ValueError, "seed = 18446744073709551616"),
    ({"seed": 1.5}, TypeError, None),
    ({"epoch": -1}, ValueError, "epoch = -1"),
    ({"epoch": 2**32}, ValueError, "epoch = 4294967296: expected an integer in"),
    ({"offset": -1}, ValueError, "offset = -1"),
    ({"offset": 2**63}, ValueError, "offset = 9223372036854775808"),
    ({"offset": "0"}, TypeError, None),
    ({"group": 0, "scheme": "stratified"}, ValueError, "group = 0: expected an integer in"),
    ({"group": -1, "scheme": "systematic"}, ValueError, "group = -1: expected an integer in"),
    ({"group": 2**31 + 1, "scheme": "stratified"}, ValueError, "group = 2147483649"),
    ({"group": 1.5, "scheme": "unique"}, TypeError, None),
    ({"scheme": "unique", "group": 4, "offset": 6}, ValueError, "multiple of group"),
    ({"scheme": "unique", "count": N + 1}, ValueError, "draw [0-9]+ of this call finds nothing left"),
    ({"scheme": "epoch", "count": N + 1, "seed": 5}, ValueError, "draw [0-9]+ of this call finds nothing left"),
    ({"scheme": "epoch", "offset": 31}, ValueError, "goes on where it was"),
    ({"out": (np.empty(3, i64), np.empty(4, f64))}, ValueError, "expected two arrays of 4, got"),
    ({"out": (np.empty(4, np.int32), np.empty(4, f64))}, TypeError, None),
    ({"out": (np.empty(4, i64), np.empty(4, f32))}, TypeError, None),
    ({"out": (np.empty(8, i64)[::2], np.empty(4, f64))}, TypeError, None),
    ({"out": (np.empty(4, i64), np.empty(8, f64)[::2])}, TypeError, None),
]


@pytest.mark.parametrize(("arguments", "error", "message"), SAMPLES)
def test_a_bad_sample_changes_nothing(tree, arguments, error, message):
    arguments = {"count": 4, "seed": 1, "epoch": 2, **arguments}
    raises_and_changes_nothing(tree, lambda tree: tree.sample(arguments.pop("count"), **arguments), error, message)


FINDS = [
    ([-1], ValueError, r"masses\[0\] = -1: expected 0 <= mass < total"),
    ([0, 1, -5], ValueError, r"masses\[2\] = -5"),
    ([0.5], TypeError, "masses: expected integers, got dtype float64"),
    ([[0]], ValueError, "masses: expected one dimension"),
    ([2**64], TypeError, "masses: expected integers"),
    (np.array([2**64 - 1], np.uint64), ValueError, r"masses\[0\] = 18446744073709551615"),
    ([True], TypeError, "masses: expected integers, got dtype bool"),
]


@pytest.mark.parametrize(("masses", "error", "message"), FINDS)
def test_a_bad_find_raises(tree, masses, error, message):
    raises_and_changes_nothing(tree, lambda tree: tree.find(masses), error, message)


def test_the_total_is_not_below_the_total(tree):
    message = rf"masses\[1\] = {tree.total}: expected 0 <= mass < total = {tree.total}"
    raises_and_changes_nothing(tree, lambda tree: tree.find([tree.total - 1, tree.total]), ValueError, message)


@pytest.mark.parametrize(
    ("indices", "error"),
    [([-1], IndexError), ([0, N], IndexError), ([0.0], TypeError), ([[0]], ValueError), ([True] * N, TypeError)],
)
def test_bad_indices_are_not_read(tree, indices, error):
    raises_and_changes_nothing(tree, lambda tree: tree[indices], error, None)


SIZES = [
    (0, ValueError),
    (-1, ValueError),
    (2**32 + 1, ValueError),
    (1.0, TypeError),
    ("5", TypeError),
    (None, TypeError),
]


@pytest.mark.parametrize(("size", "error"), SIZES)
def test_a_tree_of_a_bad_size_is_not_made(size, error):
    with pytest.raises(error, match=re.escape(f"size = {size}:") if error is ValueError else None):
        SumTree(size)


def test_priorities_are_read_only(tree):
    with pytest.raises(ValueError, match="read-only"):
        tree.priorities[0] = 1


@pytest.mark.parametrize(
    "priority",
    [
        0,
        5,
        f32(0.1),
        f64(0.1),
        np.int32(7),
        np.uint8(255),
        np.float16(0.1),
        -0.0,
        float(floats([1])[0]),
        float(floats([0x7F7FFFFF])[0]),
    ],
)
def test_what_float32_can_hold_is_taken(tree, priority):
    """The control of this file: these look odd and are fine. -0.0 is stored as 0.0."""
    expected = abs(f32(priority))
    for given in (np.array([priority]), torch.tensor(np.array([priority]))):
        tree.update([9], given)
        assert tree[[9]].view(np.uint32)[0] == expected.view(np.uint32)
    tree.fill(priority)
    assert (tree.priorities.view(np.uint32) == expected.view(np.uint32)).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_any_integers_are_indices(tree, dtype):
    at = np.arange(0, N, 3)
    tree.update(at.astype(dtype), np.ones(at.size))
    tree.update(at.astype(dtype)[::-1], np.arange(at.size)[::-1])  # strided arrays too
    assert tree[torch.tensor(at)].tolist() == list(range(at.size))


def test_nothing_is_a_valid_argument(tree):
    before = state(tree)
    tree.update([], [])
    tree.update(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert tree.find([]).size == tree[[]].size == 0
    assert state(tree) == before


def test_a_tensor_that_needs_a_gradient_is_taken(tree):
    tree.update(torch.tensor([4]), torch.tensor([2.5], requires_grad=True))
    tree.update(torch.tensor([5]), torch.tensor([2.5], dtype=torch.bfloat16))
    assert tree[[4, 5]].tolist() == [2.5, 2.5]


@pytest.mark.parametrize(
    ("largest", "parked", "bits", "message"),
    [
        (0.5, None, None, "max_priority = 0.5: expected"),
        (1e39, None, None, "max_priority = 1e"),
        (float("nan"), None, None, "max_priority = nan"),
        (1.0, (1 << 64, 0, 4), np.zeros(2, np.uint8), "parked = 18446744073709551616"),
        (1.0, (1, -1, 4), np.zeros(2, np.uint8), "parked = -1"),
        (1.0, (1, 0, 4), np.zeros(3, np.uint8), "bits: expected 2 bytes, got 3"),
    ],
)
def test_a_bad_restore_changes_nothing(largest, parked, bits, message):
    tree = SumTree(16)
    tree.fill(np.linspace(0.0, 0.25, 16, dtype=np.float32))
    tree.sample(3, seed=1, scheme="epoch")
    before = state(tree)
    with pytest.raises(ValueError, match=message):
        tree.restore(np.ones(16, np.float32), largest, parked, bits)
    assert state(tree) == before


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1.17e-38, 1.0, 3.4028234663852886e38])
def test_restore_gives_the_same_tree(largest):
    tree, twin = SumTree(9), SumTree(9)
    tree.fill(np.float32(largest))
    tree.update([0, 3], [0.0, 0.0])
    twin.restore(tree.priorities, tree.max_priority)
    assert state(twin) == state(tree)


def test_arrays_that_share_memory_are_refused_as_out():
    tree = SumTree(1000)
    tree.update([3, 5], [1.0, 1.0])
    both = np.zeros(9, np.int64)
    for indices, probabilities in ((both[:5], both[:5].view(f64)), (both[:5], both[4:].view(f64))):
        for scheme in ("iid", "stratified", "epoch"):
            with pytest.raises(ValueError, match="share no memory"):
                tree.sample(5, seed=0, scheme=scheme, out=(indices, probabilities))
    tree.sample(4, seed=0, out=(both[:4], both[4:8].view(f64)))


@pytest.mark.parametrize("out", [5, (np.empty(4, i64),), ([0] * 4, [0.0] * 4)])
def test_out_of_another_shape_is_named(out):
    with pytest.raises((TypeError, ValueError), match="out: expected two"):
        SumTree(10).sample(4, seed=0, out=out)


def test_a_view_of_the_trees_own_priorities_is_read_before_it_is_written():
    tree = SumTree(10)
    tree.fill(np.arange(10.0))
    tree.update(np.arange(1, 10), tree.priorities[:-1])
    assert tree.priorities.tolist() == [0, *range(9)]


def test_leaves_are_not_written_without_sums_where_there_are_some():
    tree = SumTree(10)
    tree.fill(1.0)
    with pytest.raises(ValueError, match="has priorities already"):
        tree.write(0, np.zeros(10, np.float32))
    assert tree.priorities.min() == 1.0
