"""``fastprio bench --loader module:callable``: what choosing by priority costs with a user's own data.

The callable takes nothing and returns a torch DataLoader as for uniform training: a map-style data set, a batch size,
``shuffle=True``. A PriorityLoader is made of the same data set and arguments; epochs of both alternate. There is no
model: both loop over their batches and make a random loss for each example, and the prioritized one records it. So
the ratio is that of loading alone; beside a model's time it is nearer to one.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from fastprio.bench import machine, present, stamp
from fastprio.bench.training import Arm, compare, prioritized_like
from fastprio.cli import look_here


class LoaderError(Exception):
    """Why a user's loader cannot be timed, in one line."""


def resolve(spec: str) -> DataLoader[Any]:
    """Calls what ``module:callable`` names and checks what comes.

    Args:
        spec: a module, which may also be in the current folder, a colon, and a callable in it (dots allowed).

    Raises:
        LoaderError: no such thing, it failed, or what it returned is not a DataLoader that can be compared.
    """
    module, colon, name = spec.partition(":")
    if not (module and colon and name):
        raise LoaderError(f"--loader {spec}: expected MODULE:CALLABLE, such as mydata:make_loader")
    look_here()
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise LoaderError(
            f"--loader {spec}: no module {error.name!r}, neither installed nor in {Path.cwd()}"
        ) from error
    except Exception as error:
        raise LoaderError(f"--loader {spec}: importing {module}: {_said(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise LoaderError(f"--loader {spec}: {module} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise LoaderError(f"--loader {spec}: {name} is a {type(found).__name__}: expected a callable")
    try:
        loader = found()
    except Exception as error:
        raise LoaderError(f"--loader {spec}: calling {name}: {_said(error)}") from error
    why = refused(loader)
    if why:
        raise LoaderError(f"--loader {spec}: {why}")
    checked: DataLoader[Any] = loader
    return checked


def refused(loader: Any) -> str | None:
    """Why a loader cannot be compared with a PriorityLoader, in one line; None if it can."""
    if not isinstance(loader, DataLoader):
        return f"it returned a {type(loader).__name__}: expected a torch.utils.data.DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "its data set is an IterableDataset, which has no indices to choose: expected a map-style one"
    if loader.batch_size is None:
        return "its DataLoader has no batch_size (or a batch_sampler of its own): expected one that batches by itself"
    if isinstance(loader.sampler, SequentialSampler):
        return "its DataLoader reads in order: pass shuffle=True, as for training"
    if not (hasattr(loader.sampler, "__len__") and hasattr(loader.dataset, "__len__")):
        return "its data set or its sampler has no length"
    if not getattr(loader, "in_order", True):
        return "its DataLoader has in_order=False: leave it out"
    return None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def arms(loader: DataLoader[Any]) -> tuple[Arm, Arm]:
    """The user's loader and its prioritized likeness, with a random loss for each example of a batch.

    Raises: LoaderError: PriorityLoader does not take the data set.
    """
    try:
        prioritized = prioritized_like(loader)
    except (TypeError, ValueError) as error:
        raise LoaderError(f"--loader: PriorityLoader refuses it: {_said(error)}") from error
    samples, batch = len(loader.sampler), loader.batch_size or 0  # type: ignore[arg-type]

    def losses(_: Any, number: int) -> torch.Tensor:
        return torch.rand(min(batch, samples - number * batch))

    return Arm(loader, losses, lambda _: None), Arm(prioritized, losses, prioritized.record)


def closing(found: dict[str, Any], samples: int) -> str:
    """One sentence: what an epoch chosen by priority costs beside a uniform one of this loader."""
    uniform, prioritized = found["epoch_seconds"]["uniform"], found["epoch_seconds"]["prioritized"]
    low, high = found["interval"]
    mine, torchs = (100 * found["choosing_share"][name] for name in ("prioritized", "uniform"))
    return (
        f"An epoch of {samples:,} examples chosen by priority took {present.span(prioritized)}, one of uniform loading "
        f"{present.span(uniform)} (medians); within a pair {found['ratio']:.3f} times (95 % interval {low:.3f} to "
        f"{high:.3f}, {len(found['pairs'])} pairs of epochs), and choosing took {mine:.2f} % of it "
        f"({torchs:.2f} % uniform), with no model in the time."
    )


def run(args: argparse.Namespace) -> int:
    """The command with ``--loader``: measures, prints, writes the JSON. Returns 0.

    Raises: LoaderError: see ``resolve`` and ``arms``, or iterating the loader failed.
    """
    loader = resolve(args.loader)
    uniform, prioritized = arms(loader)
    samples = len(loader.sampler)  # type: ignore[arg-type]
    print(f"fastprio bench on {machine()}", flush=True)
    print(
        f"{args.loader}: {samples:,} examples an epoch, batches of {loader.batch_size}, {loader.num_workers} workers; "
        f"{args.pairs} pairs of epochs and one to warm up",
        flush=True,
    )
    try:
        with present.Progress(2 * args.pairs + 2) as progress:
            found = compare(uniform, prioritized, args.pairs, progress.tick)
    except Exception as error:  # whatever a user's data set raises
        raise LoaderError(f"--loader {args.loader}: iterating it: {_said(error)}") from error
    sentence = closing(found, samples)
    record = {
        **stamp(f"fastprio bench --loader {args.loader} --pairs {args.pairs}"),
        "examples": samples,
        "batch": loader.batch_size,
        "workers": loader.num_workers,
        **found,
        "closing": sentence,
    }
    Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
    names = ("uniform", "prioritized")
    rows = [
        ["", *names],
        ["epoch, median", *(present.span(found["epoch_seconds"][name]) for name in names)],
        ["choosing, share of it", *(f"{100 * found['choosing_share'][name]:.2f} %" for name in names)],
        ["choosing, a batch", *(present.span(1e-6 * found["choosing_us_per_batch"][name]) for name in names)],
    ]
    present.show("your loader", rows)
    print(sentence)
    print(f"Written: {args.json}")
    return 0
