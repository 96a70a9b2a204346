"""Promise: batches of a Hugging Face data set are read in one go, and an index is a row of the data set given."""

import os
import runpy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("datasets", reason="datasets is not installed")

import datasets

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore, WithIndex

N, BATCH = 101, 8
EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "examples", "hf_datasets.py")
WHOLE = datasets.Dataset.from_dict({"row": list(range(N)), "double": [2 * i for i in range(N)]})
VIEWS = {
    "whole": WHOLE,
    "torch": WHOLE.with_format("torch"),
    "shuffled": WHOLE.shuffle(seed=1),
    "selected": WHOLE.select(range(90, 10, -1)),
    "transformed": WHOLE.with_transform(lambda rows: {"row": rows["row"], "double": [2 * row for row in rows["row"]]}),
}


def make(kind, dataset, **more):
    if kind == "own":
        loader = PriorityLoader(dataset, BATCH, **more)
        return loader, loader.sampler
    sampler = PrioritySampler(len(dataset), batch_size=BATCH)
    if kind == "batches":
        return DataLoader(dataset, batch_sampler=PriorityBatchSampler(sampler, BATCH), **more), sampler
    return DataLoader(dataset, BATCH, sampler=sampler, **more), sampler


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("kind", ["own", "batches", "singles"])
def test_a_batch_is_one_read(kind, indexed, monkeypatch):
    reads, fetch = [], datasets.Dataset.__getitems__
    monkeypatch.setattr(datasets.Dataset, "__getitems__", lambda self, keys: reads.append(keys) or fetch(self, keys))
    keys, get = [], datasets.Dataset.__getitem__
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda self, key: keys.append(key) or get(self, key))
    loader, sampler = make(kind, WithIndex(WHOLE) if indexed else WHOLE)
    trained = []
    for batch in loader:
        indices, batch = batch if indexed else (batch["row"], batch)
        assert batch["row"].tolist() == indices.tolist() == sampler.indices.tolist()
        trained.append(indices.tolist())
        sampler.step(torch.ones(len(indices)))
    assert reads == keys == trained  # lists of a batch's rows, and not a single row by itself
    assert len(trained) == 13


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("view", list(VIEWS))
def test_losses_go_to_the_rows_of_the_data_set_that_was_given(view, workers):
    dataset = VIEWS[view]
    loader, sampler = make("own", WithIndex(dataset), num_workers=workers, policy=ScoreStore(len(dataset)))
    for indices, batch in loader:
        assert batch["double"].tolist() == (2 * batch["row"]).tolist()
        sampler.step(batch["row"].float() + 0.5, indices=indices)
    rows = np.array([int(dataset[i]["row"]) for i in range(len(dataset))])
    np.testing.assert_array_equal(sampler.store.column("loss"), rows + 0.5)


def test_what_cannot_be_indexed_or_is_of_another_length_is_refused():
    with pytest.raises(TypeError, match="IterableDataset has no indices to draw"):
        PriorityLoader(WHOLE.to_iterable_dataset(), BATCH)
    with pytest.raises(ValueError, match="the store has 101 examples, the data set 80"):
        PriorityLoader(VIEWS["selected"], BATCH, policy=ScoreStore(N))


def test_the_example_learns():
    assert runpy.run_path(EXAMPLE, run_name="__main__")["accuracy"] > 0.9
