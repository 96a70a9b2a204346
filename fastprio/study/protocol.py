"""What all runs of a study have in common, and what one of them is."""

from __future__ import annotations

from dataclasses import dataclass

from fastprio.study.files import StudyError

LEAST = {"examples": 1, "validation": 0, "epochs": 1, "batch_size": 1, "shift": 0, "evaluations": 2, "probe": 1}
"""The smallest numbers that these settings may be."""


@dataclass(frozen=True)
class Protocol:
    """The settings of all runs.

    Args:
        name: of the preset that it began as. data, model: as ``data.load`` and ``models.make_model`` take them.
        examples: how many a run trains on, chosen by its seed. validation: how many of the others, clean, are held out.
        evaluate: what the error is measured on, "test" or "validation".
        epochs, batch_size: of uniform training; epochs * examples is its budget of backprops.
        lr: the highest learning rate, reached by a line over the share ``warm_up`` of the run, and multiplied with
            ``factor`` at each share of the run in ``drops``. momentum: Nesterov's.
        shift: training images are moved at random by up to so many pixels in each direction; flip: and mirrored.
        evaluations: how many a run has, evenly spaced, the last one at its end.
        ies_threshold, probe: arguments of InstanceEarlyStopping and of NoiseGuard, which no default suits everywhere.
        device: of torch.
    """

    name: str
    data: str
    model: str
    examples: int
    validation: int
    epochs: int
    batch_size: int
    lr: float
    warm_up: float = 0.05
    drops: tuple[float, ...] = (0.6, 0.8)
    factor: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 0
    flip: bool = False
    evaluate: str = "test"
    evaluations: int = 20
    ies_threshold: float = 1e-3
    probe: int = 1
    device: str = "cpu"

    def check(self) -> None:
        """Raises StudyError for a setting out of range."""
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise StudyError(f"{name} = {getattr(self, name)}: expected at least {least}")
        if self.probe > self.epochs:
            raise StudyError(f"probe = {self.probe}: expected at most epochs = {self.epochs}")
        for name in ("lr", "factor", "ies_threshold"):
            if not 0 < getattr(self, name) < float("inf"):
                raise StudyError(f"{name} = {getattr(self, name)}: expected a finite number above 0")
        if not 0 <= self.weight_decay < float("inf"):
            raise StudyError(f"weight_decay = {self.weight_decay}: expected a finite number >= 0")
        if not 0 <= self.warm_up <= 1:
            raise StudyError(f"warm_up = {self.warm_up}: expected 0 <= warm_up <= 1")
        if not 0 < self.momentum < 1:
            raise StudyError(f"momentum = {self.momentum}: expected 0 < momentum < 1, as Nesterov's needs")
        for at in self.drops:
            if not 0 <= at <= 1:
                raise StudyError(f"drops: {at}: expected a share of the run, in [0, 1]")
        if self.evaluate not in ("test", "validation"):
            raise StudyError(f"evaluate = {self.evaluate!r}: expected test or validation")
        if self.evaluate == "validation" and not self.validation:
            raise StudyError("evaluate = 'validation': expected validation >= 1")

    def learning_rate(self, progress: float) -> float:
        """At a share of the run, in [0, 1]."""
        rise = min(1.0, progress / self.warm_up) if self.warm_up else 1.0
        return self.lr * rise * self.factor ** sum(progress >= at for at in self.drops)


@dataclass(frozen=True, order=True)
class Cell:
    """One run: a method with a budget, on data with a corruption, with a seed.

    budget: share of uniform's backprops; what it means to a method is in ``methods``. lr_scale: of the learning rate.
    """

    kind: str
    level: float
    method: str
    budget: float
    seed: int
    lr_scale: float = 1.0

    @property
    def column(self) -> str:
        """The data: "labels 50", say; of rare classes the share that is kept, as in "rare 2"."""
        if self.kind == "clean" or ":" in self.kind:
            return self.kind
        return f"{self.kind} {100 * (1 - self.level if self.kind == 'rare' else self.level):g}"

    @property
    def row(self) -> str:
        """The method: "SB 33 %", say; without the share where it is 1."""
        scaled = "" if self.lr_scale == 1 else f", learning rate x {self.lr_scale:g}"
        return self.method + ("" if self.budget == 1 else f" {100 * self.budget:.0f} %") + scaled
