"""A run interrupted anywhere and resumed goes on with the same batches, weights and store, to the bit."""

import pytest
import torch
from torch.utils.data import DataLoader

import fastprio
from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore
from fastprio.policies import LossPower
from fastprio.testing import assert_same_after_resume, sampler_of

N, BATCH = 101, 8


class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return index

    def __len__(self):
        return N


def train_step(loader, batch):
    """Losses that depend on the examples and on the step, so that the order of updates shows."""
    sampler = sampler_of(loader)
    assert batch.tolist() == sampler.indices.tolist()
    losses = (batch.double() * 0.6180339887 % 1.0 + torch.rand(len(batch), dtype=torch.float64)).float()
    (loader if hasattr(loader, "step") else sampler).step(losses)


def make(kind, *, workers=0, snapshot=1, policy="loss", batch_size=BATCH, **arguments):
    def make_loader():
        prefetch = {"num_workers": workers, **({"prefetch_factor": 2} if workers else {})}
        store = ScoreStore(N, policy() if callable(policy) else policy, epochs=3)
        if kind == "own":
            return PriorityLoader(Numbers(), BATCH, policy=store, seed=3, **arguments, **prefetch)
        sampler = PrioritySampler(store, batch_size=batch_size, seed=3, **arguments)
        given = {"sampler": sampler, "batch_size": BATCH}
        if kind.endswith("batches"):
            given = {"batch_sampler": PriorityBatchSampler(sampler, BATCH)}
        if kind.startswith("stateful"):
            stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
            return stateful.StatefulDataLoader(Numbers(), snapshot_every_n_steps=snapshot, **given, **prefetch)
        return DataLoader(Numbers(), **given, **prefetch)

    return make_loader


KINDS = ["own", "plain batches", "plain singles", "stateful batches", "stateful singles"]


@pytest.mark.parametrize("lag", [None, 4])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_loader_goes_on_as_if_nothing_had_happened(kind, workers, lag):
    assert_same_after_resume(make(kind, workers=workers, lag=lag), train_step, epochs=3, at=[0, 1, 7, 12, 13, 20, 39])


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_of_the_way(workers):
    assert_same_after_resume(make("own", workers=workers), train_step, epochs=2, at=range(27))


@pytest.mark.parametrize("lag", [None, 4])
@pytest.mark.parametrize("kind", ["stateful batches", "stateful singles"])
@pytest.mark.parametrize("snapshot", [5, 50])
def test_rare_snapshots_replay_what_was_drawn(kind, snapshot, lag):
    assert_same_after_resume(
        make(kind, workers=2, snapshot=snapshot, lag=lag), train_step, epochs=3, at=[0, 3, 5, 12, 13, 16, 22, 39]
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("policy", "arguments"),
    [
        ("infobatch", {}),
        ("uniform", {}),
        ("loss", {"scheme": "systematic"}),
        ("loss", {"scheme": "iid"}),
        ("loss", {"cover_first": False}),
        ("loss", {"num_samples": 37}),
        (lambda: LossPower(beta=0), {"scheme": "unique"}),
        (lambda: LossPower(beta=0), {"replacement": False}),
    ],
)
@pytest.mark.parametrize("kind", ["own", "stateful batches"])
def test_every_policy_and_scheme(kind, policy, arguments, workers):
    assert_same_after_resume(make(kind, workers=workers, policy=policy, **arguments), train_step, epochs=3)


@pytest.mark.parametrize("kind", ["plain singles", "stateful singles"])
@pytest.mark.parametrize("replacement", [True, False])
def test_single_draws_without_a_batch_size(kind, replacement):
    make_loader = make(kind, policy=lambda: LossPower(beta=0), batch_size=None, replacement=replacement)
    assert_same_after_resume(make_loader, train_step, epochs=3)


def test_names():
    assert fastprio.Checkpoint
