"""Promise: NoiseGuard decides, sets aside and gives back as its definition says; where all is clean it does nothing."""

import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import generator
from rank_helpers import on_ranks
from sklearn.datasets import load_digits
from test_all_policies import losses_at
from test_store import state_of
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from fastprio import PriorityLoader, PrioritySampler, ScoreStore, policies, selectors
from fastprio._random import Rng
from fastprio.policies import SCORE, TRAIN, InfoBatch, LossPower, NoiseGuard, Policy, registered
from fastprio.policies.base import example
from fastprio.testing import assert_same_after_resume, made_up

f32 = np.float32
CHANCE = 2.0
EPOCHS = 8
WRAPPABLE = [
    name for name, of in registered().items() if of.__module__.startswith("fastprio.") and of is not NoiseGuard
]


def uneven(n, epoch):
    """Losses of few that hold most: of clean data."""
    return losses_at(n, epoch) ** 3


def alike(n, epoch):
    """Losses below chance, and none much larger than others."""
    return 1 + losses_at(n, epoch).remainder(0.5)


def noisy(n, epoch):
    """Losses above chance for two of five."""
    return alike(n, epoch) + 2 * (torch.arange(n) % 5 < 2)


def late(n, epoch):
    """Losses that are alike at first, and from epoch 2 on far above chance for two of five."""
    return alike(n, epoch) + (4 if epoch >= 2 else 0) * (torch.arange(n) % 5 < 2)


VERDICTS = {"clean": uneven, "unsafe": alike, "mislabeled": noisy}


def plan_of(store, epoch, seed=0):
    store.begin_epoch(epoch)
    return store.policy.plan(store, store.clock, Rng(seed, epoch, 0, "plan"))


def decided(verdict, size=40, epochs=None, **options):
    """A store whose guard has come to a verdict, in epoch 1."""
    store = ScoreStore(size, NoiseGuard(options.pop("inner", "loss"), CHANCE, **options), epochs=epochs)
    store.update(range(size), VERDICTS[verdict](size, 0).numpy(), origin="score")
    plan_of(store, 1)
    assert store.policy.verdict == verdict
    return store


class Training:
    """A loop over a guard, or over what may be in it, that writes down every batch and its weights."""

    def __init__(self, policy, size, losses, batch=8):
        store = policy if isinstance(policy, ScoreStore) else ScoreStore(size, policy, epochs=EPOCHS)
        self.loader = PriorityLoader(range(size), batch, policy=store, seed=3)
        self.losses, self.batches = losses, []

    def observed(self, batch, epoch):
        store = self.loader.store
        others = made_up(store.policy, len(store), generator(epoch))
        losses = self.losses(len(store), epoch)[batch]
        return losses, {name: torch.from_numpy(value)[batch] for name, value in others.items()}

    def run(self, begin, end):
        for epoch in range(begin, end):
            for batch in self.loader:
                weights = self.loader.weights
                losses, others = self.observed(batch, epoch)
                self.loader.step(losses, **others)
                self.batches.append((epoch, batch.tolist(), weights.tolist()))
            self.loader.score(nn.Identity(), lambda model, batch, epoch=epoch: self.observed(batch, epoch))
        return self


# The definition.


class PlainGuard:
    """What the docstring says, in exact fractions and lists."""

    def __init__(self, size, tau, clearly, share, momentum, most, back):
        self.tau, self.share, self.momentum = Fraction(str(tau)), Fraction(str(share)), momentum
        self.clearly = clearly
        self.most, self.back = Fraction(str(most)), Fraction(str(back))
        self.smoothed, self.verdict, self.probed = [None] * size, "undecided", 0.0

    def update(self, at, losses, origin):
        if origin == "reference":
            return
        momentum = 0.0 if self.verdict == "undecided" else self.momentum
        for i, loss in zip(at, losses, strict=True):
            before = loss if self.smoothed[i] is None else self.smoothed[i]
            self.smoothed[i] = float(f32(momentum * before + (1 - momentum) * loss))

    def suspects(self, clearly=1.0):
        return [i for i, s in enumerate(self.smoothed) if s is not None and s > float(f32(clearly * CHANCE))]

    def decide(self):
        losses = [Fraction(s) for s in self.smoothed if s is not None]
        n = len(losses)
        if self.verdict == "undecided" and sum(losses):
            squared = n * sum(s * s for s in losses) / sum(losses) ** 2
            self.probed = math.sqrt(squared)
            self.verdict = "clean" if squared >= self.tau**2 else "unsafe"
        if self.verdict == "unsafe" and len(self.suspects(self.clearly)) > self.share * n:
            self.verdict = "mislabeled"

    def check_aside(self, aside):
        """All of them; or as many as may be, and none with a smaller loss than one that is left."""
        suspects = self.suspects() if self.verdict == "mislabeled" else []
        count = min(len(suspects), math.floor(self.most * len(self.smoothed)))
        assert set(aside) <= set(suspects)
        assert len(aside) == count
        left = [self.smoothed[i] for i in set(suspects) - set(aside)]
        assert not left or not aside or max(left) <= min(self.smoothed[i] for i in aside)
        return count


# kind -> (losses, the verdicts that a store of 30 goes through after the first); ``since``: epochs since the probe.
HISTORIES = {
    "clean": (lambda rng, n, since: rng.exponential(size=n) ** 8, ["clean"]),
    "unsafe": (lambda rng, n, since: rng.uniform(0.8, 1.9, n), ["unsafe"]),
    "mislabeled": (lambda rng, n, since: rng.choice([0.5, 1.0, 3.0, 4.0], n), ["mislabeled"]),  # many are equal
    "late, for a while": (
        lambda rng, n, since: rng.uniform(0.8, 1.9, n) + 3 * (3 <= since < 18),
        ["unsafe", "mislabeled"],
    ),
    "zero": (lambda rng, n, since: np.zeros(n), []),
}


@pytest.mark.parametrize("kind", HISTORIES)
@pytest.mark.parametrize("size", [1, 2, 30])
@pytest.mark.parametrize(
    "options",
    [
        {"probe": 1, "tau": 1.75, "clearly": 1.2, "share": 0.15, "momentum": 0.5, "most": 0.7, "back": 0.05},
        {"probe": 3, "tau": 1.5, "clearly": 1.1, "share": 0.3, "momentum": 0.9, "most": 0.3, "back": 0.5},
        {"probe": 2, "tau": 2.0, "clearly": 1, "share": 0, "momentum": 0, "most": 0, "back": 0},
        {"probe": 2, "tau": 1.25, "clearly": 1.5, "share": 0.1, "momentum": 0.25, "most": 0.99, "back": 1},
    ],
)
def test_losses_verdict_suspects_and_codes_are_their_definition_over_random_histories(kind, size, options):
    probe = options["probe"]
    store = ScoreStore(size, NoiseGuard("loss", CHANCE, **options))
    plain = PlainGuard(size, **{name: value for name, value in options.items() if name != "probe"})
    rng, aside_once, verdicts = generator(size + probe), 0, ["undecided"]
    losses_of, expected = HISTORIES[kind]
    for epoch in range(30):
        plan = plan_of(store, epoch, seed=epoch)
        if epoch >= probe:
            plain.decide()
        if plain.verdict != verdicts[-1]:
            verdicts.append(plain.verdict)
        assert store.policy.verdict == plain.verdict
        assert store.policy.state["probed_tau"] == pytest.approx(plain.probed, rel=1e-12)
        assert np.flatnonzero(store.policy.suspects(store)).tolist() == plain.suspects()
        assert np.flatnonzero(store.policy.suspects(store, 1.25)).tolist() == plain.suspects(1.25)
        aside = np.flatnonzero(store.policy.aside(store)).tolist()
        count = plain.check_aside(aside)
        if epoch < probe:
            assert plan.codes is None
            assert plan.score == ((TRAIN,) if epoch == probe - 1 else ())
        elif plain.verdict == "clean":
            assert plan is None  # as the inner policy's
        else:
            codes = plan.codes.tolist()
            back = max(math.ceil(Fraction(str(plain.back)) * count), min(count, 1))
            assert set(codes) <= {TRAIN, SCORE}
            assert {i for i, code in enumerate(codes) if code == SCORE} <= set(aside)
            assert codes.count(SCORE) == count - back
            assert (plan.score, plan.weights[TRAIN], plan.weights[SCORE]) == ((SCORE,), 1, 0)
            assert plan.info == {"verdict": plain.verdict, "aside": count}
            aside_once += count
        for _ in range(int(rng.integers(0, 4)) + (epoch == probe - 1)):
            at = rng.integers(0, size, rng.integers(0, 2 * size + 1)).tolist()
            if epoch == probe - 1:
                at += range(0, size, 2)  # enough for a verdict that can be foretold
            losses = losses_of(rng, len(at), epoch - probe).astype(f32)
            origin = "score" if epoch == probe - 1 else str(rng.choice(["train", "score", "reference"]))
            store.update(at, losses, origin=origin)
            plain.update(at, losses.tolist(), origin)
            known = [i for i, s in enumerate(plain.smoothed) if s is not None]
            assert store.column("smoothed")[known].tolist() == [plain.smoothed[i] for i in known]
    if size == 30:
        assert verdicts == ["undecided", *expected]
        assert (aside_once > 0) == (expected[-1:] == ["mislabeled"] and options["most"] > 0)


@pytest.mark.parametrize(("loss", "suspect"), [(CHANCE, False), (np.nextafter(f32(CHANCE), f32(9)), True)])
def test_a_loss_of_exactly_chance_is_no_suspects(loss, suspect):
    store = ScoreStore(4, NoiseGuard("loss", CHANCE))
    store.update([1], [loss])
    assert store.policy.suspects(store).tolist() == [False, suspect, False, False]


def test_which_of_equal_losses_are_set_aside_is_by_chance_and_others_in_each_epoch():
    store = ScoreStore(40, NoiseGuard("loss", CHANCE, most=0.5, back=0.0))
    store.update(range(40), np.full(40, 5.0))
    sets = []
    for epoch in range(1, 9):
        plan_of(store, epoch)
        sets.append(frozenset(np.flatnonzero(store.policy.aside(store))))
        assert len(sets[-1]) == 20
    assert len(set(sets)) == 8
    assert frozenset.union(*sets) == frozenset(range(40))


def test_others_come_back_each_epoch():
    store = decided("mislabeled")
    trained = [frozenset(np.flatnonzero(plan_of(store, e).codes == TRAIN)) for e in range(2, 8)]
    assert {len(each) for each in trained} == {40 - 16 + 1}
    assert len(set(trained)) > 2


# It cannot stall, and loses nothing for good.


def sets_of_an_epoch(loader, observed):
    """(set aside at its beginning, trained on in it)."""
    store, aside, trained = loader.store, None, []
    for batch in loader:
        if aside is None:
            aside = set(np.flatnonzero(store.policy.aside(store)).tolist())
        indices, losses = observed(batch)
        trained += indices.tolist()
        loader.step(losses)
    return aside, trained


def check_epoch(aside, trained, n, most, back):
    assert trained
    assert len(trained) == len(set(trained))
    assert len(aside) <= math.floor(Fraction(str(most)) * n)
    assert set(range(n)) - aside <= set(trained)
    assert Fraction(str(back)) * len(aside) <= len(aside & set(trained))
    assert len(aside & set(trained)) < max(Fraction(str(back)) * len(aside), min(len(aside), 1)) + 1


@pytest.mark.parametrize(("most", "back"), [(0.7, 0.05), (0.99, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize(("lr", "share", "first"), [(1.0, 0.15, 1), (0.7, 0.235, 2)])
def test_a_training_on_random_labels_goes_on(lr, share, first, most, back):
    n, rng = 150, generator(1)
    x, y = torch.from_numpy(rng.normal(size=(n, 8))).float(), torch.from_numpy(rng.integers(0, 5, n))
    torch.manual_seed(0)
    model = nn.Linear(8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    policy = NoiseGuard("loss", math.log(5), share=share, most=most, back=back)
    loader = PriorityLoader(TensorDataset(torch.arange(n), x, y), 16, policy=policy)

    def losses_of(model, batch):
        return F.cross_entropy(model(batch[1]), batch[2], reduction="none")

    def step(batch):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        return batch[0], losses

    ever = set()
    for epoch in range(8):
        aside, trained = sets_of_an_epoch(loader, step)
        loader.score(model, losses_of)
        check_epoch(aside, trained, n, most, back)
        assert loader.store.policy.verdict == (
            "undecided" if epoch == 0 else "unsafe" if epoch < first else "mislabeled"
        )
        assert (len(aside) > 0) == (epoch >= first)
        ever |= set(trained) if epoch >= first else set()
    assert len(ever) > n * (1 - most)


@pytest.mark.parametrize("n", [1, 2, 3, 41])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1.0, 5.0, 3e38])
@pytest.mark.parametrize(("most", "back"), [(0.7, 0.05), (0.99, 0.0), (0.0, 1.0)])
def test_losses_that_are_all_equal_all_huge_or_all_zero_stop_nothing(n, value, most, back):
    loader = PriorityLoader(range(n), 8, policy=NoiseGuard("loss", CHANCE, most=most, back=back))
    for epoch in range(5):
        aside, trained = sets_of_an_epoch(loader, lambda batch: (batch, torch.full((len(batch),), value)))
        loader.score(nn.Identity(), lambda model, batch: torch.full((len(batch),), value))
        check_epoch(aside, trained, n, most, back)
        assert len(aside) == (math.floor(Fraction(str(most)) * n) if epoch and value > CHANCE else 0)
    assert loader.store.policy.verdict == ("undecided" if value == 0 else "mislabeled" if value > CHANCE else "unsafe")


def test_what_is_set_aside_comes_back_when_its_loss_falls_and_goes_when_it_rises():
    store = ScoreStore(10, NoiseGuard("loss", CHANCE, back=0.0))
    store.update(range(10), [4.0] * 4 + [1.0] * 6)
    asides = []
    for epoch, loss in enumerate([4.0, 0.5, 0.5, 5.0, 5.0], 1):
        plan_of(store, epoch)
        asides.append(int(store.policy.aside(store).sum()))
        store.update(range(4), [loss] * 4, origin="score")  # smoothed by half: 4, 2.25, 1.375, 3.19, 4.1
    assert asides == [4, 4, 4, 0, 4]
    assert plan_of(store, 6).codes.tolist().count(SCORE) == 3


def test_with_drop_last_an_epoch_that_is_left_less_than_a_batch_says_so():
    losses = torch.where(torch.arange(40) < 30, 3.0, 1.0)  # 30 suspects, of which 28 may be set aside, 1 comes back
    loader = PriorityLoader(range(40), 16, policy=NoiseGuard("uniform", CHANCE, back=0.0), drop_last=True, seed=0)

    def epoch():
        sizes = []
        for batch in loader:
            loader.step(losses[batch])
            sizes.append(len(batch))
        loader.score(nn.Identity(), lambda model, batch: losses[batch])
        return sizes

    assert epoch() == [16, 16]
    with pytest.warns(UserWarning, match=r"^epoch 1 has no batch: it has 13 examples, a batch 16, and drop_last"):
        assert epoch() == []
    assert loader.store.policy.verdict == "mislabeled"


def test_examples_never_scored_are_trained_on():
    store = decided("mislabeled", size=40)
    store.resize(60)
    codes = plan_of(store, 2).codes
    assert (codes[40:] == TRAIN).all()
    assert (codes == SCORE).sum() == 15
    store.update([45, 50], [9.0, 9.0])
    assert np.flatnonzero(store.policy.aside(store))[-2:].tolist() == [45, 50]


@pytest.mark.parametrize(("n", "equal", "verdict"), [(26, 9, "unsafe"), (55, 19, "clean")])
def test_tau_decides_at_1_7_unless_told(n, equal, verdict):
    store = ScoreStore(n, NoiseGuard("loss", CHANCE))
    store.update(range(n), [1.0] * equal + [0.0] * (n - equal))  # tau = sqrt(n / equal): 1.6997 and 1.7014
    plan_of(store, 1)
    assert store.policy.verdict == verdict


@pytest.mark.parametrize("seen", [40, 80])
@pytest.mark.parametrize("late", [False, True])
def test_clearly_decides_of_more_than_the_share_of_the_seen_and_chance_what_is_set_aside(late, seen):
    store = ScoreStore(80, NoiseGuard("loss", CHANCE, momentum=0.0))
    above, few = np.nextafter(f32(1.2 * CHANCE), f32(9)), seen * 15 // 100  # 0.15, a whole number
    store.update(range(seen), [1.9] * seen)
    plan_of(store, 1)
    if not late:
        store = ScoreStore(80, NoiseGuard("loss", CHANCE, momentum=0.0))
    # Many are worse than a guess and not clearly so; clearly worse are just the share, which is not more.
    store.update(range(seen), [above] * few + [f32(1.2 * CHANCE)] * 7 + [2.1] * 3 + [1.9] * (seen - few - 10))
    plan = plan_of(store, 2)
    assert store.policy.verdict == "unsafe"
    assert (plan.codes == TRAIN).all()
    assert store.policy.suspects(store).sum() == few + 10
    assert np.flatnonzero(store.policy.suspects(store, 1.2)).tolist() == list(range(few))
    store.update([few], [above])
    plan_of(store, 3)
    assert store.policy.verdict == "mislabeled"
    assert np.flatnonzero(store.policy.aside(store)).tolist() == list(range(few + 10))


def test_unsafe_becomes_mislabeled_in_whichever_later_epoch_and_never_goes_back():
    for turn in (2, 3, 6):
        store = decided("unsafe")
        for epoch in range(2, turn):
            plan_of(store, epoch)
            assert store.policy.verdict == "unsafe"
        store.update(range(40), late(40, 2).numpy())
        assert store.policy.verdict == "unsafe"  # until an epoch begins
        plan_of(store, turn)
        assert store.policy.verdict == "mislabeled"
        assert np.flatnonzero(store.policy.aside(store)).tolist() == [i for i in range(40) if i % 5 < 2]
        tau = store.policy.state["probed_tau"]
        for epoch, losses in enumerate([alike, alike, alike, uneven, noisy], turn + 1):
            store.update(range(40), losses(40, 0).numpy())
            plan_of(store, epoch)
            assert (store.policy.verdict, store.policy.state["probed_tau"]) == ("mislabeled", tau)
        assert store.policy.aside(store).any()


def test_clean_stays_clean_whatever_comes():
    store = decided("clean")
    tau = store.policy.state["probed_tau"]
    for epoch, losses in enumerate([noisy, alike, lambda n, epoch: torch.full((n,), 99.0)], 2):
        store.update(range(40), losses(40, 0).numpy())
        assert plan_of(store, epoch) is None
        assert (store.policy.verdict, store.policy.state["probed_tau"]) == ("clean", tau)
    assert store.policy.suspects(store, 1.2).all()
    assert not store.policy.aside(store).any()


def test_losses_that_stay_alike_stay_unsafe_however_uneven_they_become_below_chance():
    store = decided("unsafe")
    for epoch, losses in enumerate([uneven, alike, uneven], 2):
        store.update(range(40), losses(40, 0).numpy().clip(max=CHANCE))
        plan = plan_of(store, epoch)
        assert store.policy.verdict == "unsafe"
        assert (plan.codes == TRAIN).all()


# Where all is clean, the inner policy is as if alone.


def without_guard(state, alone):
    """A loader's state of a guard that is about to decide, as that of a store of its inner policy."""
    store = dict(state["store"])
    for name in ("policy", "policy_config"):
        store[name] = alone.state_dict()[name]
    store["policy_state"] = {k: v for k, v in store["policy_state"].items() if k not in ("verdict", "probed_tau")}
    store["columns"] = {k: v for k, v in store["columns"].items() if k != "smoothed"}
    store["arrays"] = {k: v for k, v in store["arrays"].items() if k != "smoothed"}
    return {**state, "store": store}


def prepared(policy, inner, size):
    """A training whose policy was given all that the inner one wants beside losses."""
    training = Training(policy, size, uneven)
    store = training.loader.store
    if hasattr(inner, "regroup"):
        store.column("group")[:] = np.arange(size) * 7 % inner.count
        inner.regroup(store)
    if inner.name == "given":
        store.set_priorities(np.arange(size), np.arange(size) % 3 + 1)
    others = made_up(store.policy, size, generator(99))
    store.update(np.arange(size), np.arange(size) % 5 + 0.5, origin="reference", **others)
    return training


@pytest.mark.parametrize("name", WRAPPABLE)
@pytest.mark.parametrize("probe", [1, 3])
def test_where_the_data_are_clean_the_inner_policy_does_what_it_does_alone(name, probe):
    size = 41
    guard = NoiseGuard(example(name), CHANCE, probe=probe)
    guarded = prepared(guard, guard.wrapped, size).run(0, probe)
    file = io.BytesIO()
    torch.save(guarded.loader.state_dict(), file)
    file.seek(0)
    alone = Training(example(name), size, uneven)
    alone.loader.load_state_dict(without_guard(torch.load(file, weights_only=True), alone.loader.store))
    if hasattr(alone.loader.store.policy, "regroup"):
        alone.loader.store.policy.regroup(alone.loader.store)
    before = len(guarded.batches)
    guarded.run(probe, EPOCHS)
    alone.run(probe, EPOCHS)
    assert guard.verdict == "clean"
    assert guarded.batches[before:] == alone.batches
    assert len(alone.batches) > 3
    one, other = guarded.loader.store, alone.loader.store
    assert one.priorities.tobytes() == other.priorities.tobytes()
    for column in other.types:
        assert one.column(column).tobytes() == other.column(column).tobytes(), column
    assert repr({k: v for k, v in guard.state.items() if k in other.policy.state}) == repr(other.policy.state)


@pytest.mark.parametrize("name", WRAPPABLE)
def test_until_it_is_decided_the_inner_policy_learns_as_it_does_alone(name):
    guard, inner, rng = NoiseGuard(example(name), CHANCE), example(name), generator(4)
    guarded, alone = (prepared(p, q, 23).loader.store for p, q in ((guard, guard.wrapped), (inner, inner)))
    for _ in range(6):
        at = rng.integers(0, 23, 5)
        losses, others = rng.exponential(size=5), made_up(guard, 5, rng)
        for store in (guarded, alone):
            store.update(np.append(at, at[:2]), np.append(losses, losses[:2] + 1), **{
                key: np.append(value, value[:2]) for key, value in others.items()
            })  # fmt: skip
        assert guarded.priorities.tobytes() == alone.priorities.tobytes()
        for column in alone.types:
            assert guarded.column(column).tobytes() == alone.column(column).tobytes(), column


@pytest.mark.parametrize("name", WRAPPABLE)
def test_of_a_resized_store_the_inner_policy_makes_what_it_does_alone(name):
    guard, inner = NoiseGuard(example(name), CHANCE), example(name)
    guarded, alone = (prepared(p, q, 23).loader.store for p, q in ((guard, guard.wrapped), (inner, inner)))
    for size in (31, 12):
        for store in (guarded, alone):
            store.update(np.arange(12), uneven(12, 0).numpy(), **made_up(store.policy, 12, generator(size)))
            store.resize(size)
        for column in alone.types:
            assert guarded.column(column).tobytes() == alone.column(column).tobytes(), column
        assert repr({k: v for k, v in guard.state.items() if k in inner.state}) == repr(inner.state)
        assert len(guarded.column("smoothed")) == size


@pytest.mark.parametrize("name", WRAPPABLE)
@pytest.mark.parametrize("verdict", ["unsafe", "mislabeled"])
def test_where_there_is_noise_epochs_are_uniform_and_unweighted_whatever_is_inside(name, verdict):
    guard = NoiseGuard(example(name), CHANCE)
    training = prepared(guard, guard.wrapped, 41)
    training.losses = VERDICTS[verdict]
    training.run(0, 4)
    assert guard.verdict == verdict
    for epoch in range(4):
        drawn = [i for e, batch, _ in training.batches for i in batch if e == epoch]
        assert len(drawn) == len(set(drawn)) == (41 if verdict == "unsafe" or epoch == 0 else 41 - 17 + 1)
    assert {w for *_, weights in training.batches for w in weights} == {1.0}


def test_what_the_inner_policy_cannot_do_its_guard_cannot_either():
    with pytest.raises(ValueError, match="draws in its own way"):
        PrioritySampler(ScoreStore(40, NoiseGuard("rank", CHANCE), epochs=4), batch_size=8, scheme="unique")
    with pytest.raises(ValueError, match="sets examples aside"):
        PrioritySampler(ScoreStore(40, NoiseGuard("evolved", CHANCE, {"prune": 0.5})), batch_size=8, replacement=False)
    with pytest.raises(ValueError, match="its weights are relative to a batch"):
        next(iter(PrioritySampler(ScoreStore(40, NoiseGuard("active_bias", CHANCE)))))
    needing = [name for name in WRAPPABLE if example(name).needs_epochs]
    assert needing
    for name in needing:
        with pytest.raises(ValueError, match="epochs="):
            ScoreStore(40, NoiseGuard(example(name), CHANCE))
    with pytest.raises(TypeError, match=r"also needs .*confidence"):
        ScoreStore(40, NoiseGuard("kakurenbo", CHANCE, {"warm_up": 1})).update([1], [1.0], correct=[1])
    store = ScoreStore(40, NoiseGuard("infobatch", CHANCE), epochs=4)
    with pytest.raises(ValueError, match=r"losses\[1\] = -1.0: policy 'noise_guard' expects losses >= 0"):
        store.update([1, 2], [1.0, -1.0])


def test_a_guard_around_a_policy_over_groups_is_given_its_groups_by_wrapped():
    store = ScoreStore(40, NoiseGuard(example("group_dro"), CHANCE), epochs=4)
    inner = store.policy.wrapped
    store.column("group")[:] = np.arange(40) % inner.count
    inner.regroup(store)
    assert store.policy.state["begins"].tolist() == np.linspace(0, 40, inner.count + 1).tolist()


# Saved, resumed, undone, made again.


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("inner", ["loss", "infobatch", "repb", "rank"])
def test_a_run_goes_on_to_the_bit_from_within_an_epoch_and_around_the_decision(verdict, inner):
    size = 41

    def make_loader():
        guard = NoiseGuard(example(inner), CHANCE, probe=2)
        return PriorityLoader(range(size), 8, policy=ScoreStore(size, guard, epochs=5), seed=2)

    def observed(loader, batch):
        store = loader.store
        others = made_up(store.policy, size, generator(store.clock.epoch))
        losses = VERDICTS[verdict](size, store.clock.epoch)[batch]
        return losses, {name: torch.from_numpy(value)[batch] for name, value in others.items()}

    def train_step(loader, batch):
        losses, others = observed(loader, batch)
        loader.step(losses, **others)

    verdicts = []

    def after_epoch(loader):
        loader.score(nn.Identity(), lambda model, batch: observed(loader, batch))
        verdicts.append(loader.store.policy.verdict)

    # Six steps an epoch: 12 is the end of probing, 13 the first after the decision.
    points = (0, 3, 6, 11, 12, 13, 15)
    assert_same_after_resume(make_loader, train_step, epochs=5, at=points, after_epoch=after_epoch)
    assert verdicts[:5] == ["undecided"] * 2 + [verdict] * 3


class Counting(Policy):
    """Counts what it sees, in place and anew, and fails on a loss of 13."""

    columns = {"last": "float32"}  # noqa: RUF012

    def __init__(self, ceiling=9.0):
        self.ceiling = ceiling
        self.state = {"rows": 0, "sums": np.zeros(2)}

    def observe(self, columns, indices, obs, clock, rng):
        self.state["rows"] += len(indices)
        self.state["sums"][0] += float(obs.loss.sum())
        columns["last"][indices] = obs.loss
        if (obs.loss == 13).any():
            self.state["other"] = 1
            raise RuntimeError("thirteen")
        return np.minimum(obs.loss, self.ceiling)


def test_a_failed_observation_is_undone_in_the_guard_and_in_what_it_wraps():
    for verdict in VERDICTS:
        store = decided(verdict, inner=Counting())
        guard, before = store.policy, state_of(store)
        assert guard.state is guard.wrapped.state
        with pytest.raises(RuntimeError, match="thirteen"):
            store.update([1, 2, 3], [1.0, 13.0, 2.0])
        assert state_of(store) == before
        assert guard.state is guard.wrapped.state
        assert guard.state["rows"] == 40
        store.update([1, 2], [1.0, 2.0])
        assert guard.wrapped.state["rows"] == 42


def test_a_loaded_state_is_that_of_both():
    store = decided("mislabeled", inner=Counting())
    again = ScoreStore(40, NoiseGuard(Counting(), CHANCE))
    again.load_state_dict(store.state_dict())
    assert again.policy.state is again.policy.wrapped.state
    assert (again.policy.verdict, again.policy.wrapped.state["rows"]) == ("mislabeled", 40)
    again.update([1], [1.0])
    assert (again.policy.state["rows"], store.policy.state["rows"]) == (41, 40)


def test_a_file_makes_a_guard_again_around_a_policy_of_ones_own(tmp_path):
    store = decided("mislabeled", inner=Counting(ceiling=3.0))
    store.save(tmp_path / "store")
    again = ScoreStore.load(tmp_path / "store")
    assert state_of(again) == state_of(store)
    assert isinstance(again.policy.wrapped, Counting)
    assert again.policy.wrapped.ceiling == 3.0
    assert plan_of(again, 2).codes.tolist() == plan_of(store, 2).codes.tolist()


@pytest.mark.parametrize("name", WRAPPABLE)
def test_config_makes_it_again(name):
    guard = NoiseGuard(example(name), 2.5, probe=2, tau=2, clearly=1.5, share=0.25, momentum=0.75, most=0.5, back=0.125)
    config = guard.config()
    assert config["inner"] == name
    assert config["clearly"] == guard.clearly == 1.5
    again = NoiseGuard(**config)
    assert again.config() == config
    assert again.wrapped.config() == guard.wrapped.config() == example(name).config()
    by_name = NoiseGuard(name, 2.5, example(name).config() or None)
    assert by_name.inner_config == guard.inner_config
    assert {**by_name.columns, "smoothed": "float32"} == guard.columns


def test_the_given_policy_is_copied():
    inner = InfoBatch(ratio=0.25)
    guard = NoiseGuard(inner, CHANCE)
    ScoreStore(40, guard, epochs=4).update([1], [1.0])
    assert guard.wrapped is not inner
    assert (inner._owner, inner.state) == (None, {})
    assert guard.wrapped.ratio == 0.25
    NoiseGuard(inner, CHANCE)  # and so may be given again
    ScoreStore(40, inner, epochs=4)


def test_a_policy_that_has_learnt_is_refused():
    inner = LossPower()
    ScoreStore(4, inner).update([1], [1.0])
    with pytest.raises(ValueError, match=r"^inner = LossPower\(.*\): it has learnt already; make a new one$"):
        NoiseGuard(inner, CHANCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": "nothing"}, r"^inner = 'nothing', inner_config = None: policy = 'nothing': expected a Policy"),
        ({"inner": None}, r"^inner = None: expected a Policy or its name$"),
        ({"inner": LossPower}, r"^inner = <class .*: expected a Policy or its name$"),
        ({"inner": selectors.TopLoss(8)}, r"^inner = TopLoss\(.*: expected a Policy or its name$"),
        ({"inner": "kakurenbo"}, r"^inner = 'kakurenbo'.*no defaults for warm_up="),
        ({"inner": LossPower(), "inner_config": {}}, r"^inner_config = \{\}: LossPower\(.*has its arguments already$"),
        ({"inner_config": {"alfa": 1}}, r"^inner = 'loss', inner_config = \{'alfa': 1\}: .*alfa"),
        ({"inner_config": {"alpha": "x"}}, r"inner_config = \{'alpha': 'x'\}: alpha = 'x': expected"),
        *(({"inner_config": bad}, r"^inner = 'loss', inner_config = ") for bad in (5, "ab", [], 0, False, {1: 2})),
        *(({"chance": bad}, r"^chance = .*: expected a finite number > 0") for bad in (0, -1, math.inf, None, "2")),
        *(({"probe": bad}, r"^probe = ") for bad in (0, -1)),
        *(({"tau": bad}, r"^tau = .*: expected a finite number >= 1") for bad in (0.99, math.nan, "2")),
        *(({"clearly": bad}, r"^clearly = .*: expected a finite number > 0") for bad in (0, -1, math.nan, None, "2")),
        *(({"share": bad}, r"^share = .*0 <= share <= 1") for bad in (-0.1, 1.1, None)),
        *(({"momentum": bad}, r"^momentum = .*0 <= momentum < 1") for bad in (-0.1, 1, None)),
        *(({"most": bad}, r"^most = .*0 <= most < 1") for bad in (-0.1, 1.0, None)),
        *(({"back": bad}, r"^back = .*0 <= back <= 1") for bad in (-0.1, 1.1, None)),
        ({"inner": NoiseGuard("loss", 2.0)}, r"^inner = NoiseGuard\(.*expected a policy without a column 'smoothed'$"),
        (
            {"inner": "noise_guard", "inner_config": {"inner": "loss", "chance": 2.0}},
            r"^inner = NoiseGuard\(.*expected a policy without a column 'smoothed'$",
        ),
    ],
)
def test_an_argument_that_is_none_is_refused_by_its_name_and_value(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        NoiseGuard(**{"inner": "loss", "chance": 2.0, **arguments})
    assert "\n" not in str(error.value)


HISTORIES_TO = {**{verdict: (losses, verdict) for verdict, losses in VERDICTS.items()}, "late": (late, "mislabeled")}


def verdict_on_a_rank(rank, ranks, history):
    losses, _ = HISTORIES_TO[history]
    loader = PriorityLoader(range(48), 8 // ranks, policy=NoiseGuard("loss", CHANCE), seed=1)
    epochs = []
    for epoch in range(4):
        mine = []
        for batch in loader:
            mine += batch.tolist()
            loader.step(losses(48, epoch)[batch])
        loader.score(nn.Identity(), lambda model, batch, epoch=epoch: losses(48, epoch)[batch])
        epochs.append(sorted(mine))
    store = loader.store
    return store.policy.verdict, store.policy.aside(store).tolist(), store.column("smoothed").tolist(), epochs


@pytest.mark.parametrize("history", HISTORIES_TO)
def test_two_ranks_come_to_one_verdict_and_set_the_same_aside(history):
    _, verdict = HISTORIES_TO[history]
    one, other = on_ranks(2, verdict_on_a_rank, 2, history)
    assert one[0] == verdict
    assert one[:3] == other[:3]
    assert any(one[1]) == (verdict == "mislabeled")
    if verdict != "clean":
        _, _, _, alone = verdict_on_a_rank(0, 1, history)
        for of_one, of_other, of_alone in zip(one[3], other[3], alone, strict=True):
            assert set(of_one) | set(of_other) >= set(of_alone)
            assert not set(of_one) & set(of_other) or len(of_alone) % 8  # padded, where it does not divide


# The selector.


class Loop:
    """Examples are their numbers, and losses a function of number and epoch; writes down what is scored and yielded."""

    def __init__(self, selector, losses, size=96, batch=16, inner="uniform"):
        self.loader = PriorityLoader(range(size), batch, policy=NoiseGuard(inner, CHANCE), epochs=EPOCHS, seed=5)
        self.selector, self.losses, self.size = selector, losses, size
        self.scored, self.yielded, self.means = [], [], []

    def run(self, begin, end):
        for epoch in range(begin, end):

            def of(batch, epoch=epoch):
                return self.losses(self.size, epoch)[batch]

            def score(batch, epoch=epoch, of=of):
                self.scored.append((epoch, batch.tolist()))
                return of(batch) if self.selector.networks == 1 else torch.stack([of(batch), of(batch).flip(0)])

            for batch in self.selector.batches(self.loader, score):
                parts = [batch] if self.selector.networks == 1 else batch
                self.yielded.append((epoch, [part.tolist() for part in parts]))
                self.means.append([float(self.selector.mean(of(part))) for part in parts])
            self.loader.score(nn.Identity(), lambda model, batch, of=of: of(batch))
        return self

    def of_epoch(self, epoch, which=0):
        return [i for e, parts in self.yielded for i in parts[which] if e == epoch]


INNER = {
    "SelectiveBackprop": lambda: selectors.SelectiveBackprop(16, beta=1.0, seed=4),
    "VarianceReduction": lambda: selectors.VarianceReduction(16, seed=4),
    "always reducing variance": lambda: selectors.VarianceReduction(8, threshold=0.0, seed=4),
    "TopLoss": lambda: selectors.TopLoss(16, count=4),
    "SmallLoss": lambda: selectors.SmallLoss(16, 0.5, over=2),
    "CoTeaching": lambda: selectors.CoTeaching(16, 0.5, over=2),
}


@pytest.mark.parametrize("inner", INNER)
def test_until_it_is_decided_batches_are_trained_on_whole_and_unscored(inner):
    loop = Loop(selectors.NoiseGuard(INNER[inner]()), uneven)
    assert loop.selector.verdict == "undecided"
    loop.run(0, 1)
    assert loop.scored == []
    for which in range(loop.selector.networks):
        assert sorted(loop.of_epoch(0, which)) == list(range(96))
    assert loop.selector.weights is None


@pytest.mark.parametrize("inner", INNER)
def test_where_the_data_are_clean_the_selection_is_the_inner_selectors(inner):
    guarded = Loop(selectors.NoiseGuard(INNER[inner]()), uneven).run(0, 1)
    alone = Loop(INNER[inner](), uneven)
    alone.loader.load_state_dict(guarded.loader.state_dict())
    alone.selector.steps, alone.selector.passes = guarded.selector.steps, guarded.selector.passes
    before = len(guarded.yielded)
    guarded.run(1, 4)
    alone.run(1, 4)
    assert guarded.selector.verdict == "clean"
    assert guarded.yielded[before:] == alone.yielded
    assert guarded.means[before:] == alone.means
    assert guarded.scored == alone.scored
    assert repr(guarded.selector.state_dict()["state"]) == repr(alone.selector.state_dict()["state"])
    if inner != "VarianceReduction":  # which finds these even enough
        assert alone.scored
        assert [sorted(alone.of_epoch(epoch)) for epoch in (1, 2, 3)] != [list(range(96))] * 3


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("verdict", ["unsafe", "mislabeled"])
def test_under_noise_every_batch_is_scored_and_trained_on_whole(inner, verdict):
    loop = Loop(selectors.NoiseGuard(INNER[inner]()), VERDICTS[verdict]).run(0, 4)
    assert loop.selector.verdict == verdict
    for epoch in (1, 2, 3):
        offered = [i for e, batch in loop.scored for i in batch if e == epoch]
        assert len(offered) == (96 if verdict == "unsafe" else 96 - 39 + 2)  # two of five are set aside, but for 5 %
        for which in range(loop.selector.networks):
            assert loop.of_epoch(epoch, which) == offered
    assert repr(loop.selector.state_dict()["state"]) == repr(INNER[inner]().state_dict()["state"])


def agreed_on_a_rank(rank, ranks):
    loop = Loop(selectors.NoiseGuard(INNER["VarianceReduction"]()), uneven, size=384, batch=48).run(0, 4)
    assert loop.selector.verdict == "clean"
    return loop.selector.state["agreed"], loop.selector.state["tau"]


def test_ranks_agree_through_the_guard():
    (one, own), (other, others) = on_ranks(2, agreed_on_a_rank, 2)
    assert one == other != 0
    assert own != others
    assert min(own, others) / 2 < one < max(own, others)


def test_a_loader_without_the_policy_is_refused_at_once():
    selector = selectors.NoiseGuard(selectors.TopLoss(8))
    for loader in (PriorityLoader(range(9), 8, policy="uniform"), [torch.arange(8)], None):
        with pytest.raises(ValueError, match=r"^loader: its policy is .*: expected a PriorityLoader with policy="):
            selector.batches(loader, lambda batch: batch)
    assert selector.verdict == "undecided"


@pytest.mark.parametrize("inner", INNER)
def test_a_guarded_selector_goes_on_from_its_state(inner):
    whole = Loop(selectors.NoiseGuard(INNER[inner]()), uneven).run(0, 4)
    first = Loop(selectors.NoiseGuard(INNER[inner]()), uneven).run(0, 2)
    file = io.BytesIO()
    torch.save([first.loader.state_dict(), first.selector.state_dict()], file)
    file.seek(0)
    again = Loop(selectors.NoiseGuard(INNER[inner]()), uneven)
    loader, selector = torch.load(file, weights_only=True)
    again.loader.load_state_dict(loader)
    again.selector.load_state_dict(selector)
    assert again.selector.state is again.selector._inner.state
    again.run(2, 4)
    assert first.yielded + again.yielded == whole.yielded
    assert first.means + again.means == whole.means


def test_a_state_of_another_selector_changes_nothing():
    guard = selectors.NoiseGuard(selectors.SelectiveBackprop(16, beta=1.0))
    before = repr(guard.state_dict())
    for other in (selectors.NoiseGuard(selectors.SelectiveBackprop(16)), selectors.SelectiveBackprop(16, beta=1.0)):
        with pytest.raises(ValueError, match=r"the state's (config|selector) is"):
            guard.load_state_dict(other.state_dict())
    assert repr(guard.state_dict()) == before


def test_a_guarded_selector_is_a_copy_of_what_was_given_and_its_config_makes_it_again():
    for make_inner in INNER.values():
        inner = make_inner()
        guard = selectors.NoiseGuard(inner)
        Loop(guard, uneven).run(0, 3)
        assert inner.steps == 0
        assert repr(inner.state) == repr(make_inner().state)
        again = selectors.NoiseGuard(**guard.config())
        assert again.config() == guard.config()
        assert again._inner.config() == inner.config()
        assert (again.batch_size, again.networks) == (inner.batch_size, inner.networks)


def used():
    selector = selectors.TopLoss(8)
    list(selector.batches([torch.arange(8.0)], lambda batch: batch))
    return selector


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": "nothing"}, r"^inner = 'nothing', inner_config = None: selector = 'nothing'"),
        ({"inner": None}, r"^inner = None: expected a Selector or its name"),
        (
            {"inner": LossPower()},
            r"^inner = LossPower\(.*: expected a Selector or its name$",
        ),
        ({"inner": "top_loss"}, r"^inner = 'top_loss'.*no defaults for batch_size="),
        ({"inner": "top_loss", "inner_config": {"batch_size": 0}}, r"^inner = 'top_loss', .*batch_size = 0"),
        *(({"inner": "top_loss", "inner_config": bad}, r"^inner = 'top_loss', inner_config = ") for bad in (5, [], 0)),
        ({"inner": selectors.TopLoss(8), "inner_config": {}}, r"^inner_config = \{\}: TopLoss\(.*already$"),
        ({"inner": used()}, r"^inner = TopLoss\(.*: it has learnt already; make a new one$"),
        ({"inner": selectors.NoiseGuard(selectors.TopLoss(8))}, r"^inner = NoiseGuard\(.*: expected a selector that"),
    ],
)
def test_an_inner_selector_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        selectors.NoiseGuard(**arguments)
    assert "\n" not in str(error.value)


# On real data.


def digits_error(noise, guarded, seed, epochs=12):
    """(share of wrong test images, verdict) of a training on digits with random labels."""
    digits, rng = load_digits(), generator(seed)
    x, y = torch.tensor(digits.data / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.from_numpy(rng.permutation(len(x)))
    train, test = order[:1400], order[1400:]
    labels, drawn = y[train].clone(), torch.from_numpy(rng.permutation(1400)[: int(noise * 1400)])
    labels[drawn] = torch.from_numpy(rng.integers(0, 10, len(drawn)))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def losses_of(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    policy = policies.NoiseGuard("uniform", math.log(10), probe=2) if guarded else "uniform"
    loader = PriorityLoader(TensorDataset(x[train], labels), 32, policy=policy, epochs=epochs, seed=seed)
    selector = selectors.SelectiveBackprop(32, beta=1.0, seed=seed)
    if guarded:
        selector = selectors.NoiseGuard(selector)
    for _ in range(epochs):
        for batch in selector.batches(loader, lambda batch: losses_of(model, batch)):
            loss = selector.mean(losses_of(model, batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loader.score(model, losses_of)
    with torch.no_grad():
        wrong = model(x[test]).argmax(1) != y[test]
    return float(wrong.float().mean()), selector.verdict if guarded else None


def test_with_random_labels_a_guarded_training_errs_far_less_than_an_unguarded_one():
    for seed in range(3):
        unguarded, _ = digits_error(0.5, False, seed)
        guarded, verdict = digits_error(0.5, True, seed)
        assert verdict == "mislabeled"
        assert guarded < 0.15
        assert unguarded > guarded + 0.1


def test_clean_digits_are_found_clean_and_selected_from():
    for seed in range(2):
        error, verdict = digits_error(0.0, True, seed)
        assert verdict == "clean"
        assert error < 0.08


def test_a_probe_that_training_would_not_outlast_is_refused():
    guard = NoiseGuard("uniform", CHANCE, probe=3)
    with pytest.raises(ValueError, match="probe = 3: training has 3 epochs"):
        ScoreStore(10, guard, epochs=3)
    assert ScoreStore(10, guard, epochs=4).policy is not None
    assert ScoreStore(10, NoiseGuard("uniform", CHANCE, probe=3)).epochs is None
