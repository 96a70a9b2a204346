"""Trains on images read by FFCV, drawn by priority: `python examples/ffcv_loader.py`.

Needs `pip install '.[ffcv,study]'`, and OpenCV and libturbojpeg to build ffcv. Takes seconds on a processor. The
changes to a training loop of FFCV's are marked.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader
from ffcv.transforms import Squeeze, ToTensor
from ffcv.writer import DatasetWriter
from sklearn.datasets import load_digits
from torch import nn

import fastprio
from fastprio.integrations.ffcv import PriorityOrder

BATCH, EPOCHS = 64, 2


class Digits:
    """scikit-learn's digits as FFCV's writer wants them: uint8 [8, 8, 3] and a label."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = np.repeat((digits.images[..., None] * 15).astype(np.uint8), 3, axis=3)
        self.labels = digits.target.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], self.labels[row]


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path, digits = str(Path(folder) / "digits.beton"), Digits()
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(digits)

        sampler = fastprio.PrioritySampler(fastprio.ScoreStore(len(digits), epochs=EPOCHS), batch_size=BATCH)  # new
        loader = Loader(
            path,
            BATCH,
            num_workers=1,
            os_cache=True,  # to draw by the newest losses; without, by those that are known when an epoch begins
            order=PriorityOrder(sampler),  # was OrderOption.RANDOM
            drop_last=False,
            pipelines={
                "image": [SimpleRGBImageDecoder(), ToTensor()],
                "label": [IntDecoder(), ToTensor(), Squeeze()],
            },
        )
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for epoch in range(EPOCHS):
            total = 0.0
            for image, label in loader:
                losses = nn.functional.cross_entropy(model(image.float() / 255), label, reduction="none")
                loss = sampler.step(losses)  # was losses.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            stats = sampler.store.stats()
            print(
                f"epoch {epoch + 1}: mean loss {total / len(loader):.3f}, {stats['coverage']:.0%} of the digits seen, "
                f"drawn as evenly now as if there were {stats['effective_sample_size']:.0f} of {len(digits)}"
            )


if __name__ == "__main__":
    main()
