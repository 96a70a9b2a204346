"""The rows of the study: what each of them trains with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastprio import policies, selectors
from fastprio.policies import Policy
from fastprio.selectors import Selector
from fastprio.study.files import StudyError
from fastprio.study.protocol import Cell, Protocol

BACKPROPS, EPOCHS = "backprops", "epochs"


@dataclass(frozen=True)
class Setting:
    """What a method is made from: the protocol, the run, and how many classes there are."""

    protocol: Protocol
    cell: Cell
    classes: int

    @property
    def chance(self) -> float:
        """The loss of a guess."""
        return math.log(self.classes)


@dataclass(frozen=True)
class Method:
    """How to train.

    Args:
        what: one line for the report.
        policy: of the loader. selector: of its batches, None for none.
        ends: after ``budget`` of uniform's backprops, where the method may use any number; or after the protocol's
            epochs. That is also what the learning rate goes by.
        pooled: whether the loader's batches are as many times larger as ``budget`` is smaller than 1, so that about one
            batch of training comes from each; else they are those of training.
        oracle: whether the examples that were altered are taken away before.
    """

    what: str
    policy: Callable[[Setting], Policy]
    selector: Callable[[Setting], Selector] | None = None
    ends: str = EPOCHS
    pooled: bool = False
    oracle: bool = False

    def made_from(self, setting: Setting) -> dict[str, Any]:
        """Its policy and its selector with all their arguments, and when it ends, as plain values."""
        parts = {"policy": self.policy(setting), "selector": self.selector and self.selector(setting)}
        made = {name: part and {type(part).__qualname__: part.config()} for name, part in parts.items()}
        return {**made, "ends": self.ends, "pooled": self.pooled, "oracle": self.oracle}


def _uniform(s: Setting) -> Policy:
    return policies.Uniform()


def _guard(inner: Callable[[Setting], Policy]) -> Callable[[Setting], Policy]:
    return lambda s: policies.NoiseGuard(inner(s), s.chance, probe=s.protocol.probe)


def _infobatch(s: Setting) -> Policy:
    return policies.InfoBatch()


def _selective_backprop(s: Setting) -> selectors.SelectiveBackprop:
    """One primed epoch; 1 / (beta + 1) of the examples offered after it."""
    return selectors.SelectiveBackprop(s.protocol.batch_size, beta=1 / s.cell.budget - 1, seed=s.cell.seed)


METHODS: dict[str, Method] = {
    "uniform": Method("every example, once an epoch", _uniform, ends=BACKPROPS),
    "random subset": Method(
        "a random part of the examples each epoch, others in the next, fully annealed",
        lambda s: policies.RandomSubset(s.cell.budget),
    ),
    "SB": Method("Selective-Backprop", _uniform, _selective_backprop, BACKPROPS, pooled=True),
    "VR": Method(
        "variance-reduction importance sampling by losses, at most so much of what is offered: with the trigger and "
        "the weights of Katharopoulos and Fleuret, ICML 2018 (that of arXiv 2107.07741 seems to have had no weights)",
        _uniform,
        lambda s: selectors.VarianceReduction(s.protocol.batch_size, seed=s.cell.seed),
        pooled=True,
    ),
    "InfoBatch": Method("random pruning of easy examples, rescaled", _infobatch),
    "IES": Method(
        "instance-dependent early stopping (its code's threshold is 0.001, for 200 epochs)",
        lambda s: policies.InstanceEarlyStopping(s.protocol.ies_threshold),
    ),
    "guarded SB": Method(
        "NoiseGuard around Selective-Backprop",
        _guard(_uniform),
        lambda s: selectors.NoiseGuard(_selective_backprop(s)),
        BACKPROPS,
        pooled=True,
    ),
    "guarded InfoBatch": Method("NoiseGuard around InfoBatch", _guard(_infobatch)),
    "guarded uniform": Method("NoiseGuard around uniform epochs", _guard(_uniform), ends=BACKPROPS),
    "oracle SB": Method(
        "Selective-Backprop without the altered examples, as if they were known",
        _uniform,
        _selective_backprop,
        BACKPROPS,
        pooled=True,
        oracle=True,
    ),
}


def find(name: str) -> Method:
    """The method of that name. Raises StudyError for another one."""
    if name not in METHODS:
        raise StudyError(f"method = {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]
