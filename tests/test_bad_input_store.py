"""Promise: bad input to a store raises the documented exception, names the value and its place, and changes nothing."""

import numpy as np
import pytest
import torch
from test_store import lived_in, state_of

from fastprio import ScoreStore
from fastprio.policies import Given, InfoBatch, LossPower, Policy, make

N = 100
NAN, INF = float("nan"), float("inf")
f32, f64 = np.float32, np.float64


@pytest.fixture(params=["fresh", "lived in", "parked", "skipping", "infobatch"])
def store(request):
    if request.param == "fresh":
        return ScoreStore(N)
    if request.param == "infobatch":
        return lived_in(N, InfoBatch())
    store = lived_in(N)
    store.on_nonfinite = "skip" if request.param == "skipping" else "raise"
    if request.param == "parked":
        store.tree.sample(3, seed=1, epoch=2, scheme="epoch")
    return store


def raises_and_changes_nothing(store, call, error, message):
    before = state_of(store)
    with pytest.raises(error, match=message):
        call(store)
    assert state_of(store) == before
    store.update([1], [1.0])  # and the store still works
    assert state_of(store) != before


UPDATES = [
    # indices, losses, exception, message
    ([1, -1], [1, 1], IndexError, r"indices\[1\] = -1: expected 0 <= index < 100"),
    ([1, 2, N], [1, 1, 1], IndexError, r"indices\[2\] = 100: expected 0 <= index < 100"),
    ([2**62], [1], IndexError, r"indices\[0\] = 4611686018427387904"),
    ([-(2**63)], [1], IndexError, r"indices\[0\] = -9223372036854775808"),
    (np.array([1, 2**63], np.uint64), [1, 1], IndexError, "indices: 9223372036854775808"),
    ([3, N, -1], [NAN, 1, 1], IndexError, r"indices\[1\] = 100"),  # a bad index outweighs a bad loss
    ([N], [NAN], IndexError, r"indices\[0\] = 100"),
    ([2**64], [1], TypeError, "indices: expected integers, got dtype object"),
    ([1.0], [1], TypeError, "indices: expected integers, got dtype float64"),
    ([True], [1], TypeError, "indices: expected integers, got dtype bool"),
    (["1"], [1], TypeError, "indices: expected integers"),
    (None, [1], TypeError, "indices: expected integers"),
    (torch.tensor([1.5]), [1], TypeError, "indices: expected integers, got dtype float32"),
    (1, [1], ValueError, "indices: expected one dimension"),
    ([[1, 2]], [1, 1], ValueError, r"indices: expected one dimension, got shape \(1, 2\)"),
    ([1, 2], [1], ValueError, "losses: expected 2 of them, one for each index, got 1"),
    ([1], [1, 1], ValueError, "losses: expected 1 of them, one for each index, got 2"),
    ([], [1], ValueError, "losses: expected 0 of them, one for each index, got 1"),
    ([1, 2], [], ValueError, "losses: expected 2 of them, one for each index, got 0"),
    ([1, 2], 1.0, ValueError, r"losses: expected one dimension, got shape \(\)"),
    ([1, 2], [[1, 2]], ValueError, r"losses: expected one dimension, got shape \(1, 2\)"),
    ([1, 2], torch.ones(2, 1), ValueError, r"losses: expected one dimension, got shape \(2, 1\)"),
    ([1], [True], TypeError, "losses: expected real numbers, got dtype bool"),
    ([1], [1j], TypeError, "losses: expected real numbers, got dtype complex128"),
    ([1], ["1"], TypeError, "losses: expected real numbers"),
    ([1], [None], TypeError, "losses: expected real numbers, got dtype object"),
    ([1, 2], [1, 1e39], ValueError, r"losses\[1\] = 1e\+39: float32 cannot hold it"),
]


@pytest.mark.parametrize(("indices", "losses", "error", "message"), UPDATES)
def test_bad_updates(store, indices, losses, error, message):
    raises_and_changes_nothing(store, lambda s: s.update(indices, losses), error, message)


@pytest.mark.parametrize(("losses", "message"), [
    ([1, NAN, 1], r"losses\[1\] = nan: expected finite losses"), ([INF, 1, 1], r"losses\[0\] = inf"),
    ([1, 1, -INF], r"losses\[2\] = -inf"), (torch.tensor([1, 1, NAN], dtype=torch.bfloat16), r"losses\[2\] = nan"),
    (torch.tensor([1, INF, NAN], dtype=torch.float16), r"losses\[1\] = inf"), (np.array([1, NAN, 1], f64), "nan"),
])  # fmt: skip
@pytest.mark.parametrize("policy", ["loss", "infobatch", "given", "uniform"])
def test_losses_that_are_not_finite(losses, message, policy):
    store = ScoreStore(N, policy, epochs=3)
    store.update([1, 5], [2.0, 3.0])
    raises_and_changes_nothing(store, lambda s: s.update([1, 2, 3], losses), ValueError, message)


@pytest.mark.parametrize("losses", [[1, -1e-30, 2], torch.tensor([1, -3.5, 2]), [1, -1, -2]])
def test_negative_losses_are_refused_by_losspower(losses):
    store = lived_in(policy=LossPower(ema=0.5))
    raises_and_changes_nothing(store, lambda s: s.update([1, 2, 3], losses), ValueError, r"losses\[1\] = -.*>= 0")


def test_a_negative_loss_is_refused_beside_rows_that_are_skipped():
    store = lived_in()
    raises_and_changes_nothing(store, lambda s: s.update([1, 2, 3], [NAN, 1, -2]), ValueError, r"= -2\.0")


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda s: s.update([1], [1.0], origin="test"), ValueError, "origin = 'test': expected one of train, score, refer"),
    (lambda s: s.update([1], [1.0], origin=None), ValueError, "origin = None"),
    (lambda s: s.update([1, 2], [1.0, 1.0], extra=[1.0]), ValueError, r"extra: expected 2 rows.*got shape \(1,\)"),
    (lambda s: s.update([1], [1.0], extra=1.0), ValueError, r"extra: expected 1 rows.*got shape \(\)"),
    (lambda s: s.set_priorities([1, N], [1.0, 1.0]), IndexError, r"indices\[1\] = 100"),
    (lambda s: s.set_priorities([1, 2], [1.0, NAN]), ValueError, r"priorities\[1\] = -?nan"),
    (lambda s: s.set_priorities([1, 2], [-1.0, 1.0]), ValueError, r"priorities\[0\] = -1"),
    (lambda s: s.set_priorities([1, 2], [1.0]), ValueError, "one length"),
    (lambda s: s.resize(0), ValueError, "size = 0: expected"),
    (lambda s: s.resize(-5), ValueError, "size = -5"),
    (lambda s: s.resize(2**32 + 1), ValueError, "size = 4294967297"),
    (lambda s: s.resize(5.0), TypeError, r"\d\.\d: |float"),
    (lambda s: s.resize(None), TypeError, "None"),
    (lambda s: s.column("losses"), KeyError, "'losses': this store has loss"),
    (lambda s: s.column("seen"), KeyError, "'seen': this store has loss"),
    (lambda s: s.save("/"), OSError, "."),
    (lambda s: s.begin_epoch(-1), ValueError, "epoch = -1"),
    (lambda s: s.begin_epoch(2**32), ValueError, "epoch = 4294967296"),
    (lambda s: s.begin_epoch(1.5), TypeError, r"\d\.\d: |float"),
])  # fmt: skip
def test_bad_calls(store, call, error, message):
    raises_and_changes_nothing(store, call, error, message)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"size": 0}, ValueError, "size = 0: expected"),
    ({"size": -1}, ValueError, "size = -1"),
    ({"size": 2**32 + 1}, ValueError, "size = 4294967297"),
    ({"size": 10.0}, TypeError, r"\d\.\d: |float"),
    ({"size": "10"}, TypeError, "10|str"),
    ({"size": None}, TypeError, "None"),
    ({"size": True}, TypeError, "True"),
    ({"size": [1, 2]}, TypeError, "1, 2|list"),
    ({"policy": "best"}, ValueError, "policy = 'best': expected a Policy, .*or one of .*given, .*infobatch, .*loss"),
    ({"policy": None}, ValueError, "policy = None"),
    ({"policy": 3}, ValueError, "policy = 3"),
    ({"policy": LossPower}, TypeError, "policy = LossPower: "),
    ({"epochs": 0}, ValueError, "epochs = 0: expected"),
    ({"epochs": -3}, ValueError, "epochs = -3"),
    ({"epochs": 2.5}, (TypeError, ValueError), "2.5|float"),
    ({"epochs": NAN}, (TypeError, ValueError), "nan|float"),
    ({"epochs": "3"}, (TypeError, ValueError), "3|str"),
    ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite = 'ignore': expected 'raise' or 'skip'"),
    ({"on_nonfinite": None}, ValueError, "on_nonfinite = None"),
    ({"policy": "infobatch"}, ValueError, "'infobatch' changes over training: pass epochs="),
    ({"columns": {"x": "nothing"}}, ValueError, "nothing"),
    ({"columns": {"x": ("float32", -1)}}, ValueError, "negative"),
    ({"columns": {"x": "complex64"}}, (ValueError, TypeError), "complex64"),  # files have no such dtype
    ({"columns": {"x": "object"}}, (ValueError, TypeError), "object"),
    ({"policy": Given([1.0] * 9)}, ValueError, "weights: expected 10 of them"),
    ({"policy": Given([[1.0] * 10])}, ValueError, r"one dimension, got shape \(1, 10\)"),
    ({"policy": Given([1.0] * 9 + [NAN])}, ValueError, r"weights\[9\] = nan"),
    ({"policy": Given([-1.0] * 10)}, ValueError, r"weights\[0\] = -1"),
    ({"policy": Given(["a"] * 10)}, TypeError, "real numbers"),
])  # fmt: skip
def test_bad_stores(arguments, error, message):
    with pytest.raises(error, match=message):
        ScoreStore(**{"size": 10, **arguments})


@pytest.mark.parametrize(("make_it", "message"), [
    (lambda: LossPower(alpha=-0.1), "alpha = -0.1: expected a finite number >= 0"),
    (lambda: LossPower(alpha=NAN), "alpha = nan"),
    (lambda: LossPower(alpha=INF), "alpha = inf"),
    (lambda: LossPower(eps=-1e-9), "eps = -1e-09"),
    (lambda: LossPower(eps=INF), "eps = inf"),
    (lambda: LossPower(beta=-1.0), "beta = -1.0"),
    (lambda: LossPower(beta=(0.4, -1.0)), "beta_end = -|beta.*-1"),
    (lambda: LossPower(beta=(NAN, 1.0)), r"beta = \(nan, 1.0\): expected"),
    (lambda: LossPower(beta=(0.4,)), "beta"),
    (lambda: LossPower(beta=(0.4, 0.6, 1.0)), "beta"),
    (lambda: LossPower(ema=1.0), "ema = 1.0: expected 0 <= ema < 1"),
    (lambda: LossPower(ema=-0.1), "ema = -0.1"),
    (lambda: LossPower(ema=NAN), "ema = nan"),
    (lambda: InfoBatch(ratio=0.95), "ratio = 0.95: expected 0 <= ratio <= 0.9"),
    (lambda: InfoBatch(ratio=-0.1), "ratio = -0.1"),
    (lambda: InfoBatch(delta=1.1), "delta = 1.1: expected 0 <= delta <= 1"),
    (lambda: InfoBatch(delta=NAN), "delta = nan"),
    (lambda: make("los"), "policy = 'los'"),
])  # fmt: skip
def test_bad_policies(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


class Asking(Policy):
    columns = {"margin": "float32"}  # noqa: RUF012
    requires = ("margin", "group")

    def observe(self, columns, indices, obs, clock, rng):
        columns["margin"][indices] = obs.margin
        return obs.loss + obs.nothing if obs.origin == "score" else None


def test_an_observation_that_is_required_is_missed_by_name():
    store = ScoreStore(20, Asking())
    before, group = state_of(store), [1, 2]
    with pytest.raises(TypeError, match="also needs margin, group"):
        store.update([1, 2], [1.0, 2.0])
    with pytest.raises(TypeError, match="also needs margin, "):
        store.update([1, 2], [1.0, 2.0], group=group)
    for margin in ([1.0], [1.0, 2.0, 3.0], 1.0):
        with pytest.raises(ValueError, match="margin: expected 2 rows, one for each index, got shape"):
            store.update([1, 2], [1.0, 2.0], margin=margin, group=group)
    with pytest.raises(AttributeError, match="the observation has no 'nothing'; pass it to step"):
        store.update([1, 2], [1.0, 2.0], margin=[5.0, 6.0], group=group, origin="score")
    assert state_of(store) == before


def test_observations_of_skipped_rows_are_left_out_with_them():
    store = ScoreStore(20, Asking(), on_nonfinite="skip")
    store.update([1, 2, 3], [NAN, 2.0, INF], margin=[7.0, 8.0, 9.0], group=np.zeros((3, 2)))
    assert store.column("margin")[[1, 2, 3]].tolist() == [0, 8, 0]


def test_unusual_but_right_input_is_taken():
    store, expected = ScoreStore(N), ScoreStore(N)
    expected.update([1, 2, 3], [0.5, 1.5, 2.5])
    for indices in ([1, 2, 3], np.array([1, 2, 3], np.uint8), torch.tensor([1, 2, 3], dtype=torch.int32),
                    np.array([3, 2, 1], ">i8")[::-1], np.array([1, 2, 3], np.uint64)):  # fmt: skip
        for losses in ([0.5, 1.5, 2.5], torch.tensor([0.5, 1.5, 2.5], dtype=torch.bfloat16, requires_grad=True),
                       np.array([2.5, 1.5, 0.5], np.float16)[::-1], torch.tensor([0.5, 0, 1.5, 0, 2.5])[::2],
                       torch.tensor([-0.5, -1.5, -2.5]).abs().double()):  # fmt: skip
            store.update(indices, losses)
            store.clock.step = 1
            assert state_of(store) == state_of(expected)
    store.update([], [])
    store.update(np.empty(0, np.int32), torch.empty(0))
    assert store.priorities.tolist() == expected.priorities.tolist()
