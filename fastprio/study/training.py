"""One run of the study: a method trains a model, and everything that the report needs is measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastprio.loader import PriorityLoader
from fastprio.policies import NoiseGuard, observations
from fastprio.study.corruptions import corrupt
from fastprio.study.data import Data, Split, identity, load
from fastprio.study.files import StudyError
from fastprio.study.methods import BACKPROPS, Setting, find
from fastprio.study.models import evaluate, make_model
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.watch import OnTheClock, Watch

PARTS = ("loading", "choosing", "scoring", "forward", "backward")
"""What a run's seconds are made of; evaluation is beside them."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a run trains on, and what it is measured on.

    train: [n]. held_out: clean. altered: bool [n], whose label or image is not the original one. classes: of the set.
    """

    train: Split
    held_out: Split
    altered: Any
    classes: int


@functools.cache
def _whole(source: str) -> Data:
    return load(source)


def part_of(protocol: Protocol, cell: Cell) -> Part:
    """The seed's subset, corrupted. It depends on nothing else, and so is the same for all methods.

    Raises: StudyError: data that are absent, damaged or too few.
    """
    whole = _whole(protocol.data)
    n, wanted = len(whole.train), protocol.examples + protocol.validation
    if wanted > n:
        raise StudyError(f"examples + validation = {wanted}: {whole.name} has {n} training examples")
    order = torch.from_numpy(np.random.default_rng([cell.seed, 2]).permutation(n)[:wanted])
    train, rest = order[: protocol.examples], order[protocol.examples :]
    if cell.kind.startswith("file:"):  # labels of all training examples, in the order of the data set
        of_all = corrupt(whole.train, whole.classes, cell.kind, cell.level, cell.seed)
        split, altered = _rows(of_all.split, train), of_all.altered[train.numpy()]
    else:
        made = corrupt(_rows(whole.train, train), whole.classes, cell.kind, cell.level, cell.seed)
        split, altered = made.split, made.altered
    held_out = whole.test if protocol.evaluate == "test" else _rows(whole.train, rest)
    return Part(split, held_out, altered, whole.classes)


def _rows(split: Split, at: Tensor) -> Split:
    return Split(split.images[at], split.labels[at])


def _moved(split: Split, device: str) -> Split:
    return Split(split.images.to(device), split.labels.to(device))


class Examples(Dataset[Any]):
    """A split that gives whole batches: (indices int64 [B], images float32 [B, C, H, W], labels int64 [B]).

    Args:
        shift: each image is moved by up to so many pixels, its border as far as black; flip: and mirrored or not.
        seed: of that. The same batches in the same order are moved in the same way.
    """

    def __init__(self, split: Split, shift: int, flip: bool, seed: int, watch: Watch) -> None:
        self.split, self.shift, self.flip, self.watch = split, shift, flip, watch
        self.offered = 0
        self._rng = np.random.default_rng([seed, 3])
        size = split.images.shape[-2:]
        padded = nn.functional.pad(split.images, (shift,) * 4, value=float(split.images.min())) if shift else None
        # A view: every place that the image can have in the padded one.
        self._placed = None if padded is None else padded.unfold(2, size[0], 1).unfold(3, size[1], 1)

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The batch, moved at random."""
        with self.watch("loading"):
            at = torch.tensor(indices)
            if self._placed is None:
                images = self.split.images[at]
            else:
                rows, columns = torch.from_numpy(self._rng.integers(0, 2 * self.shift + 1, (2, len(at))))
                images = self._placed[at, :, rows, columns]
            if self.flip:
                mirrored = torch.from_numpy(self._rng.random(len(at)) < 0.5)
                images[mirrored] = images[mirrored].flip(-1)
            self.offered += len(at)
            return at, images, self.split.labels[at]


class _Loader(PriorityLoader):
    """A PriorityLoader of which the draws are on the clock as "choosing", and the rest as "loading"."""

    def on_the_clock(self, watch: Watch) -> None:
        self.watch = watch
        # torch does not let a loader's batch sampler be replaced, lest it disagree with its other arguments.
        object.__setattr__(self, "batch_sampler", OnTheClock(self.batch_sampler, watch))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self.watch.each("loading", super().__iter__())

    @property
    def planned(self) -> int:
        """How many examples the epoch has."""
        return self._priority.planned


class Run:
    """A run. ``steps()`` trains; ``result()`` is what it measured.

    Raises: StudyError: a protocol or a cell that does not fit the data.
    """

    def __init__(self, protocol: Protocol, cell: Cell) -> None:
        self.protocol, self.cell, self.watch = protocol, cell, Watch()
        try:
            torch.empty(0, device=protocol.device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
            raise StudyError(f"device = {protocol.device!r}: {str(error).splitlines()[0]}") from error
        part = part_of(protocol, cell)
        self.held_out, self.altered = _moved(part.held_out, protocol.device), part.altered
        self.method, self.setting = find(cell.method), Setting(protocol, cell, part.classes)
        # Of the examples that there are, the altered ones too where an oracle takes them away.
        self.budget = round(cell.budget * len(self.altered) * protocol.epochs)
        if self.method.oracle:
            kept = np.flatnonzero(~part.altered)
            part = dataclasses.replace(part, train=_rows(part.train, torch.from_numpy(kept)))
            self.altered = self.altered[kept]
        _, channels, *size = part.train.images.shape
        torch.manual_seed(cell.seed)
        try:
            model = make_model(protocol.model, channels, (size[0], size[1]), part.classes)
        except ValueError as error:
            raise StudyError(f"{protocol.data}: {error}") from error
        self.model: nn.Module = model.to(protocol.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            protocol.lr,
            momentum=protocol.momentum,
            nesterov=True,
            weight_decay=protocol.weight_decay,
        )
        self.examples = Examples(part.train, protocol.shift, protocol.flip, cell.seed, self.watch)
        pool = 1 / cell.budget if self.method.pooled else 1.0
        self.loader = _Loader(
            self.examples,
            round(pool * protocol.batch_size),
            policy=self.method.policy(self.setting),
            epochs=None if self.method.ends == BACKPROPS else protocol.epochs,
            seed=cell.seed,
            drop_last=True,  # a step from the few examples at an epoch's end would be as long as any, and mostly noise
            collate_fn=identity,
        )
        self.loader.on_the_clock(self.watch)
        self.selector = None if self.method.selector is None else self.method.selector(self.setting)
        self.epoch = self.backprops = self.scored = 0
        self.altered_backprops = 0
        self.last_loss = np.full(len(part.train), np.nan, np.float32)
        self.curve: list[dict[str, float]] = []
        self.right: Tensor
        """bool [held out], what the last evaluation got right."""

    @property
    def progress(self) -> float:
        """The share of the run that is over, in [0, 1]."""
        if self.method.ends == BACKPROPS:
            return min(1.0, self.backprops / self.budget)
        share = min(1.0, self.examples.offered / max(1, self.loader.planned))
        return min(1.0, (self.epoch + share) / self.protocol.epochs)

    @property
    def over(self) -> bool:
        """Whether training has come to its end."""
        if self.method.ends == BACKPROPS:
            return self.backprops >= self.budget
        return self.epoch >= self.protocol.epochs

    def steps(self) -> Iterator[None]:
        """Trains to the end, a batch whenever the iterator is advanced. What passes between is on no clock."""
        while not self.over:
            self.examples.offered = 0
            for at, images, labels in self.watch.each("choosing", self._batches()):
                self._step(at, images, labels)
                with self.watch(""):
                    yield
                if self.method.ends == BACKPROPS and self.over:
                    break
            else:
                self._score_the_rest()
            self.epoch += 1
        while len(self.curve) < self.protocol.evaluations:
            self._evaluate()

    def _batches(self) -> Iterator[Any]:
        if self.selector is None:
            return iter(self.loader)
        return self.selector.batches(self.loader, self._score, drop_last=True)

    def _step(self, at: Tensor, images: Tensor, labels: Tensor) -> None:
        """One update of the parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.cell.lr_scale * self.protocol.learning_rate(self.progress)
        with self.watch("forward"):
            logits, losses, labels = self._forward(images, labels)
        with self.watch("choosing"):
            if self.selector is None:
                loss = self.loader.step(losses, **observations(self.loader.store.policy.requires, logits, labels))
            else:
                loss = self.selector.mean(losses)
        with self.watch("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        with self.watch(""):
            self._note(at, losses)
            self.backprops += len(at)
            self.altered_backprops += int(self.altered[at.numpy()].sum())
            # The last one comes after the last step, of several at the end of the last epoch.
            due = min(int(self.progress * self.protocol.evaluations + 1e-9), self.protocol.evaluations - 1)
            while len(self.curve) < due:
                self._evaluate()

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = images.to(self.protocol.device, memory_format=torch.channels_last)
        labels = labels.to(self.protocol.device)
        logits = self.model(images)
        return logits, nn.functional.cross_entropy(logits, labels, reduction="none"), labels

    def _score(self, batch: Any) -> Any:
        """Losses of a batch that is offered, as the model is in use: nothing of it changes."""
        at, images, labels = batch
        with self.watch("scoring"):
            self.model.eval()
            logits, losses, labels = self._forward(images, labels)
            self.model.train()
        self.scored += len(at)
        with self.watch(""):
            self._note(at, losses)
        return losses, observations(self.loader.store.policy.requires, logits, labels)

    def _score_the_rest(self) -> None:
        """Forwards what the policy's plan asks for at an epoch's end."""
        with self.watch("scoring"):
            self.loader.score(self.model, lambda _, batch: self._score(batch))

    def _note(self, at: Tensor, losses: Tensor) -> None:
        self.last_loss[at.numpy()] = losses.detach().cpu()

    def _evaluate(self) -> None:
        with self.watch("evaluation"):
            self.right, loss = evaluate(self.model, self.held_out.images, self.held_out.labels)
        seconds = self.watch.seconds
        self.curve.append(
            {
                "backprops": self.backprops,
                "scored": self.scored,
                "error": 100 * (1 - float(self.right.double().mean())),
                "loss": loss,
                "altered": self.altered_backprops,
                "seconds": sum(seconds.get(name, 0.0) for name in PARTS),
            }
        )

    def result(self) -> dict[str, Any]:
        """What was measured, as plain values.

        error: %, after the last step; class_errors: of each class. curve: at each evaluation, counts and seconds from
        the run's beginning. altered_share: of the examples back-propagated. seconds: by ``PARTS``, and "evaluation".
        detection: how well ``score`` tells the altered examples (None where there are none): auroc; and of what is
        set aside in the end: precision, recall, and aside_unaltered, the share of the unaltered that is. guard: its
        verdict and what it went by.
        """
        policy = self.loader.store.policy
        aside = policy.aside(self.loader.store) if isinstance(policy, NoiseGuard) else None
        score = self.last_loss
        if isinstance(policy, NoiseGuard):
            store = self.loader.store
            score = np.where(store.seen(), store.column("smoothed"), np.float32(np.nan))
        return {
            "error": self.curve[-1]["error"],
            "class_errors": self._class_errors(),
            "curve": self.curve,
            "epochs": self.epoch,
            "backprops": self.backprops,
            "scored": self.scored,
            "altered_share": self.altered_backprops / self.backprops,
            "seconds": {name: self.watch.seconds.get(name, 0.0) for name in (*PARTS, "evaluation")},
            "detection": _detection(self.altered, score, aside),
            "guard": None
            if not isinstance(policy, NoiseGuard)
            else {"verdict": policy.verdict, "tau": policy.state["probed_tau"]},
        }

    def _class_errors(self) -> list[float]:
        """Of the last evaluation."""
        labels, classes = self.held_out.labels, self.setting.classes
        counts = torch.bincount(labels, minlength=classes).clamp(min=1)
        errors: list[float] = (100 * torch.bincount(labels[~self.right], minlength=classes) / counts).tolist()
        return errors


def _detection(altered: Any, score: Any, aside: Any) -> dict[str, float | None]:
    """How well a score, and what was set aside (None: nothing can be), tell the altered examples."""
    known = ~np.isnan(score)
    found: dict[str, float | None] = dict.fromkeys(("auroc", "precision", "recall", "aside_unaltered"))
    if altered[known].any() and not altered[known].all():
        from sklearn.metrics import roc_auc_score

        found["auroc"] = float(roc_auc_score(altered[known], score[known]))
    if aside is not None:
        right = int((aside & altered).sum())
        found["aside_unaltered"] = float((aside & ~altered).sum() / max(1, (~altered).sum()))
        found["precision"] = right / int(aside.sum()) if aside.any() else None
        found["recall"] = right / int(altered.sum()) if altered.any() else None
    return found
