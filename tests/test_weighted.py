"""Promise: PrioritySampler(weights=w) means what torch's WeightedRandomSampler(w, num_samples, replacement) means,
and its slices for several ranks are the global draws, dealt out."""

import itertools

import numpy as np
import pytest
import torch
from helpers import p_value
from loader_helpers import build, counts, flat, run
from torch.utils.data import DataLoader, WeightedRandomSampler

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore, SumTree
from fastprio.policies import Given

WEIGHTS = [0.5, 3.0, 0.0, 1.25, 8.0, 0.125, 0.0, 2.0]
LAW = np.array(WEIGHTS) / np.sum(WEIGHTS)
SCHEMES = [{}, {"batch_size": 16}, {"batch_size": 16, "scheme": "systematic"}, {"batch_size": 16, "scheme": "iid"}]


@pytest.mark.parametrize("options", SCHEMES)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda w: torch.tensor(w, dtype=torch.float64)])
def test_weights_are_the_law_whatever_they_come_as(kind, options):
    """The same law as torch's own draws follow; a weight of zero is never drawn."""
    n = 60_000
    ours = counts(list(PrioritySampler(weights=kind(WEIGHTS), num_samples=n, **options)), 8)
    torch.manual_seed(1)
    theirs = counts(list(WeightedRandomSampler(WEIGHTS, n)), 8)
    for found in (ours, theirs):
        assert found[2] == found[6] == 0
        assert p_value(found, n * LAW) > 1e-6
    if not options:
        assert p_value(ours, n * np.roll(LAW, 1)) == 0  # the control


def test_successive_draws_are_independent():
    drawn = np.array(list(PrioritySampler(weights=WEIGHTS, num_samples=80_000, seed=4)))
    pairs = counts(drawn[0::2] * 8 + drawn[1::2], 64)
    assert p_value(pairs, len(drawn) / 2 * np.outer(LAW, LAW)) > 1e-6


def test_without_replacement_the_law_is_torchs():
    """Successive sampling: exact probabilities of all ordered triples, 30 000 epochs of ours, 8 000 of torch's."""
    weights, triples = np.array([4.0, 1.0, 0.0, 2.0, 3.0]), list(itertools.permutations(range(5), 3))
    law = []
    for triple in triples:
        left, p = weights.sum(), 1.0
        for i in triple:
            p, left = p * weights[i] / left, left - weights[i]
        law.append(p)
    np.testing.assert_allclose(sum(law), 1)
    place = {triple: k for k, triple in enumerate(triples)}
    ours = PrioritySampler(weights=weights, num_samples=3, replacement=False)
    n = 30_000
    assert p_value(counts([place[tuple(ours)] for _ in range(n)], 60), n * np.array(law)) > 1e-6
    torch.manual_seed(0)
    theirs = WeightedRandomSampler(weights, 3, replacement=False)
    n = 8_000
    assert p_value(counts([place[tuple(theirs)] for _ in range(n)], 60), n * np.array(law)) > 1e-6


@pytest.mark.parametrize("size", [None, 4])
def test_without_replacement_everything_is_drawn_at_most_once_an_epoch(size):
    weights = np.arange(3000) % 7
    for wanted in (1, 100, 2571):
        sampler = PrioritySampler(weights=weights, num_samples=wanted, replacement=False, batch_size=size)
        epochs = [list(sampler) for _ in range(2)]
        for epoch in epochs:
            assert len(epoch) == len(set(epoch)) == wanted
            assert (weights[epoch] > 0).all()
        assert epochs[0] != epochs[1]
    assert (weights > 0).sum() == 2571


def test_a_break_without_replacement_puts_everything_back():
    sampler = PrioritySampler(weights=[1.0, 2.0, 3.0, 4.0], replacement=False)
    for _ in range(5):
        next(iter(sampler))
    assert sorted(sampler) == [0, 1, 2, 3]


@pytest.mark.parametrize("replacement", [True, False])
def test_num_samples_is_the_length_as_in_torch(replacement):
    for wanted in (1, 5, 6):
        ours = PrioritySampler(weights=WEIGHTS, num_samples=wanted, replacement=replacement)
        theirs = WeightedRandomSampler(WEIGHTS, wanted, replacement)
        assert len(ours) == len(theirs) == len(list(ours)) == len(list(theirs)) == wanted
    if replacement:
        assert len(list(PrioritySampler(weights=WEIGHTS, num_samples=100))) == 100
    assert len(PrioritySampler(weights=WEIGHTS)) == 8


def test_what_torch_refuses_is_refused():
    cases = [
        (WEIGHTS, 9, False, "num_samples = 9"),
        ([0.0] * 4, 2, True, "no priority is above zero"),
        ([1.0, -1.0], 2, True, r"\[1\] = -1"),
        ([1.0, float("nan")], 2, True, r"\[1\] = nan"),
        ([1.0, float("inf")], 2, True, r"\[1\] = inf"),
        ([[1.0, 2.0]], 2, True, "dimension"),
        (WEIGHTS, 0, True, "num_samples = 0"),
        (WEIGHTS, -1, True, "num_samples = -1"),
        (WEIGHTS, True, True, "num_samples = True"),
        (WEIGHTS, 2.0, True, "num_samples = 2.0"),
    ]
    for weights, wanted, replacement, says in cases:
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            list(WeightedRandomSampler(weights, wanted, replacement))
        with pytest.raises((ValueError, TypeError), match=says):
            list(PrioritySampler(weights=weights, num_samples=wanted, replacement=replacement))


def test_too_few_positive_weights_without_replacement_are_an_error_where_torch_draws_zeros():
    for weights, wanted in [(WEIGHTS, 7), ([0.0] * 4, 1), ([0.0, 1.0], 2)]:
        for size in (None, 2):
            with pytest.raises(ValueError, match=r"fewer examples|above zero"):
                list(PrioritySampler(weights=weights, num_samples=wanted, replacement=False, batch_size=size))
    assert sorted(PrioritySampler(weights=WEIGHTS, num_samples=6, replacement=False)) == [0, 1, 3, 4, 5, 7]


def test_fixed_weights_give_weight_one_and_learn_nothing_from_losses():
    sampler = PrioritySampler(weights=WEIGHTS, num_samples=64, batch_size=8)
    before = sampler.store.priorities.copy()
    for batch in PriorityBatchSampler(sampler, 8):
        assert torch.equal(sampler.weights, torch.ones(8))
        losses = torch.tensor(batch).float()
        assert torch.equal(sampler.step(losses), losses.mean())
    np.testing.assert_array_equal(sampler.store.priorities, before)


def test_a_loop_that_never_steps_works_for_fixed_weights():
    for options in SCHEMES:
        sampler = PrioritySampler(weights=WEIGHTS, num_samples=100, **options)
        loader = DataLoader(range(8), batch_size=16, sampler=sampler, num_workers=0)
        for _ in range(3):
            assert sum(len(batch) for batch in loader) == 100
    loader = PriorityLoader(range(8), 16, policy=Given(WEIGHTS), num_samples=100)
    assert sum(len(batch) for batch in loader) == 100


@pytest.mark.parametrize("size", [None, 4])
def test_weights_changed_in_the_middle_count_from_the_next_draw(size):
    sampler = PrioritySampler(weights=np.ones(8), num_samples=400, batch_size=size)
    iterator = iter(sampler)
    for _ in range(100):
        next(iterator)
    sampler.store.set_priorities(np.arange(8), np.eye(8)[5])
    assert set(iterator) == {5}
    assert set(sampler) == {5}  # and stay for the next epoch


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_above_2_to_the_24_the_upper_half_is_drawn_as_often_as_it_should(kind):
    """torch.multinomial refuses this many; a float32 running sum stops growing here."""
    n, draws = 2**24 + 1, 200_000
    weights = np.ones(n, kind)
    drawn = np.array(list(PrioritySampler(weights=weights, num_samples=draws)))
    assert p_value(np.bincount(drawn * 16 // n, minlength=16), np.full(16, draws / 16)) > 1e-6
    with pytest.raises(RuntimeError, match="2\\^24"):
        next(iter(WeightedRandomSampler(weights, 10)))
    # One example carries half the mass, and it is the last.
    weights[-1] = n - 1
    drawn = np.array(list(PrioritySampler(weights=weights, num_samples=10_000)))
    assert abs((drawn == n - 1).sum() - 5000) < 5 * 50


def test_a_sampler_of_weights_draws_as_the_tree_does():
    """The oracle for every scheme: one call on a tree with the same priorities."""
    rng = np.random.default_rng(5)
    weights = rng.random(500).astype(np.float32)
    tree = SumTree(500)
    tree.fill(weights)
    for options in [*SCHEMES, {"batch_size": 10, "scheme": "unique"}, {"replacement": False}]:
        for seed in (0, 9):
            sampler = PrioritySampler(weights=weights, num_samples=490, seed=seed, **options)
            scheme = "epoch" if "replacement" in options else sampler.scheme
            for epoch in range(2):
                expected, _ = tree.sample(490, seed=seed, epoch=epoch, scheme=scheme, group=options.get("batch_size"))
                assert list(sampler) == expected.tolist()
                tree.refit()


# Ranks. Fixed weights only.


@pytest.mark.parametrize("n", [7, 30, 3001])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [None, 1, 4])
@pytest.mark.parametrize("whole", [False, True])
def test_the_ranks_slices_interleave_to_the_global_draws(n, replicas, drop_last, size, whole):
    """Of equal length on all ranks, whatever divides by what. ``whole``: by batches."""
    if whole and size is None:
        return
    weights = np.arange(1, n + 1)

    def indices(options):
        sampler = PrioritySampler(weights=weights, num_samples=n, drop_last=drop_last, **options)
        if size is not None and whole:
            local = size * replicas // options.get("num_replicas", 1)
            return flat(PriorityBatchSampler(sampler, local)), len(sampler)
        return list(sampler), len(sampler)

    batch_size = None if size is None else size * replicas
    slices = [indices({"num_replicas": replicas, "rank": r, "batch_size": batch_size}) for r in range(replicas)]
    assert {len(part) for part, _ in slices} == {length for _, length in slices}
    assert slices[0][1] == (n // replicas if drop_last else -(-n // replicas))
    total = slices[0][1] * replicas
    interleaved = [part[k] for k in range(slices[0][1]) for part, _ in slices]
    alone = PrioritySampler(weights=weights, num_samples=max(total, 1), batch_size=batch_size)
    assert interleaved == list(alone)[:total]


@pytest.mark.parametrize("size", [8, 10])
def test_a_global_batch_that_does_not_divide_by_the_ranks_is_refused_or_cut_equally(size):
    lengths = []
    for rank in range(3):
        try:
            lengths.append(len(list(PrioritySampler(weights=np.ones(30), batch_size=size, num_replicas=3, rank=rank))))
        except ValueError as error:
            assert str(size) in str(error)  # noqa: PT017
            return
    assert lengths == [10, 10, 10]


def test_a_ranks_slice_of_a_sorted_data_set_is_not_pure():
    """Stratified targets are in order of index; handed out in random order, no rank gets a stretch of neighbours."""
    n, classes, replicas, local = 1000, 10, 4, 16
    label = np.arange(n) * classes // n
    for scheme in ("stratified", "systematic"):
        for rank in range(replicas):
            sampler = PrioritySampler(
                weights=np.ones(n), num_samples=6400, batch_size=local * replicas, scheme=scheme, num_replicas=replicas,
                rank=rank,
            )  # fmt: skip
            parts = [label[batch] for batch in PriorityBatchSampler(sampler, local)]
            assert len(parts) == 100
            assert min(len(set(part)) for part in parts) >= 4
            shares = counts(np.concatenate(parts), classes) / 1600
            assert (abs(shares - 0.1) < 0.035).all()


def test_policies_that_learn_refuse_several_ranks_at_the_draw():
    for sampler in (
        PrioritySampler(40, num_replicas=2, rank=0),
        PrioritySampler(ScoreStore(40, "infobatch", epochs=3), num_replicas=2, rank=1, batch_size=8),
    ):
        assert len(sampler) == 20
        with pytest.raises(ValueError, match=r"2 ranks: policy .* learns from losses"):
            next(iter(sampler))
    assert len(list(PrioritySampler(40, num_replicas=1, rank=0))) == 40


def test_a_process_group_started_after_construction_counts(monkeypatch):
    sampler = PrioritySampler(weights=np.ones(30), num_samples=30)
    held = iter(sampler)
    alone = PrioritySampler(weights=np.ones(30), num_samples=30)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 1)
    assert len(sampler) == 10
    assert sampler.total_size == 30
    sliced = list(held)
    monkeypatch.undo()
    assert sliced == list(alone)[1::3]


def test_a_real_process_group_of_one_is_no_slicing():
    loader, sampler = build("loader", 40, 8)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert len(sampler) == sampler.total_size == 40
        assert sorted(flat(run(loader, sampler, 1)[0])) == list(range(40))
    finally:
        torch.distributed.destroy_process_group()


def test_the_indices_of_a_ranks_single_draws_are_its_own():
    sampler = PrioritySampler(weights=np.ones(30), num_replicas=3, rank=1)
    iterator = iter(sampler)
    drawn = [next(iterator) for _ in range(4)]
    assert sampler.indices[:4].tolist() == drawn
