"""The score-only pass: losses of examples that are not trained on, without touching model or random numbers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from fastprio._arrays import as_float32, as_indices, to_numpy
from fastprio.ranks import interleaved, place_in, shard_of

if TYPE_CHECKING:
    from fastprio._arrays import Int64
    from fastprio.sampler import PrioritySampler

ROWS = 1 << 16
"""Rows that the store is told of together."""


def score(
    loader: DataLoader[Any],
    sampler: PrioritySampler,
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Any],
    indices: Any,
    origin: str,
) -> int:
    """What ``PriorityLoader.score`` does, for a loader and the sampler that it has."""
    store = sampler.store
    if origin not in ("score", "reference"):
        raise ValueError(f"origin = {origin!r}: expected 'score' or 'reference'")
    if isinstance(model, DistributedDataParallel):
        model = model.module  # the wrapper would exchange batch-norm statistics, also in eval mode
    if origin == "score":
        rows = sampler.to_score(indices)
        sampler.flush()
    else:  # which no draw sees
        rows = np.arange(len(store)) if indices is None else as_indices(indices)
        store.check_indices(rows)
    if not len(rows):
        return 0
    rank, ranks = place_in(sampler.process_group)
    offset = 0
    if sampler.shard == "sharded":
        shard = shard_of(len(loader.dataset), rank, ranks)  # type: ignore[arg-type]
        offset, rank, ranks = shard.start, 0, 1
    each = -(-len(rows) // ranks)
    mine = rows[(np.arange(each) * ranks + rank) % len(rows)]  # round again where they do not divide
    found = losses_of(loader, model, loss_fn, mine + offset, seed=store.clock.step)
    if ranks > 1:
        found = {name: v[: len(rows)] for name, v in interleaved(found, sampler.process_group).items()}
    losses = found.pop("")
    with store.lock:
        store.check(rows, losses, origin=origin, **found)  # whole, before anything is recorded
        for begin in range(0, len(rows), ROWS):
            part = slice(begin, begin + ROWS)
            store.update(rows[part], losses[part], origin=origin, **{name: v[part] for name, v in found.items()})
    return len(rows)


def losses_of(
    loader: DataLoader[Any], model: nn.Module, loss_fn: Callable[[nn.Module, Any], Any], indices: Int64, seed: int
) -> dict[str, Any]:
    """Forwards examples in order: arrays [n] by name, "" the losses.

    Args:
        loader: whose data set, workers and collation are used. indices: int64 [n] of the data set.
        loss_fn: (model, batch) -> losses [n], or (losses, {name: observation [n]}). seed: of data augmentation.

    Under ``no_grad``, every module in eval mode. Modes and the random states of torch, numpy and Python are then as
    they were, so that training goes on as if nothing had been.
    """
    batch_size: int = loader.batch_sampler.batch_size  # type: ignore[union-attr]
    batches = [indices[begin : begin + batch_size].tolist() for begin in range(0, len(indices), batch_size)]
    passes = DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )
    parts: dict[str, list[Any]] = {}
    with _random_states_kept(seed), _in_eval_mode(model), torch.no_grad():
        for wanted, batch in zip(batches, passes, strict=True):
            for name, values in _named(loss_fn(model, batch), len(wanted)).items():
                parts.setdefault(name, []).append(values)
    if any(len(rows) != len(batches) for rows in parts.values()):
        raise ValueError(f"loss_fn: expected the same observations of every batch, got {sorted(parts)} of some only")
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _named(result: Any, n: int) -> dict[str, Any]:
    losses, others = result if isinstance(result, tuple) else (result, {})
    if tuple(np.shape(losses)) != (n,):
        raise ValueError(f"loss_fn: expected losses of shape [{n}], one for each example, got {list(np.shape(losses))}")
    floating = losses.is_floating_point() if isinstance(losses, torch.Tensor) else np.asarray(losses).dtype.kind == "f"
    if not floating:
        raise TypeError(
            f"loss_fn: expected floating-point losses, got {getattr(losses, 'dtype', type(losses).__name__)}"
        )
    return {"": as_float32(losses, "losses", tiny_is_zero=True)} | {
        name: to_numpy(values) for name, values in others.items()
    }


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # each its own: parts of a model may have been put in eval mode for good
            module.training = mode


@contextlib.contextmanager
def _random_states_kept(seed: int) -> Iterator[None]:
    """Another stream inside, so that what comes after is as it would have been."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 (what data sets use)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move devices that are not in use yet
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        np.random.seed(seed % (1 << 32))  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
