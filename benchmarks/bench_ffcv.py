"""What choosing by priority costs training from FFCV: `pytest benchmarks/bench_ffcv.py`.

6,400 images of the demo's data set, written as a .beton of JPEGs and read back by FFCV's own thread, which decodes and
flips them: alternating epochs of ``OrderOption.RANDOM`` with the plain mean of the losses, and of ``PriorityOrder``
with ``sampler.step``, equal samples, 120 pairs (FASTPRIO_BENCH_PAIRS), as in bench_loader.py.

* cnn: the demo's CNN. Training takes longer than reading, as it should.
* linear: one linear layer. Reading takes longer, so what is drawn in FFCV's thread is waited for.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastprio
from fastprio.bench.training import Arm, Choosing, compare
from fastprio.study.data import load
from fastprio.study.models import SmallCNN

pytest.importorskip("ffcv", reason="ffcv is not installed: pip install '.[ffcv]' (it needs OpenCV and libturbojpeg)")

from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
from ffcv.writer import DatasetWriter

from fastprio.integrations.ffcv import PriorityOrder

PAIRS = int(os.environ.get("FASTPRIO_BENCH_PAIRS", "120"))
EXAMPLES, BATCH = 6_400, 256


class Images:
    """The images as FFCV's writer takes them: uint8 [height, width, 3] and a label."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        low, high = images.min(), images.max()
        grey = ((images - low) / (high - low) * 255).byte().numpy()[:, 0]
        self.images, self.labels = np.repeat(grey[..., None], 3, axis=3), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], self.labels[row]


class FFCVArm(Arm):
    """An arm whose loader has no batch sampler to time: of choosing, only the losses' part is in the main thread."""

    def __init__(self, loader, train, choose, learn):
        self.loader, self.train, self.choose, self.learn = loader, train, choose, learn
        self.choosing = Choosing(())


def arm(path: Path, order, choose, model: nn.Module) -> FFCVArm:
    loader = Loader(
        str(path),
        BATCH,
        num_workers=1,
        os_cache=True,
        order=order,
        drop_last=False,
        seed=0,
        pipelines={
            "image": [SimpleRGBImageDecoder(), RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), 0.01, momentum=0.9)

    def train(batch, number):
        x, y = batch
        return nn.functional.cross_entropy(trained(x[..., 0].unsqueeze(1).float() / 255), y, reduction="none")

    def learn(loss):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return FFCVArm(loader, train, choose, learn)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The file, the images' side, and how many classes there are."""
    found = load(examples=EXAMPLES)
    path = tmp_path_factory.mktemp("ffcv") / "images.beton"
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(
        Images(found.train.images, found.train.labels), chunksize=1000
    )
    return path, found.train.images.shape[-1], found.classes, len(found.train)


@pytest.mark.parametrize("setting", ["cnn", "linear"])
def test_prioritized_ffcv_beside_random_order(benchmark, data, setting):
    path, side, classes, examples = data
    torch.manual_seed(0)
    model = SmallCNN(side, classes) if setting == "cnn" else nn.Sequential(nn.Flatten(), nn.Linear(side**2, classes))
    sampler = fastprio.PrioritySampler(examples, batch_size=BATCH)
    uniform = arm(path, OrderOption.RANDOM, torch.mean, model)
    prioritized = arm(path, PriorityOrder(sampler), sampler.step, model)
    assert prioritized.loader.traversal_order.live
    found = benchmark.pedantic(compare, args=(uniform, prioritized, PAIRS), rounds=1)
    benchmark.extra_info.update(examples=examples, batch=BATCH, batches_ahead=uniform.loader.batches_ahead)
    benchmark.extra_info.update(found)
