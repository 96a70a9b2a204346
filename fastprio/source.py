"""What a sampler is made of: a store, a data set, a size, or fixed weights."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from fastprio._arrays import integer, one_dimensional, to_numpy
from fastprio.policies.given import Given
from fastprio.store import ScoreStore


def store_of(source: Any, weights: Any, own_shard: Callable[[int], int] | None) -> tuple[ScoreStore, Any, int | None]:
    """What the first arguments of PrioritySampler stand for.

    Args:
        source, weights: as there. own_shard: from the size of the whole, that of this rank's shard; None: no shards.

    Returns: the store; the data set; and with shards, the size of the whole, where it is known.
    Raises: TypeError, ValueError: neither a store, nor a data set with a length, nor a size, nor weights.
    """
    if weights is not None:
        if source is not None:
            raise TypeError("weights: give either weights, or a store, data set or size")
        array = one_dimensional(to_numpy(weights), "weights")
        if not len(array):
            raise ValueError("weights: expected at least one")
        if own_shard is not None:
            raise ValueError("shard = 'sharded': give a store of this rank's shard, ScoreStore(n, Given(weights))")
        return ScoreStore(len(array), Given(array)), range(len(array)), None
    if isinstance(source, ScoreStore):
        return source, range(len(source)), None
    dataset = source
    if isinstance(source, Sized):
        _refuse_weights(source)
        if not len(source):
            raise ValueError("source: the data set is empty")
    else:
        try:
            dataset = range(integer("source", source, 1))
        except TypeError:
            kind = type(source).__name__
            raise TypeError(f"source: expected a ScoreStore, a data set with a length, or a size, got {kind}") from None
    whole = len(dataset)
    if own_shard is None:
        return ScoreStore(whole), dataset, None
    return ScoreStore(own_shard(whole)), dataset, whole


def _refuse_weights(source: Sized) -> None:
    """TypeError for floats where a data set is expected: WeightedRandomSampler takes its weights there."""
    if isinstance(source, (list, tuple)):
        floats = len(source) > 0 and isinstance(source[0], float)
    else:
        dtype = getattr(source, "dtype", None)
        floats = getattr(source, "ndim", 0) == 1 and "float" in str(dtype)
    if floats:
        raise TypeError(
            "source: these are floats, not a data set; weights are given by name: PrioritySampler(weights=...)"
        )
