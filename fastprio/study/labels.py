"""Labels that come in a file of their own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastprio.study.files import StudyError

if TYPE_CHECKING:
    import numpy.typing as npt


def read_labels(path: Path, n: int, classes: int | None = None) -> npt.NDArray[np.int64]:
    """int64 [n]: the labels of an .npy file, or of text with an integer for each example.

    Args:
        n: how many there must be. classes: labels are in [0, classes); None: any integer that int64 holds.

    Raises: StudyError: a file that is absent or no such thing, another number, or a label out of range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file: what follows says how many it has
            labels = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, np.int64, ndmin=1)
    except (OSError, ValueError, EOFError) as error:
        raise StudyError(f"{path}: cannot be read as labels: {error}") from error
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise StudyError(f"{path}: expected {n} integers, got {labels.dtype} of shape {list(labels.shape)}")
    bad = (labels < 0) | (labels >= classes) if classes is not None else labels > np.iinfo(np.int64).max
    if bad.any():
        at = int(bad.argmax())
        expected = "an int64" if classes is None else f"0 <= label < {classes}"
        raise StudyError(f"{path}: label {at} is {labels[at]}: expected {expected}")
    return labels.astype(np.int64)
