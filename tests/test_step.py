"""Promise: step returns mean(weight * loss) with its graph, weighs rightly, and refuses what it cannot credit."""

import numpy as np
import pytest
import torch
from helpers import generator
from loader_helpers import Correct, Raw, build, loss_of, run_but
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from fastprio import PriorityBatchSampler, PrioritySampler, ScoreStore, SumTree, journal
from fastprio.policies import LossPower


def drawn(policy=None, n=32, batch=8, **options):
    """(sampler, iterator) with all examples scored and one batch drawn by priority."""
    on_nonfinite = options.pop("on_nonfinite", "raise")
    store = ScoreStore(n, policy or LossPower(beta=0.7), on_nonfinite=on_nonfinite)
    store.update(np.arange(n), loss_of(np.arange(n)))
    sampler = PrioritySampler(store, batch_size=batch, cover_first=False, **options)
    iterator = iter(PriorityBatchSampler(sampler, batch))
    return sampler, iterator, next(iterator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_step_returns_the_weighted_mean_whose_gradient_is_weight_over_n(dtype):
    sampler, _, batch = drawn()
    weights = sampler.weights
    assert weights.dtype == torch.float32
    assert weights.std() > 0.1
    raw = loss_of(batch).to(dtype).requires_grad_()
    mean = sampler.step(raw * 1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert mean.shape == ()
    assert mean.dtype == wide
    exact = (weights.double() * raw.detach().double()).mean()
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(mean.item(), exact.item(), rtol=tolerance)
    mean.backward()
    assert raw.grad.dtype == dtype
    assert torch.equal(raw.grad, (weights.to(wide) / 8).to(dtype))
    np.testing.assert_array_equal(sampler.store.column("loss")[batch], raw.detach().float().numpy())


def test_detached_losses_give_the_same_mean_without_a_graph():
    (one, _, batch), (other, _, _) = drawn(), drawn()
    attached = one.step(loss_of(batch).requires_grad_())
    detached = other.step(loss_of(batch))
    assert attached.requires_grad
    assert not detached.requires_grad
    assert attached.item() == detached.item()
    np.testing.assert_array_equal(one.store.priorities, other.store.priorities)


def test_what_the_caller_does_to_indices_and_weights_changes_neither_credit_nor_mean():
    (one, _, batch), (other, _, _) = drawn(), drawn()
    one.weights.zero_()
    indices = one.indices
    if indices.flags.writeable:
        indices[:] = 0
    assert one.step(loss_of(batch)).item() == other.step(loss_of(batch)).item()
    np.testing.assert_array_equal(one.store.priorities, other.store.priorities)


def test_a_batch_of_single_draws_may_be_stepped_in_equal_parts():
    whole, parts = (PrioritySampler(ScoreStore(24), batch_size=8) for _ in range(2))
    for indices in PriorityBatchSampler(whole, 8):
        whole.step(loss_of(indices))
    loader = BatchSampler(parts, 2, False)  # gradients accumulated over four small batches
    for k, indices in enumerate(loader):
        assert parts.indices.tolist()[:2] == indices
        parts.step(loss_of(indices))
        assert parts.journal.consumed_batches == (k + 1) // 4
    np.testing.assert_array_equal(whole.store.priorities, parts.store.priorities)
    with pytest.raises(RuntimeError, match="nothing is outstanding"):
        parts.step(torch.ones(2))


@pytest.mark.parametrize("count", [1, 3, 5, 7, 16])
def test_no_other_part_is_taken(count):
    sampler = PrioritySampler(ScoreStore(24), batch_size=8)
    next(iter(BatchSampler(sampler, 8, False)))
    with pytest.raises(ValueError, match=f"expected 8 of them.*got {count}; give the loader .* batch_size, 8"):
        sampler.step(torch.ones(count))
    sampler.step(torch.ones(8))


@pytest.mark.parametrize(
    ("losses", "error", "says"),
    [
        (torch.ones(7), ValueError, "expected 8"),
        (torch.ones(9), ValueError, "expected 8"),
        (torch.ones(16), ValueError, "expected 8"),
        (torch.ones(0), ValueError, "expected 8"),
        (torch.ones(8, 1), ValueError, r"shape \[n\].*\[8, 1\]"),
        (torch.tensor(1.0), ValueError, r"reduction='none'.*\[\]"),
        (torch.ones(8, dtype=torch.int64), TypeError, "floating"),
        (torch.ones(8, dtype=torch.bool), TypeError, "floating"),
        (np.ones(8), TypeError, "tensor"),
        (1.0, TypeError, "tensor"),
        (
            torch.tensor([1.0] * 5 + [float("nan")] + [1.0] * 2),
            ValueError,
            r"losses\[5\] = nan.*skip\(\).*on_nonfinite",
        ),
        (torch.tensor([1.0, float("inf")] + [1.0] * 6), ValueError, r"losses\[1\] = inf.*skip\(\)"),
        (torch.tensor([-float("inf")] * 8), ValueError, r"losses\[0\] = -inf"),
        (torch.tensor([1.0, -2.0] + [1.0] * 6), ValueError, r"losses\[1\] = -2.*>= 0"),
    ],
)
@pytest.mark.parametrize("call", ["step", "record"])
def test_losses_that_are_refused_change_and_consume_nothing(losses, error, says, call):
    sampler, iterator, batch = drawn()
    before = sampler.store.priorities.tobytes(), sampler.store.column("loss").tobytes(), sampler.store.stats()
    for _ in range(2):
        with pytest.raises(error, match=says):
            getattr(sampler, call)(losses)
        after = sampler.store.priorities.tobytes(), sampler.store.column("loss").tobytes(), sampler.store.stats()
        assert after == before
        np.testing.assert_array_equal(sampler.indices, batch)
    sampler.skip()
    following = next(iterator)
    np.testing.assert_array_equal(sampler.indices, following)
    sampler.step(loss_of(following))


def test_stepping_skipping_or_looking_with_nothing_outstanding_is_an_error():
    sampler = PrioritySampler(16, batch_size=8)
    calls = [lambda: sampler.step(torch.ones(8)), sampler.skip, lambda: sampler.indices, lambda: sampler.weights]
    for call in calls:
        with pytest.raises(RuntimeError, match="nothing is outstanding"):
            call()
    iterator = iter(PriorityBatchSampler(sampler, 8))
    next(iterator)
    sampler.step(torch.ones(8))
    for call in calls:
        with pytest.raises(RuntimeError, match="nothing is outstanding"):
            call()
    next(iterator)
    sampler.skip()
    for call in calls:
        with pytest.raises(RuntimeError, match="nothing is outstanding"):
            call()


def test_record_is_step_without_a_result():
    (one, _, batch), (other, _, _) = drawn(), drawn()
    one.step(loss_of(batch, 3))
    assert other.record(loss_of(batch, 3)) is None
    np.testing.assert_array_equal(one.store.priorities, other.store.priorities)
    with pytest.raises(RuntimeError, match="nothing is outstanding"):
        other.record(torch.ones(8))


def test_losses_not_finite_are_left_out_and_counted_where_asked_for():
    sampler, iterator, batch = drawn(on_nonfinite="skip")
    weights, losses = sampler.weights.double(), loss_of(batch, 1)
    losses[2], losses[5] = float("nan"), float("inf")
    before = sampler.store.column("loss").copy()
    raw = losses.clone().requires_grad_()
    mean = sampler.step(raw)
    good = torch.isfinite(losses)
    np.testing.assert_allclose(mean.item(), (weights * losses.double())[good].sum().item() / 6, rtol=1e-6)
    mean.backward()
    np.testing.assert_allclose(raw.grad[good].numpy(), weights[good].numpy() / 6, rtol=1e-6)
    assert (raw.grad[~good] == 0).all()
    assert sampler.store.stats()["skipped_nonfinite"] == 2
    before[np.array(batch)[good.numpy()]] = losses[good].numpy()
    np.testing.assert_array_equal(sampler.store.column("loss"), before)
    following = next(iterator)
    assert sampler.step(torch.full((8,), float("nan"))).item() == 0  # nothing finite: no gradient, no NaN
    assert sampler.store.stats()["skipped_nonfinite"] == 10
    np.testing.assert_array_equal(sampler.store.column("loss")[following], before[following])


def test_finite_losses_with_on_nonfinite_skip_give_the_same_mean():
    (one, _, batch), (other, _, _) = drawn(), drawn(on_nonfinite="skip")
    torch.testing.assert_close(one.step(loss_of(batch)), other.step(loss_of(batch)))


def test_a_required_observation_missing_is_named_and_nothing_is_consumed():
    sampler = PrioritySampler(ScoreStore(16, Correct()), batch_size=8)
    batch = next(iter(PriorityBatchSampler(sampler, 8)))
    with pytest.raises(TypeError, match="needs correct"):
        sampler.step(torch.ones(8))
    with pytest.raises(ValueError, match="correct: expected 8 rows"):
        sampler.step(torch.ones(8), correct=torch.ones(7))
    np.testing.assert_array_equal(sampler.indices, batch)
    sampler.step(torch.ones(8), correct=torch.ones(8, dtype=torch.bool))
    assert (sampler.store.column("correct")[batch] == 1).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("forgotten", [0, 1, 4])
def test_a_priority_loader_finds_a_forgotten_batch_at_the_next(workers, forgotten):
    loader, sampler = build("loader", 80, 8, workers=workers)
    named = rf"batch {forgotten} of this epoch was neither stepped nor skipped.*skip\(\)"
    with pytest.raises(RuntimeError, match=named):
        run_but(loader, sampler, forgotten)
    assert loader.store.seen().sum() == 8 * forgotten  # nothing was credited wrongly
    for batch in loader:  # and a new epoch works
        loader.step(loss_of(batch))


@pytest.mark.parametrize("kind", ["batch_sampler", "sampler", "singles"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("forgotten", [1, 3])
def test_a_bare_sampler_finds_a_forgotten_batch_at_the_next_step(kind, workers, forgotten):
    """After the first, which shows how far the loader reads ahead. Near the end that is less, and so found later."""
    loader, sampler = build(kind, 160, 8, workers=workers)
    with pytest.raises(RuntimeError, match=r"neither stepped nor skipped.*skip\(\)"):
        run_but(loader, sampler, forgotten)
    assert sampler.store.seen().sum() == 8 * forgotten


def test_a_tiny_loss_in_float64_is_a_small_loss():
    """A squared error of 1e-50 is a triumph, not a fault: float32 has zero for it."""
    loader, sampler = build("loader", 16, 8)
    for batch in loader:
        sampler.step(torch.full((len(batch),), 1e-50, dtype=torch.float64))
    assert sampler.store.all_seen()


# Importance weights.


def test_weights_are_n_times_the_probability_to_the_minus_beta():
    n, batch = 64, 8
    for beta in (0.3, 0.4, 0.5, 1.0):
        for scheme in ("iid", "stratified", "systematic"):
            sampler, iterator, indices = drawn(LossPower(alpha=1.0, beta=beta), n, batch, scheme=scheme)
            for _ in range(5):
                mass = sampler.store.priorities.astype(np.float64)
                expected = (n * mass[indices] / mass.sum()) ** -beta
                np.testing.assert_allclose(sampler.weights.numpy(), expected, rtol=1e-6)
                sampler.step(loss_of(indices, 2))
                indices = next(iterator)


def test_weights_are_of_the_moment_of_the_draw_not_of_the_step():
    sampler, _, batch = drawn()
    before = sampler.weights.clone()
    sampler.store.set_priorities(batch, np.full(8, 1e6))
    assert torch.equal(sampler.weights, before)
    losses = loss_of(batch)
    torch.testing.assert_close(sampler.step(losses), (before * losses).mean())


@pytest.mark.parametrize("workers", [0, 2])
def test_beta_goes_linearly_over_all_epochs(workers):
    n, batch, epochs = 40, 8, 5
    loader, sampler = build(
        "loader", n, batch, workers=workers, epochs=epochs, policy=LossPower(beta=(0.4, 1.0)), cover_first=False, lag=4
    )
    betas = []
    for epoch in range(epochs):
        for number, of_batch in enumerate(loader):
            (draws, *_) = sampler.journal._entries
            of_n = n * draws.probabilities
            beta = 0.4 + 0.6 * (epoch + number * batch / n) / epochs
            np.testing.assert_allclose(loader.weights.numpy(), of_n**-beta, rtol=1e-6)
            betas.append(abs(of_n - 1).max() > 0.1)
            loader.step(loss_of(of_batch, epoch))
    assert sum(betas) > 15  # weights that show their beta


def test_at_beta_one_the_expected_weighted_loss_is_the_mean_loss():
    """By enumeration: every integer of the total mass once, with the policy's own weights."""
    losses = np.array([0.5, 3.0, 0.0, 8.0, 1.0, 1.0, 2.5], np.float32)
    n, priorities = 7, np.array([1, 5, 2, 9, 1, 3, 11], np.float32)
    tree = SumTree(n, _scale=0)
    tree.fill(priorities)
    hits = np.bincount(tree.find(np.arange(tree.total)), minlength=n)
    assert hits.sum() == tree.total == 32
    store = ScoreStore(n, policy := LossPower(beta=1.0))
    probabilities = hits / tree.total
    weights = policy.weights(store.columns, np.arange(n), probabilities, store.clock).astype(np.float64)
    np.testing.assert_allclose((probabilities * weights * losses).sum(), losses.mean(dtype=np.float64), rtol=1e-7)
    biased = LossPower(beta=0.5).weights(store.columns, np.arange(n), probabilities, store.clock)
    assert abs((probabilities * biased * losses).sum() / losses.mean() - 1) > 0.05  # the control


def test_the_mean_of_many_steps_at_beta_one_is_the_mean_loss():
    """The whole path: 4 000 batches, weights from the sampler, losses never learnt."""
    n, batch = 50, 16
    losses = loss_of(np.arange(n)).double()
    for scheme in ("iid", "stratified", "systematic"):
        store = ScoreStore(n, LossPower(alpha=1.0, beta=1.0))
        store.update(np.arange(n), np.linspace(0.2, 9, n))
        sampler = PrioritySampler(store, 4000 * batch, batch_size=batch, scheme=scheme, cover_first=False)
        means = []
        for indices in PriorityBatchSampler(sampler, batch):
            means.append((sampler.weights.double() * losses[indices]).mean().item())
            sampler.skip()
        error = np.std(means) / np.sqrt(len(means))
        assert abs(np.mean(means) - losses.mean().item()) < 5 * error
        assert error < 0.05 * losses.mean().item()


def test_max_normalized_weights_are_at_most_one():
    sampler, _, _ = drawn(LossPower(beta=0.7, max_normalize=True))
    plain, _, _ = drawn(LossPower(beta=0.7))
    assert sampler.weights.max() == 1
    torch.testing.assert_close(sampler.weights, plain.weights / plain.weights.max())


def test_a_policy_without_weights_has_weight_one():
    sampler, _, batch = drawn(Raw())
    assert torch.equal(sampler.weights, torch.ones(8))
    losses = loss_of(batch)
    assert torch.equal(sampler.step(losses), losses.mean())


def test_a_loop_that_never_steps_keeps_so_many_draws_and_no_more(monkeypatch):
    monkeypatch.setattr(journal, "DEPTH", 1000)
    monkeypatch.setattr(journal, "BATCHES", 90)
    sampler = PrioritySampler(ScoreStore(100_000), batch_size=10)
    batches = iter(PriorityBatchSampler(sampler, 10))
    for _ in range(100):
        next(batches)
    assert sampler.journal.outstanding == 1000
    assert len(sampler.indices) == 10  # the first batch: nothing is forgotten yet
    for _ in range(50):
        next(batches)
    assert sampler.journal.outstanding == 1000
    with pytest.raises(RuntimeError, match="more than 1000 draws were issued and not consumed"):
        sampler.step(torch.ones(10))
    assert not sampler.store.seen().any()
    next(iter(PriorityBatchSampler(sampler, 10)))  # the next epoch begins afresh
    sampler.step(torch.ones(10))
    assert sampler.store.seen().sum() == 10


@pytest.mark.parametrize("lag", [None, 320])
def test_no_loader_reads_too_far_ahead(monkeypatch, lag):
    # Single draws in covering stretches of 64, and batches under a long lag: far beyond the limits, patched down.
    monkeypatch.setattr(journal, "DEPTH", 100)
    monkeypatch.setattr(journal, "BATCHES", 5)
    dataset = TensorDataset(torch.arange(4000))
    if lag is None:
        sampler = PrioritySampler(4000)
        loader = DataLoader(dataset, 100, sampler=sampler, num_workers=2, prefetch_factor=10)
    else:
        sampler = PrioritySampler(4000, batch_size=10, lag=lag)
        batches = PriorityBatchSampler(sampler, 10)
        loader = DataLoader(dataset, batch_sampler=batches, num_workers=2, prefetch_factor=150)
    for (indices,) in loader:
        np.testing.assert_array_equal(sampler.indices[: len(indices)], indices)
        sampler.step(torch.ones(len(indices)))
    sampler.flush()
    assert sampler.store.all_seen()


def test_an_epoch_begun_during_a_step_is_named():
    sampler = PrioritySampler(ScoreStore(100), batch_size=10)
    batches = PriorityBatchSampler(sampler, 10)
    next(iter(batches))
    update = sampler.store.update_rows

    def interrupted(*arguments):
        update(*arguments)
        next(iter(batches))  # as another thread may

    sampler.store.update_rows = interrupted
    with pytest.raises(RuntimeError, match="a newer epoch began while this step was being recorded"):
        sampler.step(torch.ones(10))
    del sampler.store.update_rows
    sampler.step(torch.ones(10))


def test_float64_losses_are_averaged_in_float64():
    for n in (96, 100, 64):
        sampler = PrioritySampler(ScoreStore(1000, LossPower(beta=0.7)), batch_size=n, cover_first=False)
        sampler.store.update(np.arange(1000), generator(n).exponential(size=1000))
        next(iter(PriorityBatchSampler(sampler, n)))
        losses, weights = torch.rand(n, dtype=torch.float64), sampler.weights.double()
        expected = (losses * weights).sum() / n
        assert abs(float(sampler.step(losses) / expected) - 1) < 1e-15
