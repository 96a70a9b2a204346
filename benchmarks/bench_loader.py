"""What choosing by priority costs real training: `pytest benchmarks/bench_loader.py`.

Three settings, each trained for alternating epochs of uniform loading (torch's DataLoader, shuffle=True) and of
PriorityLoader with policy "loss", equal samples, at least 20 pairs (FASTPRIO_BENCH_PAIRS): the ratio of their
wall-clock times with its 95 % interval, and the share of the main thread's time that sampler and store take.

* memory: 100,000 rows of 64 numbers in memory, fetched a batch at a time; an MLP with two layers of 256. Little to
  load and little to train: the share is larger here than in most training.
* decode: 2 workers, each item decompressed (zlib, PNG's own), cropped and flipped by itself; the demo's CNN.
* cnn: `fastprio demo`'s training, the images in memory.
"""

from __future__ import annotations

import copy
import os
import zlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fastprio.bench.training import Arm, compare, prioritized_like
from fastprio.study.data import Batches, Split, identity, load
from fastprio.study.models import SmallCNN

PAIRS = int(os.environ.get("FASTPRIO_BENCH_PAIRS", "20"))


class Decoded(Dataset):
    """Compressed images, one decoded and augmented an item."""

    def __init__(self, split: Split) -> None:
        self.shape, self.labels = split.images.shape[1:], split.labels.tolist()
        self.blobs = [zlib.compress(image.numpy().tobytes()) for image in split.images]

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.frombuffer(bytearray(zlib.decompress(self.blobs[index])), dtype=torch.float32).view(self.shape)
        down, right, flip = torch.randint(0, 4, (3,)).tolist()
        side = self.shape[-1]
        padded = nn.functional.pad(image, (2, 2, 2, 2))[:, down : down + side, right : right + side]
        return padded.flip(2) if flip & 1 else padded.contiguous(), self.labels[index]


def arms(loader: DataLoader, model: nn.Module) -> tuple[Arm, Arm]:
    """Uniform and prioritized training of equal models, by SGD."""

    def arm(source, priority):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), 0.01, momentum=0.9)

        def train(batch, number):
            x, y = batch
            return nn.functional.cross_entropy(trained(x), y, reduction="none")

        def learn(loss):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return Arm(source, train, source.step if priority else torch.mean, learn)

    return arm(loader, False), arm(prioritized_like(loader), True)


def memory() -> tuple[Arm, Arm]:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(100_000, 64, generator=rng), torch.randint(10, (100_000,), generator=rng)
    loader = DataLoader(Batches(Split(x, y)), 256, shuffle=True, collate_fn=identity)
    return arms(
        loader, nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    )


def decode() -> tuple[Arm, Arm]:
    data = load(examples=12_800)
    loader = DataLoader(Decoded(data.train), 128, shuffle=True, num_workers=2, persistent_workers=True)
    return arms(loader, SmallCNN(data.train.images.shape[-1], data.classes))


def cnn() -> tuple[Arm, Arm]:
    data = load(examples=12_800)
    loader = DataLoader(Batches(data.train), 128, shuffle=True, collate_fn=identity)
    return arms(loader, SmallCNN(data.train.images.shape[-1], data.classes))


SETTINGS = {"memory": memory, "decode": decode, "cnn": cnn}


@pytest.mark.parametrize("setting", SETTINGS)
def test_prioritized_training_beside_uniform(benchmark, setting):
    torch.manual_seed(0)
    uniform, prioritized = SETTINGS[setting]()
    found = benchmark.pedantic(compare, args=(uniform, prioritized, PAIRS), rounds=1)
    loader = uniform.loader
    benchmark.extra_info.update(examples=len(loader.dataset), batch=loader.batch_size, workers=loader.num_workers)
    benchmark.extra_info.update(found)
