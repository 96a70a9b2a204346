"""Promise: under SPDL, which draws in a thread of its own, losses go where they belong and runs repeat and resume."""

import time

import numpy as np
import pytest
import torch
from loader_helpers import loss_of
from torch.utils.data import Dataset

pytest.importorskip("spdl.dataloader", reason="spdl is not installed")

from spdl.dataloader import get_pytorch_dataloader

from fastprio import PriorityBatchSampler, PrioritySampler, ScoreStore, WithIndex
from fastprio.testing import assert_same_after_resume

N, BATCH = 201, 8


class Slow(Dataset):
    def __getitem__(self, index):
        time.sleep(0.001 * (index % 3))
        return index

    def __len__(self):
        return N


def make(dataset=None, workers=1, *, in_order, lag=None):
    sampler = PrioritySampler(ScoreStore(N, "loss", epochs=3), batch_size=BATCH, seed=3, lag=lag)
    loader = get_pytorch_dataloader(
        range(N) if dataset is None else dataset,
        batch_size=None,
        batch_sampler=PriorityBatchSampler(sampler, BATCH),
        num_workers=workers,
        in_order=in_order,
        multiprocessing_context="fork",
        timeout=60,
    )
    loader.sampler = sampler  # by which fastprio.testing finds it
    return loader


def train_step(loader, batch):
    assert batch.tolist() == loader.sampler.indices.tolist()
    loader.sampler.step(loss_of(batch, int(torch.randint(1000, ()))))


@pytest.mark.parametrize(
    ("workers", "in_order", "ahead"), [(1, False, 9), (2, False, 12), (1, True, 11), (2, True, 14)]
)
def test_draws_run_ahead_by_a_known_number_of_batches(workers, in_order, ahead):
    loader = make(workers=workers, in_order=in_order)
    found, end = [], time.monotonic() + 30
    for batch in loader:
        if len(found) < 3:
            while loader.sampler.journal.outstanding_batches <= ahead and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(0.02)  # for one too many to be seen
            found.append(loader.sampler.journal.outstanding_batches - 1)
        loader.sampler.step(loss_of(batch), indices=batch)
    assert found == [ahead] * 3


def test_batches_in_any_order_are_credited_by_the_indices_they_carry():
    loader, last, out_of_order = make(WithIndex(Slow()), 2, in_order=False), {}, 0
    for epoch in range(3):
        for indices, items in loader:
            assert indices.tolist() == items.tolist()
            out_of_order += indices.tolist() != loader.sampler.indices.tolist()
            loader.sampler.step(loss_of(indices, epoch), indices=indices)
            last.update(zip(indices.tolist(), loss_of(indices, epoch).tolist(), strict=True))
    assert out_of_order
    assert sorted(last) == list(range(N))
    np.testing.assert_array_equal(loader.sampler.store.column("loss"), [last[index] for index in range(N)])


def test_in_order_and_with_lag_a_run_repeats_and_resumes_exactly():
    assert_same_after_resume(lambda: make(in_order=True, lag=11), train_step, epochs=2, at=[0, 7, 26, 40])
