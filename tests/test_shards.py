"""Sharded: every rank draws from a shard of its own, and the weighted gradient is still that of the whole."""

import io
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from rank_helpers import loss_of, on_ranks, state_of
from torch.utils.data import DataLoader

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore, shard_of
from fastprio.policies import Given, LossPower, Plan, Policy

N, BATCH = 61, 8


def test_shards_are_contiguous_and_even():
    for size in (4, 7, 61, 1000):
        for ranks in (1, 2, 3, 4):
            shards = [shard_of(size, rank, ranks) for rank in range(ranks)]
            assert [i for shard in shards for i in shard] == list(range(size))
            assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shard_of(9) == range(9)
    for arguments, message in (((3, 0, 4), "at least one example for each of 4 ranks"), ((8, 4, 4), "rank = 4")):
        with pytest.raises(ValueError, match=message):
            shard_of(*arguments)
    with pytest.raises(ValueError, match="give both or neither"):
        shard_of(8, rank=1)


def loader_of(ranks, **arguments):
    return PriorityLoader(range(N), BATCH // ranks, epochs=3, seed=5, shard="sharded", **arguments)


def learns(rank, ranks, workers):
    loader = loader_of(ranks, num_workers=workers)
    seen, step = [], 0
    for _ in range(3):
        for batch in loader:
            assert batch.tolist() == loader.indices.tolist()
            seen.append(batch.tolist())
            loader.step(loss_of(batch, step))
            step += 1
    return seen, loader.store.column("loss").copy(), len(loader.store), dict(loader.stats())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_draws_from_its_shard_and_learns_it(ranks, workers):
    results = on_ranks(ranks, learns, ranks, workers)
    lengths = {len(seen) for seen, *_ in results}
    assert len(lengths) == 1  # batches are equal on all ranks
    for rank, (seen, losses, size, stats) in enumerate(results):
        shard = shard_of(N, rank, ranks)
        assert size == len(shard)
        assert {i for batch in seen for i in batch} == set(shard)  # nothing else, and all of it
        last = {}
        for step, batch in enumerate(seen):
            for i, loss in zip(batch, loss_of(batch, step).tolist(), strict=True):
                last[i] = loss
        assert losses.tolist() == [last[i] for i in shard]
        assert stats["coverage"] == 1
    assert results[0][0] != [[i - len(shard_of(N, 0, ranks)) for i in batch] for batch in results[1][0]]


def places_in_a_shard_of_equals(rank, ranks):
    sampler = PrioritySampler(ScoreStore(N // 2, Given(np.ones(N // 2))), 40 * BATCH, batch_size=BATCH, shard="sharded")
    return np.concatenate(list(PriorityBatchSampler(sampler, BATCH // ranks))) - rank * (N // 2)


def test_every_rank_has_random_numbers_of_its_own():
    one, other = on_ranks(2, places_in_a_shard_of_equals, 2)
    assert len(one) == len(other)
    assert (one == other).mean() < 0.2  # as in N // 2 by chance


def weights_of_all(rank, ranks, beta, losses):
    """For every example of the shard: its probability in one draw of this rank, and its weight."""
    shard = shard_of(N, rank, ranks)
    store = ScoreStore(len(shard), LossPower(alpha=1.0, beta=beta))
    store.update(range(len(shard)), losses[shard.start : shard.stop])
    sampler = PrioritySampler(store, 400 * BATCH, batch_size=BATCH, seed=2, shard="sharded")
    loader = DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // ranks))
    found, counts = {}, np.zeros(N)
    for batch in loader:
        for i, p, w in zip(batch.tolist(), sampler.probabilities.tolist(), sampler.weights.tolist(), strict=True):
            assert found.setdefault(i, (p, w)) == (p, w)
            counts[i] += 1
        sampler.skip()
    masses = {i + shard.start: m for i, m in enumerate(store.tree[np.arange(len(shard))].tolist())}
    return found, masses, counts


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_expected_weighted_gradient_is_that_of_one_process(ranks, beta):
    losses = np.random.default_rng(1).gamma(1.0, size=N).astype(np.float32) + np.float32(0.05)
    losses[shard_of(N, 1, ranks).start :] *= 3  # shards of unequal mass
    results = on_ranks(ranks, weights_of_all, ranks, beta, losses)
    masses = {i: Fraction(m) for _, shard, _ in results for i, m in shard.items()}
    whole = sum(masses.values())
    for found, shard, counts in results:
        of_shard = sum(Fraction(m) for m in shard.values())
        assert set(found) == set(shard)  # 400 batches meet every example of so small a shard
        for i, (probability, weight) in found.items():
            p = masses[i] / whole
            assert probability == pytest.approx(float(p), rel=1e-6)
            # The law: drawn here with m_i / M_r; w = R M_r / M (N P)^-beta. So with beta = 1 every example is worth
            # 1 / N.
            assert weight == pytest.approx(float(ranks * of_shard / whole) * float(N * p) ** -beta, rel=1e-5)
            worth = float(masses[i] / of_shard) * weight / ranks
            assert worth == pytest.approx(float(p) * float(N * p) ** -beta, rel=1e-5)
            if beta == 1:
                assert worth == pytest.approx(1 / N, rel=1e-5)
        drawn = 400 * BATCH / ranks
        for i, m in shard.items():
            expected = drawn * float(Fraction(m) / of_shard)
            assert abs(counts[i] - expected) < 6 * np.sqrt(expected) + 6


def fixed(rank, ranks):
    shard = shard_of(N, rank, ranks)
    weights = np.arange(N, dtype=np.float32)[shard.start : shard.stop]
    sampler = PrioritySampler(ScoreStore(len(shard), Given(weights)), 4000, batch_size=BATCH, shard="sharded")
    loader = DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // ranks))
    total = 0.0
    for batch in loader:
        total += float(sampler.step(batch.float()))
    return total / len(loader)


def test_fixed_weights_keep_their_law():
    w = np.arange(N, dtype=float)
    assert np.mean(on_ranks(2, fixed, 2)) == pytest.approx((w * w).sum() / w.sum(), rel=0.02)


def without_mass(rank, ranks):
    shard = shard_of(N, rank, ranks)
    store = ScoreStore(len(shard), Given(np.full(len(shard), float(rank), np.float32)))
    sampler = PrioritySampler(store, 800, batch_size=BATCH, shard="sharded")
    loader = DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // ranks))
    drawn, weights = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in loader:
            drawn += batch.tolist()
            weights += sampler.weights.tolist()
            sampler.step(batch.float())
    return drawn, weights, [str(w.message) for w in caught if "above zero" in str(w.message)]


def test_a_shard_without_mass_draws_uniformly_with_weight_zero_and_warns_once():
    (drawn, weights, said), (others, their_weights, silence) = on_ranks(2, without_mass, 2)
    assert set(weights) == {0.0}
    assert set(drawn) == set(shard_of(N, 0, 2))
    assert len(drawn) == len(others) == 400
    assert len(said) == 1
    assert not silence
    assert set(their_weights) == {2.0}  # R M_r / M


def nothing_anywhere(rank, ranks):
    shard = shard_of(N, rank, ranks)
    sampler = PrioritySampler(ScoreStore(len(shard), Given()), 80, batch_size=BATCH, shard="sharded")
    try:
        next(iter(sampler))
    except ValueError as error:
        return str(error)
    return None


def test_no_mass_on_any_rank_is_an_error():
    for found in on_ranks(2, nothing_anywhere, 2):
        assert "nothing" in found or "priority above zero" in found


def resumes(rank, ranks):
    whole = loader_of(ranks, num_workers=1)
    trained, state = [], None
    for epoch in range(3):
        whole.set_epoch(epoch)
        for batch in whole:
            trained.append((batch.tolist(), whole.weights.tolist()))
            whole.step(loss_of(batch, len(trained)))
            if len(trained) == 11:
                file = io.BytesIO()
                torch.save(whole.state_dict(), file)
                state = file.getvalue()
    again = loader_of(ranks, num_workers=1)
    again.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
    rest = []
    for epoch in range(1, 3):
        again.set_epoch(epoch)
        for batch in again:
            rest.append((batch.tolist(), again.weights.tolist()))
            again.step(loss_of(batch, 11 + len(rest)))
    assert rest == trained[11:]
    assert state_of(again.store) == state_of(whole.store)
    return state


def at_another_number(rank, ranks, states):
    loader = loader_of(ranks)
    try:
        loader.load_state_dict(torch.load(io.BytesIO(states[rank % len(states)]), weights_only=True))
        next(iter(loader))
    except ValueError as error:
        return str(error)
    return None


def test_a_run_resumes_exactly_on_as_many_ranks_and_refuses_others():
    states = on_ranks(2, resumes, 2)
    for found in on_ranks(4, at_another_number, 4, states):
        assert re.match(r"the state is sharded, rank \d of 2, this sampler is sharded, rank \d of 4: ", found)
    for rank, found in enumerate(on_ranks(2, at_another_number, 2, states[::-1])):
        assert found.startswith(
            f"the state is sharded, rank {1 - rank} of 2, this sampler is sharded, rank {rank} of 2"
        )
    whole = PriorityLoader(range(N), BATCH, epochs=3)
    with pytest.raises(ValueError, match="the state is sharded, rank 0 of 2, this sampler is replicated"):
        whole.load_state_dict(torch.load(io.BytesIO(states[0]), weights_only=True))


class Codes(Policy):
    """Leaves one example out, and does not say beforehand that it might."""

    def observe(self, columns, indices, obs, clock, rng):
        return obs.loss

    def plan(self, store, clock, rng):
        return Plan((np.arange(len(store)) > 0).astype(np.uint8))


def refuses(rank, ranks):
    found = {}
    store = ScoreStore(len(shard_of(N)), Codes(), epochs=3)
    makes = {
        "plan": lambda: PrioritySampler(store, N, batch_size=BATCH, shard="sharded"),
        "batch": lambda: PrioritySampler(N, shard="sharded"),
        "samples": lambda: PrioritySampler(store, batch_size=BATCH, shard="sharded"),
        "replicas": lambda: PrioritySampler(N, batch_size=BATCH, shard="sharded", num_replicas=2, rank=0),
        "seeds": lambda: PrioritySampler(N, batch_size=BATCH, shard="sharded", seed=rank),
        "weights": lambda: PrioritySampler(weights=np.ones(N), batch_size=BATCH, shard="sharded"),
        "name": lambda: PrioritySampler(N, batch_size=BATCH, shard="shared"),
    }
    for name, make in makes.items():
        try:
            sampler = make()
            if name == "plan":
                store.update(range(len(store)), np.ones(len(store), np.float32))
            next(iter(sampler))
        except ValueError as error:
            found[name] = str(error)
    return found


def test_what_cannot_work_is_refused():
    for found in on_ranks(2, refuses, 2):
        assert "plans epochs of other lengths" in found["plan"]
        assert "pass batch_size=" in found["batch"]
        assert "num_samples" in found["samples"]
        assert "leave out num_replicas" in found["replicas"]
        assert "rank 0 and rank 1 differ" in found["seeds"]
        assert "ScoreStore(n, Given(weights))" in found["weights"]
        assert "shard = 'shared'" in found["name"]


def without_replacement(rank, ranks, drop_last, stores):
    policy = LossPower(beta=0)
    if stores:
        policy = ScoreStore(len(shard_of(N, rank, ranks)), policy)
    sampler = PriorityLoader(
        range(N), BATCH // ranks, policy=policy, shard="sharded", replacement=False, drop_last=drop_last
    ).sampler
    sampler.drop_last = drop_last
    try:
        return [index - shard_of(N, rank, ranks).start for batch in sampler_batches(sampler, ranks) for index in batch]
    except ValueError as error:
        return str(error)


def sampler_batches(sampler, ranks):
    for batch in PriorityBatchSampler(sampler, BATCH // ranks):
        sampler.skip()
        yield batch


@pytest.mark.parametrize("stores", [False, True])
def test_without_replacement_no_rank_draws_more_than_the_smallest_shard_has(stores):
    for found in on_ranks(2, without_replacement, 2, False, stores):
        assert found.startswith("num_samples = 61 on 2 ranks: 31 draws each without replacement, and the smallest")
    for found in on_ranks(2, without_replacement, 2, True, stores):
        assert len(set(found)) == len(found) == N // 2


def goes_on_unstepped(rank, ranks):
    def loader():
        shard = shard_of(N, rank, ranks)
        store = ScoreStore(len(shard), Given(np.arange(1.0, len(shard) + 1)))
        return PriorityLoader(range(N), BATCH // ranks, policy=store, shard="sharded")

    whole = loader()
    drawn = [batch.tolist() for batch in whole]
    begun = loader()
    for number, _ in enumerate(begun):
        if number == 6:
            break
    again = loader()
    again.load_state_dict(begun.state_dict())
    assert [batch.tolist() for batch in again] == drawn[7:]
    return len(drawn)


def test_a_sharded_loop_that_need_not_step_goes_on_where_it_stands():
    assert on_ranks(2, goes_on_unstepped, 2) == [8, 8]


def not_finite(rank, ranks, lag):
    loader = loader_of(ranks, lag=lag)
    errors, drawn = [], 0
    for epoch in range(4):
        try:
            for batch in loader:
                drawn += 1
                losses = loss_of(batch, 0)
                if rank == 1 and epoch == 0 and drawn == 3:
                    losses[1] = float("nan")
                loader.step(losses)
        except ValueError as error:
            errors.append((epoch, drawn, str(error)))
    return errors, float(loader.store.stats()["coverage"])


@pytest.mark.parametrize("lag", [None, 1])
def test_losses_that_one_rank_refuses_raise_on_all_at_the_same_draw(lag):
    (errors, coverage), (its, its_coverage) = on_ranks(2, not_finite, 2, lag)
    assert [error[:2] for error in errors] == [error[:2] for error in its] == [(0, 3)]
    assert errors[0][2] == "batch 2: the losses of rank 1 were refused"
    assert its[0][2].startswith("batch 2: the losses of rank 1 were refused: losses[1] = nan")
    assert coverage == its_coverage == 1  # later epochs cover what was left


def first_weights(rank, ranks, workers):
    loader = loader_of(ranks, cover_first=False, num_workers=workers, policy=LossPower(beta=0))
    weights = []
    for batch in loader:
        weights.append(loader.weights.tolist())
        loader.step(loss_of(batch, 0))
    return weights


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_batch_is_weighed_by_the_masses_that_it_is_drawn_from(workers):
    results = on_ranks(2, first_weights, 2, workers)
    # All priorities are equal: R M_r / M is R times the shard's share of the examples.
    for rank, weights in enumerate(results):
        share = 2 * len(shard_of(N, rank, 2)) / N
        for batch in weights[: 1 + 2 * workers]:
            assert batch == pytest.approx([share] * len(batch))


def unequal_steps(rank, ranks):
    sampler = PrioritySampler(N, batch_size=BATCH, shard="sharded")
    try:
        for batch in DataLoader(range(N), BATCH // ranks // (rank + 1), sampler=sampler):  # rank 1 takes them in halves
            sampler.step(loss_of(batch, 0))
    except RuntimeError as error:
        return str(error)
    return None


def test_ranks_that_do_not_step_alike_find_out():
    for found in on_ranks(2, unequal_steps, 2):
        assert "ranks have stepped or skipped different batches, [1, 0]" in found
