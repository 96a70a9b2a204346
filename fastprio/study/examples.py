"""What a run trains on: its seed's part of a data set, corrupted, as batches of images that move a little."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastprio.study.corruptions import corrupt
from fastprio.study.data import Split, load
from fastprio.study.files import StudyError
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.watch import Watch

whole = functools.cache(load)
"""A data set, read once a process."""


@dataclass(frozen=True)
class Part:
    """What a run trains on, and what it is measured on.

    train: [n]. held_out: clean. altered: bool [n], whose label or image is not the original one. classes: of the set.
    black: float32 [channels], the least value of a pixel in the set.
    """

    train: Split
    held_out: Split
    altered: Any
    classes: int
    black: Tensor

    def without_altered(self) -> Part:
        """Only what is as it was. Raises StudyError where nothing is."""
        kept = np.flatnonzero(~self.altered)
        if not kept.size:
            raise StudyError("every example is altered: an oracle would leave none to train on")
        return replace(self, train=self.train[torch.from_numpy(kept)], altered=self.altered[kept])


def part_of(protocol: Protocol, cell: Cell) -> Part:
    """The seed's subset, corrupted. It depends on nothing else, and so is the same for all methods.

    Raises: StudyError: data that are absent, damaged or too few.
    """
    data = whole(protocol.data)
    n, wanted = len(data.train), protocol.examples + protocol.validation
    if wanted > n:
        raise StudyError(f"examples + validation = {wanted}: {data.name} has {n} training examples")
    order = torch.from_numpy(np.random.default_rng([cell.seed, 2]).permutation(n)[:wanted])
    train, rest = order[: protocol.examples], order[protocol.examples :]
    if cell.kind.startswith("file:"):  # labels of all training examples, in the order of the data set
        of_all = corrupt(data.train, data.classes, cell.kind, cell.level, cell.seed)
        split, altered = of_all.split[train], of_all.altered[train.numpy()]
    else:
        made = corrupt(data.train[train], data.classes, cell.kind, cell.level, cell.seed)
        split, altered = made.split, made.altered
    held_out = data.test if protocol.evaluate == "test" else data.train[rest]
    return Part(split, held_out, altered, data.classes, data.train.images.amin((0, 2, 3)))


class Examples(Dataset[Any]):
    """A split that gives whole batches: (indices int64 [B], images float32 [B, C, H, W], labels int64 [B]).

    Args:
        shift: each image is moved by up to so many pixels, its border black; flip: and mirrored or not.
        seed: of that. In the same epoch the same example is moved in the same way, whoever asks for it.
        black: float32 [C].
    """

    def __init__(self, split: Split, black: Tensor, shift: int, flip: bool, seed: int, watch: Watch) -> None:
        self.split, self.shift, self.flip, self.seed, self.watch = split, shift, flip, seed, watch
        self.offered = 0
        self._placed: Tensor | None = None
        if shift:
            n, channels, height, width = split.images.shape
            padded = black[:, None, None].expand(n, channels, height + 2 * shift, width + 2 * shift).clone()
            padded[:, :, shift:-shift, shift:-shift] = split.images
            # A view: every place that the image can have in the padded one.
            self._placed = padded.unfold(2, height, 1).unfold(3, width, 1)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """From now on images are moved as in that epoch."""
        rng = np.random.default_rng([self.seed, 3, epoch])
        with self.watch("loading"):
            self._places = torch.from_numpy(rng.integers(0, 2 * self.shift + 1, (2, len(self))))
            self._mirrored = torch.from_numpy(rng.random(len(self)) < 0.5)
        self.offered = 0

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The batch, moved at random."""
        with self.watch("loading"):
            at = torch.tensor(indices)
            if self._placed is None:
                images = self.split.images[at]
            else:
                rows, columns = self._places[:, at]
                images = self._placed[at, :, rows, columns]
            if self.flip:
                mirrored = self._mirrored[at]
                images[mirrored] = images[mirrored].flip(-1)
            self.offered += len(at)
            return at, images, self.split.labels[at]
