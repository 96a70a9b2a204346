"""Promise: each selector chooses what its definition says, position for position, and states its law exactly."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from fastprio import PriorityLoader, ScoreStore
from fastprio._random import Rng
from fastprio.policies import Clock
from fastprio.selectors import (
    CoTeaching,
    ReducibleLoss,
    SelectiveBackprop,
    SmallLoss,
    TopLoss,
    VarianceReduction,
    gradient_norm,
)
from fastprio.selectors.pool import OnItsWay, drawn, extreme, masses, tau_of

INF, NAN = math.inf, math.nan


def call(selector, losses, step=0, epoch=0, seed=3, **more):
    losses = losses if isinstance(losses, torch.Tensor) else torch.tensor(losses)
    clock = Clock(epoch, step)
    return selector(losses, clock=clock, rng=Rng(seed, epoch, step, "select"), **more)


def some_losses(rng, n):
    """Losses with ties, and at times with what is not finite."""
    losses = np.float32(rng.integers(0, 6, n) if rng.random() < 0.5 else rng.exponential(size=n))
    bad = rng.random(n) < rng.choice([0, 0.3, 1.0], p=[0.6, 0.3, 0.1])
    losses[bad] = rng.choice([NAN, INF, -INF], int(bad.sum()))
    return losses


def plain_extreme(losses, count, largest):
    """Sorting by hand: finite first, then by value, then by position."""
    sign = -1 if largest else 1
    order = sorted(
        range(len(losses)), key=lambda i: (0, sign * losses[i], i) if math.isfinite(losses[i]) else (1, 0, i)
    )
    return sorted(order[:count])


# What they share.


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_takes_finite_values_first_and_of_equal_ones_the_earlier(largest, dtype):
    rng = generator(7)
    for _ in range(200):
        n = int(rng.choice([0, 1, 2, 23, 300]))
        values = torch.from_numpy(some_losses(rng, n)).to(dtype)
        for count in {0, 1, n // 2, n, n + 3}:
            assert extreme(values, count, largest).tolist() == plain_extreme(values.tolist(), count, largest)


def plain_masses(scores):
    found = [s if math.isfinite(s) and s > 0 else 0.0 for s in scores]
    return found if sum(found) > 0 else [1.0] * len(scores)


def plain_draw(mass, u):
    """The first whose running sum is above u * sum."""
    ends, total = [], 0.0
    for m in mass:
        total += m
        ends.append(total)
    return [next(i for i, end in enumerate(ends) if end > x * total) for x in u]


def test_drawn_finds_the_first_whose_running_sum_is_above_the_random_share():
    rng = generator(8)
    for _ in range(200):
        n = int(rng.choice([1, 2, 23, 300]))
        scores = some_losses(rng, n)
        mass = masses(torch.from_numpy(scores))
        assert mass.tolist() == plain_masses(scores.tolist())
        u = np.concatenate([rng.random(20), [0.0, 1 - 2.0**-53, 0.5]])
        at = drawn(mass, torch.from_numpy(u)).tolist()
        assert at == plain_draw(mass.tolist(), u.tolist())
        assert all(mass[i] > 0 for i in at)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [NAN, INF, -1.0], [-INF, NAN, 0.0]])
def test_without_any_good_score_all_are_equally_likely_and_with_one_it_is_always_drawn(scores):
    assert masses(torch.tensor(scores)).tolist() == [1.0, 1.0, 1.0]
    assert masses(torch.tensor([*scores, 1e-45])).tolist()[:3] == [0.0, 0.0, 0.0]
    assert call(VarianceReduction(3), [*scores, 0.25]).positions.tolist() == [3, 3, 3]


def test_a_tensor_on_its_way_is_read_as_it_was():
    assert OnItsWay(torch.tensor([1, 2])).read().tolist() == [1, 2]
    assert float(OnItsWay(torch.tensor(2.5))) == 2.5


# VarianceReduction.


@pytest.mark.parametrize(
    "scores", [[1.0, 2.0, 4.0, 1.0], [0.5, 0.25, 8.0], [3.0], [2.0] * 5, [1.0, 0.0, 3.0, INF, NAN]]
)
def test_the_weighted_mean_is_exactly_unbiased_over_all_positions(scores):
    # Every position that can be drawn, with its probability and weight as exact fractions.
    n, good = len(scores), [s if math.isfinite(s) else 0.0 for s in scores]
    selector, weight_of = VarianceReduction(64), {}
    for step in range(40):
        selection = call(selector, scores, step)
        for position, weight in zip(selection.positions.tolist(), selection.weights.tolist(), strict=True):
            assert weight_of.setdefault(position, weight) == weight
    assert sorted(weight_of) == [i for i, s in enumerate(good) if s > 0]
    losses = [Fraction(k * k + 1) for k in range(n)]
    total = sum(Fraction(s) for s in good)
    exact = {i: total / (n * Fraction(good[i])) for i in weight_of}
    assert sum(Fraction(good[i]) / total * exact[i] * losses[i] for i in exact) == sum(losses[i] for i in exact) / n
    for i, weight in weight_of.items():
        assert weight == np.float32(float(exact[i]))


def test_positions_and_weights_are_their_definition_on_random_pools():
    rng = generator(9)
    for step in range(200):
        n, b = int(rng.choice([1, 2, 23, 96])), int(rng.choice([1, 8, 32]))
        scores = some_losses(rng, n)
        selection = call(VarianceReduction(b), torch.from_numpy(scores), step)
        mass = plain_masses(scores.tolist())
        u = Rng(3, 0, step, "select").random(min(b, n)).tolist()
        assert selection.positions.tolist() == plain_draw(mass, u)
        total = sum(mass)
        expected = [total / (n * mass[i]) for i in selection.positions.tolist()]
        assert selection.weights.tolist() == pytest.approx(expected, rel=1e-6)
        assert selection.count is None  # a fixed number: nothing waits for the device
        assert selection.weights.dtype == torch.float32


def test_a_vanishing_score_has_a_finite_weight():
    scores = torch.tensor([1e-45] + [3e38] * 3)
    for step in range(50):
        assert torch.isfinite(call(VarianceReduction(3), scores, step).weights).all()
    tiny = masses(scores)
    at = drawn(tiny, torch.zeros(1, dtype=torch.float64))
    assert at.tolist() == [0]  # it can be drawn

    class First(Rng):
        def random(self, count):
            return np.zeros(count)

    selection = VarianceReduction(3)(scores, clock=Clock(), rng=First(0, 0, 0, "select"))
    assert selection.positions.tolist() == [0, 0, 0]
    assert torch.isfinite(selection.weights).all()


def test_positions_are_drawn_in_proportion_to_the_scores():
    scores, counts, selector = [4.0, 1.0, 0.0, 2.0, 0.5, NAN], np.zeros(6), VarianceReduction(6)
    for step in range(40_000 // 6):
        for position in call(selector, scores, step).positions.tolist():
            counts[position] += 1
    assert counts[[2, 5]].tolist() == [0, 0]
    law = np.array([4.0, 1.0, 2.0, 0.5]) / 7.5 * counts.sum()
    assert p_value(counts[[0, 1, 3, 4]], law) > P_FAIL


def test_tau_is_the_root_of_one_plus_the_squared_coefficient_of_variation():
    rng = generator(10)
    for n in (1, 2, 23, 640):
        scores = rng.exponential(size=n)
        mean = sum(scores) / n
        variance = sum((s - mean) ** 2 for s in scores) / n
        shares = [s / sum(scores) for s in scores]
        tau = float(tau_of(masses(torch.from_numpy(scores))))
        assert tau == pytest.approx(math.sqrt(1 + variance / mean**2), rel=1e-12)
        assert tau == pytest.approx(math.sqrt(n * sum(g * g for g in shares)), rel=1e-12)
        if n > 1:  # the reference's form: 1 / sqrt(1 - |g - u|^2 / |g|^2)
            apart, norm = sum((g - 1 / n) ** 2 for g in shares), sum(g * g for g in shares)
            assert tau == pytest.approx(1 / math.sqrt(1 - apart / norm), rel=1e-9)
    assert float(tau_of(masses(torch.tensor([1.0, 0.0, 0.0, 0.0])))) == 2.0  # a share q of the pool: 1 / sqrt(q)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_average_of_tau_is_a_step_late(momentum):
    rng = generator(11)
    selector, expected, taus = VarianceReduction(8, momentum=momentum), 0.0, []
    for step in range(50):
        scores = rng.exponential(size=24)
        if step % 3:
            call(selector, torch.from_numpy(scores), step)
        else:
            selector.observe(torch.from_numpy(scores), clock=Clock(0, step))
        if taus:
            expected = momentum * expected + (1 - momentum) * taus[-1]
        assert selector.state["tau"] == pytest.approx(expected, rel=1e-12)
        assert selector.shared == selector.state["tau"]
        taus.append(math.sqrt(24 * sum(s * s for s in scores)) / sum(scores))


def test_a_batch_counts_once_however_often_its_mean_is_asked_for():
    pool, averages = torch.tensor([1.0, 5.0, 2.0, 9.0]), []
    for times in (1, 3):
        selector = VarianceReduction(4, threshold=9.0, momentum=0.5)
        for batch in selector.batches([pool, pool.flip(0), pool + 1], lambda batch: batch):
            for _ in range(times):
                assert selector.mean(batch) == batch.mean()
        averages.append((selector.state["tau"], float(selector.state["coming"])))
    assert averages[0] == averages[1]
    assert averages[0][0] > 0


class Switched:
    """Pools whose scores are uneven from one step on, and even again from another; every batch says when."""

    def __init__(self, pools, size, uneven):
        self.pools, self.size, self.uneven = pools, size, uneven

    def __iter__(self):
        for k in range(self.pools):
            yield torch.full((self.size,), k), torch.arange(self.size)

    def losses(self, batch):
        number, row = batch
        uneven = torch.tensor([int(k) in self.uneven for k in number])
        return torch.where(uneven, torch.where(row % 16 == 0, 100.0, 0.01), 1.0)


@pytest.mark.parametrize("threshold", [None, 1.5])
def test_pools_are_scored_while_the_average_of_tau_is_above_the_threshold_and_else_trained_on_whole(threshold):
    b, pool = 16, 48
    loader, scored, trained = Switched(60, pool, range(10, 40)), [], []
    selector = VarianceReduction(b, threshold, momentum=0.5)

    def score(batch):
        scored.append(int(batch[0][0]))
        return loader.losses(batch)

    # By hand, in the order of events: what was observed is in the average when the next thing is.
    tau, coming, expected = 0.0, 0.0, []
    for k in range(60):
        scores_pool = tau > ((pool + 3 * b) / (3 * b) if threshold is None else threshold)
        expected += [k] * scores_pool
        for size in [pool] if scores_pool else [b] * 3:
            if coming:
                tau = 0.5 * tau + 0.5 * coming
            row = [100.0 if i % 16 == 0 else 0.01 for i in range(size)] if 10 <= k < 40 else [1.0] * size
            coming = math.sqrt(size * sum(s * s for s in row)) / sum(row)
    weighted = []
    for batch in selector.batches(loader, score):
        weighted.append((int(batch[0][0]), selector.weights is not None))
        trained.append(batch)
        selector.mean(loader.losses(batch))
    assert scored == expected
    assert 0 < len(scored) < 40
    assert {k for k, weights in weighted if weights} == set(scored)
    for k in range(60):
        rows = torch.cat([row for number, row in trained if int(number[0]) == k])
        if k in scored:
            assert len(rows) == b
        else:
            assert rows.tolist() == list(range(pool))


def test_the_threshold_of_the_first_pool_stays():
    selector = VarianceReduction(10)
    for pool, tau, expected in ((30, 2.0, False), (90, math.nextafter(2.0, 3.0), True), (90, 2.0, False)):
        selector.pool, selector.state["tau"] = pool, tau
        assert selector.needs_scores(Clock()) is expected
    selector.agree(3.0)  # of all ranks
    assert selector.needs_scores(Clock())
    assert not VarianceReduction(10, threshold=5.0).needs_scores(Clock())


def test_the_biased_form_scores_every_pool_and_has_no_weights():
    selector, loader, scored = VarianceReduction(16, unbiased=False, seed=5), Switched(20, 48, range(20)), []
    fair = VarianceReduction(16, seed=5)
    for batch in selector.batches(loader, lambda b: (scored.append(0), loader.losses(b))[1]):
        assert selector.weights is None
        losses = loader.losses(batch)
        assert selector.mean(losses).item() == pytest.approx(sum(losses.tolist()) / 16)
        assert (losses == 100).float().mean() > 0.9
    assert len(scored) == 20
    scores = torch.tensor([1.0, 5.0, 2.0])
    assert call(selector, scores).positions.tolist() == call(fair, scores).positions.tolist()


def test_gradient_norm_is_that_of_cross_entropy_at_the_last_layer():
    logits = torch.randn(23, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    targets = torch.arange(23) % 5
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    for norm, row in zip(gradient_norm(logits, targets).tolist(), logits.grad.tolist(), strict=True):
        assert norm == pytest.approx(math.sqrt(sum(g * g for g in row)), rel=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"threshold": -1.0}, "threshold = -1.0"), ({"threshold": NAN}, "threshold = nan"),
    ({"momentum": 1.0}, "momentum = 1.0"), ({"momentum": -0.1}, "momentum = -0.1"), ({"seed": 2**64}, "seed = "),
])  # fmt: skip
def test_variance_reduction_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VarianceReduction(8, **arguments)


@pytest.mark.parametrize("stop", [0, 1, 2, 17, 30])
def test_a_saved_average_of_tau_goes_on_as_if_nothing_had_been(stop):
    loader = Switched(40, 48, range(5, 30))
    whole, first, second = (VarianceReduction(16, momentum=0.5, seed=2) for _ in range(3))

    def run(selector, pools):
        out = []
        for batch in selector.batches(pools, loader.losses, clock=Clock(1)):
            selector.mean(loader.losses(batch))
            out.append((batch[0].tolist(), batch[1].tolist(), None if selector.weights is None else 1))
        return out

    pools = list(loader)
    expected = run(whole, pools)
    done = run(first, pools[:stop])
    second.load_state_dict(first.state_dict())
    assert done + run(second, pools[stop:]) == expected
    assert any(weights for *_, weights in expected)
    assert second.state_dict()["state"] == whole.state_dict()["state"]


# TopLoss, ReducibleLoss.


@pytest.mark.parametrize("count", [None, 1, 10, 400])
def test_top_loss_takes_the_largest_of_each_pool(count):
    rng = generator(12)
    for step in range(100):
        losses = some_losses(rng, int(rng.choice([1, 2, 23, 320])))
        selection = call(TopLoss(32, count), torch.from_numpy(losses), step)
        assert selection.positions.tolist() == plain_extreme(losses.tolist(), count or 32, True)
        assert selection.weights is None
        assert selection.count is None


@pytest.mark.parametrize("make", [TopLoss, ReducibleLoss])
def test_a_count_below_one_is_refused(make):
    with pytest.raises(ValueError, match="count = 0"):
        make(8, 0)


def test_each_pool_gives_its_share_and_batches_are_full():
    data = [torch.arange(k, min(k + 40, 100)).float() for k in range(0, 100, 40)]
    got = [batch.tolist() for batch in TopLoss(7, count=10).batches(data, lambda batch: -batch)]
    taken = [*range(10), *range(40, 50), *range(80, 90)]  # the smallest numbers have the largest losses
    assert got == [taken[k : k + 7] for k in range(0, 30, 7)]


@pytest.mark.parametrize("as_tensor", [True, False])
def test_reducible_loss_takes_the_largest_differences_of_each_pool(as_tensor):
    rng = generator(13)
    store = ScoreStore(500, "uniform", columns=ReducibleLoss.columns)
    store.column("irreducible")[:] = np.float32(rng.integers(0, 6, 500))
    store.column("irreducible")[:20] = NAN
    kept = store.column("irreducible").tolist()
    for step in range(100):
        losses, at = some_losses(rng, 60), rng.integers(0, 500, 60)
        indices = torch.from_numpy(at) if as_tensor else at
        selection = call(ReducibleLoss(8, 20), torch.from_numpy(losses), step, indices=indices, columns=store.columns)
        differences = [
            float(np.float32(loss - kept[i])) if math.isfinite(kept[i]) and math.isfinite(loss) else NAN
            for loss, i in zip(losses.tolist(), at.tolist(), strict=True)
        ]
        assert selection.positions.tolist() == plain_extreme(differences, 20, True)


def test_reducible_loss_reads_the_store_of_a_loader_by_priority():
    data = TensorDataset(torch.arange(64).float())
    selector = ReducibleLoss(4, 4)
    loader = PriorityLoader(data, 16, policy=ScoreStore(64, "uniform", columns=selector.columns), seed=1)
    loader.store.column("irreducible")[:] = np.arange(64) % 16
    pools, got = [], []
    for (x,) in selector.batches(loader, lambda batch: (pools.append(batch[0].tolist()), batch[0] // 16 + 16)[1]):
        got.append(sorted(x.tolist()))
    assert len(got) == len(pools) == 4
    for pool, chosen in zip(pools, got, strict=True):
        reducible = [k // 16 + 16 - k % 16 for k in pool]
        assert chosen == sorted(pool[i] for i in plain_extreme(reducible, 4, True))


@pytest.mark.parametrize("more", [{}, {"columns": {"irreducible": None}}, {"columns": {}, "indices": [0]}])
def test_reducible_loss_without_its_column_or_indices_says_what_it_needs(more):
    with pytest.raises(ValueError, match="irreducible"):
        call(ReducibleLoss(8), [1.0], **more)


# SmallLoss, CoTeaching.


def plain_left_out(epoch, tau, over, exponent):
    """linspace(0, tau^c, T_k), then tau."""
    steps = [tau**exponent * k / (over - 1) if over > 1 else 0.0 for k in range(over)]
    return steps[epoch] if epoch < over else tau


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.45, 0.8])
@pytest.mark.parametrize("over", [0, 1, 2, 10])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_share_left_out_grows_in_equal_steps_and_stays(tau, over, exponent):
    selector = SmallLoss(8, tau, over, exponent)
    numpys = np.linspace(0, tau**exponent, over).tolist() + [tau] * 5
    for epoch in range(over + 5):
        assert selector.left_out(epoch) == pytest.approx(plain_left_out(epoch, tau, over, exponent), abs=1e-15)
        assert selector.left_out(epoch) == pytest.approx(numpys[epoch], abs=1e-15)
        assert selector.needs_scores(Clock(epoch)) is (numpys[epoch] > 0)


def test_small_loss_keeps_the_smallest_of_each_batch():
    rng = generator(14)
    for step in range(200):
        epoch, n = int(rng.integers(0, 14)), int(rng.choice([1, 2, 23, 128]))
        losses = some_losses(rng, n)
        selection = call(SmallLoss(32, 0.2, exponent=1.0), torch.from_numpy(losses), step, epoch)
        kept = math.floor((1 - Fraction(2, 10) * Fraction(min(epoch, 9), 9)) * n)
        assert selection.positions.tolist() == plain_extreme(losses.tolist(), kept, False)
        assert selection.count is None


def test_what_is_not_finite_is_kept_only_when_all_else_is():
    losses = [3.0, NAN, 1.0, INF, 2.0]
    for rate, expected in ((0.2, [0, 1, 2, 4]), (0.4, [0, 2, 4]), (0.6, [2, 4]), (0.8, [2])):
        assert call(SmallLoss(8, rate, over=0), losses).positions.tolist() == expected


@pytest.mark.parametrize("make", [SmallLoss, CoTeaching])
@pytest.mark.parametrize(("arguments", "message"), [
    ({"noise_rate": 1.0}, "noise_rate = 1.0"), ({"noise_rate": -0.1}, "noise_rate = -0.1"),
    ({"noise_rate": 0.2, "over": -1}, "over = -1"), ({"noise_rate": 0.2, "exponent": 0.0}, "exponent = 0.0"),
    ({"noise_rate": 0.2, "exponent": INF}, "exponent = inf"), ({"noise_rate": NAN}, "noise_rate = nan"),
])  # fmt: skip
def test_small_loss_refuses_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(8, **arguments)


def test_each_network_is_trained_on_what_the_other_finds_easy():
    rng = generator(15)
    pools = [torch.arange(k, k + 30) for k in range(0, 300, 30)]
    tables = np.float32(rng.exponential(size=(2, 300)))
    tables[0, ::17] = NAN
    selector = CoTeaching(16, 0.4, over=3)
    for epoch in range(5):
        got = [[], []]
        for batches in selector.batches(pools, lambda batch: torch.from_numpy(tables[:, batch.numpy()])):
            assert isinstance(batches, tuple)
            for k in (0, 1):
                got[k].append(batches[k].tolist())
                assert selector.mean(torch.ones(len(batches[k]))).item() == 1
        for k in (0, 1):
            assert {len(batch) for batch in got[k][:-1]} == {16}
            got[k] = [i for batch in got[k] for i in batch]
            others = tables[1 - k].tolist()
            expected = [i + 30 * p for p in range(10) for i in
                        plain_extreme(others[30 * p : 30 * p + 30], kept(epoch), False)]  # fmt: skip
            assert got[k] == expected


def kept(epoch):
    return [30, 24, 18, 18, 18][epoch]


def test_a_loader_by_priority_is_told_the_mean_of_both_losses():
    loader = PriorityLoader(TensorDataset(torch.arange(40)), 10, epochs=2, seed=1)
    selector = CoTeaching(8, 0.2, over=0)
    for (a,), (b,) in selector.batches(loader, lambda batch: torch.stack([batch[0] / 2, batch[0] + 1.0])):
        assert a.tolist() == b.tolist()  # both find the same ones easy
    loader.flush()
    assert loader.store.column("loss").tolist() == [(k / 2 + k + 1) / 2 for k in range(40)]
    with pytest.raises(ValueError, match=r"score: expected shape \[2, 10\]"):
        list(selector.batches([torch.arange(10)], lambda batch: batch.float()))


# What a step costs.


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do: all, those that wait for a device, and the largest result."""

    def __init__(self):
        super().__init__()
        self.count = self.waits = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.count += 1
        masked = function is torch.ops.aten.index.Tensor and any(i.dtype == torch.bool for i in args[1])
        named = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
        self.waits += masked or str(function).split(".")[1] in named
        self.largest = max([self.largest, *(f.numel() for f in tree_leaves(found) if isinstance(f, torch.Tensor))])
        return found


SELECTORS = {
    "selective_backprop": lambda: SelectiveBackprop(16, accept_all_epochs=0),
    "variance_reduction": lambda: VarianceReduction(16),
    "top_loss": lambda: TopLoss(16),
    "reducible_loss": lambda: ReducibleLoss(16),
    "small_loss": lambda: SmallLoss(16, 0.2, over=0),
    "co_teaching": lambda: CoTeaching(16, 0.2, over=0),
}


def call_counted(name, n, device="cpu"):
    selector = SELECTORS[name]()
    losses = torch.rand((2, n) if name == "co_teaching" else n, device=device)
    more = {"columns": {"irreducible": np.zeros(n, np.float32)}, "indices": np.arange(n)}
    for step in range(20):
        call(selector, losses, step, **more)
    with Operations() as operations:
        call(selector, losses, 20, **more)
    return operations


@pytest.mark.parametrize("name", SELECTORS)
def test_a_step_asks_the_device_equally_often_for_any_batch_and_waits_for_nothing(name):
    few, many = call_counted(name, 32), call_counted(name, 512)
    assert few.count == many.count > 0
    # The tau of the step before, which is on the host by then.
    assert few.waits == many.waits == (name == "variance_reduction")


def test_selective_backprop_does_not_compare_every_loss_with_every_one_remembered():
    assert call_counted("selective_backprop", 256).largest <= 1024 + 256


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", SELECTORS)
def test_nothing_waits_for_a_gpu(name):
    torch.rand(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        call_counted(name, 48, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
