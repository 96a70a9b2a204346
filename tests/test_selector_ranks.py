"""Promise: ranks that choose different numbers train on equally many batches, and lose none but the last ones."""

import pytest
import torch
import torch.distributed as dist
from rank_helpers import on_ranks, one_thread  # noqa: F401 (a fixture)
from torch.utils.data import TensorDataset

from fastprio import PriorityLoader
from fastprio.selectors import Selection, SelectiveBackprop, Selector, VarianceReduction

pytestmark = pytest.mark.usefixtures("one_thread")


class Given(Selector):
    """Takes the first so many of each batch; of some ranks by a count that comes late."""

    def __init__(self, batch_size, counts, late):
        super().__init__(batch_size)
        self.counts, self.late = counts, late

    def __call__(self, losses, *, indices=None, columns=None, clock, rng):
        n = self.counts[clock.step]
        positions = torch.arange(len(losses))
        return Selection(positions, count=torch.tensor(n)) if self.late else Selection(positions[:n])


def pools_of(rank, steps, size):
    return [torch.arange(size) + 1000 * rank + size * k for k in range(steps)]


def train(rank, counts, batch_size, late, size=8):
    """[(number of loader batches seen, batch)]; every batch has a collective of its own, as a backward pass has."""
    selector, seen, out = Given(batch_size, counts[rank], late[rank]), [], []
    loader = (seen.append(k) or b for k, b in enumerate(pools_of(rank, len(counts[rank]), size)))
    for batch in selector.batches(loader, lambda batch: batch.float()):
        together = torch.ones(1)
        dist.all_reduce(together)
        assert together.item() == len(counts)
        assert selector.mean(batch.float()).item() == pytest.approx(batch.float().mean().item())
        out.append((len(seen), batch.tolist()))
    return out


def expected_of(counts, batch_size, late, size=8):
    """By hand: how many batches all can make, and when all know."""
    ranks, steps = len(counts), len(counts[0])
    chosen = [[1000 * r + size * k + i for k, n in enumerate(counts[r]) for i in range(n)] for r in range(ranks)]

    def made(r, k):  # when batch k has been pushed; what comes late is there a batch later
        return sum(counts[r][: k + 1 - late[r]]) // batch_size

    plan, yielded = [], 0
    for k in range(1, steps):  # at step k all know of step k - 1
        ready = min(made(r, k - 1) for r in range(ranks)) - yielded
        plan += [(k + 1, batch_size)] * ready
        yielded += ready
    fewest = min(-(-len(c) // batch_size) for c in chosen)
    out = []
    for r in range(ranks):
        mine = [(k, b * batch_size) for b, (k, _) in enumerate(plan)]
        mine += [(steps, b * batch_size) for b in range(yielded, fewest)]
        out.append([(k, chosen[r][begin : begin + batch_size]) for k, begin in mine])
    return out


@pytest.mark.parametrize(("counts", "batch_size"), [
    ([[8, 8, 8, 8, 8, 8], [2, 3, 2, 8, 0, 1]], 4),
    ([[1, 1, 1, 1, 8, 8, 8], [8, 8, 8, 1, 0, 0, 0]], 5),
    ([[3, 4, 5], [4, 4, 4]], 8),
    ([[3, 4, 5], [0, 0, 0]], 8),
    ([[8], [7]], 3),
    ([[], []], 3),
    ([[5, 5, 5, 5], [6, 6, 6, 6], [8, 0, 8, 0]], 4),
])  # fmt: skip
@pytest.mark.parametrize("late", [(0, 0, 0), (1, 1, 1), (0, 1, 0)])
def test_a_batch_comes_when_every_rank_has_one_and_the_rest_is_dropped(counts, batch_size, late):
    if not counts[0]:
        assert on_ranks(2, train, counts, batch_size, late) == [[], []]
        return
    results = on_ranks(len(counts), train, counts, batch_size, late)
    assert len({len(found) for found in results}) == 1
    assert results == expected_of(counts, batch_size, late)


def accepted_losses(rank, ranks, seed):
    selector = SelectiveBackprop(4, 1.0, accept_all_epochs=0, seed=seed)
    losses = torch.rand(64, generator=torch.Generator().manual_seed(1))
    return [batch.tolist() for batch in selector.batches([torch.arange(64)] * 3, lambda batch: losses[batch])]


def test_selectors_seeded_alike_draw_other_numbers_on_each_rank_and_the_same_again():
    first, second = on_ranks(2, accepted_losses, 2, 5)
    assert first != second
    assert on_ranks(2, accepted_losses, 2, 5) == [first, second]
    assert accepted_losses(0, 1, 5) not in (first, second)  # alone: the seed itself


def other_lengths(rank):
    selector = Given(4, [4] * 9, False)
    with pytest.raises(RuntimeError, match="the loader of rank 1 has ended before those of other ranks") as raised:
        list(selector.batches(pools_of(rank, 5 - rank, 8), lambda batch: batch.float()))
    return f"this is rank {rank}" in str(raised.value)


def test_loaders_of_different_lengths_raise_on_every_rank():
    assert on_ranks(2, other_lengths, seconds=60) == [True, True]


def alone_in_a_group(rank):
    groups = [dist.new_group([k]) for k in range(2)]
    selector = Given(4, [4] * (3 + rank), False)
    pools = pools_of(rank, 3 + rank, 8)
    return len(list(selector.batches(pools, lambda batch: batch.float(), process_group=groups[rank])))


def test_a_group_of_one_rank_asks_nobody():
    assert on_ranks(2, alone_in_a_group) == [3, 4]


def uneven(batch):
    """tau is 2 of every four."""
    return torch.where(batch % 4 == 0, 1.0, 0.0)


def even(batch):
    """tau is 1."""
    return torch.ones(len(batch))


def decide(rank, threshold, losses_of, pools):
    """Which pools were scored, how many batches were trained on, and what all ranks went by in the end."""
    selector, scored, trained = VarianceReduction(4, threshold, momentum=0.0, seed=1), [], 0

    def score(batch):
        scored.append(int(batch[0]) // 16)
        return losses_of[rank](batch)

    for batch in selector.batches([torch.arange(16) + 16 * k for k in range(pools)], score):
        selector.mean(losses_of[rank](batch))
        trained += 1
    return scored, trained, selector.state["agreed"]


@pytest.mark.parametrize(("threshold", "scored"), [(1.6, False), (1.4, True)])
def test_ranks_decide_by_the_mean_of_their_averages_of_tau(threshold, scored):
    first, second = on_ranks(2, decide, threshold, (uneven, even), 12)
    assert first == second
    assert first[2] == 1.5
    # Step 0 trains on nothing yet, 1 on pool 0, whose tau is sent with step 2's and known at step 3's end.
    assert first[0] == ([4, 5, 6, 7, 8, 9, 10, 11] if scored else [])
    assert first[1] == (4 * 4 + 8 if scored else 12 * 4)


def of_loader(rank):
    loader = PriorityLoader(TensorDataset(torch.arange(96).float()), 8, epochs=3, seed=5)
    selector, trained = SelectiveBackprop(4, 1.0, seed=3), []
    for _ in range(3):
        trained.append(0)
        for (x,) in selector.batches(loader, lambda batch: torch.sin(batch[0]).abs()):
            assert selector.mean(x).ndim == 0
            trained[-1] += len(x)
    loader.flush()
    return trained, loader.store.column("loss").tolist()


def test_loaders_by_priority_of_several_ranks_learn_from_all_that_is_scored():
    (first, losses), (second, others) = on_ranks(2, of_loader)
    assert first[0] == second[0] == 48
    assert 0 < first[1] < 48
    assert losses == others == torch.sin(torch.arange(96).float()).abs().tolist()
