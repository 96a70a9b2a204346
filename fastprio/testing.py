"""For tests of training code and of one's own policies: exact resumes, and made-up observations."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastprio.checkpoint import Checkpoint
from fastprio.policies.base import Policy
from fastprio.policies.observations import KNOWN
from fastprio.sampler import PriorityBatchSampler, PrioritySampler

Trained = tuple[int, int, bytes, bytes, bytes]
"""Epoch, step, and the bytes of the indices, probabilities and weights of a batch."""


def assert_same_after_resume(
    make_loader: Callable[[], Any],
    train_step: Callable[..., Any],
    *,
    epochs: int = 2,
    at: Sequence[int] | None = None,
    after_epoch: Callable[..., Any] | None = None,
) -> None:
    """Trains once without interruption; then, from every state saved on the way, again with new objects to the end.

    The resumed runs must train on the same batches with the same importance weights, and leave the same store, bit for
    bit. A last run is interrupted at all points, one after another.

    Args:
        make_loader: makes everything anew: a PriorityLoader, or any loader with a PrioritySampler (with a
            ``state_dict`` of its own, such as torchdata's StatefulDataLoader, or without); or a tuple of the loader and
            whatever else has a state to save with it: model, optimizer, ...
        train_step: ``train_step(loader, batch, *others)`` trains on one batch and steps the loader or its sampler.
            torch's seed is set to the number of the step before each call.
        epochs: how many the loop has; ``set_epoch`` is called at each one's head.
        at: after how many steps to save, 0 being before the first draw; by default 0, 1, and around the end of the
            first epoch and the middle of the rest.
        after_epoch: ``after_epoch(loader, *others)``, called at each one's end, where ``loader.score`` belongs. torch's
            seed is set to the number of steps so far before each call. A state after an epoch's last step is saved
            once it has returned, as ``score`` asks; without it, right after the step.

    Raises: AssertionError that names the point and the first step that differs.
    Cost: about (points + 2) trainings. States go through ``torch.save`` and ``torch.load(weights_only=True)``.
    """

    def new_run() -> _Run:
        return _Run(make_loader, train_step, after_epoch, epochs)

    whole = new_run()
    every = whole.until_end(0, 0)
    first = sum(trained[0] == 0 for trained in every)
    points = sorted({0, 1, first - 1, first, (first + len(every)) // 2} if at is None else set(at))
    if not points or points[0] < 0 or points[-1] > len(every):
        raise ValueError(f"at = {points}: this training has {len(every)} steps")
    ends = {epoch: step + 1 for epoch, step, *_ in every}  # the last of each epoch stays
    late = () if after_epoch is None else set(ends.values())
    watched = new_run()
    states: dict[int, tuple[int, bytes]] = {}
    trained = watched.until_end(0, 0, points, states, late)
    _compare("a run that only saves", every, trained, whole, watched)
    for point in points:
        resumed = new_run()
        resumed.load(states[point][1])
        rest = resumed.until_end(point, states[point][0])
        _compare(f"a run resumed after step {point}", every[point:], rest, whole, resumed)
    run, trained, epoch, begin = new_run(), [], 0, 0
    for point in points:
        saved: dict[int, tuple[int, bytes]] = {}
        trained += run.until_end(begin, epoch, [point], saved, late, stop=True)
        if point not in saved:
            _compare(f"a run resumed after each of the steps {points}", every[:point], trained, whole, run)
        epoch, state = saved[point]
        run, begin = new_run(), point
        run.load(state)
    trained += run.until_end(begin, epoch)
    _compare(f"a run resumed after each of the steps {points}", every, trained, whole, run)


def sampler_of(loader: Any) -> PrioritySampler:
    """The PrioritySampler of a loader, however wrapped. TypeError if it has none."""
    seen = loader
    for _ in range(8):
        if isinstance(seen, PrioritySampler):
            return seen
        inner = getattr(seen, "sampler", None)
        batches = getattr(seen, "batch_sampler", None)
        if isinstance(seen, PriorityBatchSampler) or isinstance(inner, PrioritySampler) or batches is None:
            seen = inner
        else:
            seen = batches
    raise TypeError(f"loader: expected one with a PrioritySampler, got {type(loader).__name__}")


def made_up(policy: Policy, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Random observations, [n] each, of everything that a policy requires beside the loss.

    Of a classifier of two classes, in the ranges that ``fastprio.policies.observations`` gives; names that it does not
    know get numbers in [0, 1).
    """
    made: dict[str, Any] = {}
    for name in policy.requires:
        whole = name in KNOWN and not KNOWN[name].dtype.startswith("float")
        made[name] = rng.integers(0, 2, n).astype(KNOWN[name].dtype) if whole else rng.random(n, np.float32)
    return made


class _Run:
    """One training: everything made anew, and where it stands."""

    def __init__(
        self,
        make_loader: Callable[[], Any],
        train_step: Callable[..., Any],
        after_epoch: Callable[..., Any] | None,
        epochs: int,
    ) -> None:
        made = make_loader()
        self.loader, *self.others = made if isinstance(made, tuple) else (made,)
        self.sampler = sampler_of(self.loader)
        self._train_step, self._after_epoch, self._epochs = train_step, after_epoch, epochs

    def until_end(
        self,
        step: int,
        epoch: int,
        points: Sequence[int] = (),
        states: dict[int, tuple[int, bytes]] | None = None,
        late: Collection[int] = (),
        stop: bool = False,
    ) -> list[Trained]:
        """Trains to the end from where it stands, after ``step`` steps in all, at the head of ``epoch`` or within it.

        Args:
            points: after how many steps to save, into ``states``: the epoch to go on with, and the state.
            late: those that are saved at their epoch's end, not right after the step.
            stop: train up to the last point only.
        """
        trained: list[Trained] = []
        states = {} if states is None else states
        if step in points:
            states[step] = epoch, self._saved()
        if stop and step == points[-1]:
            return trained
        for number, one in self._events(step, epoch):
            if one is not None:
                trained.append(one)
            at = step + len(trained)
            if at in points and at not in states and (one is None) == (at in late):
                states[at] = number + (one is None), self._saved()
                if stop and at == points[-1]:
                    break
        return trained

    def _events(self, step: int, epoch: int) -> Iterator[tuple[int, Trained | None]]:
        """The number of the epoch and each step in it; None for its end, once ``after_epoch`` has returned."""
        for number in range(epoch, self._epochs):
            self.sampler.set_epoch(number)
            for batch in self.loader:
                drawn = self.sampler.indices, self.sampler.probabilities, self.sampler.weights.numpy()
                torch.manual_seed(step)
                self._train_step(self.loader, batch, *self.others)
                yield number, (number, step, drawn[0].tobytes(), drawn[1].tobytes(), drawn[2].tobytes())
                step += 1
            if self._after_epoch is not None:
                torch.manual_seed(step)
                self._after_epoch(self.loader, *self.others)
            yield number, None

    def _saved(self) -> bytes:
        """The whole state, through a file."""
        file = io.BytesIO()
        if hasattr(self.loader, "state_dict"):
            state = {"loader": self.loader.state_dict(), "store": self.sampler.store.state_dict()}
        else:
            state = {"both": Checkpoint(self.sampler).state_dict()}
        torch.save({**state, "others": [other.state_dict() for other in self.others]}, file)
        return file.getvalue()

    def load(self, state: bytes) -> None:
        """What ``_saved`` gave."""
        parts = torch.load(io.BytesIO(state), weights_only=True)
        if "both" in parts:
            Checkpoint(self.sampler).load_state_dict(parts["both"])
        else:
            self.sampler.store.load_state_dict(parts["store"])
            self.loader.load_state_dict(parts["loader"])
        for other, its in zip(self.others, parts["others"], strict=True):
            other.load_state_dict(its)


def _compare(what: str, expected: list[Trained], got: list[Trained], whole: _Run, run: _Run) -> None:
    parts = ("epoch", "step", "indices", "probabilities", "weights")
    for one, other in zip(expected, got, strict=False):
        differs = [name for name, a, b in zip(parts, one, other, strict=True) if a != b]
        if differs:
            raise AssertionError(f"{what}: step {one[1]} of epoch {one[0]} has other {', '.join(differs)}")
    if len(expected) != len(got):
        raise AssertionError(f"{what}: {len(got)} steps, expected {len(expected)}")
    ours, theirs = whole.sampler.store.state_dict(), run.sampler.store.state_dict()
    arrays, others = ours.pop("arrays"), theirs.pop("arrays")
    for name, array in arrays.items():
        if name.startswith("kept."):
            continue
        if name not in others or array.numpy().tobytes() != others[name].numpy().tobytes():
            raise AssertionError(f"{what}: the store ends with other {name}")
    differs = [name for name in ours if name != "kept" and repr(ours[name]) != repr(theirs[name])]
    if differs:
        raise AssertionError(f"{what}: the store ends with other {', '.join(differs)}")
