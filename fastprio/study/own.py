"""Data sets of one's own: what a function named "module:callable" returns, read once into memory."""

from __future__ import annotations

import importlib
import operator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastprio.study.files import Part, StudyError

# Labels count the outputs of a model, so that a larger one is a mistake.
_LABELS_END = 1 << 31


def read_own(name: str) -> tuple[Part, Part]:
    """Calls a function without arguments and reads the two data sets that it returns, training and test.

    Args:
        name: "module:callable", or "package.module:callable". The callable returns a pair of map-style data sets:
            ``len(dataset)`` examples, ``dataset[i]`` an (image, label). The images of both have one shape, and are
            all uint8 or all floating and finite. A tensor is [channels, height, width] or [height, width]. Anything
            else is what ``numpy.asarray`` makes of it (a PIL image too), and a last axis of 1 or 3 is then its
            channels. A label is an integer in [0, 2^31). Each example is read once, so that a random transform of it
            is drawn once and for all.

    Returns:
        images uint8 or float32 [n, channels, height, width], labels int64 [n], of each of the two.

    Raises:
        StudyError: the module or the callable is absent, or what it returns is not as described. What the callable or
            its data sets raise themselves passes through as it is.
    """
    made = _function(name)()
    if not isinstance(made, (tuple, list)) or len(made) != 2 or not all(map(_is_map_style, made)):
        raise StudyError(f"{name}: expected two map-style data sets (train, test), got {_described(made)}")
    train = _read(made[0], f"{name}: train")
    test = _read(made[1], f"{name}: test")
    if train.images.dtype != test.images.dtype:
        raise StudyError(f"{name}: training images are {train.images.dtype}, test images {test.images.dtype}")
    return train, test


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise StudyError(f"data = {name!r}: expected module:callable")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise StudyError(f"data = {name!r}: {error}") from error
    if not callable(found):
        raise StudyError(f"data = {name!r}: expected a callable {attribute} in the module, got {type(found).__name__}")
    return found


def _is_map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def _described(made: Any) -> str:
    if isinstance(made, (tuple, list)):
        return f"{type(made).__name__} of {', '.join(type(one).__name__ for one in made) or 'nothing'}"
    return type(made).__name__


def _read(dataset: Any, where: str) -> Part:
    n = len(dataset)
    if n == 0:
        raise StudyError(f"{where}: no examples")
    images, labels = np.empty(0), np.empty(n, np.int64)
    for row in range(n):
        at = f"{where}[{row}]"
        item = dataset[row]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise StudyError(f"{at}: expected (image, label), got {_described(item)}")
        image, labels[row] = _image(item[0], at), _label(item[1], at)
        if row == 0:
            images = np.empty((n, *image.shape), image.dtype)
        if image.shape != images.shape[1:] or image.dtype != images.dtype:
            raise StudyError(
                f"{at}: image {image.dtype} {list(image.shape)}: expected {images.dtype} {list(images.shape[1:])}, "
                "as the first one"
            )
        images[row] = image
    return Part(images, labels)


def _image(value: Any, at: str) -> npt.NDArray[Any]:
    """The image as uint8 or float32 [channels, height, width]."""
    image: npt.NDArray[Any]
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        image = (value.float() if value.is_floating_point() else value).numpy()
    else:
        image = np.asarray(value)
        if image.ndim == 3 and image.shape[2] in (1, 3):
            image = image.transpose(2, 0, 1)
    if image.ndim == 2:
        image = image[np.newaxis]
    if image.ndim != 3 or image.size == 0:
        raise StudyError(f"{at}: image of shape {list(image.shape)}: expected [height, width] and perhaps channels")
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        raise StudyError(f"{at}: image of dtype {image.dtype}: expected uint8 or floating")
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():
        raise StudyError(f"{at}: the image holds {image[~np.isfinite(image)][0]} in float32: expected finite numbers")
    return image


def _label(value: Any, at: str) -> int:
    try:
        label = operator.index(value)
    except TypeError:
        raise StudyError(f"{at}: label of type {type(value).__name__}: expected an integer >= 0") from None
    if not 0 <= label < _LABELS_END:
        raise StudyError(f"{at}: label {label}: expected an integer >= 0 and below 2^31")
    return label
