"""Promise: a selector accepts with the chances it states; the loop around it loses nothing and doubles nothing."""

import copy
import io
import json
from bisect import bisect_left
from collections import UserDict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value
from loader_helpers import Correct
from scipy.stats import binom, hypergeom
from torch.utils.data import DataLoader, TensorDataset

from fastprio import PriorityLoader, ScoreStore, WithIndex
from fastprio._random import USES, Rng
from fastprio.policies import Clock
from fastprio.selectors import Selection, SelectiveBackprop, Selector, find, make, register, registered

# Random numbers.


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 7, 10, 13])
def test_small_integers_are_equally_likely(bound):
    n = 40_000
    counts = np.bincount(Rng(bound, 2, 3, "observe").integers(bound, n), minlength=bound)
    assert counts.size == bound
    assert p_value(counts, np.full(bound, n / bound)) > P_FAIL


@pytest.mark.parametrize("bound", [2**63, 3 << 61, 2**62 + 1, 2**53])
def test_large_integers_are_equally_likely(bound):
    # 3/4 of 2^63: taking a remainder instead of rejecting would hit the lower parts twice as often.
    n, parts = 40_000, 12
    values = Rng(1, 2, 3, "select").integers(bound, n)
    assert 0 <= values.min() <= values.max() < bound
    counts = np.bincount([int(v) * parts // bound for v in values.tolist()], minlength=parts)
    assert p_value(counts, np.full(parts, n / parts)) > P_FAIL


def test_random_is_a_multiple_of_two_to_the_minus_53_below_one():
    n = 40_000
    values = Rng(1, 2, 3, "select").random(n)
    assert ((values >= 0) & (values < 1)).all()
    assert (values * 2.0**53 == np.floor(values * 2.0**53)).all()
    assert (np.floor(values * 2.0**53) % 2 == 1).mean() == pytest.approx(0.5, abs=0.02)
    assert p_value(np.bincount((values * 50).astype(int), minlength=50), np.full(50, n / 50)) > P_FAIL


def test_no_two_uses_steps_epochs_or_calls_share_bits():
    words = []
    for use in USES:
        for step in (0, 1, 2, 2**34 - 1):
            for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**64 - 1, 2**32 - 1)):
                rng = Rng(seed, epoch, step, use)
                words += [rng.integers(2**63, 50), rng.integers(2**63, 50)]
    words = np.concatenate(words)
    assert len(np.unique(words)) == words.size == 4 * 4 * 4 * 100


def test_calls_go_on_where_the_last_one_ended():
    whole, pieces = Rng(5, 6, 7, "plan"), Rng(5, 6, 7, "plan")
    expected = whole.integers(1000, 60)
    np.testing.assert_array_equal(np.concatenate([pieces.integers(1000, k) for k in (0, 1, 9, 50)]), expected)
    assert pieces.choose(100, 5).tolist() == whole.choose(100, 5).tolist()
    assert pieces.choose(100, 5).tolist() != Rng(5, 6, 7, "plan").choose(100, 5).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 64, 1000, 2**32])
def test_choose_gives_different_integers_in_range(n):
    for count in {0, 1, n // 2, n - 1, n} if n <= 1000 else (0, 1, 500):
        chosen = [Rng(seed, 0, 0, "plan").choose(n, count) for seed in range(20)]
        for integers in chosen:
            assert integers.size == count == len(set(integers.tolist()))
            assert integers.size == 0 or 0 <= integers.min() <= integers.max() < n
        assert chosen[3].tolist() == Rng(3, 0, 0, "plan").choose(n, count).tolist()
        assert n < 10 or count == 0 or len({tuple(c.tolist()) for c in chosen}) > 5


@pytest.mark.parametrize(("n", "count"), [(5, 2), (6, 3), (8, 4), (16, 8), (12, 4), (40, 20), (100, 30)])
def test_choose_takes_from_every_half_what_chance_would(n, count):
    trials = 20_000
    chosen = np.array([Rng(seed, 1, 0, "plan").choose(n, count) for seed in range(trials)])
    p = {}
    for name, inside in {"first half": np.arange(n) < n // 2, "even": np.arange(n) % 2 == 0,
                         "bit 1": np.arange(n) >> 1 & 1 == 1}.items():  # fmt: skip
        law = hypergeom(n, int(inside.sum()), count).pmf(np.arange(count + 1))
        p[name] = p_value(np.bincount(inside[chosen].sum(1), minlength=count + 1), law * trials)
    assert min(p.values()) > P_FAIL, p


# SelectiveBackprop.


class PlainSelective:
    """The definition, one loss at a time."""

    def __init__(self, beta, history, least=0.0):
        self.beta, self.history, self.least, self.losses = beta, history, least, []

    def chances(self, losses):
        self.losses = (self.losses + losses)[-self.history :]
        shares = [sum(h < loss for h in self.losses) / len(self.losses) for loss in losses]
        return [max(self.least, share**self.beta) for share in shares]


def batches_of_losses(rng, n, ties):
    sizes = rng.integers(1, 60, n)
    return [(rng.integers(0, 6, k) if ties else rng.exponential(size=k)).astype(np.float32) for k in sizes]


def accepted(selection):
    positions = selection.positions
    return positions if selection.count is None else positions[: int(selection.count)]


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """Both ways that it goes: numpy's for losses on the host, and torch's, with losses that claim to be elsewhere."""
    if request.param == "device":
        monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda _: False), raising=False)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("history", [1, 20, 1024])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_accepts_where_the_random_number_is_below_the_chance_by_definition(beta, history, ties, least):
    selector, plain = SelectiveBackprop(8, beta, history, 0, least), PlainSelective(beta, history, least)
    for step, losses in enumerate(batches_of_losses(generator(history), 40, ties)):
        selection = selector(torch.from_numpy(losses), clock=Clock(1), rng=Rng(3, 1, step, "select"))
        u = Rng(3, 1, step, "select").random(losses.size)
        expected = [j for j, p in enumerate(plain.chances(losses.tolist())) if u[j] < p]
        assert accepted(selection).tolist() == expected
        assert len(set(selection.positions.tolist())) == len(selection.positions) <= losses.size
        assert selection.weights is None
        assert selector.state["losses"].tolist() == plain.losses


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_every_example_is_accepted_as_often_as_its_chance_says(beta):
    earlier, losses = torch.tensor([0.5, 1.5, 2.5, 2.5]), torch.tensor([2.0, 0.1, 2.5, 2.0, 9.0])
    plain = PlainSelective(beta, 1024)
    plain.chances(earlier.tolist())
    chances, times, trials = plain.chances(losses.tolist()), np.zeros(5), 4000
    for seed in range(trials):
        selector = SelectiveBackprop(8, beta, accept_all_epochs=0)
        selector.state["losses"] = earlier
        times[accepted(selector(losses, clock=Clock(), rng=Rng(seed, 0, 0, "select"))).numpy()] += 1
    for k, p in zip(times, chances, strict=True):
        assert min(binom.cdf(k, trials, p), binom.sf(k - 1, trials, p)) > P_FAIL
    assert times[1] == 0  # nothing is below the least loss


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("history", [1024, None])
def test_a_loss_that_is_not_finite_is_not_accepted_and_the_smallest_has_the_least_chance(history):
    columns = {"loss": np.arange(8, dtype=np.float32), "seen": np.full(1, 255, np.uint8)}
    losses = torch.tensor([float("nan"), float("inf"), -float("inf"), 100.0, 0.0])
    for least, expected in ((0.0, {3}), (1.0, {3, 4})):
        selector, taken = SelectiveBackprop(8, 1e-9, history, 0, least), set()
        for step in range(50):
            selector.state["losses"] = selector.state["losses"][:0] if history else selector.state["losses"]
            selection = selector(losses, columns=columns, clock=Clock(), rng=Rng(1, 0, step, "select"))
            taken |= set(accepted(selection).tolist())
        assert taken == expected


def test_the_first_epochs_accept_everything_and_do_not_fill_the_history():
    selector = SelectiveBackprop(8, accept_all_epochs=2)
    for epoch in (0, 1):
        selection = selector(torch.rand(9), clock=Clock(epoch), rng=Rng(0, epoch, 0, "select"))
        assert accepted(selection).tolist() == list(range(9))
        assert selector.state["losses"].numel() == 0
    selector(torch.rand(9), clock=Clock(2), rng=Rng(0, 2, 0, "select"))
    assert selector.state["losses"].numel() == 9


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_about_one_in_beta_plus_one_is_accepted(beta):
    selector, taken, steps = SelectiveBackprop(8, beta, accept_all_epochs=0), 0, 200
    torch_rng = torch.Generator().manual_seed(1)
    for step in range(20 + steps):
        losses = torch.empty(64).exponential_(generator=torch_rng)
        n = len(accepted(selector(losses, clock=Clock(), rng=Rng(2, 0, step, "select"))))
        taken += n if step >= 20 else 0
    assert taken / (64 * steps) == pytest.approx(1 / (beta + 1), abs=0.02)
    assert beta > 0 or taken == 64 * steps


# The loop.


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def loader_of(n, batch_size, form):
    x = torch.arange(n).float()
    batches = [x[k : k + batch_size] for k in range(0, n, batch_size)]
    make = {"tensor": lambda b: b, "tuple": lambda b: (b, b.int()), "list": lambda b: [b, b.int()],
            "named": lambda b: Pair(b, b.int()), "ordered": lambda b: UserDict(x=b, y=[b.int(), b.int()]),
            "dict": lambda b: {"x": b, "more": (b.int(), b[:, None])}}  # fmt: skip
    return [make[form](batch) for batch in batches]


def first_of(batch):
    while not isinstance(batch, torch.Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return batch


def leaves_of(batch):
    if isinstance(batch, torch.Tensor):
        return [batch.flatten().int().tolist()]
    return [leaf for part in (batch.values() if isinstance(batch, Mapping) else batch) for leaf in leaves_of(part)]


def losses_of(batch):
    assert not torch.is_grad_enabled()
    return torch.sin(first_of(batch) * 12.9898).abs()


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "named", "ordered", "dict"])
@pytest.mark.parametrize(("n", "scored", "trained"), [(100, 10, 7), (100, 7, 10), (99, 50, 4), (5, 2, 64), (64, 8, 8)])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_batches_are_full_in_order_of_arrival_and_lose_nothing(form, n, scored, trained, beta):
    chosen = []

    class Noted(SelectiveBackprop):
        def __call__(self, losses, **arguments):
            selection = super().__call__(losses, **arguments)
            at = accepted(selection) + scored * arguments["clock"].step
            chosen.extend(at.tolist())
            return selection

    selector = Noted(trained, beta, accept_all_epochs=0, seed=9)
    out = []
    for batch in selector.batches(loader_of(n, scored, form), losses_of, clock=Clock(3)):
        assert selector.weights is None
        out.append(batch)
    assert selector.steps == -(-n // scored)
    got = [first_of(batch).int().tolist() for batch in out]
    assert [x for batch in got for x in batch] == chosen
    assert [len(b) for b in got[:-1]] == [trained] * (len(got) - 1)
    assert not got or 0 < len(got[-1]) <= trained
    assert beta > 0 or chosen == list(range(n))
    assert beta == 0 or 0 < len(chosen) < n or n < 10
    for batch in out:
        assert type(batch) is type(loader_of(1, 1, form)[0])
        assert all(leaf == leaves_of(batch)[0] for leaf in leaves_of(batch))  # parts stay together
        assert form != "dict" or (batch.keys() == {"x", "more"} and batch["more"][1].shape[1:] == (1,))


def losses_of_all(n):
    with torch.no_grad():
        return losses_of(torch.arange(n).float()).tolist()


def test_the_same_seed_gives_the_same_batches_and_another_gives_others():
    def run(seed):
        selector = SelectiveBackprop(8, 1.0, accept_all_epochs=0, seed=seed)
        return [batch.tolist() for batch in selector.batches(loader_of(300, 20, "tensor"), losses_of)]

    assert run(1) == run(1)
    assert run(1) != run(2)


class TopHalf(Selector):
    """A fixed number of the largest losses, weighted; every other step does not score."""

    def __init__(self, batch_size, every=1):
        super().__init__(batch_size)
        self.every, self.asked, self.told, self.clocks = every, [], [], []

    def needs_scores(self, clock):
        self.clocks.append((clock.epoch, clock.step, clock.progress))
        return clock.step % self.every == 0

    def __call__(self, losses, *, indices=None, columns=None, clock=None, rng):
        self.asked.append((indices, columns))
        positions = losses.topk(len(losses) // 2).indices
        return Selection(positions, weights=losses[positions])

    def observe(self, losses, *, clock):
        assert not losses.requires_grad
        self.told.append(losses.tolist())


def all_of(selector, *arguments, **more):
    """[(batch, weights)]."""
    return [(batch, selector.weights) for batch in selector.batches(*arguments, **more)]


def test_a_selector_of_ones_own_chooses_a_fixed_number_with_weights():
    selector, columns = TopHalf(6), {"loss": None}
    batches = loader_of(40, 10, "tuple")
    out = all_of(selector, batches, losses_of, columns=columns, indices=lambda batch: batch[1])
    expected = []
    for x, _ in batches:
        with torch.no_grad():
            top = losses_of(x).topk(5).indices
        expected += x[top].tolist()
    x, weights = torch.cat([b[0] for b, _ in out]), torch.cat([w for _, w in out])
    assert x.tolist() == expected
    assert [len(w) for _, w in out] == [6, 6, 6, 2]
    torch.testing.assert_close(weights, torch.sin(x * 12.9898).abs())
    assert all(i.tolist() == b[1].tolist() and c is columns for (i, c), b in zip(selector.asked, batches, strict=True))


@pytest.mark.parametrize("trained", [3, 6, 50])
def test_a_step_without_scores_takes_its_whole_batch_with_weight_one(trained):
    selector, scored = TopHalf(trained, every=2), []
    out = all_of(selector, loader_of(40, 10, "list"), lambda b: (scored.append(len(b[0])), losses_of(b))[1])
    assert scored == [10, 10]
    assert len(selector.asked) == 2
    x, weights = torch.cat([b[0] for b, _ in out]), torch.cat([w for _, w in out if w is not None])
    scored = (x // 10) % 2 == 0
    assert x[~scored].tolist() == [*range(10, 20), *range(30, 40)]
    assert int(scored.sum()) == 10
    if trained == 50:
        assert (weights[~scored] == 1).all()
        torch.testing.assert_close(weights[scored], torch.sin(x[scored] * 12.9898).abs())


@pytest.mark.parametrize("trained", [1, 3, 6, 50])
def test_the_mean_is_weighted_and_keeps_its_graph_and_whole_batches_without_scores_are_observed(trained):
    selector, expected_told = TopHalf(trained, every=2), []
    slope = torch.ones((), requires_grad=True)
    for x, _ in selector.batches(loader_of(40, 10, "tuple"), losses_of):
        slope.grad = None
        losses = slope * (x + 1) ** 2
        weights = [1.0] * len(x) if selector.weights is None else selector.weights.tolist()
        loss = selector.mean(losses)
        expected = sum(w * (k + 1) ** 2 for w, k in zip(weights, x.tolist(), strict=True)) / len(x)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert slope.grad.item() == pytest.approx(expected, rel=1e-5)
        if all(k // 10 % 2 == 1 for k in x.tolist()):
            expected_told.append(losses.tolist())
        selector.mean(losses.detach())  # a second one is not observed again
    assert selector.told == expected_told
    assert trained == 50 or expected_told


def test_scores_of_the_training_pass_are_observed_in_place_of_losses():
    selector = TopHalf(10, every=2)
    selector.steps = 1
    for batch in selector.batches(loader_of(10, 10, "tensor"), losses_of):
        assert selector.mean(batch, scores=batch + 100).item() == 4.5
    assert selector.told == [[100.0 + k for k in range(10)]]


def test_a_fixed_number_comes_at_once_and_what_is_accepted_by_chance_a_batch_later():
    for selector, late in ((TopHalf(5), 0), (TopHalf(10, every=1000), 0), (SelectiveBackprop(10, 0.0, 9, 0), 1)):
        selector.steps, scored, got = 1000 if late == 0 else 0, [], []
        if isinstance(selector, TopHalf) and selector.every > 1:
            selector.steps = 1  # none is scored
        loader = loader_of(40, 10, "tensor")
        for batch in selector.batches((scored.append(k) or b for k, b in enumerate(loader)), losses_of):
            got.append((len(scored), int(batch.min()) // 10 + 1))
        assert [ahead - own for ahead, own in got] == [late] * 3 + [0]


@pytest.mark.parametrize("bad", ["numbers", "shape", "length", "integers", "scores"])
def test_losses_of_another_form_are_refused(bad):
    losses = {"numbers": [1.0] * 4, "shape": torch.ones(4, 1), "length": torch.ones(3),
              "integers": torch.ones(4, dtype=torch.int64), "scores": torch.ones(4)}[bad]  # fmt: skip
    error = TypeError if bad in ("numbers", "integers") else ValueError
    selector = SelectiveBackprop(4, 0.0, accept_all_epochs=0)
    if bad != "scores":
        with pytest.raises(error, match="score: expected"):
            list(selector.batches(loader_of(8, 4, "tensor"), lambda batch: losses))
    for _ in selector.batches(loader_of(4, 4, "tensor"), losses_of):
        with pytest.raises(error, match=r": expected (shape|a floating)"):
            selector.mean(losses, scores=torch.ones(5) if bad == "scores" else None)
    with pytest.raises(RuntimeError, match="no batch has been yielded"):
        selector.mean(torch.ones(4))


@pytest.mark.parametrize(("batch", "error", "message"), [
    (["a", "b"], TypeError, "got str"), ((torch.ones(4), torch.ones(3)), ValueError, r"\(4,\), \(3,\)"),
    ({"x": torch.ones(4), "y": torch.ones(())}, ValueError, "one row for each example"), ((), ValueError, "expected"),
])  # fmt: skip
def test_batches_that_are_no_rows_of_tensors_are_refused(batch, error, message):
    with pytest.raises(error, match=message):
        list(SelectiveBackprop(4).batches([batch], losses_of))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_weights_on_a_gpu_join_those_of_steps_without_scores():
    selector = TopHalf(50, every=2)
    batches = [batch.cuda() for batch in loader_of(40, 10, "tensor")]
    assert [weights.device.type for _, weights in all_of(selector, batches, losses_of)] == ["cuda"]


def test_the_clock_is_the_one_given_or_counts_how_often_batches_was_gone_through():
    selector = TopHalf(4)
    for _ in selector.batches(loader_of(20, 10, "tensor"), losses_of):
        break  # left: counts
    list(selector.batches(loader_of(20, 10, "tensor"), losses_of))
    list(selector.batches(loader_of(10, 10, "tensor"), losses_of, clock=Clock(7, 100, 0.5)))
    list(selector.batches(loader_of(10, 10, "tensor"), losses_of))
    assert selector.clocks == [(0, 0, 0.0), (1, 1, 0.0), (1, 2, 0.0), (7, 3, 0.5), (3, 4, 0.0)]


def test_a_selector_that_is_none_says_so():
    with pytest.raises(TypeError, match="Selector does not say how it selects"):
        list(Selector(4).batches(loader_of(8, 4, "tensor"), losses_of))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "batch_size = 0"), ({"batch_size": 4, "beta": -0.1}, "beta = -0.1"),
    ({"batch_size": 4, "beta": float("nan")}, "beta = nan"), ({"batch_size": 4, "history": 0}, "history = 0"),
    ({"batch_size": 4, "least_chance": 1.1}, "least_chance = 1.1"), ({"batch_size": 4, "seed": -1}, "seed = -1"),
])  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelectiveBackprop(**arguments)


# Loaders that learn.


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_by_priority_learns_from_what_is_scored(workers):
    data = TensorDataset(torch.arange(60).float(), torch.arange(60))
    loader = PriorityLoader(data, 12, epochs=2, seed=1, num_workers=workers)
    selector, trained = SelectiveBackprop(5, 1.0, seed=1), [0, 0]
    for epoch in range(2):
        for x, _ in selector.batches(loader, losses_of):
            trained[epoch] += len(x)
    assert trained[0] == 60
    assert 0 < trained[1] < 60
    loader.sampler.flush()
    np.testing.assert_array_equal(loader.store.column("loss"), np.array(losses_of_all(60), np.float32))


def test_clock_columns_and_indices_are_those_of_a_loader_by_priority():
    loader = PriorityLoader(TensorDataset(torch.arange(60).float()), 12, epochs=4, seed=1)
    list(loader_skipped(loader))
    selector, seen = TopHalf(5), []
    for _ in range(2):
        for (x,) in selector.batches(loader, lambda batch: (seen.append(batch[0].tolist()), losses_of(batch))[1]):
            selector.mean(x)
    assert [indices.tolist() for indices, _ in selector.asked] == seen
    assert all(columns is loader.store.columns for _, columns in selector.asked)
    assert [(epoch, step) for epoch, step, _ in selector.clocks] == [(1 + k // 5, k) for k in range(10)]
    assert selector.clocks[-1][2] > selector.clocks[0][2] > 0


def loader_skipped(loader):
    for batch in loader:
        loader.skip()
        yield batch


def test_a_loader_by_priority_is_told_of_batches_that_were_not_scored():
    loader = PriorityLoader(TensorDataset(torch.arange(60).float()), 12, epochs=4, seed=1)
    selector, scored = TopHalf(5, every=2), []
    list(selector.batches(loader, lambda batch: (scored.extend(batch[0].int().tolist()), losses_of(batch))[1]))
    loader.flush()
    assert sorted(scored) == np.flatnonzero(loader.store.seen()).tolist()
    assert len(scored) == 36


def test_observations_beside_the_scores_reach_the_loaders_policy():
    loader = PriorityLoader(TensorDataset(torch.arange(60).float()), 12, policy=Correct(), seed=1)
    for _ in TopHalf(5).batches(loader, lambda batch: (losses_of(batch), {"correct": batch[0] % 2})):
        pass
    loader.flush()
    assert loader.store.column("correct").tolist() == [k % 2 for k in range(60)]
    assert loader.store.priorities.tolist() == losses_of_all(60)


def test_batches_in_any_order_carry_their_indices():
    data = WithIndex(TensorDataset(torch.arange(60).float()))
    loader = PriorityLoader(data, 12, seed=1, num_workers=2, in_order=False)
    selector = TopHalf(5)
    for index, (x,) in selector.batches(loader, lambda batch: losses_of(batch[1]), indices=lambda batch: batch[0]):
        assert index.tolist() == x.int().tolist()
    loader.flush()
    np.testing.assert_array_equal(loader.store.column("loss"), np.array(losses_of_all(60), np.float32))
    assert sorted(i for indices, _ in selector.asked for i in indices.tolist()) == list(range(60))


def test_a_plain_loader_works_too():
    data = DataLoader(TensorDataset(torch.arange(30).float()), 10)
    out = list(SelectiveBackprop(30, 0.0).batches(data, losses_of))
    assert first_of(out[0]).tolist() == list(range(30))


# Losses of a store.


@pytest.mark.usefixtures("where")
def test_with_a_store_each_loss_is_compared_with_those_of_all_examples_seen_as_of_the_epochs_start():
    rng = generator(5)
    store, selector = ScoreStore(200, "loss"), SelectiveBackprop(8, 2.0, history=None, accept_all_epochs=0)
    table = {}
    for step in range(60):
        at = rng.integers(0, 200 if step > 20 else 60, 15)
        store.update(at, np.float32(rng.integers(0, 30, 15)))
        epoch = step // 10
        if epoch not in table:
            seen, loss = store.seen().tolist(), store.column("loss").tolist()
            table = {epoch: [value for value, known in zip(loss, seen, strict=True) if known]}
        losses = torch.from_numpy(np.float32(rng.integers(0, 30, 20)))
        arguments = {"columns": store.columns, "clock": Clock(epoch, step), "rng": Rng(3, epoch, step, "select")}
        u = Rng(3, epoch, step, "select").random(20)
        known = table[epoch]
        chances = [(sum(h < loss for h in known) / len(known)) ** 2 for loss in losses.tolist()]
        assert accepted(selector(losses, **arguments)).tolist() == [j for j in range(20) if u[j] < chances[j]]


def test_with_a_large_store_shares_are_right_to_one_in_65536():
    values = generator(2).exponential(size=300_000).astype(np.float32)
    columns = {"loss": values, "seen": np.full(300_000 // 8, 255, np.uint8)}
    selector = SelectiveBackprop(8, 1.0, history=None, accept_all_epochs=0)
    selector(torch.ones(3), columns=columns, clock=Clock(), rng=Rng(0, 0, 0, "select"))
    table, ordered = selector.state["losses"], sorted(values.tolist())
    assert len(table) == 65536
    table = table.tolist()
    for loss in values[:5000].tolist():
        share = bisect_left(table, loss) / 65536
        assert abs(share - bisect_left(ordered, loss) / 300_000) < 0.5 / 65536 + 1 / 300_000 + 1e-12


@pytest.mark.usefixtures("where")
def test_with_a_store_that_knows_nothing_everything_is_accepted_and_one_without_losses_is_refused():
    selector, store = SelectiveBackprop(8, history=None, accept_all_epochs=0), ScoreStore(20, "loss")
    selection = selector(torch.rand(9), columns=store.columns, clock=Clock(), rng=Rng(0, 0, 0, "select"))
    assert accepted(selection).tolist() == list(range(9))
    for columns in (None, ScoreStore(20, "uniform").columns):
        with pytest.raises(ValueError, match="a store whose policy keeps a column 'loss'"):
            selector(torch.rand(9), columns=columns, clock=Clock(1), rng=Rng(0, 0, 0, "select"))


# Saving, names.


@pytest.mark.parametrize("history", [1024, 7, None])
@pytest.mark.parametrize("stop", [0, 3, 8, 14, 20])
def test_a_selector_that_was_saved_goes_on_with_the_next_batch_as_if_nothing_had_been(history, stop):
    rng = generator(4)
    losses = [torch.from_numpy(rng.exponential(size=12).astype(np.float32)) for _ in range(20)]
    store = ScoreStore(50, "loss")
    store.update(np.arange(50), rng.random(50))

    def steps(selector, begin, end):
        out = []
        for k in range(begin, end):
            rng = Rng(1, k // 8, k, "select")
            store.update([k], [float(k)])  # the table is as of the epoch's start, also after loading
            selection = selector(losses[k], columns=store.columns, clock=Clock(k // 8, k), rng=rng)
            out.append(accepted(selection).tolist())
        return out

    def fresh():
        return SelectiveBackprop(8, 1.0, history, accept_all_epochs=0)

    before = store.column("loss").copy()
    whole = steps(fresh(), 0, 20)
    store.column("loss")[:] = before
    first, second = fresh(), fresh()
    done = steps(first, 0, stop)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert done + steps(second, stop, 20) == whole


def test_counts_are_saved_with_the_epoch_that_is_under_way():
    selector, other = TopHalf(4), TopHalf(4)
    list(selector.batches(loader_of(20, 10, "tensor"), losses_of))
    for _ in selector.batches(loader_of(30, 10, "tensor"), losses_of):
        saved = selector.state_dict()
        break
    assert (saved["steps"], saved["passes"]) == (3, 1)
    with pytest.raises(ValueError, match="config"):
        TopHalf(4, every=3).load_state_dict(saved)
    other.load_state_dict(saved)
    list(other.batches(loader_of(10, 10, "tensor"), losses_of))
    assert other.clocks == [(1, 3, 0.0)]


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    selector = SelectiveBackprop(8)
    good = selector.state_dict()
    inner = {"losses": torch.zeros(3), "epoch": 2}
    for change in (
        {"selector": "top_loss"}, {"config": {**good["config"], "beta": 2.0}}, {"state": {}}, {"more": 1},
        {"state": {**inner, "losses": torch.zeros(3, dtype=torch.int64)}}, {"state": {**inner, "losses": 3.0}},
        {"state": inner, "steps": -1}, {"state": inner, "passes": -1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected|this one's"):
            selector.load_state_dict({**good, **change})
        assert selector.state_dict()["state"]["losses"].tolist() == []
    with pytest.raises(ValueError, match="expected selector"):
        selector.load_state_dict({"steps": 1})
    selector.load_state_dict({**good, "state": inner, "steps": 5})
    assert (selector.steps, selector.state["losses"].tolist()) == (5, [0.0, 0.0, 0.0])
    saved = selector.state_dict()
    selector.state["losses"] += 1
    assert saved["state"]["losses"].tolist() == inner["losses"].tolist() == [0.0, 0.0, 0.0]  # copies, both ways


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_registered_selector_is_made_by_name_says_what_it_is_and_is_made_again_from_its_config(name):
    cls = find(name)
    selector = make(name, **cls.example)
    assert isinstance(selector, Selector)
    assert cls.acts == "backprop"
    assert cls.forwards
    source = cls.__doc__.rsplit("\n\n", 1)[-1].strip()
    assert source.startswith("Source: ")
    assert ";" in source
    assert json.loads(json.dumps(selector.config())) == selector.config()
    again = make(name, **selector.config())
    assert repr(again) == repr(selector)
    again.load_state_dict(selector.state_dict())
    with pytest.raises(ValueError, match="inner=" if name == "noise_guard" else "batch_size="):
        make(name)


def test_unknown_names_and_classes_are_refused_and_ones_own_get_a_name():
    with pytest.raises(ValueError, match=r"selector = 'nothing': expected a Selector.*selective_backprop"):
        make("nothing")
    with pytest.raises(TypeError, match="not the class"):
        make(SelectiveBackprop)
    with pytest.raises(ValueError, match="already"):
        register("selective_backprop")(type("Other", (Selector,), {}))
    assert find("fastprio.selectors.top_loss:TopLoss") is find("top_loss")
    assert copy.deepcopy(SelectiveBackprop(8)).config() == SelectiveBackprop(8).config()


@pytest.mark.parametrize("share", [0.0, 0.125, 0.5, 0.75])
def test_losses_that_are_not_finite_do_not_change_the_chances_of_others(share):
    """They take places in the history, but neither stand below anything nor count."""
    n, rng = 64, generator(2)
    losses = rng.exponential(size=(200, n)).astype(np.float32)
    bad = rng.random((200, n)) < share
    losses[bad] = rng.choice([np.nan, np.inf, -np.inf], int(bad.sum()))
    selector, taken = SelectiveBackprop(8, 1.0, 1024, 0), 0
    for step in range(200):
        selection = selector(torch.from_numpy(losses[step]), clock=Clock(), rng=Rng(1, 0, step, "select"))
        taken += len(accepted(selection))
    finite = int((~bad).sum())
    assert taken / finite == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_smaller_batch_may_be_left_out(drop_last):
    selector = SelectiveBackprop(8, accept_all_epochs=1)
    sizes = [
        len(batch) for batch in selector.batches(DataLoader(torch.arange(30.0), 6), lambda b: b, drop_last=drop_last)
    ]
    assert sizes == ([8, 8, 8] if drop_last else [8, 8, 8, 6])


def test_a_store_that_is_missing_is_found_at_the_first_batch():
    selector = SelectiveBackprop(8, history=None)
    with pytest.raises(ValueError, match="history = None: expected columns= of a store"):
        next(iter(selector.batches(DataLoader(torch.arange(30.0), 6), lambda b: b)))
