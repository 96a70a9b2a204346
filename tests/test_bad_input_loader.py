"""What cannot be trained on together is refused before the first batch."""

import re

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore

N, BATCH = 40, 8


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(N))

    def __len__(self):
        return N


def stateful(*arguments, **named):
    return pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed").StatefulDataLoader(
        *arguments, **named
    )


@pytest.mark.parametrize("make_loader", [DataLoader, stateful])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [N - 1, N + 1])
@pytest.mark.parametrize("batches", [False, True])
def test_a_data_set_of_another_length(make_loader, workers, size, batches):
    sampler = PrioritySampler(N, batch_size=BATCH)
    given = {"batch_sampler": PriorityBatchSampler(sampler, BATCH)} if batches else {"sampler": sampler}
    if not batches:
        given["batch_size"] = BATCH
    message = f"the sampler has {N} examples, the loader's data set {size}"
    with pytest.raises(ValueError, match=message):
        next(iter(make_loader(range(size), num_workers=workers, **given)))
    assert sampler.journal.outstanding == 0
    batch = next(iter(make_loader(range(N), num_workers=workers, **given)))
    assert batch.tolist() == sampler.indices.tolist()


def test_a_data_set_of_another_length_than_the_store_that_a_loader_is_given():
    with pytest.raises(ValueError, match="the store has 40 examples, the data set 41"):
        PriorityLoader(range(N + 1), BATCH, policy=ScoreStore(N))


@pytest.mark.parametrize("workers", [0, 1])
def test_one_sampler_in_two_loaders_at_once(workers):
    sampler = PrioritySampler(N, batch_size=BATCH)
    first, second = (
        DataLoader(range(N), batch_sampler=PriorityBatchSampler(sampler, BATCH), num_workers=workers) for _ in range(2)
    )
    with pytest.raises(RuntimeError, match="two loaders cannot share one sampler"):
        list(zip(first, second, strict=True))


def test_shuffle_beside_a_sampler():
    with pytest.raises(ValueError, match="mutually exclusive with"):
        DataLoader(range(N), BATCH, sampler=PrioritySampler(N), shuffle=True)
    with pytest.raises(TypeError, match="shuffle: PriorityLoader draws in random order by itself"):
        PriorityLoader(range(N), BATCH, shuffle=True)


def test_a_data_set_without_indices():
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Stream(), BATCH, sampler=PrioritySampler(N))
    with pytest.raises(TypeError, match="dataset: an IterableDataset has no indices to draw"):
        PriorityLoader(Stream(), BATCH)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("infobatch", "the state's policy is 'infobatch', this store's is 'loss'"),
        ("uniform", "the state's policy is 'uniform', this store's is 'loss'"),
    ],
)
def test_a_store_of_another_policy(policy, message):
    state = PriorityLoader(range(N), BATCH, policy=policy, epochs=3).state_dict()
    loader = PriorityLoader(range(N), BATCH, epochs=3)
    with pytest.raises(ValueError, match=re.escape(message)):
        loader.load_state_dict(state)
    assert len(list(loader.sampler)) == N  # and it works as if nothing had been tried


def test_a_store_of_other_columns_or_size():
    state = PriorityLoader(range(N), BATCH, policy=ScoreStore(N, columns={"more": "float32"})).state_dict()
    with pytest.raises(ValueError, match="the state's columns is"):
        PriorityLoader(range(N), BATCH).load_state_dict(state)
    with pytest.raises(ValueError, match="the state's size is 40, this store's is 41"):
        PriorityLoader(range(N + 1), BATCH).load_state_dict(PriorityLoader(range(N), BATCH).state_dict())


def test_stats_go_to_tensorboard_in_one_line(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loader = PriorityLoader(range(N), BATCH, epochs=2)
    for batch in loader:
        loader.step(torch.rand(len(batch)))
    writer = tensorboard.SummaryWriter(tmp_path)
    for name, value in loader.stats().items():
        writer.add_scalar(f"fastprio/{name}", value, 3)
    writer.close()
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(f"fastprio/{name}" for name in loader.stats())
    assert all(type(value) is float for value in loader.stats().values())
