"""Arguments as the arrays that the core takes: contiguous int64 and float32, without a copy where possible."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from typing import TypeAlias

    Int64: TypeAlias = npt.NDArray[np.int64]
    Float32: TypeAlias = npt.NDArray[np.float32]
    Float64: TypeAlias = npt.NDArray[np.float64]
    Uint8: TypeAlias = npt.NDArray[np.uint8]

INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """A numpy view of an array or a tensor on any device (copied to the host where it is elsewhere)."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    if value.requires_grad:
        value = value.detach()
    try:
        view: npt.NDArray[Any] = value.numpy()  # half a microsecond; through DLPack it would be several
    except (RuntimeError, TypeError):  # it is elsewhere, or of a dtype that numpy lacks
        value = value.cpu().resolve_neg()
        view = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return view


def as_indices(value: Any, name: str = "indices") -> Int64:
    """int64 [n], C-contiguous. Any integer dtype that int64 holds; TypeError otherwise."""
    array = value if type(value) is np.ndarray else to_numpy(value)
    if array.dtype is INT64 and array.ndim == 1 and array.flags.c_contiguous:  # in every step
        return array
    if array.dtype != INT64:
        if array.size == 0 and array.dtype == np.float64:  # an empty list
            return np.empty(0, np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise IndexError(f"{name}: {array.max()} does not fit int64")
        array = array.astype(np.int64)
    array = one_dimensional(array, name)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def as_float32(value: Any, name: str, tiny_is_zero: bool = False) -> Float32:
    """float32 [n], C-contiguous. Any real dtype; TypeError otherwise.

    A float64 that float32 cannot hold raises ValueError: one too large, or, unless ``tiny_is_zero``, one above zero
    that would become zero, so that no example silently stops being drawn.
    """
    array = value if type(value) is np.ndarray else to_numpy(value)
    if array.dtype is FLOAT32 and array.ndim == 1 and array.flags.c_contiguous:  # in every step
        return array
    if array.dtype != FLOAT32:
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
        with np.errstate(over="ignore", under="ignore"):
            narrow = array.astype(np.float32)
        if array.dtype.itemsize > 4:
            lost = (np.isinf(narrow) & np.isfinite(array)) | ((narrow == 0) & (array != 0) & (not tiny_is_zero))
            if lost.any():
                at = int(lost.argmax())
                raise ValueError(f"{name}[{at}] = {array.ravel()[at]}: float32 cannot hold it; rescale the {name}")
        array = narrow
    array = one_dimensional(array, name)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def one_dimensional(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """The array itself, or ValueError if it has another number of dimensions than one."""
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    return array


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int (numpy's integers too). TypeError if it is none, ValueError if out of [least, most]."""
    if type(value) is int and least <= value and (most is None or value <= most):
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} = {value!r}: expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < least or (most is not None and number > most):
        limits = f">= {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{name} = {number}: expected an integer {limits}")
    return number
