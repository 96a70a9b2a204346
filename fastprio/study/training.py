"""One run of the study: a method trains a model, and everything that the report needs is measured."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from fastprio.loader import PriorityLoader
from fastprio.policies import NoiseGuard, observations
from fastprio.study.data import Split, identity
from fastprio.study.examples import Examples, part_of
from fastprio.study.files import StudyError
from fastprio.study.methods import BACKPROPS, Setting, find
from fastprio.study.models import evaluate, make_model
from fastprio.study.protocol import Cell, Protocol
from fastprio.study.watch import OnTheClock, Watch

PARTS = ("loading", "choosing", "scoring", "forward", "backward")
"""What a run's seconds are made of; evaluation is beside them."""


@contextlib.contextmanager
def as_a_study() -> Iterator[None]:
    """Runs are on one thread. An epoch without a whole batch is not warned of: a run says so where it cannot go on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"epoch \d+ has no batch", UserWarning)
            yield
    finally:
        torch.set_num_threads(threads)


class _DivergedError(Exception):
    """A loss is not finite."""


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


def _moved(split: Split, device: str) -> Split:
    return Split(split.images.to(device), split.labels.to(device))


class Run:
    """A run. ``steps()`` trains; ``result()`` is what it measured.

    Raises: StudyError: a protocol or a cell that does not fit the data.
    """

    def __init__(self, protocol: Protocol, cell: Cell) -> None:
        self.protocol, self.cell = protocol, cell
        try:
            torch.empty(0, device=protocol.device)
        except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
            raise StudyError(f"device = {protocol.device!r}: {str(error).splitlines()[0]}") from error
        # What an accelerator is still at would be on the clock of whatever waits for it next.
        kind = torch.device(protocol.device).type
        self.watch = Watch(None if kind == "cpu" else getattr(torch, kind).synchronize)
        part = part_of(protocol, cell)
        self.held_out, self.altered = _moved(part.held_out, protocol.device), part.altered
        self.method, self.setting = find(cell.method), Setting(protocol, cell, part.classes)
        # Of the examples that there are, the altered ones too where an oracle takes them away.
        self.budget = round(cell.budget * len(self.altered) * protocol.epochs)
        if self.method.oracle:
            part = part.without_altered()
            self.altered = part.altered
        _, channels, *size = part.train.images.shape
        torch.manual_seed(cell.seed)
        try:
            model = make_model(protocol.model, channels, (size[0], size[1]), part.classes)
        except ValueError as error:
            raise StudyError(f"{error} (images of {protocol.data} are {list(part.train.images.shape[1:])})") from error
        self.model: nn.Module = model.to(protocol.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            protocol.lr,
            momentum=protocol.momentum,
            nesterov=True,
            weight_decay=protocol.weight_decay,
        )
        self.examples = Examples(part.train, part.black, protocol.shift, protocol.flip, cell.seed, self.watch)
        self.pool = round(protocol.batch_size * (1 / cell.budget if self.method.pooled else 1.0))
        self.loader = _Loader(
            self.examples,
            self.pool,
            policy=self.method.policy(self.setting),
            epochs=None if self.method.ends == BACKPROPS else protocol.epochs,
            seed=cell.seed,
            drop_last=True,  # a step from the few examples at an epoch's end would be as long as any, and mostly noise
            collate_fn=identity,
        )
        self.loader.on_the_clock(self.watch)
        self.selector = None if self.method.selector is None else self.method.selector(self.setting)
        self.epoch = self.backprops = self.scored = 0
        self.diverged = False
        self.aside: list[dict[str, float]] = []
        self.altered_backprops = 0
        self.last_loss = np.full(len(part.train), np.nan, np.float32)
        self.curve: list[dict[str, float | None]] = []
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
        """Trains to the end, a batch whenever the iterator is advanced. What passes between is on no clock.

        A run that diverges is over at once, and is measured as it is.

        Raises: StudyError: too few examples for a batch.
        """
        try:
            yield from self._epochs()
        except _DivergedError:
            self.diverged = True
        if not self.backprops:
            raise StudyError(f"{self.cell.row}: no whole batch came of {len(self.altered)} examples")
        while len(self.curve) < self.protocol.evaluations:
            self._evaluate()

    def _epochs(self) -> Iterator[None]:
        while not self.over:
            self.examples.begin(self.epoch)
            for number, (at, images, labels) in enumerate(self.watch.each("choosing", self._batches())):
                if number == 0:
                    self._note_aside()
                self._step(at, images, labels)
                with self.watch(""):
                    yield
                if self.method.ends == BACKPROPS and self.over:
                    break
            else:
                if self.method.ends == BACKPROPS and not self.examples.offered:
                    raise StudyError(
                        f"{self.cell.row}: less than a batch of {self.pool} is left of {len(self.altered)} examples"
                    )
                self._score_the_rest()
            self.epoch += 1

    def _batches(self) -> Iterator[Any]:
        if self.selector is None:
            return iter(self.loader)
        return self.selector.batches(self.loader, self._score, drop_last=True)

    def _step(self, at: Tensor, images: Tensor, labels: Tensor) -> None:
        """One update of the parameters."""
        with self.watch("forward"):
            logits, losses, labels = self._forward(images, labels)
        with self.watch(""):
            self.backprops += len(at)
            self.altered_backprops += int(self.altered[at.numpy()].sum())
            self._note(at, losses)
            for group in self.optimizer.param_groups:  # of where the run is with this batch: never 0
                group["lr"] = self.cell.lr_scale * self.protocol.learning_rate(self.progress)
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
        with self.watch("choosing"):  # but for what loads and forwards in it
            self.loader.score(self.model, lambda _, batch: self._score(batch))

    def _note_aside(self) -> None:
        policy, store = self.loader.store.policy, self.loader.store
        if isinstance(policy, NoiseGuard):
            with self.watch(""):
                aside = policy.aside(store)
                unaltered = float((aside & ~self.altered).sum() / max(1, (~self.altered).sum()))
                self.aside.append({"all": float(aside.mean()), "unaltered": unaltered})

    def _note(self, at: Tensor, losses: Tensor) -> None:
        self.last_loss[at.numpy()] = losses.detach().cpu()
        if not np.isfinite(self.last_loss[at.numpy()]).all():
            raise _DivergedError

    def _evaluate(self) -> None:
        with self.watch("evaluation"):
            self.right, loss = evaluate(self.model, self.held_out.images, self.held_out.labels)
        seconds = self.watch.seconds
        self.curve.append(
            {
                "backprops": self.backprops,
                "scored": self.scored,
                "error": 100 * (1 - float(self.right.double().mean())),
                "loss": loss if np.isfinite(loss) else None,
                "altered": self.altered_backprops,
                "seconds": sum(seconds.get(name, 0.0) for name in PARTS),
            }
        )

    def result(self) -> dict[str, Any]:
        """What was measured, as plain values.

        error: %, after the last step; class_errors: of each class. diverged: a loss was not finite, and the run ended.
        curve: at each evaluation, counts and seconds from the run's beginning. altered_share: of the examples
        back-propagated. seconds: by ``PARTS``, and "evaluation". detection: how well ``score`` tells the altered
        examples (None where there are none): auroc; and of what is set aside in the end: precision, recall, and
        aside_unaltered, the share of the unaltered that is. guard: its verdict and what it went by; aside: at each
        epoch's first step, the shares of all and of the unaltered examples that are set aside.
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
            "diverged": self.diverged,
            "curve": self.curve,
            "epochs": self.epoch,
            "backprops": self.backprops,
            "scored": self.scored,
            "altered_share": self.altered_backprops / self.backprops,
            "seconds": {name: self.watch.seconds.get(name, 0.0) for name in (*PARTS, "evaluation")},
            "detection": _detection(self.altered, score, aside),
            "guard": None
            if not isinstance(policy, NoiseGuard)
            else {"verdict": policy.verdict, "tau": policy.probed_tau, "aside": self.aside},
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
        found["auroc"] = float(roc_auc_score(altered[known], score[known]))
    if aside is not None:
        right = int((aside & altered).sum())
        found["aside_unaltered"] = float((aside & ~altered).sum() / max(1, (~altered).sum()))
        found["precision"] = right / int(aside.sum()) if aside.any() else None
        found["recall"] = right / int(altered.sum()) if altered.any() else None
    return found
