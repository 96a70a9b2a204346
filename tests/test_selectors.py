"""Promise: a selector accepts with the chances it states; the loop around it loses nothing and doubles nothing."""

import numpy as np
import pytest
import torch
from helpers import P_FAIL, generator, p_value, volume
from scipy.stats import binom, hypergeom
from torch.utils.data import DataLoader, TensorDataset

from fastprio import PriorityLoader
from fastprio._random import USES, Rng
from fastprio.policies import Clock
from fastprio.selectors import Selection, SelectiveBackprop, Selector

# Random numbers.


@pytest.mark.parametrize("bound", [1, 2, 3, 5, 7, 10, 13])
def test_small_integers_are_equally_likely(bound):
    n = volume(40_000)
    counts = np.bincount(Rng(bound, 2, 3, "observe").integers(bound, n), minlength=bound)
    assert counts.size == bound
    assert p_value(counts, np.full(bound, n / bound)) > P_FAIL


@pytest.mark.parametrize("bound", [2**63, 3 << 61, 2**62 + 1, 2**53])
def test_large_integers_are_equally_likely(bound):
    # 3/4 of 2^63: taking a remainder instead of rejecting would hit the lower parts twice as often.
    n, parts = volume(40_000), 12
    values = Rng(1, 2, 3, "select").integers(bound, n)
    assert 0 <= values.min() <= values.max() < bound
    counts = np.bincount([int(v) * parts // bound for v in values.tolist()], minlength=parts)
    assert p_value(counts, np.full(parts, n / parts)) > P_FAIL


def test_random_is_a_multiple_of_two_to_the_minus_53_below_one():
    n = volume(40_000)
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
    trials = volume(20_000)
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

    def __init__(self, beta, history):
        self.beta, self.history, self.losses = beta, history, []

    def chances(self, losses):
        self.losses = (self.losses + losses)[-self.history :]
        return [(sum(h < loss for h in self.losses) / len(self.losses)) ** self.beta for loss in losses]


def batches_of_losses(rng, n, ties):
    sizes = rng.integers(1, 60, n)
    return [(rng.integers(0, 6, k) if ties else rng.exponential(size=k)).astype(np.float32) for k in sizes]


def accepted(selection):
    positions = selection.positions
    return positions if selection.count is None else positions[: int(selection.count)]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("history", [1, 20, 1024])
@pytest.mark.parametrize("ties", [False, True])
def test_accepts_where_the_random_number_is_below_the_chance_by_definition(beta, history, ties):
    selector, plain = SelectiveBackprop(8, beta, history, 0), PlainSelective(beta, history)
    for step, losses in enumerate(batches_of_losses(generator(history), 40, ties)):
        selection = selector(torch.from_numpy(losses), clock=Clock(1), rng=Rng(3, 1, step, "select"))
        u = Rng(3, 1, step, "select").random(losses.size)
        expected = [j for j, p in enumerate(plain.chances(losses.tolist())) if u[j] < p]
        assert accepted(selection).tolist() == expected
        assert sorted(selection.positions.tolist()) == list(range(losses.size))
        assert selection.weights is None
        assert selector.state["losses"].tolist() == plain.losses


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_every_example_is_accepted_as_often_as_its_chance_says(beta):
    earlier, losses = torch.tensor([0.5, 1.5, 2.5, 2.5]), torch.tensor([2.0, 0.1, 2.5, 2.0, 9.0])
    plain = PlainSelective(beta, 1024)
    plain.chances(earlier.tolist())
    chances, times, trials = plain.chances(losses.tolist()), np.zeros(5), volume(4000)
    for seed in range(trials):
        selector = SelectiveBackprop(8, beta, accept_all_epochs=0)
        selector.state["losses"] = earlier
        times[accepted(selector(losses, clock=Clock(), rng=Rng(seed, 0, 0, "select"))).numpy()] += 1
    for k, p in zip(times, chances, strict=True):
        assert min(binom.cdf(k, trials, p), binom.sf(k - 1, trials, p)) > P_FAIL
    assert times[1] == 0  # nothing is below the least loss


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


def loader_of(n, batch_size, form):
    x = torch.arange(n).float()
    batches = [x[k : k + batch_size] for k in range(0, n, batch_size)]
    make = {"tensor": lambda b: b, "tuple": lambda b: (b, b.int()), "list": lambda b: [b, b.int()],
            "dict": lambda b: {"x": b, "more": (b.int(), b[:, None])}}  # fmt: skip
    return [make[form](batch) for batch in batches]


def first_of(batch):
    while not isinstance(batch, torch.Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return batch


def leaves_of(batch):
    if isinstance(batch, torch.Tensor):
        return [batch.flatten().int().tolist()]
    return [leaf for part in (batch.values() if isinstance(batch, dict) else batch) for leaf in leaves_of(part)]


def losses_of(batch):
    assert not torch.is_grad_enabled()
    return torch.sin(first_of(batch) * 12.9898).abs()


@pytest.mark.parametrize("form", ["tensor", "tuple", "list", "dict"])
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
    clock, told = Clock(3), []
    out = list(selector.batches(loader_of(n, scored, form), losses_of, clock=clock, on_scores=told.append))
    assert selector.steps == -(-n // scored)
    assert torch.cat(told).tolist() == losses_of_all(n)
    assert all(weights is None for _, weights in out)
    got = [first_of(batch).int().tolist() for batch, _ in out]
    assert [x for batch in got for x in batch] == chosen
    assert [len(b) for b in got[:-1]] == [trained] * (len(got) - 1)
    assert not got or 0 < len(got[-1]) <= trained
    assert beta > 0 or chosen == list(range(n))
    assert beta == 0 or 0 < len(chosen) < n or n < 10
    for batch, _ in out:
        assert all(leaf == leaves_of(batch)[0] for leaf in leaves_of(batch))  # parts stay together
        assert form != "dict" or (batch.keys() == {"x", "more"} and batch["more"][1].shape[1:] == (1,))


def losses_of_all(n):
    with torch.no_grad():
        return losses_of(torch.arange(n).float()).tolist()


def test_the_same_seed_gives_the_same_batches_and_another_gives_others():
    def run(seed, **arguments):
        selector = SelectiveBackprop(8, 1.0, accept_all_epochs=0, seed=seed)
        out = selector.batches(loader_of(300, 20, "tensor"), losses_of, **arguments)
        return [batch.tolist() for batch, _ in out]

    assert run(1, clock=Clock(2)) == run(1, clock=Clock(2))
    assert run(1, clock=Clock(2)) != run(2, clock=Clock(2))


class TopHalf(Selector):
    """A fixed number of the largest losses, weighted; every other step does not score."""

    def __init__(self, batch_size, every=1):
        super().__init__(batch_size)
        self.every, self.asked = every, []

    def needs_scores(self, clock):
        return clock.step % self.every == 0

    def __call__(self, losses, *, indices=None, columns=None, clock=None, rng):
        self.asked.append((indices, columns))
        positions = losses.topk(len(losses) // 2).indices
        return Selection(positions, weights=losses[positions])


def test_a_selector_of_ones_own_chooses_a_fixed_number_with_weights():
    selector, columns = TopHalf(6), {"loss": None}
    batches = loader_of(40, 10, "tuple")
    out = list(selector.batches(batches, losses_of, columns=columns, indices=lambda batch: batch[1], clock=Clock()))
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
    selector, told = TopHalf(trained, every=2), []
    out = list(selector.batches(loader_of(40, 10, "list"), losses_of, clock=Clock(), on_scores=told.append))
    assert len(told) == len(selector.asked) == 2
    x, weights = torch.cat([b[0] for b, _ in out]), torch.cat([w for _, w in out if w is not None])
    scored = (x // 10) % 2 == 0
    assert x[~scored].tolist() == [*range(10, 20), *range(30, 40)]
    assert int(scored.sum()) == 10
    if trained == 50:
        assert (weights[~scored] == 1).all()
        torch.testing.assert_close(weights[scored], torch.sin(x[scored] * 12.9898).abs())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_weights_on_a_gpu_join_those_of_steps_without_scores():
    batches = [batch.cuda() for batch in loader_of(40, 10, "tensor")]
    out = list(TopHalf(50, every=2).batches(batches, losses_of, clock=Clock()))
    assert [weights.device.type for _, weights in out] == ["cuda"]


def test_a_selector_that_is_none_says_so():
    with pytest.raises(TypeError, match="Selector does not say how it selects"):
        list(Selector(4).batches(loader_of(8, 4, "tensor"), losses_of, clock=Clock()))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "batch_size = 0"), ({"batch_size": 4, "beta": -0.1}, "beta = -0.1"),
    ({"batch_size": 4, "beta": float("nan")}, "beta = nan"), ({"batch_size": 4, "history": 0}, "history = 0"),
])  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelectiveBackprop(**arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_by_priority_learns_from_what_is_scored(workers):
    data = TensorDataset(torch.arange(60).float(), torch.arange(60))
    loader = PriorityLoader(data, 12, epochs=2, seed=1, num_workers=workers)
    selector, trained = SelectiveBackprop(5, 1.0, seed=1), [0, 0]
    for epoch in range(2):
        clock = Clock(epoch)
        for (x, _), weights in selector.batches(loader, losses_of, clock=clock, on_scores=loader.record):
            assert weights is None
            trained[epoch] += len(x)
    assert trained[0] == 60
    assert 0 < trained[1] < 60
    loader.sampler.flush()
    np.testing.assert_array_equal(loader.store.column("loss"), np.array(losses_of_all(60), np.float32))


def test_a_plain_loader_works_too():
    data = DataLoader(TensorDataset(torch.arange(30).float()), 10)
    out = list(SelectiveBackprop(30, 0.0).batches(data, losses_of, clock=Clock()))
    assert first_of(out[0][0]).tolist() == list(range(30))
