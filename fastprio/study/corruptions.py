"""Corruptions of a training set: those of "When does loss-based prioritization fail?" (arXiv 2107.07741), and more.

The test set stays clean. Every corruption is a function of the data and a seed, and says which examples were drawn for
it and which it truly altered: a random label may be the right one by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastprio.study.data import Split
from fastprio.study.files import StudyError
from fastprio.study.labels import read_labels

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Mask = npt.NDArray[np.bool_]
    Int64 = npt.NDArray[np.int64]


RARE_CLASSES = 3
"""The last ones, of which "rare" takes examples away."""


@dataclass(frozen=True)
class Corrupted:
    """A training set, and what was done to it.

    split: the examples. drawn: bool [n], those that the corruption was applied to. altered: bool [n], those whose label
    or image is another one now. kept: int64 [n], which examples of the original they are.
    """

    split: Split
    drawn: Mask
    altered: Mask
    kept: Int64


def corrupt(split: Split, classes: int, kind: str, level: float, seed: int) -> Corrupted:
    """Corrupts a share of the examples.

    Args:
        split: the clean training set. classes: labels are in [0, classes).
        kind: a name in ``KINDS``; or "rare", which alters nothing and keeps the share 1 - level of the last three
            classes; or "file:PATH", given labels: an .npy file or text, an integer for each example.
        level: the share, in [0, 1], of examples that are drawn, without replacement; of no meaning to "file:".
        seed: of the choice and of the noise. The same one draws the same examples for every kind.

    Raises: StudyError: an unknown kind, a level out of range, or labels that do not fit.
    """
    if not 0 <= level <= 1:
        raise StudyError(f"level = {level}: expected 0 <= level <= 1")
    n, everything = len(split), np.arange(len(split))
    if kind.startswith("file:"):
        labels = torch.from_numpy(read_labels(Path(kind.removeprefix("file:")), n, classes))
        return _compared(split, Split(split.images, labels), np.ones(n, bool))
    order = np.random.default_rng([seed, 0])
    drawn = np.zeros(n, bool)
    if kind == "rare":
        few = np.flatnonzero(split.labels.numpy() >= classes - RARE_CLASSES)
        drawn[order.permutation(few)[: round(level * len(few))]] = True
        kept = everything[~drawn]
        at = torch.from_numpy(kept)
        none = np.zeros(len(kept), bool)
        return Corrupted(split[at], none, none.copy(), kept)
    if kind not in KINDS:
        raise StudyError(f"corruption = {kind!r}: expected one of {', '.join(KINDS)}, rare, file:PATH")
    drawn[order.permutation(n)[: round(level * n)]] = True
    if not drawn.any():
        return Corrupted(split, drawn, drawn.copy(), everything)
    at = torch.from_numpy(np.flatnonzero(drawn))
    changed = KINDS[kind](split[at], classes, np.random.default_rng([seed, 1]))
    images, labels = split.images.clone(), split.labels.clone()
    images[at], labels[at] = changed.images, changed.labels
    return _compared(split, Split(images, labels), drawn)


def _compared(before: Split, after: Split, drawn: Mask) -> Corrupted:
    other = (before.labels != after.labels) | (before.images != after.images).flatten(1).any(1)
    return Corrupted(after, drawn, other.numpy(), np.arange(len(before)))


def _relabelled(split: Split, labels: npt.NDArray[np.int64]) -> Split:
    return Split(split.images, torch.from_numpy(labels))


def _clean(split: Split, classes: int, rng: np.random.Generator) -> Split:
    return split


def _random(split: Split, classes: int, rng: np.random.Generator) -> Split:
    """Any label, also the right one: of K classes, a share of 1 / K stays right."""
    return _relabelled(split, rng.integers(0, classes, len(split)))


def _symmetric(split: Split, classes: int, rng: np.random.Generator) -> Split:
    """Any label but the right one."""
    return _relabelled(split, (split.labels.numpy() + rng.integers(1, classes, len(split))) % classes)


def _pair(split: Split, classes: int, rng: np.random.Generator) -> Split:
    """The following class's label."""
    return _relabelled(split, (split.labels.numpy() + 1) % classes)


def _shuffle(split: Split, classes: int, rng: np.random.Generator) -> Split:
    """The pixels of each image in another order, the same one for all images and channels."""
    pixels = split.images.flatten(2)
    order = torch.from_numpy(rng.permutation(pixels.shape[2]))
    return Split(pixels[:, :, order].reshape(split.images.shape), split.labels)


def _gauss(split: Split, classes: int, rng: np.random.Generator) -> Split:
    """Gaussian noise with each image's own mean and variance, in place of it."""
    flat = split.images.flatten(1)
    noise = torch.from_numpy(rng.standard_normal(flat.shape, np.float32))
    deviation = flat.std(1, correction=0, keepdim=True)
    images: Tensor = (flat.mean(1, keepdim=True) + deviation * noise).reshape(split.images.shape)
    return Split(images, split.labels)


KINDS: dict[str, Callable[[Split, int, np.random.Generator], Split]] = {
    "clean": _clean,
    "labels": _random,
    "symmetric": _symmetric,
    "pair": _pair,
    "shuffle": _shuffle,
    "gauss": _gauss,
}
"""The paper's are "labels", "shuffle" and "gauss"."""
