"""What the tests of samplers and loaders share: the four ways to use them, losses by index, policies for tests."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader

from fastprio import PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore
from fastprio.policies import Policy

KINDS = ("loader", "batch_sampler", "sampler", "singles")
"""PriorityLoader; batch_sampler=; sampler= with the sampler's own batch size; sampler= without."""


class Raw(Policy):
    """The priority is the loss, as it is; 1 for the unseen."""

    def observe(self, columns, indices, obs, clock, rng):
        return obs.loss


class Correct(Policy):
    """Needs one observation beside the loss, and keeps it."""

    columns = {"correct": "float32"}  # noqa: RUF012
    requires = ("correct",)

    def observe(self, columns, indices, obs, clock, rng):
        columns["correct"][indices] = obs.correct
        return obs.loss


def loss_of(indices, epoch=0):
    """A different loss for each index below 1009, exact in float32, in [0.25, 16)."""
    i = torch.as_tensor(indices, dtype=torch.int64)
    return ((i * 37 + epoch * 101) % 1009).float() / 64 + 0.25


def build(
    kind, n, batch, *, workers=0, drop_last=False, policy="loss", epochs=None, dataset=None, loader=None, **options
):
    """(loader, sampler) of one kind. ``loader``: further arguments of the DataLoader."""
    dataset = range(n) if dataset is None else dataset
    more = {"num_workers": workers, **(loader or {})}
    if kind == "loader":
        made = PriorityLoader(dataset, batch, policy=policy, epochs=epochs, drop_last=drop_last, **options, **more)
        return made, made.sampler
    store = policy if isinstance(policy, ScoreStore) else ScoreStore(n, policy, epochs=epochs)
    sampler = PrioritySampler(store, batch_size=None if kind == "singles" else batch, **options)
    if kind == "batch_sampler":
        return DataLoader(dataset, batch_sampler=PriorityBatchSampler(sampler, batch, drop_last), **more), sampler
    return DataLoader(dataset, batch_size=batch, sampler=sampler, drop_last=drop_last, **more), sampler


def run(loader, sampler, epochs, loss=loss_of, stop=None):
    """Trains: steps every batch. Returns the batches of each epoch as lists of indices; ``stop`` = (epoch, batches)
    breaks off there."""
    seen = []
    for epoch in range(epochs):
        seen.append([])
        for batch in loader:
            seen[-1].append(batch.tolist())
            sampler.step(loss(batch, epoch))
            if stop == (epoch, len(seen[-1])):
                break
    return seen


def run_but(loader, sampler, forgotten):
    """An epoch that steps every batch but one."""
    for number, batch in enumerate(loader):
        assert number <= forgotten + 1
        if number != forgotten:
            sampler.step(loss_of(batch))


def flat(batches):
    return [index for batch in batches for index in batch]


def counts(indices, n):
    return np.bincount(np.asarray(indices, np.int64), minlength=n)
