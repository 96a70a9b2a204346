"""Promise: each policy does what its definition says, and a policy that fails leaves nothing behind."""

import itertools
import math
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import generator, p_value
from test_store import state_of

from fastprio import PriorityLoader, PrioritySampler, ScoreStore
from fastprio._random import Rng
from fastprio.policies import (
    OUT,
    TRAIN,
    TRAIN_RESCALED,
    Clock,
    Given,
    InfoBatch,
    LossPower,
    Policy,
    make,
    power,
    register,
    registered,
)

f32 = np.float32


# LossPower.


class PlainLossPower:
    """The definition, in lists."""

    def __init__(self, size, alpha, eps, ema):
        self.alpha, self.eps, self.ema = alpha, eps, ema
        self.loss, self.seen, self.priority, self.largest = [0.0] * size, [False] * size, [0.0] * size, 1.0

    def raised(self, raw):
        return float(f32(power(raw, self.alpha)))

    def update(self, indices, losses):
        for i, loss in zip(indices, losses, strict=True):
            value = float(f32(loss))
            if self.ema > 0 and self.seen[i]:
                value = float(f32(self.ema * self.loss[i] + (1 - self.ema) * value))
            self.loss[i], self.seen[i] = value, True
            self.largest = max(self.largest, value + self.eps)
            self.priority[i] = self.raised(value + self.eps)

    def admit(self):
        for i, seen in enumerate(self.seen):
            if not seen and self.priority[i] == 0:
                self.priority[i] = self.raised(self.largest)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("ema", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_losspower_follows_its_definition_over_random_histories(alpha, ema, eps):
    size, rng = 23, generator(int(100 * alpha + 10 * ema))
    store, plain = ScoreStore(size, LossPower(alpha=alpha, eps=eps, ema=ema)), PlainLossPower(size, alpha, eps, ema)
    for step in range(60):
        at = rng.integers(0, size if step > 5 else 8, rng.integers(0, 20))  # duplicates; some unseen at first
        losses = rng.exponential(size=at.size) * 10.0 ** rng.integers(-3, 4)
        losses[rng.random(at.size) < 0.1] = 0
        store.update(torch.from_numpy(at), torch.from_numpy(losses))
        plain.update(at.tolist(), losses.tolist())
        if step % 7 == 3:
            store.admit_unseen()
            plain.admit()
        assert store.column("loss").tolist() == plain.loss
        assert store.priorities.tolist() == plain.priority
        assert store.seen().tolist() == plain.seen
        assert store.policy.unseen() == power(plain.largest, alpha)


def test_the_unseen_get_the_largest_loss_raised_once():
    store = ScoreStore(4, LossPower(alpha=0.5, eps=0))
    assert store.policy.unseen() == 1
    store.update([0], [16.0])
    store.update([0], [4.0])
    store.admit_unseen()
    assert store.priorities.tolist() == pytest.approx([2, 4, 4, 4])
    store.admit_unseen()
    store.resize(6)
    assert store.priorities.tolist() == pytest.approx([2, 4, 4, 4, 4, 4])


def test_losses_of_another_model_change_nothing_in_losspower():
    store = ScoreStore(4)
    store.update([0, 1], [1.0, 2.0])
    priorities = store.priorities.copy()
    store.update([0, 3], [9.0, -9.0], origin="reference")
    np.testing.assert_array_equal(store.priorities, priorities)
    assert store.column("loss").tolist() == [1, 2, 0, 0]
    assert store.seen().tolist() == [True, True, False, False]


@pytest.mark.parametrize("alpha", [0.6, 1.0, 4.0, 8.0, 60.0])
@pytest.mark.parametrize("eps", [1e-6, 1e-30])
def test_eps_keeps_an_example_without_loss_drawable(alpha, eps):
    store = ScoreStore(2, LossPower(alpha=alpha, eps=eps))
    store.update([0, 1], [0.0, 1e-5])
    assert (store.priorities > 0).all()


@pytest.mark.parametrize("alpha", [1.0, 3.0, 50.0])
def test_the_largest_losses_have_the_largest_finite_priority(alpha):
    store = ScoreStore(2, LossPower(alpha=alpha, eps=1.0))
    store.update([0], [np.finfo(f32).max])
    store.admit_unseen()
    assert store.priorities.tolist() == [float(np.finfo(f32).max)] * 2


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0, (0.4, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("normalized", [False, True])
def test_losspower_weights_are_n_p_to_the_minus_beta(beta, progress, normalized):
    policy = LossPower(beta=beta, max_normalize=normalized)
    store = ScoreStore(1000, policy, epochs=4)
    store.begin_epoch(int(4 * progress))
    probabilities = generator(3).dirichlet(np.ones(50) / 5) + 1e-12
    weights = policy.weights(store.columns, np.arange(50), probabilities, store.clock)
    b = beta if isinstance(beta, float) else beta[0] + (beta[1] - beta[0]) * progress
    if b == 0:
        assert weights is None
        return
    expected = [(1000 * p) ** -b for p in probabilities.tolist()]
    largest = max(expected) if normalized else 1
    assert weights.dtype == f32
    np.testing.assert_allclose(weights, [w / largest for w in expected], rtol=3e-7)


def test_with_beta_one_the_expected_weighted_loss_is_the_mean_loss():
    store, losses = ScoreStore(50, LossPower(beta=1.0)), generator(4).exponential(size=50)
    store.update(np.arange(50), losses)
    p = store.priorities / store.priorities.sum(dtype=np.float64)
    weights = store.policy.weights(store.columns, np.arange(50), p, store.clock)
    assert float((p * weights * losses).sum()) == pytest.approx(losses.mean(), rel=1e-6)


# InfoBatch.


def scored(losses, unseen=(), ratio=0.5, delta=0.875, epochs=8):
    store = ScoreStore(len(losses), InfoBatch(ratio, delta), epochs=epochs)
    at = [i for i in range(len(losses)) if i not in unseen]
    store.update(at, np.asarray(losses, f32)[at])
    return store


def plan_of(store, epoch=1, seed=0):
    store.begin_epoch(epoch)
    return store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))


def below_mean(losses, unseen=()):
    """W, by exact fractions."""
    kept = [i for i in range(len(losses)) if i not in unseen]
    exact = [Fraction(float(f32(losses[i]))) for i in kept]
    return [i for i, loss in zip(kept, exact, strict=True) if loss * len(exact) < sum(exact)]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.8, 0.9])
def test_infobatch_plan_follows_its_definition(ratio):
    rng = generator(int(10 * ratio))
    for trial in range(150):
        n = int(rng.integers(2, 60))
        losses = rng.choice([rng.exponential(size=n), rng.integers(-2, 3, n), 10.0 ** rng.uniform(-6, 6, n)])
        unseen = set(rng.choice(n, rng.integers(0, n), replace=False).tolist())
        store = scored(losses, unseen, ratio)
        plan, below = plan_of(store, epoch=0, seed=trial), below_mean(losses, unseen)
        others = sorted(set(range(n)) - set(below))
        assert (plan.codes[others] == TRAIN).all()  # the unseen among them
        k = int((1 - Fraction(str(ratio))) * len(below))
        if len(below) < 2:
            assert (plan.codes == TRAIN).all()
            continue
        codes = plan.codes[below].tolist()
        assert codes.count(TRAIN_RESCALED) == max(k, 1), (len(below), ratio)
        assert codes.count(OUT) == len(below) - max(k, 1)
        assert plan.weights[OUT] == 0
        assert plan.weights[TRAIN] == 1
        assert Fraction(plan.weights[TRAIN_RESCALED]).limit_denominator(10**6) * max(k, 1) == len(below)


def test_infobatch_keeps_every_subset_equally_often():
    losses = [0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 9.0]
    store = scored(losses, ratio=0.5)
    subsets = {subset: 0 for subset in itertools.combinations(range(5), 2)}
    n = 20_000
    for seed in range(n):
        codes = store.policy.plan(store, Clock(1), Rng(seed, 1, 0, "plan")).codes
        subsets[tuple(np.flatnonzero(codes == TRAIN_RESCALED).tolist())] += 1
    assert len(subsets) == math.comb(5, 2)
    assert p_value(np.array(list(subsets.values())), np.full(10, n / 10)) > 1e-6


@pytest.mark.parametrize(("below", "ratio"), [(5, 0.5), (7, 0.5), (6, 0.3), (8, 0.75), (3, 0.9)])
def test_infobatch_expects_the_full_sum_over_all_it_might_keep(below, ratio):
    rng = generator(below)
    losses = np.append(rng.integers(1, 50, below) / 64, [9.0, 11.0, 10.0]).astype(f32)  # sums are exact
    store = scored(losses, ratio=ratio)
    exact = [Fraction(float(loss)) for loss in losses]
    plans = {}
    for seed in range(3000):
        plan = store.policy.plan(store, Clock(1), Rng(seed, 1, 0, "plan"))
        plans[plan.codes.tobytes()] = plan
    kept = max(1, int((1 - ratio) * below))
    assert len(plans) == math.comb(below, kept)  # all of them were met; the test above has them equally likely
    sums = []
    for plan in plans.values():
        weights = [Fraction(w).limit_denominator(1000) for w in plan.weights]
        sums.append(sum(weights[code] * loss for code, loss in zip(plan.codes.tolist(), exact, strict=True)))
    assert sum(sums) / len(sums) == sum(exact)


@pytest.mark.parametrize(("epochs", "delta"), [(90, 0.875), (8, 0.875), (10, 0.7), (7, 0.5), (1, 0.5), (5, 0), (5, 1)])
def test_infobatch_uses_everything_in_the_last_epochs_and_the_first(epochs, delta):
    losses = generator(1).exponential(size=64)
    sampler = PrioritySampler(ScoreStore(64, InfoBatch(delta=delta), epochs=epochs), batch_size=64)
    pruned = []
    for _ in range(epochs):
        drawn = []
        for index in sampler:
            drawn.append(index)
            if len(drawn) == sampler.planned:
                weights = sampler.weights
                assert float(weights.sum()) == pytest.approx(64)
                sampler.step(torch.tensor(losses[drawn]))
        assert len(set(drawn)) == len(drawn)
        pruned.append(len(drawn) < 64)
    last = math.floor(Fraction(str(delta)) * epochs)  # epochs 1 to last prune, counted from 1
    assert pruned == [1 < number <= last for number in range(1, epochs + 1)]


@pytest.mark.parametrize("loss", [0.0, 0.1, 1e-45, 3e38, -0.3])
@pytest.mark.parametrize("n", [2, 3, 1000, 4097])
def test_infobatch_leaves_none_out_where_all_losses_are_alike(loss, n):
    assert (plan_of(scored(np.full(n, loss))).codes == TRAIN).all()


def test_infobatch_leaves_the_generators_of_others_alone():
    store = scored(generator(2).exponential(size=500))
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    numpy_state, torch_state = str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    plans = {plan_of(store, epoch, seed).codes.tobytes() for epoch in range(3) for seed in range(3)}
    assert len(plans) == 9  # another epoch or seed keeps others
    assert plan_of(store, 1, 1).codes.tobytes() == plan_of(store, 1, 1).codes.tobytes()
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_infobatch_needs_the_number_of_epochs():
    with pytest.raises(ValueError, match="'infobatch' changes over training: pass epochs="):
        ScoreStore(10, "infobatch")


# Given and Uniform.


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_given_draws_with_the_weights_and_learns_nothing(kind):
    weights = [0.0, 1.0, 2.5, 1e-30, 3e38, 0.0]
    store = ScoreStore(6, Given(kind(weights)))
    np.testing.assert_array_equal(store.priorities, np.array(weights, f32))
    store.update(range(6), np.full(6, 9.0))
    np.testing.assert_array_equal(store.priorities, np.array(weights, f32))
    assert not store.policy.observes
    assert store.policy.weights(store.columns, np.arange(2), np.array([0.1, 0.9]), store.clock) is None
    store.set_priorities([0], [4.0])
    assert store.priorities[0] == 4


def test_given_without_weights_draws_nothing_until_there_are_some():
    store = ScoreStore(3, Given())
    with pytest.raises(ValueError, match="nothing"):
        store.tree.sample(1, seed=0)
    store.set_priorities([1], [2.0])
    assert set(store.tree.sample(9, seed=0)[0]) == {1}


@pytest.mark.parametrize("size", [1, 2, 97, 1000])
def test_uniform_is_a_new_permutation_each_epoch(size):
    sampler = PrioritySampler(ScoreStore(size, "uniform"), seed=3)
    epochs = [list(sampler) for _ in range(6)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6 or size < 50
    again = PrioritySampler(ScoreStore(size, "uniform"), seed=3)
    again.set_epoch(4)
    assert list(again) == epochs[4]
    assert list(PrioritySampler(ScoreStore(size, "uniform"), seed=4)) != epochs[0] or size < 50


# A policy of one's own.


@register("margin of the test")
class Margin(Policy):
    columns = {"margin": "float32", "wrong": "bit", "history": ("float32", 2)}  # noqa: RUF012
    requires = ("margin",)

    def __init__(self, sharpness=2.0):
        super().__init__()
        self.sharpness, self.state, self.fault = sharpness, {"rounds": 0, "sums": np.zeros(2)}, None

    def observe(self, columns, indices, obs, clock, rng):
        columns["margin"][indices] = obs.margin
        columns["history"][indices, 1] = columns["history"][indices, 0]
        columns["history"][indices, 0] = obs.loss
        columns["wrong"][indices >> 3] |= 1 << (indices & 7).astype(np.uint8)
        self.state["rounds"] += 1
        self.state["sums"] += float(obs.loss.sum())
        if self.fault and indices.size:
            columns["seen"][indices >> 3] = 255
            return self.fault(indices.size)
        return np.exp(-self.sharpness * obs.margin).astype(np.float32)


def test_a_policy_of_ones_own_works_by_its_name_in_a_store():
    assert registered()["margin of the test"] is Margin
    assert make("margin of the test", sharpness=3.0).config() == {"sharpness": 3.0}
    store = ScoreStore(20, "margin of the test")
    store.update([3, 4, 3], torch.ones(3), margin=torch.tensor([0.0, 0.5, 1.0]))
    expected = np.exp(-2 * np.array([1.0, 0.5])).astype(f32)
    np.testing.assert_allclose(store.priorities[[3, 4]], expected, rtol=1e-6)
    assert store.column("history")[3].tolist() == [1, 0]
    again = ScoreStore(20, "margin of the test")
    again.load_state_dict(store.state_dict())
    assert state_of(again) == state_of(store)


def test_a_policy_of_ones_own_works_by_its_name_in_a_loader():
    data = torch.utils.data.TensorDataset(torch.arange(40).float())
    loader = PriorityLoader(data, 8, policy="margin of the test", epochs=2, seed=1)
    for epoch in range(2):
        met = []
        for (x,) in loader:
            loader.step(x, margin=x / 40)
            met += x.int().tolist()
        if epoch == 0:
            assert sorted(met) == list(range(40))
    np.testing.assert_allclose(loader.store.priorities, np.exp(-2 * np.arange(40) / 40), rtol=1e-6)


def fails(n):
    raise RuntimeError("midway")


FAULTS = {
    "raises": (fails, RuntimeError, "midway"),
    "interrupted": (lambda n: (_ for _ in ()).throw(KeyboardInterrupt("midway")), KeyboardInterrupt, "midway"),
    "nan": (lambda n: np.full(n, np.nan, f32), ValueError, r"priorities\[0\] = -?nan"),
    "infinite": (lambda n: np.where(np.arange(n) == n - 1, np.inf, 1).astype(f32), ValueError, "inf"),
    "negative": (lambda n: np.full(n, -1.0), ValueError, "priorities"),
    "too short": (lambda n: np.ones(n - 1, f32), ValueError, "length"),
    "too long": (lambda n: np.ones(n + 1, f32), ValueError, "length"),
    "two dimensions": (lambda n: np.ones((n, 1), f32), ValueError, "one dimension"),
    "text": (lambda n: np.array(["a"] * n), TypeError, "real numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", [[0], [7, 8, 9], [3, 3, 19, 3, 11], list(range(20))])
def test_a_policy_that_fails_midway_leaves_nothing_behind(fault, at):
    store = ScoreStore(20, "margin of the test")
    store.update([3, 8, 3, 15], torch.ones(4), margin=torch.rand(4, generator=torch.Generator().manual_seed(1)))
    before = state_of(store)
    store.policy.fault, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        store.update(at, np.full(len(at), 5.0), margin=np.full(len(at), 0.5))
    assert state_of(store) == before
    store.policy.fault = None
    store.update(at, np.full(len(at), 5.0), margin=np.full(len(at), 0.5))
    assert state_of(store) != before


def test_a_policy_that_fails_after_adding_to_its_state_leaves_nothing_behind():
    class Adds(Policy):
        def observe(self, columns, indices, obs, clock, rng):
            if indices.size:
                self.state["more"] = 1
                raise RuntimeError("midway")

    store = ScoreStore(5, Adds())
    before = state_of(store)
    with pytest.raises(RuntimeError, match="midway"):
        store.update([1], [1.0])
    assert state_of(store) == before


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 50.0])
@pytest.mark.parametrize(("eps", "ema"), [(0.0, 0.0), (1e-6, 0.9), (1e300, 0.5)])
def test_losspower_keeps_its_promise_never_to_fail(alpha, eps, ema):
    # The store makes no copies to go back to, so every loss that passes the checks must give a valid priority.
    store = ScoreStore(1000, LossPower(alpha, eps=eps, ema=ema))
    assert store.policy.infallible
    rng = generator(30)
    for _ in range(20):
        losses = rng.integers(0, 0x7F800000, 300).astype(np.uint32).view(np.float32)
        losses[:3] = [0.0, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
        store.update(rng.integers(0, 1000, 300), losses)
        assert np.isfinite(store.priorities).all()
        assert (store.priorities >= 0).all()


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_losses_below_a_policys_least_are_refused_by_place_and_change_nothing(on_nonfinite):
    class AtLeast(Policy):
        columns = {"loss": "float32"}  # noqa: RUF012
        least_loss = -2.0
        name = "at least"

        def observe(self, columns, indices, obs, clock, rng):
            columns["loss"][indices] = obs.loss
            return None

    store = ScoreStore(10, AtLeast(), on_nonfinite=on_nonfinite)
    store.update([1, 2], [-2.0, 5.0])
    before = store.column("loss").copy()
    with pytest.raises(ValueError, match=r"losses\[1\] = -2.5: policy 'at least' expects losses >= -2"):
        store.update([3, 4, 5], [0.0, -2.5, -3.0])
    if on_nonfinite == "skip":
        with pytest.raises(ValueError, match=r"losses\[2\] = -3.0: policy"):
            store.update([3, 4, 5], [0.0, np.nan, -3.0])
        assert store.skipped_nonfinite == 0
    np.testing.assert_array_equal(store.column("loss"), before)
    store.update([3], [-3.0], origin="reference")  # another model's losses are not this policy's
    assert store.clock.step == 2


@pytest.mark.parametrize("fault", ["raises", "negative"])
def test_a_policy_derived_from_an_infallible_one_is_undone_like_any_other(fault):
    class Mine(LossPower):
        def observe(self, columns, indices, obs, clock, rng):
            priorities = super().observe(columns, indices, obs, clock, rng)
            if fault == "raises" and (obs.loss > 100).any():
                raise ValueError("cannot be the priorities")
            return np.where(obs.loss > 100, -1, priorities)

    store = ScoreStore(10, Mine())
    store.update([1, 2], [5.0, 7.0])
    before = state_of(store)
    with pytest.raises(ValueError, match="cannot be the priorities"):
        store.update([1, 3], [6.0, 500.0])
    assert state_of(store) == before


def test_a_store_resized_by_another_thread_in_the_middle_of_an_update_waits_for_its_end():
    store = ScoreStore(100_000)
    checked, resized = store._checked, threading.Event()

    def slow(*arguments):
        found = checked(*arguments)
        thread.start()
        resized.wait(0.2)  # it cannot, while we hold the lock
        return found

    def shrink():
        store.resize(10)
        resized.set()

    thread = threading.Thread(target=shrink)
    store._checked = slow
    store.update([99_999], [1.0])
    thread.join()
    assert len(store) == 10
