"""Promise: policies over groups, sources and stale losses draw by the laws that they state, over any history."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value

from fastprio import PriorityLoader, PrioritySampler, ScoreStore
from fastprio._random import Rng
from fastprio.policies import OUT, SCORE, TRAIN, Clock, replay_mixture
from fastprio.policies.group_dro import GroupDRO
from fastprio.policies.grouped import Grouped
from fastprio.policies.online_data_mixing import OnlineDataMixing
from fastprio.policies.replay_mixture import ReplayMixture
from fastprio.policies.stale_selective_backprop import StaleSelectiveBackprop

f32 = np.float32
ORIGINS = ["train", "train", "train", "score", "reference"]


def history(size, seed, steps=200):
    """Random updates: rows with duplicates, losses of all sizes as float32 holds them, an origin."""
    rng = generator(seed)
    for _ in range(steps):
        at = rng.integers(0, size, int(rng.integers(0, 12)))
        losses = (rng.exponential(size=at.size) * 10.0 ** rng.integers(-2, 3)).astype(f32)
        losses[rng.random(at.size) < 0.1] *= -1
        yield at.tolist(), losses.tolist(), ORIGINS[int(rng.integers(5))]


def draws_of(store, count=50, epoch=0, step=0, seed=3):
    return store.policy.draw(store, count, Clock(epoch), Rng(seed, epoch, step, "draw"))


def group_means(groups, at, losses):
    """group -> the mean loss of its rows."""
    rows = {}
    for i, loss in zip(at, losses, strict=True):
        rows.setdefault(groups[i], []).append(loss)
    return {k: sum(of, 0.0) / len(of) for k, of in rows.items()}


# Groups.


class Fixed(Grouped):
    """Groups with probabilities that never change."""

    name = "fixed of the test"

    def __init__(self, groups, count, law=None):
        super().__init__(groups, count)
        self.law = law

    def p(self):
        return np.array(self.law if self.law is not None else [1.0] * self.count)


def law_of(groups, law):
    """The probability of each example, by definition: groups without examples are passed over."""
    sizes = [groups.count(k) for k in range(len(law))]
    total = sum(p for p, size in zip(law, sizes, strict=True) if size)
    return [law[k] / total / sizes[k] for k in groups]


@pytest.mark.parametrize(
    ("groups", "law"),
    [
        ([0], [1.0]),
        ([2, 0, 0, 2, 3, 3, 3], [0.2, 0.5, 0.3, 0.0]),  # group 1 is empty, group 3 has no share
        ([1] * 5 + [0] * 20 + [4], [0.1, 0.6, 0.0, 0.1, 0.2]),
    ],
)
def test_a_group_is_drawn_by_its_share_and_then_its_examples_evenly(groups, law):
    store, n = ScoreStore(len(groups), Fixed(groups, len(law), law)), 40_000
    indices, probabilities = draws_of(store, n)
    expected = law_of(groups, law)
    assert probabilities.tolist() == pytest.approx([expected[i] for i in indices.tolist()], rel=1e-12)
    assert p_value(np.bincount(indices, minlength=len(groups)), n * np.array(expected)) > P_FAIL


def test_groups_are_sorted_when_the_user_writes_them_and_says_so():
    store = ScoreStore(6, Fixed(None, 3))
    assert sorted(store.column("by_group").tolist()) == list(range(6))  # all in group 0
    assert store.policy.sizes.tolist() == [6, 0, 0]
    store.column("group")[:] = [2, 0, 2, 0, 2, 1]
    store.policy.regroup(store)
    assert store.column("by_group").tolist() == [1, 3, 5, 0, 2, 4]
    assert store.policy.state["begins"].tolist() == [0, 2, 3, 6]
    store.column("group")[4] = 3
    with pytest.raises(ValueError, match=r"group\[4\] = 3: expected a group in \[0, 3\)"):
        store.policy.regroup(store)


@pytest.mark.parametrize("at_draw", [False, True])
@pytest.mark.parametrize("size", [3, 7, 30])
def test_a_store_that_was_resized_is_sorted_again(size, at_draw):
    groups = [k % 3 for k in range(12)]
    store = ScoreStore(12, Fixed(groups, 3))
    store.resize(size)
    if not at_draw:
        assert store.policy.plan(store, store.clock, Rng(0, 0, 0, "plan")) is None
    indices, probabilities = draws_of(store, 400)
    now = (groups + [0] * 30)[:size]
    expected = law_of(now, [1.0] * 3)
    assert set(indices.tolist()) == set(range(size))
    assert probabilities.tolist() == pytest.approx([expected[i] for i in indices.tolist()])


@pytest.mark.parametrize(
    ("groups", "count", "error", "message"),
    [
        ([0, 1, 1], 2, ValueError, "groups: expected 4 of them, one for each example, got 3"),
        ([0, 1, -1, 1], 2, ValueError, r"groups\[2\] = -1: expected a group in \[0, 2\)"),
        ([0, 1, 1, 2], 2, ValueError, r"groups\[3\] = 2: expected a group in \[0, 2\)"),
        ([0, 65536, 0, 0], 65536, ValueError, r"groups\[1\] = 65536"),
        ([0.0, 1.0, 1.0, 1.0], 2, TypeError, "groups: expected integers"),
        (None, 0, ValueError, "count = 0"),
        (None, 65537, ValueError, "count = 65537"),
        (None, 2.5, TypeError, "count = 2.5"),
    ],
)
def test_groups_that_cannot_be_are_refused_by_place(groups, count, error, message):
    with pytest.raises(error, match=message):
        ScoreStore(4, Fixed(groups, count))


GROUPED = {
    "dro": lambda groups: GroupDRO(groups, 5, temperature=0.5, ema=0.5),
    "weights": lambda groups: GroupDRO(groups, 5, temperature=0.5, ema=0.5, reweight=True),
    "odm": lambda groups: OnlineDataMixing(groups, 5, warm_up=3),
}


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("groups", [list, torch.tensor, lambda g: np.array(g, np.uint8)])
def test_a_saved_store_has_its_groups_and_goes_on_as_it_was(tmp_path, kind, groups):
    of = generator(5).integers(0, 5, 23).tolist()
    store = ScoreStore(23, GROUPED[kind](groups(of)))
    assert store.policy.config()["groups"] is None
    for at, losses, origin in history(23, 6, 30):
        store.update(at, losses, origin=origin)
    store.save(tmp_path / "store")
    again = ScoreStore(23, GROUPED[kind](None))
    again.load_state_dict(store.state_dict())
    loaded = ScoreStore.load(tmp_path / "store")
    for at, losses, origin in history(23, 7, 30):
        for one in (store, again, loaded):
            one.update(at, losses, origin=origin)
    assert store.column("group").tolist() == of
    for one in (again, loaded):
        assert one.column("group").tolist() == of
        assert one.policy.p().tolist() == store.policy.p().tolist()
        for mine, theirs in zip(draws_of(one), draws_of(store), strict=True):
            assert mine.tolist() == theirs.tolist()


# GroupDRO.


class PlainDRO:
    def __init__(self, groups, count, temperature, ema):
        self.groups, self.count, self.temperature, self.ema = groups, count, temperature, ema
        self.loss = {}

    def update(self, at, losses):
        for k, mean in group_means(self.groups, at, losses).items():
            self.loss[k] = self.ema * self.loss[k] + (1 - self.ema) * mean if k in self.loss else mean

    def p(self):
        present = set(self.groups)
        raised = {k: (loss - max(self.loss.values())) / self.temperature for k, loss in self.loss.items()}
        total = sum(math.exp(value) for value in raised.values())
        p = []
        for k in range(self.count):
            rest = len(self.loss) / len(present)
            p.append(math.exp(raised[k]) / total * rest if k in raised else (k in present) / len(present))
        return p


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 4), (2, 2), (23, 6)])
@pytest.mark.parametrize(("temperature", "ema"), [(0.3, 0.0), (2.0, 0.9), (100.0, 0.5)])
def test_group_dro_follows_its_definition_over_random_histories(size, count, temperature, ema):
    groups = generator(size).integers(0, count, size).tolist()
    store = ScoreStore(size, GroupDRO(groups, count, temperature=temperature, ema=ema))
    weighing = ScoreStore(size, GroupDRO(groups, count, temperature=temperature, ema=ema, reweight=True))
    plain = PlainDRO(groups, count, temperature, ema)
    for at, losses, origin in history(size, 11):
        store.update(at, losses, origin=origin)
        weighing.update(at, losses, origin=origin)
        if origin != "reference":
            plain.update(at, losses)
        state = store.policy.state
        assert {k: state["loss"][k] for k in range(count) if state["observed"][k]} == plain.loss
        p = plain.p()
        assert sum(p) == pytest.approx(1)
        assert store.policy.p().tolist() == pytest.approx(p, rel=1e-9, abs=1e-300)
        weights = weighing.policy.weights(weighing.columns, np.arange(size), np.full(size, 1 / size), weighing.clock)
        assert weights.dtype == f32
        assert weights.tolist() == pytest.approx([p[k] * size / groups.count(k) for k in groups], rel=1e-6, abs=1e-37)
        assert store.policy.weights(store.columns, np.arange(size), np.ones(size), store.clock) is None


def test_group_dro_draws_the_groups_by_the_softmax_of_their_losses():
    groups = [0, 0, 0, 1, 1, 3]
    store, n = ScoreStore(6, GroupDRO(groups, 4, temperature=0.5, ema=0.0)), 30_000
    store.update([0, 1, 3, 5], [1.0, 2.0, 1.0, 2.0])
    powers = {0: math.exp(3.0), 1: math.exp(2.0), 3: math.exp(4.0)}
    law = [powers[k] / sum(powers.values()) / groups.count(k) for k in groups]
    indices, probabilities = draws_of(store, n)
    assert probabilities.tolist() == pytest.approx([law[i] for i in indices.tolist()], rel=1e-9)
    assert p_value(np.bincount(indices, minlength=6), n * np.array(law)) > P_FAIL


def test_weights_of_group_dro_give_the_same_expected_loss_as_its_draws():
    groups, losses = [0, 1, 1, 2, 2, 2], [3.0, 1.0, 2.0, 0.5, 0.25, 4.0]
    made = [ScoreStore(6, GroupDRO(groups, 4, temperature=1.0, ema=0.0, reweight=r)) for r in (False, True)]
    for store in made:
        store.update(range(6), losses)
    p = made[0].policy.p()
    drawn = sum(
        p[k] * sum(x for g, x in zip(groups, losses, strict=True) if g == k) / groups.count(k) for k in (0, 1, 2)
    )
    sampler = PrioritySampler(made[1], batch_size=6)
    indices = list(sampler)
    assert sorted(indices) == list(range(6))
    weights = sampler.weights
    assert float(weights.mean()) == pytest.approx(1)
    assert float(sampler.step(torch.tensor([losses[i] for i in indices]))) == pytest.approx(drawn)


def test_weights_of_group_dro_are_of_the_groups_as_they_are_when_a_store_has_grown():
    store = ScoreStore(4, GroupDRO([0, 1, 1, 1], 2, temperature=1.0, ema=0.0, reweight=True))
    store.resize(8)  # four more in group 0
    assert store.policy.plan(store, store.clock, Rng(0, 0, 0, "plan")).codes is None
    weights = store.policy.weights(store.columns, np.arange(8), np.full(8, 1 / 8), store.clock)
    assert weights.tolist() == pytest.approx([4 / 5] + [4 / 3] * 3 + [4 / 5] * 4)


@pytest.mark.parametrize("loss", [0.0, -2.0, 3e38])
def test_group_dro_draws_all_groups_alike_where_all_losses_are(loss):
    store = ScoreStore(5, GroupDRO([0, 1, 1, 1, 3], 5, temperature=0.1, ema=0.9))
    store.update(range(5), np.full(5, loss, f32))
    store.update(range(5), np.full(5, loss, f32))
    assert store.policy.p().tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3, 0])


def test_group_dro_stays_a_law_at_the_smallest_temperature_and_the_largest_losses():
    store = ScoreStore(3, GroupDRO([0, 1, 2], 3, temperature=5e-324, ema=0.9))
    store.update([0, 1, 2], [-3e38, 3e38, 0.0])
    assert store.policy.p().tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0: expected a finite number > 0"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"ema": 1.0}, "ema = 1.0: expected 0 <= ema < 1"),
        ({"ema": -0.1}, "ema = -0.1"),
    ],
)
def test_group_dro_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupDRO(None, 2, **{"temperature": 1.0, "ema": 0.5, **arguments})


# OnlineDataMixing.


class PlainODM:
    def __init__(self, groups, count, alpha, scale, floor, warm_up):
        self.groups, self.count, self.alpha, self.scale = groups, count, alpha, scale
        self.floor, self.warm_up, self.updates = floor, warm_up, 0
        self.reward = [0.0] * count
        self.pi = [groups.count(k) / len(groups) for k in range(count)]
        self.present = [k for k in range(count) if k in groups]

    def eps(self, t):
        count = len(self.present)
        if t == 0:
            return 1 / count
        decayed = math.sqrt(math.log(count) / (count * t))
        return min(max(self.floor, min(1 / count, decayed)), 1 / count)

    def update(self, at, losses):
        if not at:
            return
        self.updates += 1
        t = self.updates - self.warm_up
        if t <= 0:
            return
        for k, mean in group_means(self.groups, at, losses).items():
            self.reward[k] = self.alpha * self.reward[k] + (1 - self.alpha) * self.scale * mean / self.pi[k]
        exponents = {k: self.eps(t - 1) * self.reward[k] for k in self.present}
        raised = {k: math.exp(x - max(exponents.values())) for k, x in exponents.items()}
        scale = (1 - len(self.present) * self.eps(t)) / sum(raised.values())
        self.pi = [scale * raised[k] + self.eps(t) if k in raised else 0.0 for k in range(self.count)]


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 2), (23, 6), (23, 50)])
@pytest.mark.parametrize(("floor", "warm_up"), [(0.03, 0), (0.0, 10), (1.0, 2)])
def test_odm_follows_its_definition_over_random_histories(size, count, floor, warm_up):
    groups = generator(size).integers(0, count, size).tolist()
    store = ScoreStore(size, OnlineDataMixing(groups, count, alpha=0.8, scale=0.2, floor=floor, warm_up=warm_up))
    plain = PlainODM(groups, count, 0.8, 0.2, floor, warm_up)
    for at, losses, origin in history(size, 12, 120):
        store.update(at, losses, origin=origin)
        if origin == "train":
            plain.update(at, losses)
        p, eps = store.policy.p(), plain.eps(max(0, plain.updates - warm_up))
        assert p.tolist() == pytest.approx(plain.pi, rel=1e-6)
        assert p.sum() == pytest.approx(1, rel=1e-12)
        if plain.updates > warm_up:
            assert p[plain.present].min() >= eps * (1 - 1e-12)
            assert store.policy.state["reward"].tolist() == pytest.approx(plain.reward, rel=1e-6)


@pytest.mark.parametrize("floor", [0.03, 0.5, 1.0])
def test_odm_draws_groups_alike_where_the_floor_is_above_an_even_share(floor):
    groups = list(range(50)) * 2
    store = ScoreStore(100, OnlineDataMixing(groups, 50, floor=floor, warm_up=0))
    for loss in (1.0, 30.0):
        store.update(range(0, 100, 3), np.full(34, loss) * np.arange(34))
        assert store.policy.p().tolist() == pytest.approx([0.02] * 50, rel=1e-12)


def test_odm_draws_by_size_until_its_warm_up_is_over():
    groups = [0] * 60 + [1] * 30 + [3] * 10
    store, n = ScoreStore(100, OnlineDataMixing(groups, 4, warm_up=2)), 30_000
    for _ in range(2):
        store.update([0, 61, 99], [1.0, 2.0, 3.0])
        store.update([99], [9.0], origin="score")
        assert store.policy.p().tolist() == [0.6, 0.3, 0, 0.1]
        assert not store.policy.state["reward"].any()
    indices, probabilities = draws_of(store, n)
    assert p_value(np.bincount(indices, minlength=100), np.full(100, n / 100)) > P_FAIL
    assert probabilities == pytest.approx(np.full(n, 0.01))
    store.update([0, 61, 99], [1.0, 2.0, 3.0])
    assert store.policy.state["reward"].tolist() == pytest.approx([1.5 / 0.6, 3 / 0.3, 0, 4.5 / 0.1])


def test_odm_prefers_the_group_of_the_largest_loss():
    store = ScoreStore(4, OnlineDataMixing([0, 1, 2, 3], 4, warm_up=0))
    for _ in range(200):
        store.update([0, 1, 2, 3], [1.0, 1.0, 1.5, 1.0])
    p = store.policy.p()
    assert p.argmax() == 2
    assert p[[0, 1, 3]].tolist() == pytest.approx([p[0]] * 3)


@pytest.mark.parametrize("loss", [3e38, -3e38, 0.0])
def test_odm_stays_a_law_for_all_losses_that_a_store_takes(loss):
    store = ScoreStore(3, OnlineDataMixing([0, 1, 2], 3, scale=1e100, floor=0.0, warm_up=0))
    for at in ([0], [1, 2], [2, 2, 0]):
        store.update(at, np.full(len(at), loss, f32))
        assert store.policy.p().sum() == pytest.approx(1)
        assert (store.policy.p() > 0).all()


def test_odm_takes_losses_of_a_group_that_was_empty_before_the_store_grew():
    store = ScoreStore(2, OnlineDataMixing([1, 1], 2, warm_up=0))
    store.resize(3)
    store.update([2], [1.0])  # in group 0, before the next plan sorts it
    assert np.isfinite(store.policy.p()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, "alpha = 1.0: expected 0 <= alpha < 1"),
        ({"scale": 0.0}, "scale = 0.0: expected 0 < scale <= 1e100"),
        ({"scale": math.inf}, "scale = inf"),
        ({"floor": 1.5}, "floor = 1.5: expected 0 <= floor <= 1"),
        ({"warm_up": -1}, "warm_up = -1"),
    ],
)
def test_odm_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineDataMixing(None, 2, **arguments)


@pytest.mark.parametrize("kind", ["dro", "odm"])
def test_policies_over_groups_work_in_a_loader_and_go_on_exactly_after_a_resume(kind):
    def made():
        of = [0] * 30 + [1] * 6 + [4] * 4
        return PriorityLoader(range(40), 8, policy=GROUPED[kind](of), seed=4, num_samples=48)

    def trained(loader, stop=None):
        drawn = []
        for number, batch in enumerate(loader):
            drawn.append(batch.tolist())
            loader.step(batch.float() / 8)
            if number == stop:
                break
        return drawn

    one = made()
    epochs = [trained(one), trained(one)]
    assert set(itertools.chain.from_iterable(epochs[0])) == set(range(40))  # covered first
    two = made()
    trained(two)
    begun = trained(two, stop=2)
    three = made()
    three.load_state_dict(two.state_dict())
    assert begun + trained(three) == epochs[1]
    assert trained(three) == trained(one)


# ReplayMixture.


def batches_of(store, counts, seed=2, epoch=0):
    """Batches of these sizes, one after another."""
    found, step = [], 0
    for count in counts:
        found.append(draws_of(store, count, epoch, step, seed))
        step += count
    return found


@pytest.mark.parametrize("replay", [0.0, 0.1, 0.25, 0.29, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(("size", "pool"), [(2, 1), (23, 5), (23, 22)])
def test_replay_has_its_exact_quota_over_any_stretch(replay, size, pool):
    store, rng = ScoreStore(size, ReplayMixture(replay, pool)), generator(1)
    exact, drawn, replayed = Fraction(str(replay)), 0, 0
    for indices, probabilities in batches_of(store, rng.integers(1, 20, 60).tolist()):
        drawn += len(indices)
        replayed += int((indices < pool).sum())
        assert replayed == math.floor(exact * drawn)
        of = [replay / pool if i < pool else (1 - replay) / (size - pool) for i in indices.tolist()]
        assert probabilities.tolist() == pytest.approx(of)


@pytest.mark.parametrize(
    ("size", "pool", "batches"),
    [(2, 1, [1, 5] * 40), (23, 5, [7] * 60), (23, 22, [64] * 9), (70_000, 66_000, [999] * 9 + [99_999] * 3)],
)
def test_replay_draws_each_source_once_a_pass(size, pool, batches):
    met = np.zeros(size, np.int64)
    for indices, _ in batches_of(ScoreStore(size, ReplayMixture(0.5, pool)), batches):
        met += np.bincount(indices, minlength=size)
        for of in (met[:pool], met[pool:]):
            assert of.max() - of.min() <= 1
    assert met.min() > 1


def test_each_pass_of_replay_has_another_order():
    drawn = np.concatenate([indices for indices, _ in batches_of(ScoreStore(23, ReplayMixture(0.5, 12)), [1] * 200)])
    for of in (drawn[drawn < 12], drawn[drawn >= 12]):
        n = len(set(of.tolist()))
        passes = {tuple(of[k : k + n].tolist()) for k in range(0, 96, n)}
        assert len(passes) == len(range(0, 96, n))


def test_replay_draws_every_example_of_a_source_equally_often():
    store, n = ScoreStore(12, ReplayMixture(0.4, 4)), 6000
    first = np.array([draws_of(store, 1, seed=seed, step=step)[0][0] for seed in range(n) for step in (0, 2)])
    assert (first[::2] >= 4).all()  # of draws by ones the third is the first of the pool
    assert p_value(np.bincount(first[::2] - 4, minlength=8), np.full(8, n / 8)) > P_FAIL
    assert (first[1::2] < 4).all()
    assert p_value(np.bincount(first[1::2], minlength=4), np.full(4, n / 4)) > P_FAIL


def test_every_ranks_slice_of_a_replay_batch_has_both_sources():
    store, n = ScoreStore(100, ReplayMixture(0.25, 40)), 4000
    at = np.zeros(8)
    for k in range(n):
        at += draws_of(store, 8, step=8 * k)[0] < 40
    assert at.sum() == 2 * n
    assert p_value(at, np.full(8, n / 4)) > P_FAIL


@pytest.mark.parametrize("replay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("boundary", [0, 10])
def test_the_other_source_fills_all_where_one_is_empty(replay, boundary):
    store = ScoreStore(10, ReplayMixture(replay, boundary))
    drawn = batches_of(store, [4] * 5)
    assert sorted(np.concatenate([indices for indices, _ in drawn]).tolist()) == sorted(list(range(10)) * 2)
    assert all((probabilities == 0.1).all() for _, probabilities in drawn)


def test_passes_share_no_random_numbers_with_batches_or_with_each_other():
    made = []

    class Noted(Rng):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(arguments)

    store = ScoreStore(5, ReplayMixture(0.5, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_mixture, "Rng", Noted)
        batches_of(store, [10] * 20, epoch=6)
    steps = [step for _, epoch, step, use in made]
    assert len(set(steps)) == len(steps) == 50 + 34  # passes of two and of three examples
    assert min(steps) > 1 << 33
    assert max(steps) < 1 << 34
    assert {(seed, epoch, use) for seed, epoch, _, use in made} == {(2, 6, "draw")}


def test_replay_epochs_differ_and_are_the_same_again_in_any_order():
    store = ScoreStore(40, ReplayMixture(0.5, 20))
    epochs = {epoch: [i.tolist() for i, _ in batches_of(store, [8] * 10, epoch=epoch)] for epoch in (0, 1)}
    assert epochs[0] != epochs[1]
    for step, epoch in itertools.product((72, 8, 40), (0, 1, 0)):  # whatever was drawn before
        assert draws_of(store, 8, epoch, step, 2)[0].tolist() == epochs[epoch][step // 8]


@pytest.mark.parametrize("alone", [False, True])
def test_replay_goes_on_exactly_after_a_resume_in_the_middle_of_an_epoch(alone):
    def made(store=None):
        return PrioritySampler(store or ScoreStore(30, ReplayMixture(0.3, 12)), num_samples=96, batch_size=8, seed=9)

    whole = [list(sampler) for sampler in [made()] for _ in range(2)]
    sampler, drawn = made(), []
    for index in sampler:
        drawn.append(index)
        if len(drawn) == 40:
            sampler.skip()  # five times, one for each batch
            for _ in range(4):
                sampler.skip()
            state, of_store = sampler.consumed_state(), sampler.store.state_dict()
            break
    again = made()
    if not alone:
        again.store.load_state_dict(of_store)
    again.load_state_dict(state)
    assert drawn + list(again) == whole[0]
    assert list(again) == whole[1]
    assert sum(index < 12 for index in whole[0]) == math.floor(0.3 * 96)


def test_a_new_task_makes_all_before_it_the_pool():
    store = ScoreStore(10, ReplayMixture(0.5))
    sampler = PrioritySampler(store, batch_size=4, seed=1)
    assert sorted(sampler) == list(range(10))
    store.policy.begin_task(store, 16)
    assert (len(store), store.policy.state["boundary"], store.policy.config()["boundary"]) == (16, 10, 0)
    drawn = list(sampler)
    assert len(drawn) == 16
    assert all(sum(index < 10 for index in drawn[k : k + 4]) == 2 for k in range(0, 16, 4))
    assert len({index for index in drawn if index >= 10}) == 6  # eight draws: each once, and two again
    again = ScoreStore(16, ReplayMixture(0.5))
    again.load_state_dict(store.state_dict())
    store.policy.begin_task(store, 17)
    assert again.policy.state["boundary"] == 10
    assert store.policy.state["boundary"] == 16
    assert all(i.tolist().count(16) == 1 for i, _ in batches_of(store, [2] * 3))  # the only new one, in each batch


def test_replay_refuses_a_task_without_examples_and_changes_nothing():
    store = ScoreStore(10, ReplayMixture(0.5, 3))
    for size in (10, 4):
        with pytest.raises(ValueError, match=f"size = {size}"):
            store.policy.begin_task(store, size)
    assert (len(store), store.policy.state) == (10, {"boundary": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.1,), "replay = 1.1: expected 0 <= replay <= 1"),
        ((math.nan,), "replay = nan"),
        ((0.5, -1), "boundary = -1"),
    ],
)
def test_replay_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ScoreStore(10, ReplayMixture(*arguments))


# StaleSelectiveBackprop.


def plan_of(store, epoch, seed=0):
    store.begin_epoch(epoch)
    return store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))


def accepting(losses, beta):
    """P_i by definition."""
    return [(sum(other < loss for other in losses) / len(losses)) ** beta for loss in losses]


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_stale_sb_accepts_by_the_share_of_losses_below(beta):
    losses = [0.5, 0.5, -1.0, 2.0, 9.0, 9.0, 0.0, 3e38]
    store, n = ScoreStore(9, StaleSelectiveBackprop(beta)), 4000
    store.update([k + (k > 2) for k in range(8)], losses)  # example 3 was never scored
    trained = np.zeros(9)
    for seed in range(n):
        trained += plan_of(store, 1, seed).codes == TRAIN
    assert trained[3] == n
    for count, p in zip(np.delete(trained, 3), accepting(losses, beta), strict=True):
        assert p_value(np.array([count, n - count]), np.array([n * p, n - n * p])) > P_FAIL


@pytest.mark.parametrize("staleness", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 23])
def test_stale_sb_scores_exactly_the_stale_over_random_histories(staleness, size):
    store, rng = ScoreStore(size, StaleSelectiveBackprop(2.0, staleness)), generator(staleness)
    loss, due_in = [None] * size, [None] * size  # in how many decisions a loss has to be new
    for epoch in range(60):
        plan = plan_of(store, epoch)
        codes = plan.codes.tolist()
        for i in range(size):
            if loss[i] is None:
                assert codes[i] == TRAIN
                continue
            due_in[i] -= 1
            if codes[i] != TRAIN:
                assert codes[i] == (SCORE if due_in[i] <= 0 else OUT)
        if None not in loss and OUT not in codes and SCORE not in codes:
            assert size == 1 or len(set(loss)) > 1
        for at, losses, origin in history(size, 1000 * epoch + staleness, int(rng.integers(0, 4))):
            store.update(at, losses, origin=origin)
            if origin != "reference":
                for i, value in zip(at, losses, strict=True):
                    loss[i], due_in[i] = value, staleness - (origin == "train")
        assert [x for x, y in zip(store.column("loss").tolist(), loss, strict=True) if y is not None] == [
            y for y in loss if y is not None
        ]


@pytest.mark.parametrize("staleness", [1, 2, 3, 5])
@pytest.mark.parametrize("beta", [0.0, 1.0, 30.0])
def test_stale_sb_decides_by_no_loss_that_is_too_old_and_credits_each_to_its_example(staleness, beta):
    n, forwarded = 40, []
    loader = PriorityLoader(range(n), 8, policy=StaleSelectiveBackprop(beta, staleness), seed=staleness)
    learnt, known = [None] * n, [None] * n  # when and what; a score pass comes as the next epoch begins

    def loss_at(batch, time):
        return ((batch * 37 + time * 101) % 1009).float() / 64

    def loss_fn(model, batch):
        assert not model.training
        forwarded.extend(batch.tolist())
        return loss_at(batch, 2 * epoch + 1)

    for epoch in range(20):
        drawn = []
        for batch in loader:
            if not drawn:
                decided_by = [None if when is None else epoch - when for when in learnt]
            drawn += batch.tolist()
            loader.step(loss_at(batch, 2 * epoch))
        assert all(age is None or age < staleness for age in decided_by)
        codes = loader.sampler.plan.codes.tolist()
        assert sorted(drawn) == [i for i in range(n) if codes[i] == TRAIN]
        for i in drawn:
            learnt[i], known[i] = epoch, float(loss_at(torch.tensor(i), 2 * epoch))
        stale = [i for i in range(n) if epoch + 1 - learnt[i] >= staleness]
        forwarded.clear()
        assert loader.score(torch.nn.Linear(1, 1), loss_fn) == len(stale)
        assert sorted(forwarded) == stale
        for i in stale:
            learnt[i], known[i] = epoch + 1, float(loss_at(torch.tensor(i), 2 * epoch + 1))
        assert store_losses(loader) == known


def store_losses(loader):
    loader.flush()
    return loader.store.column("loss").tolist()


def test_an_example_that_is_always_left_out_is_forwarded_once_in_staleness_epochs():
    store = ScoreStore(3, StaleSelectiveBackprop(1.0, 4))
    store.update([0, 1, 2], [0.0, 1.0, 2.0], origin="score")
    codes = []
    for epoch in range(12):
        codes.append(int(plan_of(store, epoch).codes[0]))
        if codes[-1] == SCORE:
            store.update([0], [0.0], origin="score")
        store.update([1, 2], [1.0, 2.0])
    assert codes == [OUT, OUT, OUT, SCORE] * 3


def test_losses_that_nobody_brings_are_asked_for_in_every_epoch():
    store = ScoreStore(3, StaleSelectiveBackprop(1.0, 2))
    store.update([0, 1, 2], [0.0, 1.0, 2.0])
    assert [int(plan_of(store, epoch).codes[0]) for epoch in range(300)] == [SCORE] * 300
    assert store.column("age").tolist() == [255] * 3


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("loss", [0.0, -1.5, 3e38])
def test_stale_sb_trains_on_one_where_all_losses_are_alike(n, loss):
    store = ScoreStore(n, StaleSelectiveBackprop(3.0, 3))
    store.update(range(n), np.full(n, loss, f32), origin="score")
    plans = [plan_of(store, 1, seed).codes for seed in range(2)]
    assert all((codes == TRAIN).sum() == 1 for codes in plans)
    store.update(range(n), np.full(n, loss, f32))
    store.column("age")[:] = 2  # now there is something to score
    assert (plan_of(store, 2).codes == SCORE).all()


def test_stale_sb_trains_on_none_where_none_is_accepted_and_only_some_are_due():
    store = ScoreStore(4, StaleSelectiveBackprop(1e9, 3))
    store.update(range(4), [1.0, 2.0, 3.0, 4.0])
    store.column("age")[1] = 2
    assert plan_of(store, 1).codes.tolist() == [OUT, SCORE, OUT, OUT]


def test_the_one_that_stale_sb_trains_on_is_of_the_largest_losses_by_chance():
    n, met = 3000, np.zeros(4)
    for seed in range(n):
        store = ScoreStore(4, StaleSelectiveBackprop(1e9, 9))
        store.update(range(4), [1.0, 5.0, 5.0, 5.0])
        met += plan_of(store, 1, seed).codes == TRAIN
    assert met[0] == 0
    assert p_value(met[1:], np.full(3, n / 3)) > P_FAIL


def test_stale_sb_makes_the_same_plans_after_a_resume():
    def step(store, epoch):
        codes = plan_of(store, epoch).codes
        at = np.flatnonzero(codes == TRAIN)
        store.update(at, (at * 37 + epoch) % 101)
        return codes.tolist()

    store = ScoreStore(60, StaleSelectiveBackprop())
    for epoch in range(4):
        step(store, epoch)
    again = ScoreStore(60, StaleSelectiveBackprop())
    again.load_state_dict(store.state_dict())
    assert [step(again, epoch) for epoch in range(4, 9)] == [step(store, epoch) for epoch in range(4, 9)]


def test_new_examples_of_a_store_that_grew_are_trained_on_by_stale_sb():
    store = ScoreStore(5, StaleSelectiveBackprop())
    store.update(range(5), range(5))
    store.resize(9)
    assert (plan_of(store, 1).codes[5:] == TRAIN).all()
    assert store.column("age")[5:].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta = -1.0: expected a finite number >= 0"),
        ({"beta": math.inf}, "beta = inf"),
        ({"staleness": 0}, "staleness = 0"),
        ({"staleness": 256}, "staleness = 256"),
    ],
)
def test_stale_sb_refuses_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        StaleSelectiveBackprop(**arguments)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_every_example_has_the_least_chance_of_stale_sb(least):
    store = ScoreStore(200, StaleSelectiveBackprop(beta=3.0, least_chance=least))
    times = 0
    for epoch in range(300):
        store.update(range(200), [1.0] * 200)  # nothing is below anything
        codes = plan_of(store, epoch, seed=epoch).codes
        times += int((codes == TRAIN).sum())
    assert times / (300 * 200) == pytest.approx(least, abs=0.02)


def test_a_group_that_has_its_first_examples_does_not_take_over():
    store = ScoreStore(400, OnlineDataMixing([i % 2 for i in range(400)], 3, warm_up=0))
    for step in range(30):
        store.update(range(step, step + 20), [1.0] * 20)
    store.resize(420)
    store.column("group")[400:] = 2
    store.policy.regroup(store)
    store.update(range(400, 420), [1.0] * 20)  # as covering draws them
    for step in range(30):
        store.update([step, step + 1, 400 + step % 20], [1.0] * 3)
        assert store.policy.p()[2] < 0.5
    assert store.policy.p()[2] > 0.02


def test_a_reference_pass_leaves_losses_waiting_that_lag_holds_back():
    def run(reference):
        loader, batches = PriorityLoader(range(60), 10, policy=ScoreStore(60, "loss", epochs=3), lag=3), []
        for epoch in range(2):
            for number, batch in enumerate(loader):
                batches.append(batch.tolist())
                loader.step(batch.float() + epoch)
                if reference and number == 2:
                    loader.score(torch.nn.Identity(), lambda model, batch: batch.float(), origin="reference")
        return batches

    assert run(True) == run(False)
