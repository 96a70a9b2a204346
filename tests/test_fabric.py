"""Fabric keeps the sampler, slices by rank, and goes on exactly from a checkpoint."""

import runpy
from pathlib import Path

import pytest
import torch
from loader_helpers import flat
from rank_helpers import Numbered, interleaved, one_thread, state_of  # noqa: F401 (a fixture)
from torch.utils.data import DataLoader

from fastprio import PriorityBatchSampler, PrioritySampler, ScoreStore

fabric_module = pytest.importorskip("lightning.fabric", reason="lightning is not installed")
from fastprio.integrations.fabric import PriorityCheckpoint  # noqa: E402

N, BATCH, EPOCHS = 50, 8, 3
STEPS = 7  # an epoch
EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def fabric_of(ranks):
    return fabric_module.Fabric(accelerator="cpu", devices=ranks, strategy="ddp_fork" if ranks > 1 else "auto")


def made(fabric, workers, sampler=None):
    """A loader as Fabric sets it up, its sampler, made before there is a process group, model and optimizer."""
    if sampler is None:
        sampler = PrioritySampler(ScoreStore(N, epochs=EPOCHS), batch_size=BATCH)
    loader = fabric.setup_dataloaders(
        DataLoader(Numbered(N), BATCH // fabric.world_size, False, sampler, num_workers=workers)
    )
    linear = torch.nn.Linear(2, 1)
    for parameter in linear.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    return (loader, sampler, *fabric.setup(linear, torch.optim.SGD(linear.parameters(), 0.05, momentum=0.9)))


def train(fabric, sampler, workers, folder, save_at=(), resume=None):
    """Trains to the end, from ``resume`` on; leaves (steps trained, batches ahead, store, parameters) in a file."""
    loader, sampler, model, optimizer = made(fabric, workers, sampler)
    assert loader.sampler is sampler
    state = {"model": model, "optimizer": optimizer, "priority": PriorityCheckpoint(loader), "epoch": 0, "step": 0}
    trained, ahead = [], []
    if resume is not None:
        fabric.load(folder / f"step{resume}.ckpt", state)
    for epoch in range(state["epoch"], EPOCHS):
        state["epoch"] = epoch
        for indices, inputs in loader:
            assert indices.tolist() == sampler.indices.tolist()
            trained.append((epoch, sampler.epoch, indices.tolist(), sampler.weights.tolist()))
            ahead.append(sampler.journal.outstanding_batches - 1)
            optimizer.zero_grad()
            fabric.backward(sampler.step((model(inputs)[:, 0] - torch.sin(indices * 7.0)) ** 2 + 0.01))
            optimizer.step()
            state["step"] += 1
            if state["step"] in save_at:
                # What a loop does that saves at an epoch's end: it is the next one that is to be trained.
                state["epoch"] = epoch + (state["step"] % STEPS == 0)
                fabric.save(folder / f"step{state['step']}.ckpt", state)
                fabric.barrier()
    found = trained, ahead, state_of(sampler.store), [p.detach().tolist() for p in model.parameters()]
    torch.save(found, folder / f"rank{fabric.global_rank}.pt")


def run(ranks, workers, folder, **arguments):
    """What each rank's process found."""
    sampler = PrioritySampler(ScoreStore(N, epochs=EPOCHS), batch_size=BATCH)
    assert sampler.num_replicas == 1  # made before Fabric starts its process group
    fabric_of(ranks).launch(train, sampler, workers, folder, **arguments)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


@pytest.mark.parametrize(("workers", "ahead"), [(0, [0] * 7), (2, [4] * 3 + [3, 2, 1, 0])])
@pytest.mark.parametrize("ranks", [1, 2])
def test_draws_are_of_one_sequence_sliced_by_rank_and_as_far_ahead_as_workers_read(tmp_path, ranks, workers, ahead):
    found = run(ranks, workers, tmp_path)
    sampler = PrioritySampler(ScoreStore(N, epochs=EPOCHS), batch_size=BATCH)
    plain = [[batch.tolist() for batch, _ in DataLoader(Numbered(N), BATCH, sampler=sampler)]]
    for trained, far, store, _ in found:
        assert far == ahead * EPOCHS
        assert store == found[0][2]
        assert [(epoch, number) for epoch, number, _, _ in trained] == [(k // STEPS, k // STEPS) for k in range(21)]
    together = [interleaved(parts) for parts in zip(*[[step[2] for step in rank[0]] for rank in found], strict=True)]
    assert together[:STEPS] == plain[0]
    assert sorted(flat(together[:STEPS])) == list(range(N))
    assert len(set(flat(together[STEPS : 2 * STEPS]))) < N  # then by priority, with repeats


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_checkpoint_goes_on_exactly_on_all_ranks(tmp_path, ranks, workers):
    points = [1, 3, 6, 7, 8, 10, 14, 20] if ranks == 1 else [3, 7, 10]
    whole = run(ranks, workers, tmp_path, save_at=points)
    for point in points if workers == 0 else (3, 7, 10):
        for before, after in zip(whole, run(ranks, workers, tmp_path, resume=point), strict=True):
            assert after[0] == before[0][point:], point
            assert after[2:] == before[2:]


def test_a_batch_sampler_is_refused_on_two_processes_before_it_is_rebuilt_around_a_plain_one():
    def setup(fabric):
        sampler = PrioritySampler(N, batch_size=BATCH)
        fabric.setup_dataloaders(DataLoader(Numbered(N), batch_sampler=PriorityBatchSampler(sampler, BATCH // 2)))

    with pytest.raises(Exception, match="give the loader batch_size= and sampler=PrioritySampler"):
        fabric_of(2).launch(setup)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (
            DataLoader(Numbered(N), 8, sampler=PrioritySampler(N + 1, batch_size=8)),
            ValueError,
            "51 examples, the data set 50",
        ),
        (
            DataLoader(Numbered(N), 4, sampler=PrioritySampler(N, batch_size=8)),
            ValueError,
            "batch_size is 8: expected .* 1 . 4",
        ),
        (DataLoader(Numbered(N), 8, shuffle=True), TypeError, "its sampler is RandomSampler; give it sampler="),
        (
            DataLoader(Numbered(N), 8, sampler=PrioritySampler(N, batch_size=8, lag=1), num_workers=1),
            ValueError,
            "lag = 1: this loader reads 2 batches ahead",
        ),
    ],
)
def test_what_does_not_fit_is_refused(loader, error, message):
    fabric = fabric_of(1)
    with pytest.raises(error, match=message):
        PriorityCheckpoint(fabric.setup_dataloaders(loader))
    with pytest.raises(TypeError, match=r"expected what fabric\.setup_dataloaders returned, got DataLoader"):
        PriorityCheckpoint(loader)


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "fabric_digits.py"), run_name="__main__")
    assert "resumed at step 80: the same model" in capsys.readouterr().out
